"""Which tokens were kept, merged and dropped, drawn over the frames: the same clips for all methods.

A token that stands alone shows its pixels; those of a group show the mean colour of the group's patches, with a white border to
other groups; a dropped one is hatched. ``clips`` says which samples, ``overlay`` paints one, ``save_overlays`` makes the files.

Dimension key: S samples, P input tokens, D drawn samples, F frames, H height, W width, C colours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from tokred.analysis.figure import file_stems, new_figure, panel_title, save_figure
from tokred.analysis.look import printable
from tokred.analysis.rows import OfMethod, grouped, rows_with_records, samples_of
from tokred.analysis.traces import Traced, few_settings, group_size_SP, read_traces, settings
from tokred.record import Record, Store

NUM_CLIPS = 3
PATCH_PIXELS = 24  # in the picture: borders are a pixel or two of them
WIDE_INCHES, LABEL_INCHES = 9.6, 1.5
COLOURS = {"lost": "#D55E00", "gained": "#0072B2", "right": "0.35", "wrong": "0.35", "": "0.35"}


@dataclass(frozen=True)
class Frames:
    """Of a backbone's samples ``index_D`` the pixels at the times ``time_F`` of its grid."""

    index_D: np.ndarray
    time_F: np.ndarray
    frames_DFHWC: np.ndarray


@dataclass(frozen=True)
class Overlay(OfMethod):
    """One method's picture of one sample; ``fate``: lost or gained against the unreduced model, else right or wrong as it is;
    empty where results are not those of samples. ``kept``, ``merged`` and ``dropped``: shares of its input tokens."""

    backbone: str
    weights: str
    data: str
    setting: str
    method: str
    options: str
    sample: int
    fate: str
    kept: float
    merged: float
    dropped: float


def overlay(
    frames_FHWC: np.ndarray, first_P: np.ndarray, grid: tuple[int, int, int], time_F: Sequence[int]
) -> np.ndarray:
    """(height, F x width, 3) uint8: the frames side by side, as the model sees them behind the groups of ``first_P``."""
    at_TYX = first_P.reshape(grid)[list(time_F)]
    alone_TYX = (group_size_SP(first_P[None])[0] == 1).reshape(grid)[list(time_F)]
    patches = _patches(frames_FHWC, grid[1:])
    size = _enlarged(patches)
    seen = _coloured(patches, at_TYX, alone_TYX)
    seen = seen.repeat(size, axis=3).repeat(size, axis=4)
    _border(seen, at_TYX, alone_TYX)
    _hatch(seen, at_TYX)
    pictures = seen.transpose(0, 1, 3, 2, 4, 5).reshape(
        len(time_F), grid[1] * seen.shape[3], grid[2] * seen.shape[4], 3
    )
    return _side_by_side(pictures)


def clips(fates: Mapping[str, Mapping[int, str]], index_D: Sequence[int], num: int = NUM_CLIPS) -> list[int]:
    """The samples to draw, of ``index_D``: the one that most methods lose, the one that most gain, then those about which methods
    differ most, then the others. ``fates``: by method and sample."""
    lost, gained = (
        {index: sum(of_sample.get(index) == fate for of_sample in fates.values()) for index in index_D}
        for fate in ("lost", "gained")
    )
    chosen: list[int] = []
    for times in (lost, gained):
        best = max(index_D, key=lambda index: times[index], default=None)
        if best is not None and times[best] and best not in chosen:
            chosen.append(best)
    same = [index for index in index_D if index not in chosen]
    typical = [index for index in same if not lost[index] + gained[index]]
    rest = [*typical[:1], *sorted((i for i in same if i not in typical[:1]), key=lambda i: -lost[i] - gained[i])]
    return [*chosen, *rest][:num]


