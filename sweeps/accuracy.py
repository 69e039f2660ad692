"""Accuracy: the cells of a backbone to records, many in one pass over the data."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from tokred import Backbone, Method, ReducedModel
from tokred.calibration import BudgetMissed, Calibration, calibrated
from tokred.cost import Cost, mean
from tokred.lit import EvaluationData, autocast, evaluate, finish
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

    @cached_property
    def calibration_inputs(self) -> list[torch.Tensor]:
        """Read once, when the first cell asks for them."""
        data = CalibrationSamples(self.config, self.samples.source).source()
        config, backbone = self.config, self.backbone
        loader = data.loader(
            backbone.sample_shape, backbone.preprocess(), batch_size=config.batch_size, num_workers=config.workers
        )
        return [batch.inputs.reshape(-1, *backbone.sample_shape) for batch in loader if len(batch.index_B)]


def passes(cells: Sequence[Cell], bench: Bench) -> list[list[Cell]]:
    """The cells, in order, by the pass they share: at most ``cells_per_pass`` that run, and no more than leave half of the disk
    free where they keep tokens of all samples until its end."""
    room, found = shutil.disk_usage(tempfile.gettempdir()).free // 2, list[list[Cell]]()
    number, kept = 0, 0
    for cell in cells:
        own = bench.task.bytes_kept(cell.schedule.tokens[-1]) if cell.schedule else 0
        if not found or number == bench.config.cells_per_pass or (number and kept + own > room):
            found.append([])
            number, kept = 0, 0
        found[-1].append(cell)
        number, kept = number + (cell.refused is None), kept + own
    return found


def run_pass(
    cells: Sequence[Cell], bench: Bench, on_batch: Callable[[], None] = lambda: None
) -> Iterator[tuple[Cell, Record]]:
    """Each cell with its record, which is in the store by then; what goes wrong in a cell is its record's reason."""
    entries = [_enter(cell, bench) for cell in cells]
    running = [entry.evaluation for entry in entries if entry.evaluation is not None]
    config = bench.config
    if running:
        try:
            evaluate(running, bench.samples, on_batch=on_batch, device=device_of(config), precision=config.precision)
        except Exception as error:  # of the data, or of Lightning: no cell of the pass can go on
            for evaluation in running:
                if evaluation.failed is None:
                    evaluation.give_up(error)
    for entry in entries:
        verdict = _judged(entry, bench)
        spec = (entry.cell.key, entry.cell.spec)
        record = Record(*spec, verdict.status, verdict.reason, verdict.result, conditions_of(config))
        bench.store.add(record, verdict.predictions)
        yield entry.cell, record


@dataclass(frozen=True)
class _Verdict:
    status: str
    reason: str | None = None
    result: dict[str, Any] = field(default_factory=dict)
    predictions: dict[str, np.ndarray] | None = None


@dataclass(frozen=True)
class _Entry:
    """A cell of a pass. ``evaluation``: None where it does not take part; then ``verdict`` says why."""

    cell: Cell
    evaluation: Evaluation | None = None
    solved: Calibration | None = None
    verdict: _Verdict | None = None


def _enter(cell: Cell, bench: Bench) -> _Entry:
    if cell.refused is not None or cell.schedule is None:
        return _Entry(cell, verdict=_Verdict("refused", cell.refused))
    try:
        model, solved = reduced_model(cell, bench)
        return _Entry(cell, bench.task.evaluation(model), solved)
    except BudgetMissed as error:
        return _Entry(cell, verdict=_Verdict("refused", str(error)))
    except Exception as error:  # a plugin can raise anything; the sweep goes on
        return _Entry(cell, verdict=_Verdict("failed", reason_of(error)))


def _judged(entry: _Entry, bench: Bench) -> _Verdict:
    """What became of a cell, once the pass is over."""
    if entry.evaluation is None:
        assert entry.verdict is not None
        return entry.verdict
    try:
        return _found(entry.cell, entry.evaluation, entry.solved, bench)
    except Exception as error:  # likewise
        return _Verdict("failed", reason_of(error))
    finally:
        entry.evaluation.close()


def _found(cell: Cell, evaluation: Evaluation, solved: Calibration | None, bench: Bench) -> _Verdict:
    if evaluation.failed is None:
        finish(evaluation, device=device_of(bench.config), precision=bench.config.precision)
    outcome, model = evaluation.outcome(), evaluation.model
    if outcome.invalid:
        first = ", ".join(map(str, outcome.invalid[:5]))
        reason = f"the scores of {len(outcome.invalid)} samples are not finite (indices {first})"
        return _Verdict("invalid", reason)
    kept = outcome.arrays | _reference(cell, bench.group, outcome, bench.store)
    result = _result(model, bench.group, bench.task, outcome, kept) | _spent(model, evaluation.counts, bench.task)
    return _Verdict("done", None, result | ({"calibration": asdict(solved)} if solved else {}), kept)


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
