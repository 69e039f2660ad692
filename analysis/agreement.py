"""How far methods agree, at the same setting, on what they keep and what they merge: pairs of rows, and a matrix of them.

``pairs`` gives the numbers, ``draw_matrix`` draws one panel of them, and ``save_agreement`` makes the files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from tokred.analysis.figure import file_stems, name_squares, new_figure, panel_title, save_figure
from tokred.analysis.look import ink, printable
from tokred.analysis.partitions import (
    adjusted_rand,
    normalized_mutual_information,
    overlap,
    overlap_by_chance,
    rank_correlation,
    survival_SP,
)
from tokred.analysis.rows import OnBackbone, grouped
from tokred.analysis.statistics import Estimate
from tokred.analysis.traces import Trace, Traced, few_of, over_samples, seed_pairs, spread

COLOURS = "RdBu"  # as in the heat-map: red below 0, white 0, blue above
SQUARE_INCHES = 0.34
MEASURES = {
    "overlap": "IoU of the tokens kept as they are",
    "rand": "adjusted Rand index of what is together",
    "order": "rank correlation of how long tokens stay as they are",
}


@dataclass(frozen=True)
class Pair(OnBackbone):
    """Two methods at one setting of one backbone, as their tokens leave the last layer; means over ``num_samples``.

    ``overlap``: of the tokens kept as they are, intersection over union, beside what as many random tokens would have. ``rand``:
    the adjusted Rand index of the partitions, ``mutual``: their normalized mutual information, the dropped being one group.
    ``order``: Spearman's correlation of the layers through which tokens stay as they are. None: no value, as where nothing is
    kept as it is. A method with itself: between its seeds.
    """

    backbone: str
    weights: str
    data: str
    setting: str
    a: str
    b: str
    num_samples: int
    gmacs: float | None = None
    overlap: float | None = None
    overlap_low: float | None = None
    overlap_high: float | None = None
    overlap_by_chance: float | None = None
    rand: float | None = None
    rand_low: float | None = None
    rand_high: float | None = None
    mutual: float | None = None
    order: float | None = None
    order_low: float | None = None
    order_high: float | None = None


def pairs(traced: Sequence[Traced]) -> list[Pair]:
    """All pairs of reduced rows of one backbone and setting, and each random method's seeds among themselves."""
    reduced = [one for one in traced if one.row.method != "none"]
    found = []
    for some in grouped(reduced, lambda one: (one.row.group, one.setting)):
        kept = {id(trace): _Kept(trace) for one in some for trace in one.traces}
        for a, b in combinations_with_replacement(some, 2):
            if both := [(kept[id(one)], kept[id(other)]) for one, other in seed_pairs(a, b)]:
                found.append(_pair(a, b, both))
    return found


def draw_matrix(
    panel: Sequence[Pair], below: str = "rand", above: str | None = "overlap", ax: Axes | None = None
) -> Axes:
    """``panel``: the pairs of one backbone and setting; ``below`` and ``above`` the diagonal one of ``MEASURES`` each. On the
    diagonal two seeds of a random method, by ``below``. Methods that agree stand together."""
    ax = ax or new_figure(5.0, 5.0).subplots()
    names, by_names = _in_order(panel), {(pair.a, pair.b): pair for pair in panel}
    for row, a in enumerate(names):
        for column, b in enumerate(names):
            measure, pair = above if column > row else below, by_names.get((a, b), by_names.get((b, a)))
            if measure is not None:
                value = None if pair is None else getattr(pair, measure)
                _draw_square(ax, row, column, value, is_own=row == column)
    name_squares(ax, names)
    return ax


def save_agreement(found: Sequence[Pair], folder: str | Path) -> list[Path]:
    """``agreement-BACKBONE`` as png, svg, and csv with all settings; drawn is the one that spends least."""
    by_group = [some for some in grouped(found, lambda pair: pair.group) if any(pair.a != pair.b for pair in some)]
    groups = [some[0].group for some in by_group]
    paths: list[Path] = []
    for stem, some in zip(file_stems("agreement", groups), by_group, strict=True):
        drawn = min(grouped(some, lambda pair: pair.setting), key=_mean_gmacs)
        title = f"{panel_title(some[0].group, groups)}, {printable(drawn[0].setting)}"
        paths += save_figure(
            partial(_figure, drawn, title, few_of(1, len({pair.setting for pair in some}))), some, Path(folder) / stem
        )
    return paths