def save_overlays(store: Store, folder: str | Path) -> list[Path]:
    """``overlays-BACKBONE`` as png, svg and csv, at the setting that spends least; nothing without frames."""
    found = grouped(read_traces(store, telling=True), lambda one: one.row.group)
    known = _frames(store)
    found = [some for some in found if some[0].row.group in known and any(one.row.method != "none" for one in some)]
    groups = [some[0].row.group for some in found]
    right = _right(store)
    paths: list[Path] = []
    for stem, some in zip(file_stems("overlays", groups), found, strict=True):
        group = some[0].row.group
        drawn = [one for one in some if one.setting == few_settings(some)[-1] and one.row.method != "none"]
        fates = {
            one.row.label: _fates(right.get(group), right.get((*group, one.row.label, one.setting))) for one in drawn
        }
        frames = known[group]
        chosen = clips(fates, [index for index in frames.index_D.tolist() if index in drawn[0].traces[0].index_S])
        items = [_item(one, index, fates[one.row.label]) for one in drawn for index in chosen]
        title = f"{panel_title(group, groups)}, {printable(drawn[0].setting)}"
        truth = _fates(right.get(group), right.get(group))
        paths += save_figure(partial(_figure, drawn, frames, items, truth, title), items, Path(folder) / stem)
    return paths


