"""What of the objects and what of the background survives, layer by layer, where the data knows which pixels show an object.

``retained`` gives the numbers, ``draw_retained`` draws a method's panel, and ``save_foreground`` makes the files.

Dimension key: S samples, P input tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tokred.analysis.figure import file_stems, new_figure, panel_title, save_figure
from tokred.analysis.look import Look, looks, printable
from tokred.analysis.rows import OfMethod, grouped
from tokred.analysis.statistics import Estimate
from tokred.analysis.traces import Trace, Traced, few_of, few_settings, group_size_SP, over_samples

PANEL_INCHES, FEW_INCHES, COLUMNS = (1.9, 1.65), (2.7, 2.3), 5


@dataclass(frozen=True)
class Retained(OfMethod):
    """What is left of objects and background behind one layer; means over ``num_samples``, each token counted by the share of
    its pixels that show an object, and by the rest for the background.

    ``object_left``: tokens left for each token of object. A token that was dropped leaves none, one that stands alone 1, one of a
    group of k 1 / k: how finely the model still sees it, alike for pruning and merging; over objects and background it adds up
    to the tokens that are left. ``object_dropped``: the share that was dropped. ``mixed``: of the groups of two or more, those
    that hold both tokens of which half or more is object and others; None where there are no such groups.
    """

    backbone: str
    weights: str
    data: str
    setting: str
    method: str
    options: str
    layer: int
    num_samples: int
    object_left: float
    object_left_low: float
    object_left_high: float
    background_left: float
    background_left_low: float
    background_left_high: float
    object_dropped: float
    background_dropped: float
    mixed: float | None


def retained(traced: Sequence[Traced]) -> list[Retained]:
    """Of every reduced row whose data knows its objects, every layer."""
    found = []
    for one in traced:
        if one.row.method != "none" and all(trace.object_SP is not None for trace in one.traces):
            found += [made for layer in range(one.traces[0].depth) if (made := _retained(one, layer)) is not None]
    return found


def tokens_left(first_SP: np.ndarray, share_SP: np.ndarray) -> np.ndarray:
    """(S,): of what ``share_SP`` weighs the tokens left for each: 1 where it stands alone, 1 / k in a group of k, 0 dropped. NaN
    where the sample has none of it."""
    size_SP = group_size_SP(first_SP)
    each_SP = np.divide(1.0, size_SP, out=np.zeros(size_SP.shape), where=size_SP > 0)
    return _of_all(share_SP * each_SP, share_SP)


def dropped(first_SP: np.ndarray, share_SP: np.ndarray) -> np.ndarray:
    """(S,): the share of ``share_SP`` that is in dropped tokens."""
    return _of_all(share_SP * (first_SP < 0), share_SP)


def mixed_groups(first_SP: np.ndarray, object_SP: np.ndarray) -> np.ndarray:
    """(S,): of the groups of two or more tokens those that hold both tokens of which half or more is object and others; NaN where
    there are no such groups."""
    share_S = np.full(len(first_SP), np.nan)
    for sample, (first_P, object_P) in enumerate(zip(first_SP, object_SP, strict=True)):
        kept_P = first_P >= 0
        size_P = np.bincount(first_P[kept_P], minlength=len(first_P))
        objects_P = np.bincount(first_P[kept_P], object_P[kept_P] >= 0.5, minlength=len(first_P))
        is_group_P = size_P > 1
        if is_group_P.any():
            share_S[sample] = ((objects_P > 0) & (objects_P < size_P))[is_group_P].mean()
    return share_S


def draw_retained(
    panel: Sequence[Retained], ax: Axes | None = None, *, look: Look | None = None, order: Sequence[str] | None = None
) -> Axes:
    """``panel``: one method on one backbone, a solid and a dashed line for each setting, the cheapest darkest; ``order``: the
    settings, dearest first."""
    ax = ax or new_figure(3.0, 2.6).subplots()
    look = look or next(iter(looks([(panel[0].method, panel[0].options)]).values()))
    order = order or list(dict.fromkeys(one.setting for one in panel))
    for place, name in enumerate(order):
        some = [one for one in panel if one.setting == name]
        if not some:
            continue
        colour = _shade(look.colour, (place + 1) / len(order))
        x = [0, *(one.layer + 1 for one in some)]
        for what, style in (("object", "-"), ("background", "--")):
            middle, low, high = (
                [1.0, *(getattr(one, f"{what}_left{end}") for one in some)] for end in ("", "_low", "_high")
            )
            ax.plot(x, middle, style, color=colour, linewidth=1.5)
            if what == "object":
                ax.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    last = max((one for one in panel if one.setting == order[-1]), key=lambda one: one.layer, default=None)
    said = "" if last is None else f"\nobject {100 * last.object_left:.0f}, background {100 * last.background_left:.0f}"
    ax.set_title(f"{printable(panel[0].label, width=24)}{said}", size=8)
    ax.set_ylim(0, 1.03)
    ax.set_xlim(0, None)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f}")
    return ax


def save_foreground(traced: Sequence[Traced], folder: str | Path) -> list[Path]:
    """``foreground-BACKBONE`` as png, svg, and csv with all settings; of more than three three are drawn."""
    found = grouped(retained(traced), lambda one: one.group)
    groups = [some[0].group for some in found]
    paths: list[Path] = []
    for stem, some in zip(file_stems("foreground", groups), found, strict=True):
        order = few_settings([one for one in traced if one.row.group == some[0].group])
        title = panel_title(some[0].group, groups)
        paths += save_figure(partial(_figure, some, order, title), some, Path(folder) / stem)
    return paths


def _retained(one: Traced, layer: int) -> Retained | None:
    """None where fewer than two samples have objects, or background."""
    left = [_over_seeds(tokens_left, one.traces, layer, rest=rest) for rest in (False, True)]
    gone = [_over_seeds(dropped, one.traces, layer, rest=rest) for rest in (False, True)]
    mixed = _over_seeds(mixed_groups, one.traces, layer)
    if left[0] is None or left[1] is None or gone[0] is None or gone[1] is None:
        return None
    row = one.row
    return Retained(
        *row.group,
        one.setting,
        row.method,
        row.options,
        layer,
        len(one.traces[0].index_S),
        object_left=left[0].value,
        object_left_low=left[0].low,
        object_left_high=left[0].high,
        background_left=left[1].value,
        background_left_low=left[1].low,
        background_left_high=left[1].high,
        object_dropped=gone[0].value,
        background_dropped=gone[1].value,
        mixed=None if mixed is None else mixed.value,
    )


def _over_seeds(measure, traces: Sequence[Trace], layer: int, *, rest: bool = False) -> Estimate | None:
    """``rest``: of the background in place of the objects."""
    values = []
    for trace in traces:
        assert trace.object_SP is not None
        object_SP = trace.object_SP.astype(float)
        values.append(measure(trace.first_SP(layer), 1 - object_SP if rest else object_SP))
    return over_samples(np.mean(values, axis=0))


def _of_all(part_SP: np.ndarray, share_SP: np.ndarray) -> np.ndarray:
    whole_S = share_SP.sum(1)
    return np.divide(part_SP.sum(1), whole_S, out=np.full(len(whole_S), np.nan), where=whole_S > 0)


def _shade(colour: str, depth: float) -> tuple[float, float, float]:
    """The colour, mixed with white where ``depth`` is below 1."""
    red, green, blue = (1 - (0.25 + 0.75 * depth) * (1 - part) for part in to_rgb(colour))
    return red, green, blue


def _figure(some: Sequence[Retained], order: Sequence[str], title: str) -> Figure:
    """A panel for each method, first those that keep more of the objects than of the background, at the cheapest setting."""
    panels = sorted(grouped(some, lambda one: one.label), key=partial(_gap, cheapest=order[-1]))
    num_columns = min(COLUMNS, len(panels))
    num_rows = -(-len(panels) // num_columns)
    width, height = PANEL_INCHES if num_rows > 1 else FEW_INCHES
    figure = new_figure(max(6.4, width * num_columns + 0.6), height * num_rows + 1.3)
    axes = list(figure.subplots(num_rows, num_columns, squeeze=False, sharex=True, sharey=True).flat)
    given = looks((one.method, one.options) for one in some)
    for panel, ax in zip(panels, axes, strict=False):
        draw_retained(panel, ax, look=given[panel[0].method, panel[0].options], order=order)
    for place, ax in enumerate(axes[len(panels) :], start=len(panels)):
        ax.remove()
        axes[place - num_columns].tick_params(labelbottom=True)
    figure.suptitle(f"{title}: what is left of objects and of the background", size="large")
    figure.supylabel("tokens left for each, %", size="medium")
    for ax in axes[num_columns * (num_rows - 1) : len(panels)]:
        ax.set_xlabel("layers passed")
    note = f"means over {some[0].num_samples} samples, 95 % intervals; a token in a group of k leaves 1 / k"
    note += few_of(len(order), len({one.setting for one in some}))
    where: dict[str, Any] = {"loc": "outside lower center", "ncols": 2 if len(order) < 3 else 3}
    figure.legend(handles=_key(order), **where, frameon=False, fontsize=8, title=note, title_fontsize=8)
    return figure


def _gap(panel: Sequence[Retained], *, cheapest: str) -> float:
    last = [one for one in panel if one.setting == cheapest] or panel
    return last[-1].background_left - last[-1].object_left


def _key(order: Sequence[str]) -> list[Line2D]:
    lines = [
        Line2D([], [], color="0.2", label="objects"),
        Line2D([], [], color="0.2", linestyle="--", label="background"),
    ]
    shades = [
        Line2D([], [], color=_shade("0.2", (place + 1) / len(order)), linewidth=4, label=printable(name))
        for place, name in enumerate(order)
    ]
    return [*lines, *shades]
