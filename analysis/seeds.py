"""What chance does: the accuracy of each seed of a random method, beside their mean with its interval.

``draws`` gives the numbers, from records alone, ``draw_seeds`` draws a panel, and ``save_seeds`` makes the files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tokred.analysis.figure import legend_below, legend_inches, new_figure, panel_title, save_figure
from tokred.analysis.look import Look, looks, printable
from tokred.analysis.rows import Row, grouped, of_metric, rows_with_records, spanned
from tokred.record import Record, Store

ENOUGH = 5  # seeds from which on an interval holds the truth as often as it says (docs/statistics.md)
LINE_INCHES, WIDE_INCHES = 0.3, 6.4
LETTER_INCHES = 0.075


@dataclass(frozen=True)
class Draw:
    """One seed of one configuration. ``mean`` of all its seeds with a 95 % interval over samples and seeds, ``sd`` the standard
    deviation between them."""

    backbone: str
    weights: str
    data: str
    method: str
    options: str
    schedule: str
    shape: str
    metric: str
    seed: int
    value: float
    mean: float
    low: float
    high: float
    sd: float
    num_seeds: int
    num_samples: int

    @property
    def group(self) -> tuple[str, str, str]:
        return self.backbone, self.weights, self.data

    @property
    def configuration(self) -> str:
        return " ".join(filter(None, (self.method, self.options, self.schedule, self.shape)))


def draws(store: Store) -> list[Draw]:
    """Of the latest plan's configurations with two seeds or more that are done, in the order of ``rows``."""
    return [draw for row, records in rows_with_records(store) if row.seed_sd is not None for draw in _of(row, records)]


def draw_seeds(
    panel: Sequence[Draw], ax: Axes | None = None, *, given: Mapping[tuple[str, str], Look] | None = None
) -> Axes:
    """``panel``: the configurations of one backbone, the first on top."""
    given = given or looks((draw.method, draw.options) for draw in panel)
    configurations = grouped(panel, lambda draw: draw.configuration)
    ax = ax or new_figure(WIDE_INCHES, 0.9 + LINE_INCHES * len(configurations)).subplots()
    for place, own in enumerate(configurations):
        look, first = given[own[0].method, own[0].options], own[0]
        heights = [place - 0.15 - rise for rise in _rises([draw.value for draw in own])]
        dots: dict[str, Any] = {
            "marker": look.marker,
            "color": look.colour,
            "markersize": 5,
            "mfc": "none",
            "linestyle": "none",
        }
        ax.plot([draw.value for draw in own], heights, **dots)
        ends = [[first.mean - first.low], [first.high - first.mean]]
        ax.errorbar([first.mean], [place + 0.2], xerr=ends, fmt="|", color="0.2", markersize=7, elinewidth=1.4)
    ax.set_yticks(range(len(configurations)), [printable(_shown(own[0], panel), width=44) for own in configurations])
    ax.set_ylim(len(configurations) - 0.4, -0.6)
    ax.set_xlabel(f"{panel[0].metric}, % (higher is better)")
    ax.xaxis.set_major_formatter(lambda share, _: f"{round(100 * share, 2):g}")
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", length=0)
    _write_spread(ax, [own[0] for own in configurations])
    return ax


def save_seeds(store: Store, folder: str | Path) -> list[Path]:
    """``seeds`` as png, svg and csv; nothing where no configuration has two seeds."""
    found = draws(store)
    return save_figure(partial(_figure, found), found, Path(folder) / "seeds") if found else []


def _of(row: Row, records: Sequence[Record]) -> list[Draw]:
    about = (row.backbone, row.weights, row.data, row.method, row.options, row.schedule, row.shape, row.metric)
    spread = (
        row.value or 0.0,
        row.low or 0.0,
        row.high or 0.0,
        row.seed_sd or 0.0,
        row.num_seeds,
        row.num_samples or 0,
    )
    found = []
    for record in records:
        result = of_metric(record, row.metric)
        value = result["num_correct"] / result["num_samples"]
        found.append(Draw(*about, record.cell["seed"], value, *spread))
    return found


def _shown(draw: Draw, panel: Sequence[Draw]) -> str:
    """Its shape only where there are several."""
    shape = draw.shape if len({one.shape for one in panel}) > 1 else ""
    return " ".join(filter(None, (draw.method, draw.options, draw.schedule, shape)))


def _rises(values: Sequence[float]) -> list[float]:
    """Equal ones stand on each other, in a third of a line at most."""
    most = max(values.count(value) for value in values)
    return [min(0.12, 0.33 / most) * values[:place].count(value) for place, value in enumerate(values)]


def _write_spread(ax: Axes, firsts: Sequence[Draw]) -> None:
    """On the right the seeds and their standard deviation, in points."""
    for place, draw in enumerate(firsts):
        text = f"{draw.num_seeds} seeds, SD {100 * draw.sd:.2f}"
        where: dict[str, Any] = {"xycoords": ax.get_yaxis_transform(), "xytext": (4, 0), "textcoords": "offset points"}
        ax.annotate(text, (1, place), **where, va="center", size=7.5, color="0.3", annotation_clip=False)


def _figure(found: Sequence[Draw]) -> Figure:
    panels = grouped(found, lambda draw: draw.group)
    groups, given = [panel[0].group for panel in panels], looks((draw.method, draw.options) for draw in found)
    heights = [0.85 + LINE_INCHES * len({draw.configuration for draw in panel}) for panel in panels]
    longest = max(len(printable(draw.configuration, width=44)) for draw in found)
    handles, note = _handles(), _note(found)
    width = max(WIDE_INCHES, 4.6 + LETTER_INCHES * longest)
    figure = new_figure(width, sum(heights) + legend_inches(handles, width, note=note))
    axes = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for panel, ax in zip(panels, axes, strict=True):
        draw_seeds(panel, ax, given=given)
        ax.set_title(panel_title(panel[0].group, groups))
    legend_below(figure, handles, note=note)
    return figure


def _note(found: Sequence[Draw]) -> str:
    samples = spanned(draw.num_samples for draw in found)
    fewest = min(draw.num_seeds for draw in found)
    few = f"\nof fewer than {ENOUGH} seeds it may hold the truth less often" if fewest < ENOUGH else ""
    return f"n = {samples} samples for each seed; SD in points; the interval is over samples and seeds{few}"


def _handles() -> list[Line2D]:
    return [
        Line2D([], [], color="0.3", marker="o", mfc="none", linestyle="none", label="a seed"),
        Line2D([], [], color="0.2", marker="|", label="their mean, 95 % interval"),
    ]
