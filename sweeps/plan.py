"""From axes to cells: every combination once, checked before anything is run or written.

A cell that a method or backbone cannot run stays in the plan, with the reason; a plan in which nothing can be run is an error.
"""

import hashlib
import inspect
import itertools
import sys
from collections.abc import Iterator, Sized
from dataclasses import dataclass, field, replace
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch

import tokred
from tokred import Backbone, Method, ReducedModel
from tokred.backbone import family_of
from tokred.data import DataSource
from tokred.record import key_of
from tokred.reduced import only_layer
from tokred.reduction import check_knob, check_options, check_saves, create_method, plan_schedule
from tokred.registry import METHODS
from tokred.schedule import Schedule
from tokred.sweeps.calibration import CalibrationSamples
from tokred.sweeps.config import SweepConfig
from tokred.tasks import TASKS, Task
from tokred.weights import digest

RANDOM_WEIGHTS_SEED = 0
MOST_CELLS = 100_000  # planned in minutes: a budget takes 1 ms for 6 layers, 2 ms for 12; more are a slip
DATA_PATHS = ("root", "csv", "annotation", "answer_list", "videos")  # what is there is in the data's digest


@dataclass(frozen=True)
class Cell:
    """One combination of the axes: ``spec`` says which, ``key`` what determines its result. ``refused``: why it cannot run."""

    key: str
    spec: dict[str, Any]
    schedule: Schedule | None
    refused: str | None = None
    budget: float | None = None  # to be met by an option of the method, on calibration samples, when the cell is run
    made_of: dict[str, Any] = field(default_factory=dict)  # of what beside the spec the key is the hash

    @property
    def label(self) -> str:
        """All that tells it from the other cells of its group: ``tome matching=kth budget 0.5 front``."""
        schedule, seed = self.spec["schedule"], self.spec["seed"]
        parts = [self.spec["method"], *(f"{name}={value}" for name, value in self.spec["options"].items())]
        if schedule["kind"] == "own":
            parts.append("as its options say")
        elif schedule["kind"] != "none":
            at_most = "at most " if schedule.get("at_most") else ""
            parts.append(f"{at_most}{schedule['kind']} {schedule['amount']}")
        if schedule["shape"] is not None:
            parts.append(schedule["shape"])
        if schedule["layers"] is not None:
            parts.append(f"layers {schedule['layers']}")
        if "match" in schedule:
            parts.append(f"MACs of {schedule['match']}")
        if seed is not None:
            parts.append(f"seed {seed}")
        return " ".join(parts)


@dataclass(frozen=True)
class Group:
    """The cells of one backbone with one set of weights; the unreduced model comes first."""

    backbone: str
    weights: str
    why: str  # why its metric is the agreement with the unreduced model; else empty
    cells: tuple[Cell, ...]
    identity: dict[str, Any]  # digests of weights and data, the transform: what must be the same to compare results


def make_plan(config: SweepConfig, data: DataSource) -> list[Group]:
    """Raises ValueError where a name, option, checkpoint or data set is wrong, or no reduced cell can run."""
    _check_count(config)
    methods, calibration = _methods(config), CalibrationSamples(config, data)
    groups = [
        _group(config, data, name, weights, methods, calibration)
        for name in config.backbones
        for weights in config.weights
    ]
    if config.calibration and not any(METHODS[name].varies for name, _ in methods):
        raise ValueError("calibration is set, but of none of the methods do counts differ by sample; leave it out")
    reduced = [cell for group in groups for cell in group.cells if cell.spec["method"] != "none"]
    if reduced and all(cell.refused for cell in reduced):
        raise ValueError(f"nothing can be run: {reduced[0].label}: {reduced[0].refused}")
    return groups


def build_backbone(config: SweepConfig, data: DataSource, name: str, weights: str) -> Backbone:
    """The backbone as the sweep runs it. Random weights are drawn from a fixed seed; a backbone that gives features where
    the weights are random and the task is classification gets a classifier for the classes of the data."""
    sizes = config.sizes | ({"vocabulary": config.vocabulary} if config.vocabulary else {})
    backbone = _create(name, weights, config.task, sizes)
    needs_classes = config.task == "classification" and not backbone.gives_classes and "num_classes" not in sizes
    if weights == "random" and needs_classes:
        return _create(name, weights, config.task, {**sizes, "num_classes": max(2, len(data.classes))})
    return backbone


def build_task(config: SweepConfig, data: DataSource, backbone: Backbone) -> Task:
    return TASKS[config.task](data, backbone, shortlist=config.shortlist)


def _create(name: str, weights: str, task: str, sizes: dict[str, Any]) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(RANDOM_WEIGHTS_SEED)
        try:
            return tokred.create_backbone(name, weights=weights, task=task, **sizes)
        except ValueError:
            raise
        except Exception as error:  # of sizes that do not go together a backbone can raise anything
            given = ", ".join(f"{size}={value}" for size, value in sizes.items()) or "no sizes given"
            raise ValueError(f"{name} cannot be made ({given}): {type(error).__name__}: {error}") from error


