"""Where the commands write: to a pipe whose reader has left, a full disk, a stream that the caller closed, a terminal with few
letters. None of them may end in a traceback."""

import contextlib
import os
import sys

from tokred.terminal import PlainConsole

CLOSED_PIPE = 141  # what a shell says of a command that died of it: 128 and the number of SIGPIPE


class Printer(PlainConsole):
    """A console whose reader may leave: that is raised, where rich would end the process with code 1."""

    def on_broken_pipe(self) -> None:
        raise  # rich calls this while it handles the BrokenPipeError


def printer() -> Printer:
    """As wide as the terminal, or as COLUMNS says."""
    return Printer(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120)


def open_streams() -> None:
    """Opens those that the caller closed, to nothing: else the next file that is opened would take their numbers, and what is
    written to one would land in the other. Letters that a stream has not are written as their codes."""
    for number in range(3):
        with contextlib.suppress(OSError):
            os.fstat(number)
            continue
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it takes the lowest number that is free
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def drop_output() -> None:
    """What cannot be written goes nowhere, so that the end of the process does not try again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def tell(line: str) -> None:
    """To stderr, if anything takes it there."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)