class _Kept:
    """Of a trace what is compared; worked out once."""

    def __init__(self, trace: Trace):
        self.first_SP, self.survival_SP = trace.first_SP(trace.depth - 1), survival_SP(trace)


def _pair(a: Traced, b: Traced, both: Sequence[tuple[_Kept, _Kept]]) -> Pair:
    def over_seeds(measure: Callable[[np.ndarray, np.ndarray], np.ndarray], what: str = "first_SP") -> Estimate | None:
        return over_samples(np.mean([measure(getattr(one, what), getattr(other, what)) for one, other in both], axis=0))

    chance, mutual = over_seeds(overlap_by_chance), over_seeds(normalized_mutual_information)
    about: dict[str, Any] = {
        **spread("overlap", over_seeds(overlap)),
        "overlap_by_chance": None if chance is None else chance.value,
        **spread("rand", over_seeds(adjusted_rand)),
        "mutual": None if mutual is None else mutual.value,
        **spread("order", over_seeds(rank_correlation, "survival_SP")),
    }
    num_samples = len(a.traces[0].index_S)
    return Pair(*a.row.group, a.setting, a.row.label, b.row.label, num_samples, a.row.gmacs, **about)


def _mean_gmacs(some: Sequence[Pair]) -> float:
    return float(np.mean([pair.gmacs or 0.0 for pair in some]))


def _in_order(panel: Sequence[Pair]) -> list[str]:
    """The methods, those that agree on partitions beside each other; the same for all measures."""
    names = list(dict.fromkeys(name for pair in panel for name in (pair.a, pair.b)))
    if len(names) < 3:
        return names
    apart = np.zeros((len(names), len(names)))
    for pair in panel:
        if pair.a != pair.b:
            a, b = names.index(pair.a), names.index(pair.b)
            apart[a, b] = apart[b, a] = 1 - min(1.0, pair.rand or 0.0)
    return [names[place] for place in leaves_list(linkage(squareform(apart), "average", optimal_ordering=True))]


def _draw_square(ax: Axes, row: int, column: int, value: float | None, *, is_own: bool) -> None:
    if value is None and is_own:
        ax.add_patch(Rectangle((column, row), 1, 1, facecolor="0.96", edgecolor="white", linewidth=1))
        return
    face = "0.93" if value is None else colormaps[COLOURS](0.5 + value / 2)
    ax.add_patch(Rectangle((column, row), 1, 1, facecolor=face, edgecolor="white", linewidth=1))
    text = "-" if value is None else f"{round(100 * value) + 0:d}"
    colour = "0.4" if value is None else ink(colormaps[COLOURS](0.5 + value / 2))
    ax.text(column + 0.5, row + 0.5, text, ha="center", va="center", size=7.5, color=colour)


def _figure(drawn: Sequence[Pair], title: str, note: str) -> Figure:
    num = len({name for pair in drawn for name in (pair.a, pair.b)})
    side = SQUARE_INCHES * max(num, 5) + 1.6
    shape = (1, 2) if 2 * side <= 14 else (2, 1)
    figure = new_figure(side * shape[1], (side + 0.2) * shape[0] + 0.9)
    upper, lower = figure.subplots(*shape, squeeze=False).flat
    draw_matrix(drawn, "rand", "overlap", upper)
    upper.set_title(f"above: {MEASURES['overlap']}\nbelow: {MEASURES['rand']}", size=9)
    draw_matrix(drawn, "order", None, lower)
    lower.set_title(MEASURES["order"].replace(" of how", "\nof how"), size=9)
    figure.suptitle(f"{title}: agreement, %", size="large")
    seeds = "\non the diagonal: Rand index and order of two seeds" if any(pair.a == pair.b for pair in drawn) else ""
    figure.supxlabel(
        f"tokens that leave the last layer; means over {drawn[0].num_samples} samples{note}{seeds}", size="small"
    )
    return figure