def _patches(frames_FHWC: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """(F, rows, columns, height, width, C) of the patches."""
    F, H, W, C = frames_FHWC.shape
    return frames_FHWC.reshape(F, grid[0], H // grid[0], grid[1], W // grid[1], C).transpose(0, 1, 3, 2, 4, 5)


def _enlarged(patches: np.ndarray) -> int:
    """How often a pixel is repeated, so that borders are finer than pixels."""
    return max(1, PATCH_PIXELS // patches.shape[3])


def _coloured(patches: np.ndarray, at_TYX: np.ndarray, alone_TYX: np.ndarray) -> np.ndarray:
    """Each patch in the mean colour of its group, over the times that are drawn."""
    mean_NC = patches.mean((3, 4)).reshape(-1, 3)
    _, group_N = np.unique(at_TYX, return_inverse=True)
    group_N = group_N.reshape(-1)
    total = np.stack([np.bincount(group_N, mean_N) for mean_N in mean_NC.T], 1) / np.bincount(group_N)[:, None]
    flat = np.broadcast_to(total[group_N].reshape(*at_TYX.shape, 1, 1, 3), patches.shape)
    return np.where(alone_TYX[..., None, None, None], patches, flat).astype(np.uint8)


def _border(seen: np.ndarray, at_TYX: np.ndarray, alone_TYX: np.ndarray) -> None:
    """White between two patches of different groups, but for two that stand alone."""
    width = max(1, seen.shape[3] // 16)
    above = (at_TYX[:, 1:] != at_TYX[:, :-1]) & ~(alone_TYX[:, 1:] & alone_TYX[:, :-1])
    before = (at_TYX[:, :, 1:] != at_TYX[:, :, :-1]) & ~(alone_TYX[:, :, 1:] & alone_TYX[:, :, :-1])
    seen[:, 1:, :, :width][above] = 255
    np.moveaxis(seen[:, :, 1:], 4, 3)[:, :, :, :width][before] = 255


def _hatch(seen: np.ndarray, at_TYX: np.ndarray) -> None:
    """Dropped patches: dark, with lines from corner to corner that go on in the next one."""
    height, width = seen.shape[3:5]
    y, x = np.mgrid[:height, :width]
    lines = (x + y) % max(4, width // 3) < max(1, width // 16)
    seen[at_TYX < 0] = np.where(lines, 150, 38)[..., None]


def _side_by_side(pictures: np.ndarray) -> np.ndarray:
    """With a white gap between frames."""
    gap = np.full((pictures.shape[1], 8, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (gap, picture)][1:]
    return np.concatenate(parts, axis=1)


def _frames(store: Store) -> dict[tuple, Frames]:
    """By group, from the trace of the unreduced model."""
    names = ("frame_index_D", "frame_time_F", "frames_DFHWC")
    return {
        row.group: Frames(*(arrays[name] for name in names))
        for row, records in rows_with_records(store)
        if row.method == "none" and (arrays := store.trace(records[0].key, names)) and len(arrays) == len(names)
    }


def _right(store: Store) -> dict[tuple, dict[int, bool]]:
    """Which samples a row has right, its first seed; the unreduced model's by its group alone. Only where a metric counts
    samples of the data, not texts."""
    found = {}
    both = rows_with_records(store)
    for (row, records), named in zip(both, settings([row for row, _ in both]), strict=True):
        if (
            row.metric in ("accuracy", "agreement")
            and records[0].cell.get("task", "classification") == "classification"
        ):
            place = row.group if row.method == "none" else (*row.group, row.label, named)
            found[place] = _of_record(store, records[0], row.metric)
    return found


def _of_record(store: Store, record: Record, metric: str) -> dict[int, bool]:
    known = samples_of(store, record, metric)
    return {} if known is None else dict(zip(known.index_N.tolist(), known.right_N.tolist(), strict=True))


def _fates(unreduced: Mapping[int, bool] | None, own: Mapping[int, bool] | None) -> dict[int, str]:
    names = {(True, False): "lost", (False, True): "gained", (True, True): "right", (False, False): "wrong"}
    shared = (unreduced or {}).keys() & (own or {}).keys()
    return {index: names[bool((unreduced or {})[index]), bool((own or {})[index])] for index in shared}


def _item(one: Traced, index: int, fates: Mapping[int, str]) -> Overlay:
    trace, row = one.traces[0], one.row
    size_P = group_size_SP(trace.first_SP(trace.depth - 1))[trace.index_S.tolist().index(index)]
    shares = [float(np.mean(part)) for part in (size_P == 1, size_P > 1, size_P == 0)]
    return Overlay(*row.group, one.setting, row.method, row.options, index, fates.get(index, ""), *shares)


def _figure(
    drawn: Sequence[Traced], frames: Frames, items: Sequence[Overlay], truth: Mapping[int, str], title: str
) -> Figure:
    chosen = list(dict.fromkeys(item.sample for item in items))
    width = (WIDE_INCHES - LABEL_INCHES) / len(chosen)
    height = width * frames.frames_DFHWC.shape[2] / (frames.frames_DFHWC.shape[3] * len(frames.time_F)) + 0.13
    figure = new_figure(WIDE_INCHES, height * (len(drawn) + 1) + 0.9)
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.02, hspace=0, wspace=0.02)
    panels = figure.subplots(len(drawn) + 1, len(chosen), squeeze=False)
    for column, index in enumerate(chosen):
        of_sample = frames.frames_DFHWC[frames.index_D.tolist().index(index)]
        plain = _plain(of_sample, drawn[0].traces[0].grid)
        _show(panels[0, column], plain, f"sample {index}", truth.get(index, ""))
        for row, one in enumerate(drawn, start=1):
            trace, item = one.traces[0], items[(row - 1) * len(chosen) + column]
            first_P = trace.first_SP(trace.depth - 1)[trace.index_S.tolist().index(index)]
            _show(panels[row, column], overlay(of_sample, first_P, trace.grid, frames.time_F.tolist()), "", item.fate)
    for ax, name in zip(panels[:, 0], ["unreduced", *(one.row.label for one in drawn)], strict=True):
        ax.set_ylabel(printable(name, width=22), rotation=0, ha="right", va="center", size=8.5)
    figure.suptitle(f"{title}: tokens that leave the last layer", size="large")
    figure.legend(handles=_key(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def _plain(frames_FHWC: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """The frames as they are, at the size of the others."""
    size = _enlarged(_patches(frames_FHWC, grid[1:]))
    return _side_by_side(frames_FHWC.repeat(size, axis=1).repeat(size, axis=2))


def _show(ax: Axes, picture: np.ndarray, title: str, fate: str) -> None:
    ax.imshow(picture, interpolation="nearest", aspect="equal")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(visible=False)
    told = fate in ("lost", "gained")
    for side in ax.spines.values():
        side.set_visible(told)
        side.set_color(COLOURS[fate])
        side.set_linewidth(2.2)
    text = ": ".join(filter(None, (title, fate)))
    ax.set_title(text, size=7.5, pad=2, color=COLOURS[fate], weight="bold" if told else "normal")


def _key() -> list[Patch]:
    return [
        Patch(facecolor="0.75", edgecolor="white", label="plain: merged, in the mean colour of its group"),
        Patch(facecolor="0.15", edgecolor="0.6", hatch="////", label="dropped"),
        Patch(facecolor="none", edgecolor="none", label="with its pixels: kept as it is"),
        Patch(facecolor="none", edgecolor=COLOURS["lost"], linewidth=2, label="lost: the unreduced model has it right"),
        Patch(
            facecolor="none", edgecolor=COLOURS["gained"], linewidth=2, label="gained: the unreduced model has it wrong"
        ),
    ]
