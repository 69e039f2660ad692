"""Accuracy: the cells of a backbone to records, many in one pass over the data."""

import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from tokred import Backbone, Method, ReducedModel
from tokred.calibration import BudgetMissed, Calibration, calibrated
from tokred.cost import Cost, mean
from tokred.lit import EvaluationData, autocast, evaluate, finish
from tokred.memory import ran_out
from tokred.open_files import Died
from tokred.record import Record, Store, key_of, wilson
from tokred.sweeps.calibration import CalibrationSamples
from tokred.sweeps.conditions import conditions_of, device_of
from tokred.sweeps.config import SweepConfig
from tokred.sweeps.plan import Cell, Group, build_method
from tokred.tasks.task import AGREEMENT, Evaluation, Metric, Outcome, Task, reason_of


@dataclass(frozen=True)
class Bench:
    """What all cells of a group share while they run."""

    group: Group
    backbone: Backbone
    task: Task
    samples: EvaluationData
    config: SweepConfig
    store: Store
    shares: dict[str, dict[float, float]] = field(default_factory=dict)  # what calibration found, by method and layers
    _methods: dict[str, Method] = field(default_factory=dict)

    def method(self, cell: Cell) -> Method:
        """One for all cells that differ in nothing but the schedule: what they do alike is found by it (``tokred.tree``)."""
        key = key_of([cell.spec[part] for part in ("method", "options", "seed")])
        if key not in self._methods:
            self._methods[key] = build_method(cell)
        return self._methods[key]

    def with_batches_of(self, size: int) -> "Bench":
        samples = EvaluationData(self.samples.source, self.backbone, batch_size=size, num_workers=self.config.workers)
        return replace(self, samples=samples, config=replace(self.config, batch_size=size))

    @cached_property
    def calibration_inputs(self) -> list[torch.Tensor]:
        """Read once, when the first cell asks for them."""
        data = CalibrationSamples(self.config, self.samples.source).source()
        data.open_files = self.samples.source.open_files
        config, backbone = self.config, self.backbone
        loader = data.loader(
            backbone.sample_shape, backbone.preprocess(), batch_size=config.batch_size, num_workers=config.workers
        )
        return [batch.inputs.reshape(-1, *backbone.sample_shape) for batch in loader if len(batch.index_B)]


def next_pass(
    cells: Iterable[Cell], bench: Bench, take: Callable[[Cell], bool], alone: Collection[str] = ()
) -> list[Cell]:
    """The first of the cells that ``take`` allows, to share a pass: at most ``cells_per_pass`` that run, and no more than leave
    half of the disk free where they keep tokens of all samples until its end. A key in ``alone``: with none.
    """
    room, found = shutil.disk_usage(tempfile.gettempdir()).free // 2, list[Cell]()
    number, kept = 0, 0
    for cell in cells:
        own = bench.task.bytes_kept(cell.schedule.tokens[-1]) if cell.schedule else 0
        is_full = number == bench.config.cells_per_pass or (number and kept + own > room)
        if found and (is_full or cell.key in alone or found[0].key in alone):
            break
        if take(cell):
            found.append(cell)
            number, kept = number + (cell.refused is None), kept + own
    return found


