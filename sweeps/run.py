"""Runs a plan: the cells of each backbone to records, then their timing, interleaved."""

import logging
import math
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.nn.modules.module import register_module_forward_hook

from tokred.data import DataSource
from tokred.lit import EvaluationData
from tokred.record import Record, Store, key_of
from tokred.sealed import write_json
from tokred.sweeps import logs, tracing
from tokred.sweeps.accuracy import Bench, Verdict, finished_model, next_pass, record_of, run_pass
from tokred.sweeps.claims import POLL_S, SWEEP, Claims
from tokred.sweeps.conditions import device_of
from tokred.sweeps.config import SweepConfig
from tokred.sweeps.executors import executor_of
from tokred.sweeps.plan import Cell, Group, build_backbone, build_task
from tokred.sweeps.speed import is_measured, measure, open_measurements
from tokred.sweeps.spread import Work, spread, words_of
from tokred.sweeps.watch import Task, Watch
from tokred.tasks.task import reason_of

AS_IT_IS: Any = {"highlight": False, "markup": False, "soft_wrap": True}  # for the console: a name may hold brackets


@dataclass(frozen=True)
class Tally:
    """How the cells of a plan stand."""

    done: int
    refused: int
    failed: int
    kept: int  # of all these, records that were there before
    missing: int = 0  # without a record, as where another sweep tries them again


@dataclass(frozen=True)
class _Sweep:
    """What all groups of a plan have in common."""

    config: SweepConfig
    data: DataSource
    store: Store
    claims: Claims
    watch: Watch
    progress: Progress
    work: Work | None = None
    mute: set[str] = field(default_factory=set)  # loggers that failed

    @property
    def part(self) -> str | None:
        """None: all."""
        return None if self.work is None else self.work.part

    def share(self, num_cells: int) -> int:
        """How many cells a pass may take, so that others get theirs."""
        num = 1 if self.work is None else self.work.total
        return min(self.config.cells_per_pass, math.ceil(num_cells / num))

    def say(self, text: str) -> None:
        self.progress.console.print(text, **AS_IT_IS)


def run_plan(
    plan: Sequence[Group],
    config: SweepConfig,
    data: DataSource,
    store: Store,
    console: Console,
    *,
    watch: Watch | None = None,
    words: Sequence[str] = (),
) -> Tally:
    """Runs what has no record yet, in this process or in those of an executor (``tokred.sweeps.executors``). The cells of one
    pass over the data are on disk before the next pass begins. Of several processes that run a plan in one folder each runs
    other cells; all end when all cells are there."""
    cells, watch = [cell for group in plan for cell in group.cells], watch or Watch()
    with Claims(store.folder) as claims:
        number = claims.take_first(SWEEP)  # while no cell runs, others see by it that one may
        _begin(cells, config, store, words, claims, again=watch.orders.again)
        if config.executor == "local" and config.processes in (None, 1):
            watch.phase("between two cells")
            run_part(plan, config, data, store, console, watch)
        else:
            watch.phase("waiting for its processes")
            _spread(plan, config, data, store, console, words, number)
            with _quiet(), _progress(console) as progress:
                sweep = _Sweep(config, data, store, claims, watch, progress)
                for group in plan:
                    _log(group, sweep)
    statuses = Counter(record.status for cell in cells if (record := store.get(cell.key)) is not None)
    failed, missing = statuses["failed"] + statuses["invalid"], len(cells) - statuses.total()
    return Tally(statuses["done"], statuses["refused"], failed, store.plan()["kept"], missing)


def _begin(
    cells: Sequence[Cell], config: SweepConfig, store: Store, words: Sequence[str], claims: Claims, *, again: bool
) -> None:
    """Forgets what is to be tried again, and writes the plan; ``again``: where a worker before this one has not."""
    keys = [cell.key for cell in cells]
    plan = {"keys": keys, "timings": config.timing.measurements, "words": list(words), "started": time.time()}
    if again:
        there = store.plan()  # by now maybe another sweep's
        store.keep_to(there if there["keys"] == keys else plan | {"kept": 0})
        return
    for key in keys:
        _forget(key, config, store, claims)
    store.keep_to(plan | {"kept": sum(map(store.has, keys))})
    write_json(store.folder / "plan.json", store.plan())


def _forget(key: str, config: SweepConfig, store: Store, claims: Claims) -> None:
    """A record that is to be tried again. Where another process has the cell, that one is about to write it anew."""
    if not _is_tried_again(store.get(key), config) or not claims.take(key):
        return
    if _is_tried_again(store.get(key), config):  # nobody has done so meanwhile
        store.forget(key)
    claims.release(key)


def _is_tried_again(record: Record | None, config: SweepConfig) -> bool:
    """What was killed from outside always: that was not its own doing, or with more memory it may be otherwise."""
    if record is None:
        return False
    asked = config.retry == "failed" and record.status in ("failed", "invalid")
    return asked or (record.status == "failed" and record.kind == "killed")