def build_method(cell: Cell, **solved: Any) -> Method:
    """``solved``: what calibration found, or tries."""
    options = cell.spec["options"] | solved
    if cell.spec["seed"] is not None:
        options["seed"] = cell.spec["seed"]
    return create_method(cell.spec["method"], **options)


def _check_count(config: SweepConfig) -> None:
    """Before the combinations are made, of which a line can ask for more than any memory holds."""
    axes: list[Sized] = [config.backbones, config.weights, config.amounts, config.shape, config.layers]
    options = sum(
        prod(len(value) for value in config.options.get(name, {}).values() if isinstance(value, list))
        for name in config.methods
    )
    if (num := prod(map(len, axes)) * max(1, options) * config.seeds) > MOST_CELLS:
        raise ValueError(f"these axes make up to {num} cells, and {MOST_CELLS} are the most; take fewer values")


def _methods(config: SweepConfig) -> list[tuple[str, dict[str, Any]]]:
    """(method, options) for every method and every combination of its options that are lists."""
    names = tokred.list_methods() if config.methods == ["all"] else config.methods
    for name in [*names, *config.options]:
        METHODS[name]  # an unknown one raises here
    found = []
    for name in names:
        if name == "none":
            continue
        options = config.options.get(name, {})
        if config.methods == ["all"] and config.amounts[0][0] == "budget":
            options = _where_it_saves(name) | options
        axes = [value if isinstance(value, list) else [value] for value in options.values()]
        for values in itertools.product(*axes):
            chosen = dict(zip(options, values, strict=True))
            check_options(name, METHODS[name], chosen)
            found.append((name, chosen))
    return found


def _where_it_saves(name: str) -> dict[str, Any]:
    """Of a method that works at the encoder's output a place inside, where it saves MACs: all methods are asked for a budget."""
    cls = METHODS[name]
    return {"site": cls.other_sites[0]} if cls.site == "output" and cls.other_sites else {}


def _group(
    config: SweepConfig,
    data: DataSource,
    name: str,
    weights: str,
    methods: list[tuple[str, dict[str, Any]]],
    calibration: CalibrationSamples,
) -> Group:
    backbone = build_backbone(config, data, name, weights)
    data.check_shape(backbone.sample_shape)
    task = build_task(config, data, backbone)
    why = task.why_agreement(weights)
    fixed = {
        "task": config.task,
        "backbone": name,
        "sizes": config.sizes,
        "weights": weights,
        "data": data.description(),
        "precision": config.precision,
    }
    identity = {
        "weights": digest(backbone),
        "data": data.digest(),
        "preprocess": str(backbone.preprocess()),
        "agreement": bool(why),
        **task.identity(),
    }
    place = _Place(
        backbone,
        fixed,
        identity | {"core": _core_hash()},
        _source_hash(family_of(name)),
        config,
        calibration,
    )
    cells = [*_cells(place, "none", {}, _amount(None, None, None, None), [None])]
    for method, options in methods:
        seeds = _seeds(method, options, config)
        for amount in _all_amounts(config, method):
            cells.extend(_cells(place, method, options, amount, seeds))
    return Group(name, weights, why, tuple({cell.key: cell for cell in cells}.values()), identity)


def _all_amounts(config: SweepConfig, method: str) -> Iterator[dict[str, Any]]:
    for (kind, amount), layers in itertools.product(config.amounts, config.layers):
        for shape in config.shape if kind == "budget" and not METHODS[method].varies else [None]:
            most = {"at_most": True} if METHODS[method].varies and kind in ("r", "keep_rate", "tokens") else {}
            yield _amount(kind, amount, shape, layers) | most
            if config.match not in (None, method) and kind != "own":
                yield _amount(kind, amount, shape, layers) | {"match": config.match, **_match_options(config)}


def _match_options(config: SweepConfig) -> dict[str, Any]:
    options = config.options.get(config.match or "", {})
    if any(isinstance(value, list) for value in options.values()):
        raise ValueError(f"match needs {config.match} with one value of each option, not several; got {options}")
    return {"match_options": options} if options else {}


def _amount(kind: str | None, amount: Any, shape: str | None, layers: list[int] | None) -> dict[str, Any]:
    return {"kind": kind or "none", "amount": amount, "shape": shape, "layers": layers}


def _seeds(method: str, options: dict[str, Any], config: SweepConfig) -> list[int | None]:
    """Several draws of a random method, unless its seed was given as an option."""
    return list(range(config.seeds)) if create_method(method, **options).random and "seed" not in options else [None]


@dataclass(frozen=True)
class _Place:
    """What the cells of a group share."""

    backbone: Backbone
    fixed: dict[str, Any]  # of their spec
    identity: dict[str, Any]  # of their key
    family: str  # the hash of the backbone's
    config: SweepConfig
    calibration: CalibrationSamples


