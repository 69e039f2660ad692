"""The interactive Pareto chart: what the pointer is on is told, methods can be hidden, and the x axis is one of two.

Altair writes the specification, vl-convert brings the scripts that draw it. A method has the colour and the marker that it has
in all figures (``tokred.analysis.look``). The choice of methods lies outside the chart, in a list of checkboxes that is its
legend: it sets the signal ``hidden``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import cos, pi, sin
from typing import Any

import altair
import vl_convert

from tokred.analysis.columns import COLUMNS
from tokred.analysis.curves import SAME_COST
from tokred.analysis.look import UNREDUCED, Look, looks
from tokred.analysis.pareto import FRONT_COLOUR, Draws, Point, over_gmacs, over_speedup
from tokred.analysis.rows import Row, grouped
from tokred.terminal import plain

HEIGHT, AREA = 340, 90  # pixels, and of a marker square pixels
FAINT = 0.55  # of intervals
STEP, MOST_ASIDE = 9.0, 60.0  # pixels between markers of equal cost, and of all of them together
TITLES = {"gmacs": "GMACs per sample (lower is better)", "speedup": "measured speed-up (higher is better)"}
TOLD = ("method", "schedule", "value", "difference", "gmacs", "share", "speedup")  # of COLUMNS


def _polygon(num: int) -> str:
    corners = [(sin(2 * pi * k / num), -cos(2 * pi * k / num)) for k in range(num)]
    return "M" + "L".join(f"{x:.3f},{y:.3f}" for x, y in corners) + "Z"


# matplotlib's markers as paths, from -1 to 1
SHAPES = {
    "o": "M1,0A1,1,0,1,1,-1,0A1,1,0,1,1,1,0Z",
    "s": "M-0.85,-0.85L0.85,-0.85L0.85,0.85L-0.85,0.85Z",
    "^": "M0,-1L1,0.85L-1,0.85Z",
    "v": "M0,1L1,-0.85L-1,-0.85Z",
    "<": "M-1,0L0.85,-1L0.85,1Z",
    ">": "M1,0L-0.85,-1L-0.85,1Z",
    "D": "M0,-1.1L1.1,0L0,1.1L-1.1,0Z",
    "P": "M-0.35,-1L0.35,-1L0.35,-0.35L1,-0.35L1,0.35L0.35,0.35L0.35,1L-0.35,1L-0.35,0.35L-1,0.35L-1,-0.35L-0.35,-0.35Z",
    "X": "M-1,-0.5L-0.5,-1L0,-0.5L0.5,-1L1,-0.5L0.5,0L1,0.5L0.5,1L0,0.5L-0.5,1L-1,0.5L-0.5,0Z",
    "p": _polygon(5),
    "h": _polygon(6),
    "x": "M-1,-1L1,1M-1,1L1,-1",
}


@dataclass(frozen=True)
class Entry:
    """Of the legend."""

    label: str
    look: Look

    @property
    def path(self) -> str:
        return SHAPES[self.look.marker]


@dataclass(frozen=True)
class Chart:
    """``entries``: those that can be hidden, which the unreduced model cannot. ``panels``: of each backbone a title and a
    specification for each x axis; ``axes``: those that there are."""

    entries: Sequence[Entry]
    panels: Sequence[dict[str, Any]]
    axes: Sequence[str]


def chart_of(rows: Sequence[Row], drawn: Draws) -> Chart | None:
    """None where no reduced model has a place in it. ``drawn``: as ``front.accuracies_drawn`` has it."""
    points = {"gmacs": over_gmacs(rows, drawn), "speedup": over_speedup(rows, drawn)}
    axes = [cost for cost, some in points.items() if any(point.method != "none" for point in some)]
    if not axes:
        return None
    given = looks((row.method, row.options) for row in rows if row.status == "done")
    panels = []
    for group in dict.fromkeys(point.group for point in points["gmacs"]):
        own = {cost: [point for point in points[cost] if point.group == group] for cost in axes}
        specs = {cost: _spec(some, cost, given) for cost, some in own.items() if some}
        panels.append({"title": ", ".join(group), "specs": specs})
    entries = [
        Entry(f"{method} {options}".rstrip(), look) for (method, options), look in given.items() if method != "none"
    ]
    return Chart(sorted(entries, key=lambda entry: entry.label), panels, axes)


@cache
def scripts() -> str:
    """Vega, Vega-Lite and Vega-Embed in one, to be put into a page: no part of it is fetched."""
    text = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    if "</script" in text.lower() or "<!--" in text or "\r" in text:
        raise RuntimeError("the scripts of vl-convert-python cannot stand in a page: they hold what would end them")
    return text


def _spec(points: Sequence[Point], cost: str, given: dict[tuple[str, str], Look]) -> dict[str, Any]:
    metric = plain(next((point.metric for point in points), "accuracy"))
    axis = altair.Axis(tickCount=6, labelFlush=False)
    x = altair.X("x:Q", title=TITLES[cost], axis=axis, scale=altair.Scale(zero=False, padding=24))
    y = altair.Y("y:Q", title=f"{metric}, % (higher is better)", scale=altair.Scale(zero=False, padding=12, nice=False))
    shown = altair.Chart().transform_filter("indexof(hidden, datum.label) < 0")
    aside = altair.expr("datum.aside")
    bars = shown.encode(x=x, stroke=altair.Stroke("colour:N", scale=None))
    layers = [
        altair.Chart(altair.Data(values=_front(points, cost)))
        .mark_line(interpolate="step-after" if cost == "gmacs" else "step-before", stroke=_grey(), strokeWidth=1.5)
        .encode(x=x, y=y),
        bars.mark_rule(xOffset=aside, opacity=FAINT, strokeWidth=1.2).encode(y=altair.Y("y_low:Q"), y2="y_high:Q"),
        *(
            [bars.mark_rule(opacity=FAINT, strokeWidth=1.2).encode(x="x_low:Q", x2="x_high:Q", y=y)]
            if cost == "speedup"
            else []
        ),
        shown.mark_point(size=AREA, opacity=1, strokeWidth=1.5, xOffset=aside).encode(
            x=x,
            y=y,
            shape=altair.Shape("shape:N", scale=None),
            fill=altair.Fill("fill:N", scale=None),
            stroke=altair.Stroke("colour:N", scale=None),
            tooltip=[altair.Tooltip(f"{name}:N", title=_title(name, metric)) for name in (*TOLD, "front")],
        ),
    ]
    data = altair.Data(values=_values(points, cost, given))
    chart = altair.layer(*layers, data=data).add_params(altair.param(name="hidden", value=[]))
    chart = chart.properties(width="container", height=HEIGHT, background="white")
    return chart.configure_axis(grid=True, gridColor="#ebebeb", labelFontSize=12, titleFontSize=12).to_dict()


def _title(name: str, metric: str) -> str:
    return "on the front" if name == "front" else plain(COLUMNS[name].title.format(metric=metric))


def _values(points: Sequence[Point], cost: str, given: dict[tuple[str, str], Look]) -> list[dict[str, Any]]:
    asides = _asides([getattr(point, cost) for point in points]) if cost == "gmacs" else [0.0] * len(points)
    return [
        {
            **{name: COLUMNS[name].cell(point) for name in TOLD},
            "schedule": point.setting,
            **_place(point, cost),
            "aside": aside,
            "label": "unreduced" if point.method == "none" else point.label,
            "front": _front_text(point),
            "shape": SHAPES[look.marker],
            "colour": look.colour,
            "fill": "transparent" if look == UNREDUCED else look.colour if point.is_sure else "white",
        }
        for point, aside in zip(points, asides, strict=True)
        for look in [given[point.method, point.options]]
    ]


def _front_text(point: Point) -> str:
    now = "yes" if point.on_front else "no"
    return now if point.front_probability is None else f"{now}, and in {100 * point.front_probability:.0f} % of draws"


def _place(point: Point, cost: str) -> dict[str, float]:
    x, y = getattr(point, cost), 100 * (point.value or 0.0)
    ends = {"y_low": point.low, "y_high": point.high}
    place = {"x": x, "y": y} | {name: y if end is None else 100 * end for name, end in ends.items()}
    if cost == "speedup":
        ends = {"x_low": point.speedup_low, "x_high": point.speedup_high}
        place |= {name: x if end is None else end for name, end in ends.items()}
    return place


def _front(points: Sequence[Point], cost: str) -> list[dict[str, float]]:
    """The corners of the step line, from its first point on to the dearest cost of all."""
    places = [(getattr(point, cost), 100 * (point.value or 0.0)) for point in points if point.on_front]
    dearest = (max if cost == "gmacs" else min)(getattr(point, cost) for point in points)
    return [{"x": x, "y": y} for x, y in sorted({*places, (dearest, max(y for _, y in places))})]


def _asides(costs: Sequence[float]) -> list[float]:
    """How far from its place each is drawn, in pixels: those of equal cost stand side by side."""
    order = sorted(range(len(costs)), key=lambda place: (costs[place], place))
    starts = {order[0]} | {after for before, after in pairwise(order) if costs[after] > costs[before] * (1 + SAME_COST)}
    number = 0
    clusters = []
    for place in order:
        number += place in starts
        clusters.append((number, place))
    asides = [0.0] * len(costs)
    for same in grouped(clusters, lambda pair: pair[0]):
        step = min(STEP, MOST_ASIDE / len(same))
        for rank, (_, place) in enumerate(same):
            asides[place] = step * (rank - (len(same) - 1) / 2)
    return asides


def _grey() -> str:
    level = round(255 * float(FRONT_COLOUR))
    return f"#{level:02x}{level:02x}{level:02x}"
