"""A sweep in a process of its own, watched by one that holds nothing that can break: where a method hangs, crashes or eats all
memory, its process ends, the cell has its reason, and another process goes on with the others.

The supervisor loads no model, no plugin and no torch. The worker is the whole sweep, terminal included; when it starts anew it
finds its state in the run folder, and in its orders what the earlier ones died of.
"""

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing import connection
from pathlib import Path

import tokred
from tokred.open_files import Died, end_like, how_it_ended, opened_in
from tokred.sweeps.watch import IN_A_ROW, Death, Orders, Task, Watch

Run = Callable[[Sequence[str], Watch], int]  # the words, and whom to tell; gives the exit code
PRELOADED = [
    "tokred.sweeps.run",
    "tokred.analysis.figures",
    "torch._dynamo",
]  # and with them timm and Lightning; no plugins
GRACE_S = 10.0  # to leave, once it has said its exit code
SHOW_CURSOR = "\x1b[?25h"  # a bar hides it, and a process that is killed does not bring it back


def supervised(words: Sequence[str], run: Run) -> int:
    """The exit code of ``run(words, watch)``, which is a function that a new process finds by its name. Once all that is left is
    to leave, Ctrl+C is ignored."""
    try:
        return _supervised(words, run)
    except KeyboardInterrupt:  # there is no worker, or it has no more time
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise


def end_server() -> None:
    """Ends at once what new processes are copied from, which else takes seconds to leave."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return
    from multiprocessing import forkserver

    pid = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]  # nothing public says it
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _supervised(words: Sequence[str], run: Run) -> int:
    context, orders = _context(), Orders()
    while True:
        with tempfile.TemporaryDirectory(prefix="tokred-", ignore_cleanup_errors=True) as folder:
            worker = _Worker(context, words, replace(orders, open_files=Path(folder)), run)
            try:
                ended = worker.ended()
            finally:
                worker.kill()
                _remove_left_by(worker.pid)
        if isinstance(ended, int):
            return ended
        if sys.stdout.isatty():
            print(SHOW_CURSOR, end="", flush=True)
        orders = worker.orders.after(worker.task, ended, worker.file)
        if orders.apart == IN_A_ROW:
            where = f"in {worker.task.what}, {IN_A_ROW} times in a row"
            print(f"error: the process of the sweep {ended.reason}, {where}", file=sys.stderr)
            return 4 if worker.task.what == "planning" else 3


class _Worker:
    """One process, and what it said last. ``file``: what it was reading when it died."""

    def __init__(self, context, words: Sequence[str], orders: Orders, run: Run):
        self.task, self.orders, self._is_asked = Task("planning"), orders, False
        self._code: int | None = None
        self.file: str | None = None
        self._heard = time.monotonic()
        self._told, told = context.Pipe(duplex=False)
        self._process = context.Process(target=_work, args=(list(words), orders, told, run, dict(os.environ)))
        try:
            self._process.start()
        finally:
            told.close()

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def ended(self) -> int | Death:
        """Waits for it: the code it ended with, or how it died."""
        while self._process.is_alive() and self._code is None:
            try:
                if self._is_silent():
                    self.file = self._longest_open()
                    self.kill()
                    return Death(
                        "timeout",
                        f"gave no sign of progress for {self.task.limit_s:g} s (timeout={self.task.limit_s:g})",
                    )
                connection.wait([self._told, self._process.sentinel], timeout=1.0)
                self._listen()
            except KeyboardInterrupt:
                if self._is_asked:
                    raise
                self._ask_to_stop()
        if self._is_asked:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._process.join(GRACE_S)
        self.kill()  # and what it started
        self._listen()
        return self._death() if self._code is None else self._code

    def kill(self) -> None:
        """With all that it started."""
        if self._process.pid is None:
            return
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (AttributeError, ProcessLookupError, PermissionError):  # not POSIX, all gone, or not yet a group
            self._process.kill()
        self._process.join()

    def _listen(self) -> None:
        try:
            while self._told.poll():
                self._hear(self._told.recv())
        except (EOFError, OSError):  # it has ended
            return

    def _hear(self, said: Task | int | None) -> None:
        self._heard = time.monotonic()
        if isinstance(said, int):
            self._code = said
        elif said is not None:
            self.orders = self.orders.survived(self.task)
            self.task = said

    def _is_silent(self) -> bool:
        return self.task.limit_s is not None and time.monotonic() - self._heard > self.task.limit_s

    def _ask_to_stop(self) -> None:
        """At the first Ctrl+C: it says itself how to go on."""
        self._is_asked = True
        if self._process.pid is not None:
            os.kill(self._process.pid, signal.SIGINT)

    def _death(self) -> Death:
        assert self.orders.open_files is not None
        opened = opened_in(self.orders.open_files).get(self._process.pid or 0)
        self.file = None if opened is None else opened.path
        return Death(*how_it_ended(self._process.exitcode or 0))

    def _longest_open(self) -> str | None:
        """Of itself and of those that read for it; None where none has been reading for most of the time it was silent."""
        assert self.orders.open_files is not None and self.task.limit_s is not None
        began = time.monotonic() - self.task.limit_s / 2
        opened = [one for pid, one in opened_in(self.orders.open_files).items() if one.since < began and _lives(pid)]
        return min(opened, key=lambda one: one.since).path if opened else None


def _lives(pid: int) -> bool:
    """As far as that can be asked here."""
    try:
        if os.name == "posix":
            os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _remove_left_by(pid: int | None) -> None:
    """The folders of a process for what is there only while it is (``tokred.devices``)."""
    for folder in Path(tempfile.gettempdir()).glob(f"tokred-of-{pid}-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _context():
    """Processes that are quick to start: copies of one that has imported much and done nothing, and that ignores Ctrl+C."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    handler, before = signal.signal(signal.SIGINT, signal.SIG_IGN), dict(os.environ)
    os.environ |= own_environment()
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, handler)
        _set_environment(before)
    return context


def own_environment() -> dict[str, str]:
    """In which Python finds this very tokred, and no module of the folder that the user happens to be in."""
    roots = [str(Path(tokred.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    return dict(os.environ) | {"PYTHONPATH": os.pathsep.join(filter(None, roots)), "PYTHONSAFEPATH": "1"}


def _set_environment(wanted: dict[str, str]) -> None:
    for name in os.environ.keys() - wanted.keys():
        del os.environ[name]
    os.environ.update(wanted)


def _work(words: list[str], orders: Orders, told: connection.Connection, run: Run, environment: dict[str, str]) -> None:
    """In the new process. It has a group of its own: a terminal's Ctrl+C reaches it through its supervisor, once."""
    _set_environment(environment)
    if hasattr(os, "setpgrp"):
        os.setpgrp()
        signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_end_with_supervisor, args=(orders.open_files,), daemon=True).start()
    code = 1
    try:
        code = run(words, Watch(orders, told.send))
    except Died as other:
        sys.stdout.flush()
        assert orders.open_files is not None
        end_like(other, orders.open_files)
    except KeyboardInterrupt:  # before it has begun
        code = 130
    except Exception:  # a mistake of tokred's own
        traceback.print_exc()
    sys.stdout.flush()
    told.send(code)
    sys.exit(code)


def _end_with_supervisor(folder: Path) -> None:
    """And removes what that one would have."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    shutil.rmtree(folder, ignore_errors=True)
    _remove_left_by(os.getpid())
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
