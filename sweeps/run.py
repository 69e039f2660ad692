"""Runs a plan: the cells of each backbone to records, then their timing, interleaved."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tokred import ReducedModel, timing
from tokred.data import DataSource
from tokred.lit import EvaluationData, autocast
from tokred.record import Store, Timing, key_of, write_json
from tokred.sweeps import tracing
from tokred.sweeps.accuracy import Bench, passes, run_pass
from tokred.sweeps.conditions import conditions_of, device_of
from tokred.sweeps.config import SweepConfig
from tokred.sweeps.plan import Cell, Group, build_backbone, build_method, build_task
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
    write_json(store.folder / "plan.json", {"keys": [cell.key for cell in cells]})
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
    if not open_cells and not untraced and not (config.timing.rounds and _untimed(group, config, store)):
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
    untimed = _untimed(group, config, store) if config.timing.rounds else []
    if not untimed:
        return
    try:
        _time(untimed, bench, progress, title)
    except RuntimeError as error:  # out of memory, mostly; the records are there
        advice = "; try a lower timing.batch_size" if "memory" in str(error) else ""
        reason = f"{title}: speed was not measured: {str(error).splitlines()[0]}{advice}"
        progress.console.print(reason, **AS_IT_IS)


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
            _trace_one(cell, samples, bench)
        except Exception as error:  # a plugin can raise anything; the record is there
            progress.console.print(f"{title}: {cell.label}: not traced: {reason_of(error)}", **AS_IT_IS)
        progress.advance(task)


def _trace_one(cell: Cell, samples: tracing.Samples, bench: Bench) -> None:
    assert cell.schedule is not None
    model = ReducedModel(bench.backbone, build_method(cell, **_solved(cell, bench.store)), cell.schedule).eval()
    arrays = tracing.arrays(model, samples, bench)
    if cell.key == bench.group.cells[0].key:
        arrays |= tracing.pictures(samples, bench.backbone.grid)
    bench.store.add_trace(cell.key, arrays)


def _untimed(group: Group, config: SweepConfig, store: Store) -> list[Cell]:
    """The cells to time, none if they are timed already: of the done ones one a method and schedule, since other seeds run
    the same sums."""
    seen, cells = set(), []
    for cell in group.cells[1:]:
        what, record = key_of({**cell.spec, "seed": None}), store.get(cell.key)
        if record is not None and record.status == "done" and what not in seen:
            seen.add(what)
            cells.append(cell)
    name = _timing_name(group, cells, config)
    return [] if any(found.name == name for found in store.all_timings()) else cells


def _timing_name(group: Group, cells: Sequence[Cell], config: SweepConfig) -> str:
    """Another machine, batch size or number of rounds is another measurement."""
    conditions = {
        name: value for name, value in conditions_of(config).items() if name in ("torch", "device", "threads")
    }
    content = [[cell.key for cell in cells], config.timing.rounds, config.timing.batch_size, conditions]
    return f"{group.backbone.replace('/', '_')}-{key_of(content)[:12]}"


def _time(cells: Sequence[Cell], bench: Bench, progress: Progress, title: str) -> None:
    """The cells and the unreduced model, twice, in turn; on one batch of the data."""
    backbone, config = bench.backbone, bench.config
    device = device_of(config)
    inputs = _one_batch(bench.samples, backbone.sample_shape, config.timing.batch_size).to(device)
    models: dict[str, torch.nn.Module] = {timing.UNREDUCED: backbone, timing.NULL: backbone}
    for cell in cells:
        assert cell.schedule is not None
        models[cell.key] = ReducedModel(
            backbone, build_method(cell, **_solved(cell, bench.store)), cell.schedule
        ).eval()
    task = progress.add_task(f"{title}: speed", total=config.timing.rounds)
    if progress.disable:
        progress.console.print(f"{title}: speed: {config.timing.rounds} rounds of {len(models)} models", **AS_IT_IS)
    with torch.inference_mode(), autocast(device, config.precision):
        times_ms = timing.interleave(
            {name: timing.synchronised(partial(model, inputs), device) for name, model in models.items()},
            rounds=config.timing.rounds,
            on_round=lambda: progress.advance(task),
        )
    ratios = timing.speedups(times_ms)
    bench.store.add_timing(
        Timing(
            _timing_name(bench.group, cells, config),
            bench.group.backbone,
            len(inputs),
            times_ms,
            ratios,
            timing.verdict(ratios[timing.NULL]),
            conditions_of(config),
        )
    )


def _solved(cell: Cell, store: Store) -> dict[str, Any]:
    """The option that calibration found for the cell."""
    record = store.get(cell.key)
    found = None if record is None else record.result.get("calibration")
    return {found["option"]: found["value"]} if found else {}


def _one_batch(samples: EvaluationData, shape: tuple[int, ...], size: int) -> torch.Tensor:
    """``size`` inputs from the data, the first ones again where there are fewer; of several views of a sample each is one."""
    found = [one for inputs in samples.first_inputs(size) for one in inputs.reshape(-1, *shape)]
    return torch.stack([found[place % len(found)] for place in range(size)])


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
