"""What a method costs and what it keeps: accuracy over GMACs and over measured speed-up, a panel for each backbone.

``over_gmacs`` and ``over_speedup`` give the points, ``draw_gmacs`` and ``draw_speedup`` draw a panel of them, and
``save_pareto`` makes the files.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import matplotlib
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from tokred.analysis.look import UNREDUCED, Look, looks, printable
from tokred.analysis.rows import Row, write_csv, write_whole

Looks = Mapping[tuple[str, str], Look]
FRONT_COLOUR = "0.6"
SAME_COST = 0.005  # how near to a budget a schedule comes
PANEL_INCHES, COLUMNS, DPI = (4.6, 3.7), 2, 200  # two panels are a README's 900 pixels wide at 100 an inch


@dataclass(frozen=True)
class Point(Row):
    """A row with a place in the figure; on the front where no row of its group is as good in both and better in one.

    Costs within 0.5 % count as the same: equal budgets are met that closely and no closer.
    """

    on_front: bool = False


def over_gmacs(rows: Sequence[Row]) -> list[Point]:
    """The rows that have an accuracy and GMACs."""
    return _points(rows, "gmacs", -1)


def over_speedup(rows: Sequence[Row]) -> list[Point]:
    """The rows that have an accuracy and were timed."""
    return _points(rows, "speedup", 1)


def draw_gmacs(points: Sequence[Point], ax: Axes | None = None, *, given: Looks | None = None) -> Axes:
    """One panel from points of one backbone. Points of equal cost stand side by side, a little off their place.

    ``given``: the looks, where other panels hold methods that this one has not. Without ``ax``: a new figure, with a
    legend.
    """
    given = given or _looks(points)
    ax = ax or _new_axes(given)
    _draw_front(ax, points, "gmacs", up_to=max, where="post")
    shifts = _side_by_side([point.gmacs or 0.0 for point in points])
    for point, shift in zip(points, shifts, strict=True):
        _draw_point(ax, point, "gmacs", given, shift=shift)
    note = "\ncells of nearly equal cost are drawn side by side" if any(shifts) else ""
    _dress(ax, points, f"GMACs per sample (lower is better){note}")
    return ax


def draw_speedup(points: Sequence[Point], ax: Axes | None = None, *, given: Looks | None = None) -> Axes:
    """One panel from points of one backbone. ``ax`` and ``given``: as in ``draw_gmacs``."""
    given = given or _looks(points)
    ax = ax or _new_axes(given)
    _draw_front(ax, points, "speedup", up_to=min, where="pre")
    for point in points:
        _draw_point(ax, point, "speedup", given)
    noisy = max((point.resolution or 0.0 for point in points if point.verdict not in ("", "ok")), default=0.0)
    note = f"\nnoisy: differences under {100 * noisy:.1f} % are below resolution" if noisy else ""
    _dress(ax, points, f"measured speed-up (higher is better){note}")
    return ax


def save_pareto(rows: Sequence[Row], folder: str | Path) -> list[Path]:
    """``pareto_gmacs`` and ``pareto_speedup``, each as png, svg and the csv that was drawn; the paths of those written.

    A figure that would hold no cell beside the unreduced models is not written: without a timing, that of the speed-up.
    """
    paths = []
    for name, points, draw in (
        ("pareto_gmacs", over_gmacs(rows), draw_gmacs),
        ("pareto_speedup", over_speedup(rows), draw_speedup),
    ):
        if any(point.method != "none" for point in points):
            with matplotlib.rc_context(_theme()):
                pictures = _rendered(_figure(points, draw))
            paths += [write_whole(Path(folder) / f"{name}.{kind}", picture) for kind, picture in pictures.items()]
            paths.append(write_csv(points, Path(folder) / f"{name}.csv"))
    return paths


def _points(rows: Sequence[Row], cost: str, sign: int) -> list[Point]:
    """``sign`` is -1 where a lower cost is better."""
    known = [row for row in rows if row.value is not None and getattr(row, cost) is not None]
    places = [(row.group, sign * getattr(row, cost), row.value) for row in known]
    return [
        Point(**asdict(row), on_front=not any(_dominates(other, place) for other in places))
        for row, place in zip(known, places, strict=True)
    ]


def _dominates(one: tuple, other: tuple) -> bool:
    """Of two (group, goodness of the cost, value). Costs within ``SAME_COST`` of each other are the same."""
    slack = SAME_COST * abs(other[1])
    as_good = one[0] == other[0] and one[1] >= other[1] - slack and one[2] >= other[2]
    return as_good and (one[1] > other[1] + slack or one[2] > other[2])


def _new_axes(given: Looks) -> Axes:
    figure = Figure(
        figsize=(PANEL_INCHES[0], PANEL_INCHES[1] + 0.5),
        dpi=DPI,
        layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.08),
    )
    _legend(figure, given, num_columns=2)
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


def _draw_point(ax: Axes, point: Point, cost: str, given: Looks, *, shift: float = 0.0) -> None:
    look = given[point.method, point.options]
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
        markerfacecolor=look.colour if point.on_front else "white",
        elinewidth=1.1,
        zorder=4 if look == UNREDUCED else 3 if point.on_front else 2,
        transform=ax.transData + ScaledTranslation(shift / 72, 0, ax.figure.dpi_scale_trans),
    )
    ax.update_datalim([(x_low, y_low), (x_high, y_high)])  # errorbar does not, given a transform
    ax.autoscale_view()
    if look == UNREDUCED:
        aside = 12 if cost == "gmacs" else -12
        ax.annotate(
            "unreduced",
            (x, y),
            xytext=(aside, 5),
            textcoords="offset points",
            rotation=90,
            ha="center",
            va="top",
            size="small",
        )


def _with_ends(point: Point, name: str, prefix: str) -> tuple[float, float, float]:
    """A value and its interval; without one its ends are the value."""
    middle, ends = getattr(point, name), [getattr(point, f"{prefix}{end}", None) for end in ("low", "high")]
    return middle, *(middle if end is None else end for end in ends)


def _side_by_side(x: Sequence[float]) -> list[float]:
    """How far to move each of ``x``, in typographic points, so that those within 1 % of the largest stay apart."""
    shifts, near = [0.0] * len(x), 0.01 * max(x, default=0.0)
    order = sorted(range(len(x)), key=x.__getitem__)
    while order:
        together = sorted(place for place in order if x[place] <= x[order[0]] + near)
        step = min(4.5, 20 / len(together))  # a marker is 5.5 wide; all together stay near their place
        for rank, place in enumerate(together):
            shifts[place] = step * (rank - (len(together) - 1) / 2)
        order = order[len(together) :]
    return shifts


def _dress(ax: Axes, points: Sequence[Point], xlabel: str) -> None:
    metric = next((point.metric for point in points), "accuracy")
    ax.set_xlabel(xlabel)
    ax.set_ylabel(f"{metric}, % (higher is better)")
    ax.yaxis.set_major_formatter(lambda share, _: f"{round(100 * share, 2):g}")
    ax.margins(x=0.1, y=0.08)


def _figure(points: Sequence[Point], draw) -> Figure:
    groups = list(dict.fromkeys(point.group for point in points))
    num_rows, num_columns = -(-len(groups) // COLUMNS), min(COLUMNS, len(groups))
    given = _looks(points)
    figure = Figure(
        figsize=(PANEL_INCHES[0] * num_columns, PANEL_INCHES[1] * num_rows + 0.5),
        dpi=DPI,
        layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.08),
    )
    panels = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    for group, ax in zip(groups, panels[: len(groups)], strict=True):
        draw([point for point in points if point.group == group], ax, given=given)
        ax.set_title("\n".join(_title(group, groups)))
    for ax in panels[len(groups) :]:
        ax.remove()
    _legend(figure, given, num_columns=num_columns + 1)
    return figure


def _title(group: tuple[str, ...], groups: Sequence[tuple[str, ...]]) -> list[str]:
    """The backbone, and what else tells this panel from the others."""
    differs = [len({other[axis] for other in groups}) > 1 for axis in range(len(group))]
    return [printable(name) for axis, name in enumerate(group) if axis == 0 or differs[axis]]


def _legend(figure: Figure, given: Looks, *, num_columns: int) -> None:
    methods = [
        Line2D(
            [],
            [],
            color=look.colour,
            marker=look.marker,
            linestyle="none",
            label=printable(f"{method} {options}".rstrip()),
        )
        for (method, options), look in given.items()
        if look != UNREDUCED
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
        Line2D([], [], color=FRONT_COLOUR, label="Pareto front"),
        Line2D([], [], color="0.3", marker="o", markerfacecolor="white", linestyle="none", label="hollow: dominated"),
    ]
    figure.legend(handles=methods + others, ncols=num_columns, loc="outside lower center", frameon=False)


def _theme() -> dict:
    style = seaborn.axes_style("ticks", {"axes.grid": True, "grid.color": "0.92"})
    # the salt keeps the names inside an SVG, and so the file, the same from run to run
    return style | seaborn.plotting_context("paper", font_scale=1.1) | {"svg.hashsalt": "tokred"}


def _rendered(figure: Figure) -> dict[str, bytes]:
    pictures = {"png": io.BytesIO(), "svg": io.BytesIO()}
    for kind, file in pictures.items():
        figure.savefig(file, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return {kind: file.getvalue() for kind, file in pictures.items()}