def run_pass(
    cells: Sequence[Cell], bench: Bench, on_batch: Callable[[], None] = lambda: None
) -> Iterator[tuple[Cell, Record]]:
    """Each cell with its record, which is in the store by then; what goes wrong in a cell is its record's reason. Those that
    memory does not suffice for are run again, on batches of half the size, until they hold one sample."""
    entries, again = [_enter(cell, bench) for cell in cells], list[Cell]()
    _evaluate([entry.evaluation for entry in entries if entry.evaluation is not None], bench, on_batch)
    for entry in entries:
        verdict = _judged(entry, bench)
        waits = bench.group.why and bench.group.cells[0] in again  # for the unreduced model's predictions
        if bench.config.batch_size > 1 and (verdict.ran_out or (waits and verdict.status != "refused")):
            again.append(entry.cell)
            continue
        record = record_of(entry.cell, bench, verdict)
        bench.store.add(record, verdict.predictions)
        yield entry.cell, record
    if again:
        yield from run_pass(again, bench.with_batches_of(bench.config.batch_size // 2), on_batch)


def _evaluate(evaluations: list[Evaluation], bench: Bench, on_batch: Callable[[], None]) -> None:
    if not evaluations:
        return
    config = bench.config
    try:
        evaluate(
            evaluations,
            bench.samples,
            on_batch=on_batch,
            device=device_of(config),
            precision=config.precision,
            devices=config.devices,
        )
    except Died:  # one of its cells has broken another process: as if it had been this one
        raise
    except Exception as error:  # of the data, or of Lightning: no cell of the pass can go on
        for evaluation in evaluations:
            if evaluation.failed is None:
                evaluation.give_up(error)


@dataclass(frozen=True)
class Verdict:
    """What a record says beside its cell. ``ran_out``: memory did not suffice."""

    status: str
    reason: str | None = None
    result: dict[str, Any] = field(default_factory=dict)
    predictions: dict[str, np.ndarray] | None = None
    kind: str | None = None
    ran_out: bool = False


def record_of(cell: Cell, bench: Bench, verdict: Verdict) -> Record:
    conditions = conditions_of(bench.config)
    return Record(
        cell.key,
        cell.spec,
        verdict.status,
        verdict.reason,
        verdict.result,
        conditions,
        kind=verdict.kind,
        made_of=cell.made_of,
    )


@dataclass(frozen=True)
class _Entry:
    """A cell of a pass. ``evaluation``: None where it does not take part; then ``verdict`` says why."""

    cell: Cell
    evaluation: Evaluation | None = None
    solved: Calibration | None = None
    verdict: Verdict | None = None


def _enter(cell: Cell, bench: Bench) -> _Entry:
    if cell.refused is not None or cell.schedule is None:
        return _Entry(cell, verdict=Verdict("refused", cell.refused))
    try:
        model, solved = reduced_model(cell, bench)
        return _Entry(cell, bench.task.evaluation(model), solved)
    except BudgetMissed as error:
        return _Entry(cell, verdict=Verdict("refused", str(error)))
    except Exception as error:  # a plugin can raise anything; the sweep goes on
        return _Entry(cell, verdict=_failed(error))


def _judged(entry: _Entry, bench: Bench) -> Verdict:
    """What became of a cell, once the pass is over."""
    if entry.evaluation is None:
        assert entry.verdict is not None
        return entry.verdict
    try:
        return _found(entry.cell, entry.evaluation, entry.solved, bench)
    except Exception as error:  # likewise
        verdict = _failed(error)
        return replace(verdict, ran_out=verdict.ran_out or entry.evaluation.ran_out)
    finally:
        entry.evaluation.close()


def _failed(error: Exception) -> Verdict:
    return Verdict("failed", reason_of(error), kind="error", ran_out=ran_out(error))


def _found(cell: Cell, evaluation: Evaluation, solved: Calibration | None, bench: Bench) -> Verdict:
    if evaluation.failed is None:
        finish(evaluation, device=device_of(bench.config), precision=bench.config.precision)
    outcome, model = evaluation.outcome(), evaluation.model
    if outcome.invalid:
        first = ", ".join(map(str, outcome.invalid[:5]))
        reason = f"the scores of {len(outcome.invalid)} samples are not finite (the first of them: {first})"
        return Verdict("invalid", reason)
    kept = outcome.arrays | _reference(cell, bench.group, outcome, bench.store)
    result = _result(model, bench.group, bench.task, outcome, kept) | _spent(model, evaluation.counts, bench.task)
    return Verdict("done", None, result | ({"calibration": asdict(solved)} if solved else {}), kept)


def reduced_model(cell: Cell, bench: Bench) -> tuple[ReducedModel, Calibration | None]:
    """The model of the cell, and where its method's counts differ by sample how the budget was met."""
    assert cell.schedule is not None
    if cell.budget is None:
        return ReducedModel(bench.backbone, bench.method(cell), cell.schedule).eval(), None
    what = key_of([*(cell.spec[part] for part in ("method", "options", "seed")), cell.schedule.own_layers])
    with autocast(device_of(bench.config), bench.config.precision):
        model, solved = calibrated(
            bench.backbone,
            lambda own: build_method(cell, **own),
            cell.schedule,
            cell.budget,
            bench.calibration_inputs,
            known=bench.shares.setdefault(what, {}),
        )
    return model.eval(), solved


def finished_model(cell: Cell, bench: Bench) -> ReducedModel:
    """The model of a cell whose record is there, with the option that its calibration found."""
    assert cell.schedule is not None
    record = bench.store.get(cell.key)
    found = None if record is None else record.result.get("calibration")
    solved = {found["option"]: found["value"]} if found else {}
    return ReducedModel(bench.backbone, build_method(cell, **solved), cell.schedule).eval()


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
        "identity": group.identity,
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
