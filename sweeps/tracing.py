"""Where the tokens of a few samples went: a small pass after that of the accuracy, to one file of arrays beside each record.

Most samples are spread evenly over the data: what is said of the data is said of these. A few more, ``telling`` ones, are those
that reduced models most often lose or gain against the unreduced one; they are for pictures only.

    index_S        the samples: ``num_spread`` spread ones, then the telling ones; without those that cannot be read
    asked          the samples that were asked for
    grid, depth    (T, H, W) of the tokens, and the number of layers
    layer_R        the layers that reduce
    first_RSP      which group an input token is in behind such a layer: the place of the group's first member; -1: dropped
    size_RSP       float16: at the place of a group's first member what it weighs; elsewhere 0
    feature_SC     float16: what the head reads, the class token or else the mean of the tokens, after the final norm
    object_SP      float16: the share of an input token's pixels that show an object, where the data knows
    frames_DFHWC   uint8, beside the unreduced model: the samples ``frame_index_D`` at the times ``frame_time_F`` of the grid

Dimension key: S samples, R reducing layers, P input tokens without the prefix, C channels, D drawn samples, F frames, T H W grid.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tokred import ReducedModel
from tokred.data import DataSource
from tokred.data.loading import Unreadable
from tokred.lit import autocast
from tokred.preprocess import Preprocess
from tokred.record import Record, Store
from tokred.sweeps.accuracy import Bench
from tokred.sweeps.conditions import device_of
from tokred.sweeps.plan import Cell, Group
from tokred.tokens import Tokens

TELLING = 3  # samples of each kind, lost and gained
DRAWN, FRAMES = (
    8,
    4,
)  # samples, and of each as many times, whose pixels are kept: 0.4 MiB of moving shapes, 5 of 224 x 224


@dataclass(frozen=True)
class Wanted:
    """The indices of the samples to trace."""

    spread: tuple[int, ...]
    telling: tuple[int, ...]

    @property
    def asked(self) -> tuple[int, ...]:
        return *self.spread, *self.telling


@dataclass(frozen=True)
class Samples:
    """The wanted samples that could be read; of several views of a sample the first."""

    wanted: Wanted
    index: tuple[int, ...]
    inputs: Tensor
    object_SP: np.ndarray | None
    preprocess: Preprocess


def wanted(group: Group, data: DataSource, store: Store, num_traces: int) -> Wanted:
    """What ``num_traces`` asks for, once the group has its accuracies."""
    places = np.linspace(0, len(data) - 1, min(num_traces, len(data))).round().astype(int)
    spread = tuple(dict.fromkeys(places.tolist()))
    return Wanted(spread, tuple(index for index in _telling(group, store) if index not in spread) if spread else ())


def untraced(group: Group, asked: Wanted, store: Store) -> list[Cell]:
    """The cells that are done and whose trace is missing, or one of other samples."""
    done = [cell for cell in group.cells if (record := store.get(cell.key)) is not None and record.status == "done"]
    return [cell for cell in done if asked.spread and not is_traced(cell, asked, store)]


def read(asked: Wanted, bench: Bench) -> Samples:
    """From memory those that the accuracy's pass left there. Raises ValueError where not one of them can be read."""
    data, backbone = bench.samples.source, bench.backbone
    found: dict[int, Tensor] = {}
    in_memory = {
        index: sample
        for batch in bench.samples.batches.kept
        for index, sample in zip(batch.index_B.tolist(), batch.inputs, strict=True)
    }
    for index in asked.asked:
        try:
            sample = in_memory[index] if index in in_memory else _read(index, bench)
        except Unreadable:  # the record names it
            continue
        found[index] = sample.reshape(-1, *backbone.sample_shape)[0]
    if not found:
        raise ValueError(f"not one of the {len(asked.asked)} samples to trace could be read")
    known = [foreground for index in found if (foreground := data.foreground(index)) is not None]
    objects = np.stack([object_share(one, backbone.grid) for one in known]) if len(known) == len(found) else None
    return Samples(asked, tuple(found), torch.stack(list(found.values())), objects, backbone.preprocess())


def arrays(model: ReducedModel, samples: Samples, bench: Bench) -> dict[str, np.ndarray]:
    """What is kept of one cell. Raises ValueError where its method loses track of its tokens."""
    backbone, layers = bench.backbone, model.schedule.reducing_layers
    parts = list(_parts(model, samples.inputs, bench))
    first, size, feature = (np.concatenate(part, axis) for part, axis in zip(zip(*parts), (1, 1, 0)))
    kept = {
        "index_S": np.array(samples.index),
        "num_spread": np.array(sum(index in samples.wanted.spread for index in samples.index)),
        "asked": np.array(samples.wanted.asked),
        "grid": np.array(backbone.grid),
        "depth": np.array(backbone.depth),
        "layer_R": np.array(layers, int),
        "first_RSP": first,
        "size_RSP": size,
        "feature_SC": feature,
    }
    return kept if samples.object_SP is None else kept | {"object_SP": samples.object_SP}


