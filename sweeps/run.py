"""Runs a plan: cell by cell to a record, then the timing of each backbone's cells, interleaved."""

import logging
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from typing import Any

import lightning
import numpy as np
import timm
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import tokred
from tokred import Backbone, ReducedModel, timing
from tokred.calibration import BudgetMissed, Calibration, calibrated
from tokred.cost import Cost, mean
from tokred.data import DataSource
from tokred.lit import EvaluationData, evaluate
from tokred.record import Record, Store, Timing, key_of, wilson, write_json
from tokred.sweeps.calibration import CalibrationSamples
from tokred.sweeps.config import SweepConfig
from tokred.sweeps.plan import Cell, Group, build_backbone, build_method, build_task
from tokred.tasks.task import AGREEMENT, Metric, Outcome, Task

AS_IT_IS: Any = {"highlight": False, "markup": False, "soft_wrap": True}  # for the console: a name may hold brackets


@dataclass(frozen=True)
class Tally:
    """How the cells of a plan stand."""

    done: int
    refused: int
    failed: int
    kept: int  # of all these, records that were there before


def run_plan(plan: Sequence[Group], config: SweepConfig, data: DataSource, store: Store, console: Console) -> Tally:
    """Runs what has no record yet; each finished cell is on disk before the next begins."""
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


def device_of(config: SweepConfig) -> str:
    """Raises ValueError where the device that was asked for is not there."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda was asked for, but torch sees no CUDA device; use device=cpu or device=auto")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    if device == "cpu" and config.precision == "16-mixed":  # Lightning would take bf16-mixed in its place
        raise ValueError("precision=16-mixed needs CUDA; on a CPU use precision=bf16-mixed or 32-true")
    return device


def _run_group(
    group: Group, config: SweepConfig, data: DataSource, store: Store, progress: Progress, title: str
) -> None:
    open_cells = [cell for cell in group.cells if not _finished(cell, store)]
    if not open_cells and not (config.timing.rounds and _untimed(group, config, store)):
        return
    backbone = build_backbone(config, data, group.backbone, group.weights).to(device_of(config))
    samples = EvaluationData(data, backbone, batch_size=config.batch_size, num_workers=config.workers)
    bench = _Bench(group, backbone, build_task(config, data, backbone), samples, config, store)
    total = len(open_cells) * len(samples.batches)
    task = progress.add_task(title, total=total)
    for cell in open_cells:
        progress.update(task, description=f"{title}: {cell.label}")
        record = _run_cell(cell, bench, on_batch=lambda: progress.advance(task))
        if progress.disable:  # no terminal to draw a bar on
            progress.console.print(f"{title}: {cell.label}: {record.status}", **AS_IT_IS)
    progress.update(task, description=f"{title}: accuracy", completed=total)
    untimed = _untimed(group, config, store) if config.timing.rounds else []
    if not untimed:
        return
    try:
        _time(untimed, bench, progress, title)
    except RuntimeError as error:  # out of memory, mostly; the records are there
        advice = "; try a lower timing.batch_size" if "memory" in str(error) else ""
        reason = f"{title}: speed was not measured: {str(error).splitlines()[0]}{advice}"
        progress.console.print(reason, **AS_IT_IS)


@dataclass(frozen=True)
class _Bench:
    """What all cells of a group share while they run."""

    group: Group
    backbone: Backbone
    task: Task
    samples: EvaluationData
    config: SweepConfig
    store: Store
    shares: dict[str, dict[float, float]] = field(default_factory=dict)  # what calibration found, by method and layers

    @cached_property
    def calibration_inputs(self) -> list[torch.Tensor]:
        """Read once, when the first cell asks for them."""
        data = CalibrationSamples(self.config, self.samples.source).source()
        config, backbone = self.config, self.backbone
        loader = data.loader(
            backbone.sample_shape, backbone.preprocess(), batch_size=config.batch_size, num_workers=config.workers
        )
        return [batch.inputs.reshape(-1, *backbone.sample_shape) for batch in loader if len(batch.index_B)]


def _run_cell(cell: Cell, bench: _Bench, on_batch: Callable[[], None]) -> Record:
    """One cell to one record in the store; what goes wrong in it is its record's reason."""
    kept = None
    try:
        status, reason, result, kept = _evaluated(cell, bench, on_batch)
    except Exception as error:  # a plugin or a file can raise anything; the sweep goes on
        text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        status, reason, result = "failed", text, {}
    record = Record(cell.key, cell.spec, status, reason, result, conditions_of(bench.config))
    bench.store.add(record, kept)
    return record


def _evaluated(
    cell: Cell, bench: _Bench, on_batch: Callable[[], None]
) -> tuple[str, str | None, dict[str, Any], dict[str, np.ndarray] | None]:
    """Status, reason, result and predictions."""
    if cell.refused is not None or cell.schedule is None:
        return "refused", cell.refused, {}, None
    config = bench.config
    try:
        model, solved = _model(cell, bench)
    except BudgetMissed as error:
        return "refused", str(error), {}, None
    evaluation = bench.task.evaluation(model, on_batch)
    evaluate(evaluation, bench.samples, device=device_of(config), precision=config.precision)
    outcome = evaluation.outcome()
    if outcome.invalid:
        first = ", ".join(map(str, outcome.invalid[:5]))
        return "invalid", f"the scores of {len(outcome.invalid)} samples are not finite (indices {first})", {}, None
    kept = outcome.arrays | _reference(cell, bench.group, outcome, bench.store)
    result = _result(model, bench.group, bench.task, outcome, kept) | _spent(model, evaluation.counts, bench.task)
    return "done", None, result | ({"calibration": asdict(solved)} if solved else {}), kept


