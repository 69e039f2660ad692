"""Every method against every other at equal compute: a matrix of mean differences, and what a difference had to be to be found.

``compared`` gives the numbers, from ``tokred.analysis.claims`` over all backbones together, ``draw_pairwise`` draws the matrix of
one backbone, and ``save_pairwise`` makes the files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tokred.analysis.claims import Claim, Unclaimed, claims
from tokred.analysis.curves import Curve
from tokred.analysis.figure import file_stems, name_squares, new_figure, panel_title, save_figure
from tokred.analysis.look import ink, printable
from tokred.analysis.rows import grouped

COLOURS = "RdBu"  # as in the heat-map: red below 0, white 0, blue above
SQUARE_INCHES = 0.46
LETTER_INCHES = 0.065


@dataclass(frozen=True)
class Compared:
    """``first`` minus ``second``: the mean over the budgets from ``window_low`` to ``window_high``, with a 95 % interval that
    stands alone. ``claimed`` by Holm over all ``num_comparisons`` of the run. ``smallest``: the true difference that 80 % of new
    draws would show if it had to pass the strictest step of the correction. Without numbers: not compared, for ``reason``."""

    backbone: str
    weights: str
    data: str
    metric: str
    first: str
    second: str
    reason: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    adjusted_p: float | None = None
    claimed: bool = False
    smallest: float | None = None
    window_low: float | None = None
    window_high: float | None = None
    overlap: float | None = None
    num_samples: int | None = None
    num_seeds: int = 1
    num_comparisons: int = 0

    @property
    def group(self) -> tuple[str, str, str]:
        return self.backbone, self.weights, self.data


def compared(some: Sequence[Curve]) -> list[Compared]:
    """All pairs of the reduced curves of each backbone, as ``claims`` judges them."""
    # a claim names its backbone only, of which there may be several sets of weights
    groups = list(dict.fromkeys(curve.group for curve in some))
    found, left_out = claims([replace(curve, backbone=str(groups.index(curve.group))) for curve in some])
    metrics = {curve.group: curve.metric for curve in some}
    made = [_with_claim(_about(one, groups, metrics), one) for one in found]
    made += [replace(_about(one, groups, metrics), reason=one.reason) for one in left_out]
    return sorted(made, key=lambda one: groups.index(one.group))


def draw_pairwise(panel: Sequence[Compared], ax: Axes | None = None, *, largest: float | None = None) -> Axes:
    """``panel``: the pairs of one backbone. Above the diagonal the row's method minus the column's, with a star where it is
    claimed; below it the smallest difference that would be found. ``largest``: the difference at the ends of the colours."""
    ax = ax or new_figure(4.5, 4.2).subplots()
    names = list(dict.fromkeys(name for one in panel for name in (one.first, one.second)))
    largest = largest or max((abs(one.value or 0.0) for one in panel), default=0.0) or 0.01
    for one in panel:
        first, second = names.index(one.first), names.index(one.second)
        _draw_pair(ax, one, (first, second), largest)
    for place in range(len(names)):
        ax.add_patch(Rectangle((place, place), 1, 1, facecolor="0.97", edgecolor="white", linewidth=1))
    name_squares(ax, names)
    return ax


def save_pairwise(some: Sequence[Curve], folder: str | Path) -> list[Path]:
    """``pairwise-BACKBONE`` as png, svg and csv, for each backbone with two methods that can be compared."""
    by_group = grouped(compared(some), lambda one: one.group)
    by_group = [own for own in by_group if any(one.value is not None for one in own)]
    groups, paths = [own[0].group for own in by_group], list[Path]()
    for stem, own in zip(file_stems("pairwise", groups), by_group, strict=True):
        title = panel_title(own[0].group, groups)
        paths += save_figure(partial(_figure, own, title), own, Path(folder) / stem)
    return paths


def _about(
    one: Claim | Unclaimed, groups: Sequence[tuple[str, str, str]], metrics: Mapping[tuple[str, str, str], str]
) -> Compared:
    group = groups[int(one.backbone)]
    return Compared(*group, metrics[group], one.first, one.second)


def _with_claim(about: Compared, one: Claim) -> Compared:
    alike = ("value", "low", "high", "adjusted_p", "overlap", "num_samples", "num_seeds", "num_comparisons")
    return replace(
        about,
        **{name: getattr(one, name) for name in alike},
        claimed=one.is_claimed,
        smallest=one.smallest_in_report,
        window_low=one.window[0],
        window_high=one.window[1],
    )


def _draw_pair(ax: Axes, one: Compared, place: tuple[int, int], largest: float) -> None:
    """``place``: of the first and of the second, which comes later."""
    row, column = place
    text, face, least = "-", (0.93, 0.93, 0.93, 1.0), "-"
    if one.value is not None and one.smallest is not None:
        face = colormaps[COLOURS](0.5 + one.value / (2 * largest))
        text = f"{round(100 * one.value, 1) + 0.0:+.1f}{'*' if one.claimed else ''}"  # + 0.0: no "-0.0"
        least = f"{100 * one.smallest:.1f}"
    ax.add_patch(Rectangle((column, row), 1, 1, facecolor=face, edgecolor="white", linewidth=1))
    weight = "bold" if one.claimed else "normal"
    ax.text(column + 0.5, row + 0.5, text, ha="center", va="center", size=7.5, color=ink(face), weight=weight)
    ax.text(row + 0.5, column + 0.5, least, ha="center", va="center", size=7.5, color="0.4")


def _figure(own: Sequence[Compared], title: str) -> Figure:
    names = {name for one in own for name in (one.first, one.second)}
    longest = max(len(printable(name, width=28)) for name in names)
    side = SQUARE_INCHES * max(len(names), 3)
    figure = new_figure(max(5.2, side + LETTER_INCHES * longest + 0.5), side + 0.72 * LETTER_INCHES * longest + 1.6)
    draw_pairwise(own, figure.subplots())
    done = [one for one in own if one.value is not None]
    figure.suptitle(f"{title}\n{own[0].metric} at equal MACs: row minus column, points", size=10)
    figure.supxlabel(
        "above the diagonal: positive (blue) where the row's is higher;\n"
        f"* after Holm over {done[0].num_comparisons} comparisons. Below: the smallest\n"
        f"detectable difference. n = {done[0].num_samples:,} samples"
        + ("; -: too few shared budgets" if len(done) < len(own) else ""),
        size=8,
    )
    return figure