@dataclass(frozen=True)
class _Planned:
    """What was made of an amount, for all seeds; ``made_of``: what counts of it for the key."""

    made_of: dict[str, Any]
    schedule: Schedule | None = None
    refused: str | None = None
    budget: float | None = None
    calibration: dict[str, Any] = field(default_factory=dict)


def _cells(
    place: _Place, name: str, options: dict[str, Any], amount: dict[str, Any], seeds: list[int | None]
) -> Iterator[Cell]:
    """One for each seed. For the key, of weights and data the contents count and not the paths."""
    planned = _planned(place, name, options, amount)
    sources = {"method": _source_hash(METHODS[name]), "family": place.family}
    made_of = {**place.identity, **sources, **planned.made_of}
    what = (planned.schedule, planned.refused, planned.budget, made_of)
    for seed in seeds:
        spec = {"method": name, "options": options, **place.fixed, "schedule": amount, "seed": seed}
        counts = {**spec, "weights": None, "data": spec["data"] | dict.fromkeys(DATA_PATHS)}
        yield Cell(key_of({**made_of, "cell": counts}), spec | planned.calibration, *what)


def _planned(place: _Place, name: str, options: dict[str, Any], amount: dict[str, Any]) -> _Planned:
    try:
        method, clip = create_method(name, **options), place.config.allow_clip
        if not method.varies or (amount["kind"] != "budget" and "match" not in amount):
            plan = _schedule(place.backbone, method, amount, clip)
            return _Planned({"tokens": plan.tokens}, plan)
        check_saves(method)
        check_knob(method, place.backbone, options)
        plan = plan_schedule(place.backbone, method, layers=amount["layers"])
        apart = place.calibration.source()
        budget = _share_of(place.backbone, amount, clip) if "match" in amount else amount["amount"]
        made_of = {"layers": plan.own_layers, "budget": budget, "calibration": apart.digest()}
        return _Planned(made_of, plan, budget=budget, calibration={"calibration": apart.description()})
    except ValueError as error:
        return _Planned({"tokens": None}, refused=str(error))


def _schedule(backbone: Backbone, method: Method, amount: dict[str, Any], allow_clip: bool) -> Schedule:
    if amount["kind"] == "none":
        return plan_schedule(backbone, method)
    if amount["kind"] == "own":
        if not method.varies:
            raise ValueError(f"{method.name} removes as much as it is told: give budget, r, keep_rate or tokens")
        return plan_schedule(backbone, method, layers=amount["layers"])
    if "match" in amount:
        return _matched(backbone, method, amount, allow_clip)
    given: dict[str, Any] = {amount["kind"]: amount["amount"], "layers": amount["layers"]}
    if amount["shape"] is not None:
        given["shape"] = amount["shape"]
    return plan_schedule(backbone, method, allow_clip=allow_clip, **given)


def _matched(backbone: Backbone, method: Method, amount: dict[str, Any], allow_clip: bool) -> Schedule:
    """As many MACs as the other method spends on this amount, its own included, in the same proportions over the layers."""
    theirs = _others(backbone, amount, allow_clip).schedule
    budget = _share_of(backbone, amount, allow_clip)
    before = (theirs.num_input_tokens, *theirs.tokens[:-1])
    removed = [num - keep for num, keep in zip(before, theirs.tokens, strict=True)]
    shape = None if only_layer(method, backbone) else removed  # where it works once, that is where
    plan = plan_schedule(backbone, method, budget=budget, shape=shape)
    return replace(plan, spec=f"{theirs.spec}, MACs of {amount['match']}")


def _others(backbone: Backbone, amount: dict[str, Any], allow_clip: bool) -> ReducedModel:
    """What the method that is matched makes of the amount."""
    other = create_method(amount["match"], **amount.get("match_options", {}))
    if other.varies:
        raise ValueError(f"match needs a method with the same counts for all samples; those of {other.name} differ")
    own = {name: value for name, value in amount.items() if not name.startswith("match")}
    return ReducedModel(backbone, other, _schedule(backbone, other, own, allow_clip))


def _share_of(backbone: Backbone, amount: dict[str, Any], allow_clip: bool) -> float:
    reduced = _others(backbone, amount, allow_clip)
    return reduced.cost().macs / reduced.unreduced_cost().macs


@cache
def _core_hash() -> str:
    """Of all core modules: the sums, the matching, the attention are there, and a change of them changes results."""
    folder = Path(tokred.__file__).parent
    apart = {  # which no result depends on
        *("testing.py", "timing.py", "profile.py", "training.py", "text_training.py"),
        *("record.py", "sealed.py", "expected.py", "memo.py", "catalogue.py", "onnx_export.py", "terminal.py"),
    }
    found = [*folder.glob("*.py"), *folder.glob("data/*.py"), *folder.glob("tasks/*.py")]
    files = [path for path in sorted(found) if path.name not in apart]
    return key_of({str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files})


@cache
def _source_hash(cls: type) -> str:
    """Of the file a plugin is in: a method that was changed is another one."""
    path = inspect.getsourcefile(sys.modules[cls.__module__])
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else cls.__qualname__
