"""What a worker and its supervisor tell each other: what is being done now, and what earlier workers died of."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from tokred.open_files import MOST

BEAT_S = 1.0
IN_A_ROW = 3  # cells of one method whose process died: its other cells are not tried
TASKS = ("pass", "trace", "timing", "log")


@dataclass(frozen=True)
class Task:
    """``what``: one of TASKS, whose ``names`` are keys of cells, or that of a measurement or a logger; or a part of the sweep
    that is no cell's. ``limit_s``: how long it may give no sign of progress."""

    what: str
    names: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    batch_size: int = 1
    limit_s: float | None = None


@dataclass(frozen=True)
class Death:
    """How a worker ended in the middle of a task; ``kind`` as in a record."""

    kind: str
    reason: str


@dataclass(frozen=True)
class Orders:
    """``again``: this worker takes the place of one that died. ``alone``: cells that get a pass of their own, ``batch_sizes``: on
    other batches. ``failed``: cells that are not tried any more; ``given_up``: methods. ``skipped``: traces, timings and loggers.
    ``in_a_row``: of each method, how many cells failed so since the last that did not. ``open_files``: the folder where processes
    note what they read (``tokred.open_files``); ``refused``: path -> why it is not opened any more; ``suspects``: paths that
    processes read which were killed. ``apart``: how many workers in a row died in none of TASKS.
    """

    again: bool = False
    alone: frozenset[str] = frozenset()
    batch_sizes: Mapping[str, int] = field(default_factory=dict)
    failed: Mapping[str, Death] = field(default_factory=dict)
    given_up: Mapping[str, Death] = field(default_factory=dict)
    skipped: Mapping[tuple[str, str], str] = field(default_factory=dict)
    in_a_row: Mapping[str, int] = field(default_factory=dict)
    open_files: Path | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    suspects: frozenset[str] = frozenset()
    apart: int = 0

    def death_of(self, key: str, method: str) -> Death | None:
        return self.failed.get(key) or self.given_up.get(method)

    def after(self, task: Task, death: Death, file: str | None = None) -> "Orders":
        """Of a pass of several cells, each is tried alone. One that was killed is tried again, then on ever smaller batches: it
        may have been memory. A ``file`` that was being read is refused, for all cells alike, and the task done again; where the
        process was killed, only the second time. A sweep that was only planned begins anew."""
        again, apart = self.again or task.what != "planning", 0 if task.what in TASKS else self.apart + 1
        orders = replace(self, again=again, apart=apart, suspects=frozenset())
        if file is not None and len(self.refused) < MOST:
            if death.kind != "killed" or file in self.suspects:
                return replace(orders, refused={**self.refused, file: f"reading it {death.reason}"})
            if not self.suspects:
                return replace(orders, suspects=frozenset({file}))
        if task.what not in TASKS:
            return orders
        if task.what != "pass":
            return replace(orders, skipped={**self.skipped, (task.what, task.names[0]): death.reason})
        key = task.names[0]
        if len(task.names) > 1 or (death.kind == "killed" and key not in self.alone):
            return replace(orders, alone=self.alone | set(task.names))
        if death.kind == "killed" and task.batch_size > 1:
            return replace(orders, batch_sizes={**self.batch_sizes, key: task.batch_size // 2})
        return orders._without(key, task.methods[0], death)

    def _without(self, key: str, method: str, death: Death) -> "Orders":
        in_a_row = {**self.in_a_row, method: self.in_a_row.get(method, 0) + 1}
        orders = replace(self, failed={**self.failed, key: death}, in_a_row=in_a_row)
        if in_a_row[method] < IN_A_ROW:
            return orders
        reason = (
            f"not tried: with {method} {IN_A_ROW} cells in a row ended their process; of the last it {death.reason}"
        )
        return replace(orders, given_up={**self.given_up, method: replace(death, reason=reason)})

    def survived(self, task: Task) -> "Orders":
        """``task`` came to its end."""
        if task.what not in TASKS:
            return self
        in_a_row = {name: n for name, n in self.in_a_row.items() if name not in task.methods}
        return replace(self, in_a_row=in_a_row, apart=0)


class Watch:
    """A worker's side. Without ``tell`` nobody listens."""

    def __init__(self, orders: Orders | None = None, tell: Callable[[Task | None], None] = lambda _: None):
        self.orders, self._tell, self._told = orders or Orders(), tell, 0.0

    @contextmanager
    def during(self, task: Task) -> Iterator[None]:
        self._tell(task)
        yield
        self._tell(Task("between two cells"))

    def phase(self, what: str) -> None:
        self._tell(Task(what))

    def beat(self, *_: object) -> None:
        """A sign of progress; may be called at any rate."""
        if (now := time.monotonic()) - self._told >= BEAT_S:
            self._told = now
            self._tell(None)
