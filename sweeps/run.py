"""Runs a plan: the cells of each backbone to records, then their timing, interleaved."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tokred.data import DataSource
from tokred.lit import EvaluationData
from tokred.record import Store, write_json
from tokred.sweeps import tracing
from tokred.sweeps.accuracy import Bench, finished_model, passes, run_pass
from tokred.sweeps.conditions import device_of
from tokred.sweeps.config import SweepConfig
from tokred.sweeps.plan import Cell, Group, build_backbone, build_task
from tokred.sweeps.speed import measure, open_measurements
from tokred.tasks.task import reason_of

AS_IT_IS: Any = {"highlight": False, "markup": False, "soft_wrap": True}  # for the console: a name may hold brackets


@dataclass(frozen=True)
class Tally:
    """How the cells of a plan stand."""

    done: int
    refused: int
    failed: int
    kept: int  # of all these, records that were there before


def run_plan(plan: Sequence[Group], config: SweepConfig, data: DataSource, store: Store, console: Console) -> Tally:
    """Runs what has no record yet. The cells of one pass over the data are on disk before the next pass begins."""
    cells = [cell for group in plan for cell in group.cells]
    to_time = config.timing.measurements
    write_json(store.folder / "plan.json", {"keys": [cell.key for cell in cells], "timings": to_time})
    kept = sum(_finished(cell, store) for cell in cells)
    with _quiet(), _progress(console) as progress:
        for number, group in enumerate(plan, start=1):
            _run_group(group, config, data, store, progress, f"{group.backbone} ({number}/{len(plan)})")
    statuses = [record.status for cell in cells if (record := store.get(cell.key)) is not None]
    failed = statuses.count("failed") + statuses.count("invalid")
    return Tally(statuses.count("done"), statuses.count("refused"), failed, kept)


def _finished(cell: Cell, store: Store) -> bool:
    """A cell that failed is tried again."""
    record = store.get(cell.key)
    return record is not None and record.status != "failed"


def _run_group(
    group: Group, config: SweepConfig, data: DataSource, store: Store, progress: Progress, title: str
) -> None:
    open_cells = [cell for cell in group.cells if not _finished(cell, store)]
    asked = tracing.wanted(group, data, store, config.traces)
    untraced = tracing.untraced(group, asked, store)
    if not open_cells and not untraced and not open_measurements(group, config, store):
        return
    backbone = build_backbone(config, data, group.backbone, group.weights).to(device_of(config))
    samples = EvaluationData(data, backbone, batch_size=config.batch_size, num_workers=config.workers)
    bench = Bench(group, backbone, build_task(config, data, backbone), samples, config, store)
    total = len(open_cells) * len(samples.batches)
    task = progress.add_task(title, total=total)
    for cells in passes(open_cells, bench):
        named = cells[0].label if len(cells) == 1 else f"{len(cells)} cells"
        progress.update(task, description=f"{title}: {named}")
        for cell, record in run_pass(cells, bench, on_batch=partial(progress.advance, task, len(cells))):
            if progress.disable:  # no terminal to draw a bar on
                progress.console.print(f"{title}: {cell.label}: {record.status}", **AS_IT_IS)
    progress.update(task, description=f"{title}: accuracy", completed=total)
    _trace(bench, progress, title)
    for measurement in open_measurements(group, config, store):
        store.add_timing(measure(measurement, bench, progress, title))


def _trace(bench: Bench, progress: Progress, title: str) -> None:
    """Of the cells that have none of these samples yet. What goes wrong in one is said, and the others go on."""
    asked = tracing.wanted(bench.group, bench.samples.source, bench.store, bench.config.traces)
    cells = tracing.untraced(bench.group, asked, bench.store)
    if not cells:
        return
    task, samples = progress.add_task(f"{title}: traces", total=len(cells)), None
    for cell in cells:
        try:
            samples = samples or tracing.read(asked, bench)
            arrays = tracing.arrays(finished_model(cell, bench), samples, bench)
            if cell.key == bench.group.cells[0].key:
                arrays |= tracing.pictures(samples, bench.backbone.grid)
            bench.store.add_trace(cell.key, arrays)
        except Exception as error:  # a plugin can raise anything; the record is there
            progress.console.print(f"{title}: {cell.label}: not traced: {reason_of(error)}", **AS_IT_IS)
        progress.advance(task)


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