def pictures(samples: Samples, grid: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """Of the telling samples, and of the first others, the pixels: those of the first frame of a time of the grid."""
    order = sorted(range(len(samples.index)), key=lambda place: samples.index[place] not in samples.wanted.telling)
    place_D = order[:DRAWN]
    time_F = np.unique(np.linspace(0, grid[0] - 1, min(FRAMES, grid[0])).round().astype(int))
    clips = samples.inputs[place_D]
    clips = clips[:, None] if clips.ndim == 4 else clips
    frames_DFCHW = clips[:, time_F * (clips.shape[1] // grid[0])]
    mean, std = (torch.tensor(value)[:, None, None] for value in (samples.preprocess.mean, samples.preprocess.std))
    pixels = ((frames_DFCHW * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return {
        "frame_index_D": np.array([samples.index[place] for place in place_D]),
        "frame_time_F": time_F,
        "frames_DFHWC": pixels.permute(0, 1, 3, 4, 2).numpy(),
    }


def first_members(source_SM: Tensor, prefix: int) -> Tensor:
    """(S, P): the same groups by the place of their first member, whatever order the method gave them.

    >>> first_members(torch.tensor([[0, 2, 1, -1, 2]]), 1).tolist()
    [[0, 1, -1, 0]]
    """
    group_SP = source_SM[:, prefix:]
    if ((group_SP >= 0) & (group_SP < prefix)).any():
        raise ValueError("tokens joined the prefix, which must stay alone; the method's assign has to leave it so")
    P = group_SP.shape[1]
    place_SP = torch.arange(P, device=group_SP.device).expand_as(group_SP)
    num_groups = int(group_SP.max().clamp_min(0)) + 1
    first_SK = torch.full((len(group_SP), num_groups + 1), P, device=group_SP.device)
    first_SK = first_SK.scatter_reduce(1, group_SP.where(group_SP >= 0, num_groups), place_SP, "amin")
    return first_SK.gather(1, group_SP.clamp_min(0)).where(group_SP >= 0, -1)


def object_share(foreground_THW: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """(P,) float16: the share of each token's pixels that show an object."""
    parts = [part for num, size in zip(grid, foreground_THW.shape) for part in (num, size // num)]
    return foreground_THW.reshape(parts).mean((1, 3, 5)).reshape(-1).astype(np.float16)


def _read(index: int, bench: Bench) -> Tensor:
    return bench.samples.source.read(index, bench.backbone.sample_shape, bench.backbone.preprocess())


def _parts(model: ReducedModel, inputs: Tensor, bench: Bench) -> Iterator[tuple[np.ndarray, ...]]:
    config = bench.config
    for batch in inputs.split(config.batch_size):
        with torch.inference_mode(), autocast(device_of(config), config.precision):
            yield _part(model, batch.to(device_of(config)))


def _part(model: ReducedModel, inputs: Tensor) -> tuple[np.ndarray, ...]:
    """``first_RSP``, ``size_RSP`` and ``feature_SC`` of a batch."""
    backbone, states = model.backbone, list[Tokens]()
    tokens = backbone.normed(model.run(inputs, states=states))
    feature_SC = tokens.x_BNC[:, 0] if backbone.has_cls else tokens.mean_pool()
    P = backbone.num_tokens - backbone.prefix
    dtype = np.int16 if P < 2**15 else np.int32
    first_RSP = np.empty((len(model.schedule.reducing_layers), len(inputs), P), dtype)
    size_RSP = np.zeros(first_RSP.shape, np.float16)
    for row, layer in enumerate(model.schedule.reducing_layers):
        source_SM = states[layer].source_BM
        if source_SM is None:
            raise ValueError(f"{model.method.name} does not say where its tokens go: its reduce drops source_BM")
        first_SP = first_members(source_SM, backbone.prefix)
        is_first_SP = first_SP == torch.arange(P, device=first_SP.device)
        sizes_SP = states[layer].sizes().gather(1, source_SM[:, backbone.prefix :].clamp_min(0))
        first_RSP[row] = first_SP.cpu().numpy()
        size_RSP[row] = (sizes_SP * is_first_SP).cpu().numpy()
    return first_RSP, size_RSP, feature_SC.float().cpu().numpy().astype(np.float16)


def is_traced(cell: Cell, asked: Wanted, store: Store) -> bool:
    """Whether there is a readable trace of these samples."""
    try:
        known = store.trace(cell.key, ("asked",))
    except ValueError:  # unreadable: it is made again
        return False
    return known is not None and "asked" in known and tuple(known["asked"].tolist()) == asked.asked


def _telling(group: Group, store: Store) -> list[int]:
    """Those lost by most cells, then those gained by most; the earlier where as many do."""
    first, *others = (_right(store.get(cell.key), store) for cell in group.cells)
    comparable = [other for other in others if other is not None and first is not None and other.keys() == first.keys()]
    if first is None or not comparable:
        return []
    index, right = np.array(list(first)), np.array(list(first.values()))
    rights = np.array([list(other.values()) for other in comparable])
    lost, gained = (~rights & right).sum(0), (rights & ~right).sum(0)
    chosen: list[int] = []
    for times in (lost, gained):
        best = np.argsort(-times, kind="stable")[:TELLING]
        chosen += index[best[times[best] > 0]].tolist()
    return chosen


def _right(record: Record | None, store: Store) -> dict[int, bool] | None:
    """Of each sample whether the cell has it right; None where results are not those of samples, but of texts."""
    if record is None or record.status != "done" or record.cell["task"] != "classification":
        return None
    arrays = store.predictions(record.key)
    right = arrays["prediction"] == arrays["reference" if "reference" in arrays else "label"]
    return dict(zip(arrays["index"].tolist(), right.tolist(), strict=True))
