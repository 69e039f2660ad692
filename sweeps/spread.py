"""A sweep spread over processes, of this machine or of others: each runs the same plan in the same run folder, where claims give
every cell to one of them (``tokred.sweeps.claims``), and holds one backbone and its data at a time. All that is told to them is
the command's words; all that comes back is what they write. So the folder is to be reachable under one path from everywhere.

Cells first, by as many as there are; then one of them times, with no other beside it.
"""

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from tokred.record import Store
from tokred.sweeps.claims import POLL_S

TRIES = 3  # of a process that is lost, in a row without a cell finished in between


@dataclass(frozen=True)
class Work:
    """What one process does: its part of the sweep, "cells" or "timings", as number ``index`` of ``total`` processes. ``place``:
    the folder that paths in the words start from. ``plan``: the hash of the keys of its cells. ``sweep``: its number among those
    that share the folder."""

    words: tuple[str, ...]
    folder: str
    place: str
    part: str
    plan: str
    sweep: int = 0
    index: int = 0
    total: int = 1

    @property
    def name(self) -> str:
        """Its own among all that work in the folder."""
        name = self.part if self.total == 1 else f"{self.part}-{self.index}"
        return f"{name}-of-sweep-{self.sweep}" if self.sweep else name

    @property
    def log(self) -> Path:
        """What it says."""
        return Path(self.folder) / "logs" / f"{self.name}.log"


@dataclass(frozen=True)
class End:
    """Of a process. ``error``: what it could not do, and no other could either. ``lost``: how it ended before its time, through
    no doing of its own: another may take its place."""

    error: str | None = None
    lost: str | None = None


class Handle(ABC):
    """A process that works somewhere."""

    @abstractmethod
    def ended(self) -> End | None:
        """None while it works, or waits for its turn."""

    @abstractmethod
    def kill(self) -> None:
        """At once; a claim of its own is free when its machine sees that, or a minute later. Also where it has ended."""


class Executor(AbstractContextManager["Executor"]):
    """Where processes of a sweep are started."""

    @abstractmethod
    def num_processes(self) -> int:
        """As many as there is room for, where the words do not say."""

    @abstractmethod
    def start(self, work: Work) -> Handle: ...

    def __exit__(self, *_: object) -> None:
        return None


def spread(
    executor: Executor, work: Work, num: int, store: Store, say: Callable[[str], None], look: Callable[[], None]
) -> None:
    """``num`` processes that do a part of the sweep, until all of it is done. One that is lost has another in its place. ``look``
    is called now and then. Raises ValueError where one cannot do its work, or too many were lost."""
    working = [_Working(executor, replace(work, index=index, total=num), say) for index in range(num)]
    try:
        for one in working:
            one.start()
        while any([one.goes_on(_progress(store)) for one in working]):
            look()
            time.sleep(POLL_S)
    finally:
        for one in working:
            one.kill()


class _Working:
    """One of the processes, whichever it is by now."""

    def __init__(self, executor: Executor, work: Work, say: Callable[[str], None]):
        self._executor, self._work, self._say = executor, work, say
        self._handle: Handle | None = None
        self._tries, self._progress = 0, -1

    def start(self) -> None:
        self._work.log.parent.mkdir(exist_ok=True)
        self._handle = self._executor.start(self._work)

    def goes_on(self, progress: int) -> bool:
        """Whether it has not ended; one that was lost is started again, as long as there is ``progress``."""
        if self._handle is None:
            return False
        end = self._handle.ended()
        if end is None:
            return True
        self.kill()
        if end.error is not None:
            raise ValueError(f"process {self._work.name} of the sweep stopped: {end.error}; see {self._work.log}")
        if end.lost is None:
            return False
        self._tries = 1 if progress > self._progress else self._tries + 1
        self._progress = progress
        if self._tries > TRIES:
            raise ValueError(
                f"process {self._work.name} of the sweep was lost {self._tries} times in a row, at last as it {end.lost}; "
                f"the finished cells are kept: the same command goes on from here; see {self._work.log}"
            )
        self._say(f"process {self._work.name} {end.lost}: another takes its place")
        self.start()
        return True

    def kill(self) -> None:
        if self._handle is not None:
            self._handle.kill()
            self._handle = None


def _progress(store: Store) -> int:
    """Grows with each record and timing."""
    return sum(1 for folder in (store.cells, store.timings) for name in os.listdir(folder) if name.endswith(".json"))


def words_of(words: Sequence[str]) -> tuple[str, ...]:
    """Those of a sweep that matter to its processes."""
    own = ("out=", "executor=", "processes=", "resources.", "resources=", "slurm.", "slurm=", "retry=", "loggers=")
    return tuple(word for word in words if not word.lstrip("+").startswith(own))