def _model(cell: Cell, bench: _Bench) -> tuple[ReducedModel, Calibration | None]:
    """The model of the cell, and where its method's counts differ by sample how the budget was met."""
    assert cell.schedule is not None
    if cell.budget is None:
        return ReducedModel(bench.backbone, build_method(cell), cell.schedule).eval(), None
    what = key_of([*(cell.spec[part] for part in ("method", "options", "seed")), cell.schedule.own_layers])
    with _autocast(device_of(bench.config), bench.config.precision):
        model, solved = calibrated(
            bench.backbone,
            lambda own: build_method(cell, **own),
            cell.schedule,
            cell.budget,
            bench.calibration_inputs,
            known=bench.shares.setdefault(what, {}),
        )
    return model.eval(), solved


def conditions_of(config: SweepConfig) -> dict[str, Any]:
    """Where and with what a record was made."""
    device = device_of(config)
    return {
        "tokred": tokred.__version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "lightning": lightning.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "device": torch.cuda.get_device_name() if device == "cuda" else f"cpu ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "precision": config.precision,
        "batch_size": config.batch_size,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _reference(cell: Cell, group: Group, outcome: Outcome, store: Store) -> dict[str, np.ndarray]:
    """What the unreduced model predicts, by sample, where that takes the place of labels."""
    first, own = group.cells[0], outcome.arrays
    if not group.why:
        return {}
    if cell.key == first.key:
        return {"reference": own["prediction"]}
    if not store.predictions_path(first.key).is_file():
        raise ValueError("there is no unreduced model to agree with: its own cell failed")
    unreduced = store.predictions(first.key)
    said = dict(zip(unreduced["index"].tolist(), unreduced["prediction"].tolist(), strict=True))
    return {"reference": np.array([said[index] for index in own["index"].tolist()])}


def _result(
    model: ReducedModel, group: Group, task: Task, outcome: Outcome, kept: dict[str, np.ndarray]
) -> dict[str, Any]:
    cost, unreduced = model.cost(), model.unreduced_cost()
    metrics: Mapping[str, Metric | float] = AGREEMENT if group.why else outcome.metrics
    shares = {name: _share(metric, kept) for name, metric in metrics.items()}
    name, headline = next(iter(shares.items()))
    return {
        "metric": name,
        "why_agreement": group.why,
        **{part: value for part, value in headline.items() if part not in ("index", "ranks", "at")},
        "metrics": shares,
        "num_broken": len(outcome.problems),
        "broken": [list(problem) for problem in outcome.problems[:100]],
        "num_input_tokens": model.schedule.num_input_tokens,
        "tokens": list(model.schedule.tokens),
        "requested_tokens": list(model.schedule.requested),
        "site": model.method.site,
        "gmacs_unreduced": unreduced.gmacs,
        **_gmacs(cost),
        **task.costs(model.schedule.tokens[-1]),
    }


def _gmacs(cost: Cost) -> dict[str, Any]:
    return {
        "gmacs": cost.gmacs,
        "gmacs_reduction": cost.gmacs_reduction,
        "gmacs_by_part": cost.by_part,
        "gmacs_by_layer": cost.by_layer,
    }


def _spent(model: ReducedModel, counts: Sequence[torch.Tensor], task: Task) -> dict[str, Any]:
    """Where counts differ by sample: what was left and spent, the mean of the samples; and what their batches spent, which are
    padded to their longest."""
    if not counts:
        return {}
    num_NL = torch.cat(list(counts))
    costs = model.costs(num_NL)
    gmacs_N = np.array([cost.gmacs for cost in costs])
    longest = model.costs(torch.stack([num_BL.amax(0) for num_BL in counts]))
    padded_N = np.repeat([cost.gmacs for cost in longest], [len(num_BL) for num_BL in counts])
    return {
        **_gmacs(mean(costs)),
        "tokens": num_NL.double().mean(0).tolist(),
        "tokens_sd": num_NL.double().std(0, correction=0).tolist(),
        "tokens_p95": num_NL.double().quantile(0.95, dim=0).tolist(),
        "gmacs_sd": float(gmacs_N.std()),
        "gmacs_p95": float(np.quantile(gmacs_N, 0.95)),
        "gmacs_padded": float(padded_N.mean()),
        **task.costs(round(float(num_NL[:, -1].double().mean()))),
    }


def _share(metric: Metric | float, kept: dict[str, np.ndarray]) -> dict[str, Any]:
    """A metric with its value, and how it is found in the arrays."""
    if not isinstance(metric, Metric):
        return {"value": metric}
    right_N = metric.right(kept)
    right, total = int(right_N.sum()), len(right_N)
    return {
        **asdict(metric),
        "num_samples": total,
        "num_correct": right,
        "value": right / total,
        "interval": list(wilson(right, total)),
    }


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


def _time(cells: Sequence[Cell], bench: _Bench, progress: Progress, title: str) -> None:
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
    with torch.inference_mode(), _autocast(device, config.precision):
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


@contextmanager
def _autocast(device: str, precision: str) -> Iterator[None]:
    kinds = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    with torch.autocast(device, kinds.get(precision, torch.bfloat16), enabled=precision in kinds):
        yield


def _one_batch(samples: EvaluationData, shape: tuple[int, ...], size: int) -> torch.Tensor:
    """``size`` inputs from the data, the first ones again where there are fewer; of several views of a sample each is one."""
    found: list[torch.Tensor] = []
    for batch in samples.test_dataloader():
        found.extend(batch.inputs.reshape(-1, *shape))
        if len(found) >= size:
            break
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
