"""``tokred profile``: where the time of each cell's model goes, and its speed-up beside that of its MACs.

The words are those of a sweep, and so are the cells. They run on one batch of the data, of ``timing.batch_size`` samples. Where
no data is named and moving shapes have not the backbone's shape, that is noise: speed hangs on what is in a picture only where
counts differ by sample, and such a method is refused then.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from tokred import ReducedModel, timing
from tokred.data import DataSource, Preprocess, create_data
from tokred.lit import EvaluationData, autocast
from tokred.profile import Profile, profiled
from tokred.record import NULL, Store
from tokred.registry import METHODS
from tokred.sweeps.accuracy import Bench, reduced_model
from tokred.sweeps.conditions import device_of
from tokred.sweeps.config import SweepConfig
from tokred.sweeps.plan import Cell, Group, build_backbone, build_task, make_plan
from tokred.sweeps.speed import first_line, one_batch
from tokred.tasks.task import reason_of


@dataclass(frozen=True)
class ModelProfile:
    """One model: where its time goes, and its speed-up ``by_macs`` and as ``measured`` (None: it was not), with a ``verdict`` on
    that. ``reason``: why there is nothing else."""

    label: str
    status: str
    reason: str = ""
    profile: Profile | None = None
    num_input_tokens: int = 0
    by_macs: float | None = None
    measured: timing.Interval | None = None
    verdict: str = ""


@dataclass(frozen=True)
class GroupProfile:
    """The models of one backbone, the unreduced one first. ``null``: it against itself, and ``verdict`` on that; ``reason``: why
    speed-ups were not measured."""

    backbone: str
    weights: str
    data: str
    batch_size: int
    device: str
    models: tuple[ModelProfile, ...]
    null: timing.Interval | None = None
    verdict: str = ""
    reason: str = ""


class Noise(DataSource):
    """Values of mean 0 and variance 1, as normalised pixels have, in whatever shape is asked for."""

    name = "noise"

    def __init__(self, num_samples: int):
        self.num_samples = num_samples

    def __len__(self) -> int:
        return self.num_samples

    def label(self, index: int) -> int:
        return -1

    def read(self, index: int, sample_shape: tuple[int, ...], preprocess: Preprocess) -> Tensor:
        return torch.randn(sample_shape, generator=torch.Generator().manual_seed(index))

    def check_shape(self, sample_shape: tuple[int, ...]) -> None:
        """Any will do."""

    def digest(self) -> str:
        return self.name

    def description(self) -> dict[str, Any]:
        return {"name": self.name, "num_samples": self.num_samples}


def profiles(
    config: SweepConfig, *, data_is_named: bool, on_model: Callable[[str], None] = lambda label: None
) -> Iterator[GroupProfile]:
    """Backbone by backbone. ``on_model`` is told what is run next."""
    for name, weights in product(config.backbones, config.weights):
        one = replace(config, backbones=[name], weights=[weights], seeds=1)  # other seeds do the same work
        data = create_data(**config.data) if data_is_named else _default_data(one)
        (group,) = make_plan(one, data)
        yield _of_group(group, one, data, on_model)


def _default_data(config: SweepConfig) -> DataSource:
    """Moving shapes where the backbone takes them, else noise; no more than a batch."""
    data = create_data(**config.data | {"num_clips": _batch_size(config)})
    backbone = build_backbone(config, data, config.backbones[0], config.weights[0])
    try:
        data.check_shape(backbone.sample_shape)
    except ValueError:
        return Noise(_batch_size(config))
    return data


def _of_group(group: Group, config: SweepConfig, data: DataSource, on_model: Callable[[str], None]) -> GroupProfile:
    device = device_of(config)
    backbone = build_backbone(config, data, group.backbone, group.weights).to(device)
    samples = EvaluationData(data, backbone, batch_size=config.batch_size, num_workers=config.workers)
    bench = Bench(group, backbone, build_task(config, data, backbone), samples, config, Store("."))  # nothing is stored
    inputs = one_batch(samples, backbone.sample_shape, _batch_size(config)).to(device)
    found: list[ModelProfile] = []
    models: dict[str, nn.Module] = {}
    with autocast(device, config.precision):
        for cell in group.cells:
            on_model(cell.label)
            model, of_model = _of_cell(cell, bench, inputs)
            found.append(of_model)
            if model is not None:
                models[cell.label] = model
        on_model("speed-up")
        speedups, why_not = _speedups(backbone, models, group.cells[0].label, inputs, config.timing.rounds)
    null = speedups.get(NULL)
    return GroupProfile(
        group.backbone,
        group.weights,
        data.name,
        len(inputs),
        device,
        tuple(_judged(of_model, speedups.get(of_model.label), null) for of_model in found),
        null,
        "" if null is None else timing.control(null),
        why_not,
    )


def _judged(model: ModelProfile, measured: timing.Interval | None, null: timing.Interval | None) -> ModelProfile:
    verdict = "" if measured is None or null is None else timing.verdict(measured, null)
    return replace(model, measured=measured, verdict=verdict)


def _of_cell(cell: Cell, bench: Bench, inputs: Tensor) -> tuple[ReducedModel | None, ModelProfile]:
    if cell.refused is not None or cell.schedule is None:
        return None, ModelProfile(cell.label, "refused", cell.refused or "")
    if isinstance(bench.samples.source, Noise) and METHODS[cell.spec["method"]].varies:
        why = "its counts differ by sample, so that noise says nothing of its speed; give data=NAME"
        return None, ModelProfile(cell.label, "refused", why)
    try:
        model, _ = reduced_model(cell, bench)
    except ValueError as error:
        return None, ModelProfile(cell.label, "refused", str(error))
    except Exception as error:  # a plugin can raise anything; the other models go on
        return None, ModelProfile(cell.label, "failed", reason_of(error))
    try:
        profile = profiled(model, inputs)
    except Exception as error:  # a plugin can raise anything; the other models go on
        return None, ModelProfile(cell.label, "failed", reason_of(error))
    by_macs = model.unreduced_cost().macs / model.cost(profile.tokens).macs  # of the tokens that ran, padding included
    return model, ModelProfile(cell.label, "done", "", profile, cell.schedule.num_input_tokens, by_macs)


def _speedups(
    backbone: nn.Module, models: dict[str, nn.Module], unreduced: str, inputs: Tensor, rounds: int
) -> tuple[dict[str, timing.Interval], str]:
    """Beside the backbone, and of it against itself; or none, and why."""
    if not rounds or unreduced not in models or len(models) < 2:
        return {}, ""
    runs = {NULL: partial(backbone, inputs)}
    runs |= {name: partial(model, inputs) for name, model in models.items() if name != unreduced}
    try:
        with torch.inference_mode():
            found = timing.beside(runs[NULL], runs, rounds=rounds, block=timing.block_on(inputs.device.type))
    except Exception as error:  # in the middle of the rounds; where the time goes is known
        return {}, first_line(error)
    return {name: times.speedup() for name, times in found.items()}, ""


def _batch_size(config: SweepConfig) -> int:
    sizes, modes = config.timing.batch_size, config.timing.modes
    if len(sizes) != 1 or modes != ["eager"]:
        given = f"timing.batch_size={sizes} and timing.modes={modes}"
        raise ValueError(
            f"a profile is of one batch size, and of eager models, whose parts can be told apart; got {given}"
        )
    return sizes[0]
