"""Which file a process is reading, kept where it outlives the process. A decoder that crashes, hangs or eats all memory takes its
process with it; from here others learn what it died over, and leave that file out as one that cannot be read.

    FOLDER/PID    when the process began to read, in seconds of time.monotonic; the length of the path, 0: it reads none; the path
"""

import mmap
import os
import signal
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

HEAD = struct.Struct("<dI")
PAGE = 8192  # bytes; a path has at most 4096
MOST = 50  # files that processes may die over: where every file kills, it is not the files


class Opened(NamedTuple):
    """A file that a process is reading, or was when it died; since when, as ``time.monotonic`` has it."""

    path: str
    since: float


class Died(Exception):
    """Another process that works for this one ended before its work did."""

    def __init__(self, pid: int, exit_code: int):
        super().__init__(f"a process of the pass {how_it_ended(exit_code)[1]}")
        self.pid, self.exit_code = pid, exit_code


class OpenFiles:
    """Those of this process and of the ones it starts. Without a ``folder`` nothing is noted. ``refused``: path -> why it is not
    opened any more."""

    def __init__(self, folder: Path | None = None, refused: Mapping[str, str] | None = None):
        self.folder, self.refused = folder, dict(refused or {})
        self._suspects: set[str] = set()
        self._page: tuple[int, mmap.mmap] | None = None  # a process that was forked has the page of another

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_page": None}

    @contextmanager
    def reading(self, path: str) -> Iterator[None]:
        """Costs a few microseconds: memory is written, and the system keeps it when the process is gone."""
        if self.folder is None:
            yield
            return
        page, name = self._own_page(self.folder), os.fsencode(path)[: PAGE - HEAD.size]
        page[HEAD.size : HEAD.size + len(name)] = name
        HEAD.pack_into(page, 0, time.monotonic(), len(name))
        try:
            yield
        finally:
            HEAD.pack_into(page, 0, 0.0, 0)

    def died(self, exit_codes: Mapping[int, int]) -> bool:
        """Takes note of processes that died, their ids with their exit codes. Whether it was over a file, so that it makes sense
        to go on: it is refused, of what was killed from outside only when it happens again."""
        known = len(self.refused) + len(self._suspects)
        for pid, opened in (opened_in(self.folder) if self.folder else {}).items():
            if pid not in exit_codes:
                continue
            kind, reason = how_it_ended(exit_codes[pid])
            if kind == "killed" and opened.path not in self._suspects:
                self._suspects.add(opened.path)
            else:
                self.refused[opened.path] = f"reading it {reason}"
            (self.folder / str(pid)).unlink()  # type: ignore[operator]
        return known < len(self.refused) + len(self._suspects) <= MOST

    def _own_page(self, folder: Path) -> mmap.mmap:
        if self._page is None or self._page[0] != os.getpid():
            with open(folder / str(os.getpid()), "w+b") as file:
                file.truncate(PAGE)
                self._page = os.getpid(), mmap.mmap(file.fileno(), PAGE)
        return self._page[1]


def opened_in(folder: Path) -> dict[int, Opened]:
    """By process what it is reading, or was when it died."""
    found = {}
    for page in folder.iterdir():
        content = page.read_bytes()
        since, length = HEAD.unpack_from(content) if len(content) >= HEAD.size else (0.0, 0)
        if length:
            found[int(page.name)] = Opened(os.fsdecode(content[HEAD.size : HEAD.size + length]), since)
    return found


def end_like(other: Died, folder: Path) -> NoReturn:
    """Ends this process as the other one did, over the same file: who watches this one alone sees what it came to."""
    if (page := folder / str(other.pid)).is_file():
        page.replace(folder / str(os.getpid()))
    if other.exit_code < 0:
        os.kill(os.getpid(), -other.exit_code)
    os._exit(max(0, other.exit_code))


def how_it_ended(exit_code: int) -> tuple[str, str]:
    """The kind, as in a record, and what a process did, which ended before its work did."""
    if exit_code >= 0:
        return "crashed", f"ended its process, with exit code {exit_code}"
    named = -exit_code in {one.value for one in signal.Signals}
    name = signal.Signals(-exit_code).name if named else f"signal {-exit_code}"
    if -exit_code in (signal.SIGKILL, signal.SIGTERM):
        return "killed", f"was killed from outside ({name}), as a system does that runs out of memory"
    return "crashed", f"crashed its process ({name})"