def run_part(
    plan: Sequence[Group],
    config: SweepConfig,
    data: DataSource,
    store: Store,
    console: Console,
    watch: Watch,
    work: Work | None = None,
) -> None:
    """What one process runs of a plan: all that is open, or its part of the work. Where others have the last cells of a
    backbone it goes on to the next, and comes back to wait for them."""
    groups, last = list(enumerate(plan, start=1)), len(plan)
    if work is not None:
        begin = work.index * last // work.total  # so that not all load the same backbone first
        groups = groups[begin:] + groups[:begin]
    with _quiet(), _progress(console) as progress, Claims(store.folder) as claims:
        sweep = _Sweep(config, data, store, claims, watch, progress, work)
        for waits in (False, True):
            waiting = []
            for number, group in groups:
                if not _run_group(group, sweep, f"{group.backbone} ({number}/{last})", waits=waits):
                    waiting.append((number, group))
                elif work is None:
                    _log(group, sweep)
            groups = waiting


def _spread(
    plan: Sequence[Group],
    config: SweepConfig,
    data: DataSource,
    store: Store,
    console: Console,
    words: Sequence[str],
    number: int,
) -> None:
    """Over processes, of which none is started for a part that has nothing open."""
    parts = [part for part in ("cells", "timings") if _is_open(part, plan, config, data, store)]
    if not parts:
        return
    keys = [cell.key for group in plan for cell in group.cells]
    whole = Work(words_of(words), str(store.folder.resolve()), os.getcwd(), parts[0], key_of(keys), number)
    with _quiet(), _progress(console) as progress, executor_of(config) as executor:
        say = partial(progress.console.print, **AS_IT_IS)
        num = min(executor.num_processes(), len(keys)) if parts[0] == "cells" else 1
        say(
            f"{num} {'process' if num == 1 else 'processes'} ({config.executor}); what they say is in {store.folder}/logs"
        )
        bar = progress.add_task("cells", total=len(keys))

        def look() -> None:
            progress.update(bar, completed=sum(map(store.has, keys)))

        for part in parts:
            progress.update(bar, description="speed" if part == "timings" else part)
            spread(executor, replace(whole, part=part), num if part == "cells" else 1, store, say, look)


def _is_open(part: str, plan: Sequence[Group], config: SweepConfig, data: DataSource, store: Store) -> bool:
    """Whether there is something to do in a part. What is timed depends on the machine, which is known of this one alone."""
    if part == "timings" and not config.timing.measurements:
        return False
    if part == "timings" and (config.executor != "local" or config.resources.cpus):
        return True
    return not all(_is_over(group, part, config, data, store) for group in plan)


def _run_group(group: Group, sweep: _Sweep, title: str, *, waits: bool) -> bool:
    """Whether it is over; not where it ``waits`` for nobody and others have the last cells."""
    config, store = sweep.config, sweep.store
    if _is_over(group, sweep.part, config, sweep.data, store):
        return True
    backbone = build_backbone(config, sweep.data, group.backbone, group.weights).to(device_of(config))
    samples = EvaluationData(sweep.data, backbone, batch_size=config.batch_size, num_workers=config.workers)
    own = replace(config, cells_per_pass=sweep.share(len(group.cells)))
    bench = Bench(group, backbone, build_task(config, sweep.data, backbone), samples, own, store)
    if not _run_cells(bench, sweep, title, waits=waits):
        return False
    if sweep.part != "timings":
        _trace(bench, sweep, title)
    if sweep.part != "cells":
        _time(bench, sweep, title)
    return True


def _is_over(group: Group, part: str | None, config: SweepConfig, data: DataSource, store: Store) -> bool:
    if not all(store.has(cell.key) for cell in group.cells):
        return False
    if part != "timings" and tracing.untraced(group, tracing.wanted(group, data, store, config.traces), store):
        return False
    return part == "cells" or not open_measurements(group, config, store)


def _run_cells(bench: Bench, sweep: _Sweep, title: str, *, waits: bool) -> bool:
    """Whether all have a record, of whatever process; to wait for those that others have can be left for later."""
    progress, num_batches = sweep.progress, len(bench.samples.batches)
    left = {cell.key: cell for cell in bench.group.cells if not sweep.store.has(cell.key)}
    total = len(left) * num_batches
    bar = progress.add_task(title, total=total)
    while left:
        cells = next_pass(list(left.values()), bench, partial(_take, bench, sweep), sweep.watch.orders.alone)
        if cells:
            named = cells[0].label if len(cells) == 1 else f"{len(cells)} cells"
            progress.update(bar, description=f"{title}: {named}")
            for cell, record in _records(cells, bench, sweep, on_batch=partial(progress.advance, bar, len(cells))):
                sweep.claims.release(cell.key)
                del left[cell.key]
                if progress.disable:  # no terminal to draw a bar on
                    sweep.say(f"{title}: {cell.label}: {record.status}")
        elif not waits:
            return False
        else:  # others have them
            time.sleep(POLL_S)
            left = {key: cell for key, cell in left.items() if not sweep.store.has(key)}
            progress.update(bar, completed=total - len(left) * num_batches)
    progress.update(bar, description=f"{title}: accuracy", completed=total)
    return True


