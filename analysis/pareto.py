"""What a method costs and what it keeps: accuracy over GMACs and over measured speed-up, a panel for each backbone.

``over_gmacs`` and ``over_speedup`` give the points, ``draw_gmacs`` and ``draw_speedup`` draw a panel of them, and
``save_pareto`` makes the files. A front of noisy points is noise where gaps are small, so a marker is filled only where draws of
the samples leave it on the front. Of more than ``MANY`` methods those on the front are named where they stand, and the others are
pale.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from tokred.analysis.crowd import Name, draw_bands, floor, pale, side_by_side, write_names
from tokred.analysis.curves import SAME_COST
from tokred.analysis.figure import new_figure, panel_title, save_figure
from tokred.analysis.front import SURE, on_front
from tokred.analysis.look import UNREDUCED, Look, looks, printable
from tokred.analysis.rows import Row, grouped

Looks = Mapping[tuple[str, str], Look]
Draws = Mapping[Row, np.ndarray]
NO_DRAWS: Draws = {}
FRONT_COLOUR = "0.6"
MANY = 8  # methods that can be told apart at a glance
PANEL_INCHES, WIDE_INCHES, COLUMNS = (4.6, 3.7), (9.2, 4.6), 2


@dataclass(frozen=True)
class Point(Row):
    """A row with a place in the figure; on the front where no row of its group is as good in both and better in one.

    Costs within 0.5 % count as the same: equal budgets are met that closely and no closer. ``front_probability``: in what share
    of draws of the samples it is on the front, its cost as measured; None without draws.
    """

    on_front: bool = False
    front_probability: float | None = None

    @property
    def is_sure(self) -> bool:
        """Of its place on the front, which is when its marker is filled."""
        return self.front_probability is not None and self.front_probability >= SURE


def over_gmacs(rows: Sequence[Row], drawn: Draws = NO_DRAWS) -> list[Point]:
    """The rows that have an accuracy and GMACs. ``drawn``: as ``front.accuracies_drawn`` has it."""
    return _points(rows, drawn, lambda row: row.gmacs)


def over_speedup(rows: Sequence[Row], drawn: Draws = NO_DRAWS) -> list[Point]:
    """The rows that have an accuracy and were timed. Speed-ups that differ by no more than the resolution of their timing are
    the same."""
    return _points(rows, drawn, lambda row: None if row.speedup is None else 1 / row.speedup, by_time=True)


def draw_gmacs(points: Sequence[Point], ax: Axes | None = None, *, given: Looks | None = None) -> Axes:
    """One panel from points of one backbone. Points of equal cost stand side by side, a little off their place.

    ``given``: the looks, where other panels hold methods that this one has not. Without ``ax``: a new figure, with a
    legend.
    """
    given = given or _looks(points)
    ax = ax or _new_axes(points, given)
    _draw_front(ax, points, "gmacs", up_to=max, where="post")
    costs = [point.gmacs or 0.0 for point in points]
    shifts = side_by_side(costs, ax)
    if _are_many(given):
        draw_bands(ax, costs, shifts)
    below = _draw_points(ax, points, "gmacs", given, shifts)
    where = "drawn side by side" + (", on one band" if _are_many(given) else "")
    note = f"\ncells of nearly equal cost are {where}" if any(shifts) else ""
    _dress(ax, points, f"GMACs per sample (lower is better){note}{below}", aside=max(map(abs, shifts), default=0.0))
    _name_front(ax, points, "gmacs", given, shifts, side=-1)
    return ax


def draw_speedup(points: Sequence[Point], ax: Axes | None = None, *, given: Looks | None = None) -> Axes:
    """One panel from points of one backbone. ``ax`` and ``given``: as in ``draw_gmacs``."""
    given = given or _looks(points)
    ax = ax or _new_axes(points, given)
    _draw_front(ax, points, "speedup", up_to=min, where="pre")
    shifts = [0.0] * len(points)
    below = _draw_points(ax, points, "speedup", given, shifts)
    noisy = max((point.resolution or 0.0 for point in points if point.verdict == "noisy"), default=0.0)
    note = f"\nnoisy: differences under {100 * noisy:.1f} % are below resolution" if noisy else ""
    _dress(ax, points, f"measured speed-up (higher is better){note}{below}")
    _name_front(ax, points, "speedup", given, shifts, side=1)
    return ax


def save_pareto(rows: Sequence[Row], folder: str | Path, drawn: Draws = NO_DRAWS) -> list[Path]:
    """``pareto_gmacs`` and ``pareto_speedup``, each as png, svg and the csv that was drawn; the paths of those written.

    A figure that would hold no cell beside the unreduced models is not written: without a timing, that of the speed-up.
    """
    paths = []
    for name, points, draw in (
        ("pareto_gmacs", over_gmacs(rows, drawn), draw_gmacs),
        ("pareto_speedup", over_speedup(rows, drawn), draw_speedup),
    ):
        if any(point.method != "none" for point in points):
            paths += save_figure(partial(_figure, points, draw), points, Path(folder) / name)
    return paths


def _points(
    rows: Sequence[Row], drawn: Draws, cost_of: Callable[[Row], float | None], *, by_time: bool = False
) -> list[Point]:
    """A lower cost is better. All of a group that have draws are in each of them."""
    places = {row: cost for row in rows if row.value is not None and (cost := cost_of(row)) is not None}
    found: dict[Row, Point] = {}
    for group in grouped(places, lambda row: row.group):
        cost_K, value_K = (
            np.array(values) for values in ([places[row] for row in group], [row.value for row in group])
        )
        near = max([SAME_COST, *(row.resolution or 0.0 for row in group if by_time)])
        chance_K: Sequence[float | None] = [None] * len(group)
        if all(row in drawn for row in group):
            chance_K = on_front(cost_K, np.stack([drawn[row] for row in group], axis=1), near).mean(axis=0).tolist()
        for row, now, chance in zip(group, on_front(cost_K, value_K[None], near)[0], chance_K, strict=True):
            found[row] = Point(**asdict(row), on_front=bool(now), front_probability=chance)
    return [found[row] for row in places]


def _new_axes(points: Sequence[Point], given: Looks) -> Axes:
    width, height = WIDE_INCHES if _are_many(given) else PANEL_INCHES
    figure = new_figure(width, height + _legend_inches(given))
    _legend(figure, points, given, num_columns=2)
    return figure.subplots()


def _looks(points: Sequence[Point]) -> Looks:
    return looks((point.method, point.options) for point in points)


def _draw_front(
    ax: Axes, points: Sequence[Point], cost: str, *, up_to: Callable, where: Literal["pre", "post"]
) -> None:
    """The best accuracy to be had at each cost. ``up_to``: which end of the costs is the dearest."""
    places = [(getattr(point, cost), point.value or 0.0) for point in points if point.on_front]
    if places:
        dearest = up_to(getattr(point, cost) for point in points)
        x, y = zip(*sorted([*places, (dearest, max(value for _, value in places))]), strict=True)
        ax.step(x, y, where=where, color=FRONT_COLOUR, linewidth=1.5, zorder=1)


def _are_many(given: Looks) -> bool:
    return len(given.keys() - {("none", "")}) > MANY


def _leaders(points: Sequence[Point], given: Looks) -> set[tuple[str, str]]:
    """Whose colours are full: of many methods those with a point on the front."""
    return {(point.method, point.options) for point in points if point.on_front} if _are_many(given) else set(given)


def _draw_points(ax: Axes, points: Sequence[Point], cost: str, given: Looks, shifts: Sequence[float]) -> str:
    """Those that are far below many others stand on the lower edge; a line for the axis that says which."""
    leaders, least = _leaders(points, given), _least(points, given)
    for point, shift in zip(points, shifts, strict=True):
        shown = point if (point.value or 0.0) >= least else replace(point, value=least, low=None, high=None)
        look = given[point.method, point.options]
        if look != UNREDUCED and (point.method, point.options) not in leaders:
            look = Look(pale(look.colour), look.marker)
        _draw_point(ax, shown, cost, look, shift=shift)
    below = [point for point in points if (point.value or 0.0) < least]
    if below:
        ax.set_ylim(bottom=least - 0.02 * (ax.get_ylim()[1] - least))
    return _said_below(below)


def _least(points: Sequence[Point], given: Looks) -> float:
    """What the axis of accuracies reaches down to; of few methods, or where none is far below, all the way."""
    values = [point.value or 0.0 for point in points]
    lowest = floor(values) if _are_many(given) else None
    return 0.0 if lowest is None else lowest - 0.08 * (max(values) - lowest)


def _said_below(below: Sequence[Point], most: int = 12) -> str:
    ends: dict[str, list[float]] = {}
    for point in below:
        ends.setdefault(printable(point.label), []).append(100 * (point.value or 0.0))
    texts = [f"{label} {' to '.join(dict.fromkeys((f'{min(v):.0f}', f'{max(v):.0f}')))}" for label, v in ends.items()]
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    said = f"on the lower edge, far below, in %: {', '.join(texts[:most])}{more}"
    return "\n" + textwrap.fill(said, 100) if texts else ""


def _draw_point(ax: Axes, point: Point, cost: str, look: Look, *, shift: float) -> None:
    (x, x_low, x_high), (y, y_low, y_high) = _with_ends(point, cost, f"{cost}_"), _with_ends(point, "value", "")
    ax.errorbar(
        [x],
        [y],
        xerr=[[x - x_low], [x_high - x]],
        yerr=[[y - y_low], [y_high - y]],
        marker=look.marker,
        markersize=9 if look == UNREDUCED else 5.5,
        markeredgewidth=2.2 if look == UNREDUCED else 1.2,
        color=look.colour,
        ecolor=(look.colour, 0.55),
        markerfacecolor=look.colour if point.is_sure else "white",
        elinewidth=1.1,
        zorder=4 if look == UNREDUCED else 3 if point.on_front else 2,
        transform=ax.transData + ScaledTranslation(shift / 72, 0, ax.figure.dpi_scale_trans),
    )
    ax.update_datalim([(x_low, y_low), (x_high, y_high)])  # errorbar does not, given a transform
    ax.autoscale_view()
    if look == UNREDUCED and cost == "gmacs":  # where it stands alone; of speed-ups it is among the others
        offset: dict[str, Any] = {"xytext": (12, 5), "textcoords": "offset points", "size": "small"}
        ax.annotate("unreduced", (x, y), **offset, rotation=90, ha="center", va="top")


def _name_front(
    ax: Axes, points: Sequence[Point], cost: str, given: Looks, shifts: Sequence[float], *, side: int
) -> None:
    """Of many methods those on the front are named where they stand."""
    least = _least(points, given)
    names = [
        Name(getattr(point, cost), max(point.value or 0.0, least), printable(point.label), look.colour, shift)
        for point, shift in zip(points, shifts, strict=True)
        if point.on_front and (look := given[point.method, point.options]) != UNREDUCED
    ]
    if names and _are_many(given):
        bottom, top = ax.get_ylim()
        ax.set_ylim(bottom, top + 0.05 * (top - bottom))  # room for the names
        write_names(ax, names, side=side)


def _with_ends(point: Point, name: str, prefix: str) -> tuple[float, float, float]:
    """A value and its interval; without one its ends are the value."""
    middle, ends = getattr(point, name), [getattr(point, f"{prefix}{end}", None) for end in ("low", "high")]
    return middle, *(middle if end is None else end for end in ends)


def _dress(ax: Axes, points: Sequence[Point], xlabel: str, *, aside: float = 0.0) -> None:
    """``aside``: how far from its place a point stands at most, in typographic points."""
    metric = next((point.metric for point in points), "accuracy")
    ax.set_xlabel(xlabel)
    ax.set_ylabel(f"{metric}, % (higher is better)")
    ax.yaxis.set_major_formatter(lambda share, _: f"{round(100 * share, 2):g}")
    # the axes are about a fifth narrower once their labels are laid out
    ax.margins(x=max(0.1, 0.04 + 1.25 * aside / (72 * ax.bbox.width / ax.figure.dpi)), y=0.08)


def _figure(points: Sequence[Point], draw) -> Figure:
    groups, given = list(dict.fromkeys(point.group for point in points)), _looks(points)
    most, (width, height) = (1, WIDE_INCHES) if _are_many(given) else (COLUMNS, PANEL_INCHES)
    num_rows, num_columns = -(-len(groups) // most), min(most, len(groups))
    figure = new_figure(width * num_columns, height * num_rows + _legend_inches(given))
    panels = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    for group, ax in zip(groups, panels[: len(groups)], strict=True):
        draw([point for point in points if point.group == group], ax, given=given)
        ax.set_title(panel_title(group, groups))
    for ax in panels[len(groups) :]:
        ax.remove()
    _legend(figure, points, given, num_columns=num_columns + 1)
    return figure


def _legend_inches(given: Looks) -> float:
    return 0.5 if not _are_many(given) else 0.3 + 0.2 * -(-(len(given) + 2) // _many_columns(given))


def _many_columns(given: Looks) -> int:
    """As many as the longest label leaves room for."""
    longest = max((len(printable(" ".join(name).rstrip())) for name in given), default=0)
    return max(2, int(72 * WIDE_INCHES[0] / (5.5 * max(longest, 16) + 36)))


def _legend(figure: Figure, points: Sequence[Point], given: Looks, *, num_columns: int) -> None:
    """Below the panels, as they look there: filled with any point filled. Of many methods those on a front come first."""
    leaders, sure = _leaders(points, given), {(point.method, point.options) for point in points if point.is_sure}
    names = sorted((name for name in given if name[0] != "none"), key=lambda name: (name not in leaders, name))
    methods = [
        Line2D(
            [],
            [],
            color=given[name].colour if name in leaders else pale(given[name].colour),
            markerfacecolor=given[name].colour if name in sure else "white",
            marker=given[name].marker,
            linestyle="none",
            label=printable(" ".join(name).rstrip()),
        )
        for name in names
    ]
    others = [
        Line2D(
            [],
            [],
            color=UNREDUCED.colour,
            marker=UNREDUCED.marker,
            linestyle="none",
            markeredgewidth=2.2,
            label="unreduced",
        ),
        Line2D([], [], color=FRONT_COLOUR, label="front of these samples"),
        Line2D(
            [], [], color="0.3", marker="o", linestyle="none", label=f"filled: on it in {100 * SURE:.0f} % of draws"
        ),
    ]
    num_columns = _many_columns(given) if _are_many(given) else num_columns
    figure.legend(handles=methods + others, ncols=num_columns, loc="outside lower center", frameon=False)