def _take(bench: Bench, sweep: _Sweep, cell: Cell) -> bool:
    """Whether this process is to run the cell. Where cells are compared with the unreduced model's predictions, they wait for
    them, or are in a pass with it."""
    first, store, claims = bench.group.cells[0].key, sweep.store, sweep.claims
    if bench.group.why and cell.key != first and not store.has(first) and not claims.holds(first):
        return False
    if not claims.take(cell.key):
        return False
    if store.has(cell.key):  # another has run it meanwhile
        claims.release(cell.key)
        return False
    return True


def _records(
    cells: Sequence[Cell], bench: Bench, sweep: _Sweep, on_batch: Callable[[], None]
) -> Iterator[tuple[Cell, Record]]:
    """Those that ended their process are recorded as failed; the others run."""
    orders, to_run = sweep.watch.orders, list[Cell]()
    for cell in cells:
        if (death := orders.death_of(cell.key, cell.spec["method"])) is None or cell.refused is not None:
            to_run.append(cell)
            continue
        record = record_of(cell, bench, Verdict("failed", death.reason, kind=death.kind))
        bench.store.add(record)
        yield cell, record
    if not to_run:
        return
    if size := orders.batch_sizes.get(to_run[0].key):
        bench = bench.with_batches_of(size)
    keys, methods = zip(*((cell.key, cell.spec["method"]) for cell in to_run))
    with (
        sweep.watch.during(Task("pass", keys, methods, bench.config.batch_size, sweep.config.timeout)),
        _heard(sweep.watch),
    ):
        yield from run_pass(to_run, bench, on_batch)


@contextmanager
def _heard(watch: Watch) -> Iterator[None]:
    """Every part of a model that comes to its end is a sign of progress."""
    hook = register_module_forward_hook(watch.beat)
    try:
        yield
    finally:
        hook.remove()


def _trace(bench: Bench, sweep: _Sweep, title: str) -> None:
    """Of the cells that have none of these samples yet. What goes wrong in one is said, and the others go on."""
    asked = tracing.wanted(bench.group, bench.samples.source, bench.store, bench.config.traces)
    cells = {f"{cell.key}.trace": cell for cell in tracing.untraced(bench.group, asked, bench.store)}
    if not cells:
        return
    bar, samples = sweep.progress.add_task(f"{title}: traces", total=len(cells)), None
    for name in sweep.claims.each(cells, lambda name: not tracing.is_traced(cells[name], asked, bench.store)):
        cell = cells[name]
        try:
            with _own(Task("trace", (cell.key,), (cell.spec["method"],)), sweep), _heard(sweep.watch):
                samples = samples or tracing.read(asked, bench)
                arrays = tracing.arrays(finished_model(cell, bench), samples, bench)
        except Exception as error:  # a plugin can raise anything; the record is there
            sweep.say(f"{title}: {cell.label}: not traced: {reason_of(error)}")
        else:
            if cell.key == bench.group.cells[0].key:
                arrays |= tracing.pictures(samples, bench.backbone.grid)
            bench.store.add_trace(cell.key, arrays)
        sweep.progress.advance(bar)


def _time(bench: Bench, sweep: _Sweep, title: str) -> None:
    found = {one.name: one for one in open_measurements(bench.group, bench.config, bench.store)}
    for name in sweep.claims.each(found, lambda name: not is_measured(name, bench.store)):
        try:
            with _own(Task("timing", (name,)), sweep):
                timing = measure(found[name], bench, sweep.progress, title, sweep.watch.beat)
        except Exception as error:  # in the middle of the rounds; the records are there
            said = reason_of(error) if isinstance(error, ValueError) else str(error)
            sweep.say(f"{title}: speed was not measured: {(said or type(error).__name__).splitlines()[0]}")
        else:
            bench.store.add_timing(timing)


def _log(group: Group, sweep: _Sweep) -> None:
    """A logger that something goes wrong with, as where its server is down, is not asked again in this sweep."""
    keys = [cell.key for cell in group.cells]
    found = {
        f"{logger}.{run.name}": (logger, run) for logger, run in logs.unlogged(sweep.config.loggers, keys, sweep.store)
    }
    for name in sweep.claims.each(found, lambda name: not logs.is_logged(*found[name], sweep.store)):
        logger, run = found[name]
        if logger in sweep.mute:
            continue
        try:
            with _own(Task("log", (logger,)), sweep):
                logs.log(logger, run, sweep.store)
        except Exception as error:  # of other people's code and servers; the records are there
            sweep.mute.add(logger)
            reason = (reason_of(error) or type(error).__name__).splitlines()[0]
            sweep.say(f"not logged to {logger}: {reason}; the same command tries again")


@contextmanager
def _own(task: Task, sweep: _Sweep) -> Iterator[None]:
    """Raises ValueError where an earlier process died of it."""
    if reason := sweep.watch.orders.skipped.get((task.what, task.names[0])):
        raise ValueError(f"it {reason}")
    with sweep.watch.during(replace(task, limit_s=sweep.config.timeout)):
        yield


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield progress


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's notes on hardware and workers, which repeat for every cell."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
