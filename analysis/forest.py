"""Methods against one of them at a few fixed budgets: differences with their intervals, a column for each budget.

``slices`` gives the numbers, ``draw_forest`` draws one budget of one backbone, and ``save_forest`` makes the files. The baseline
is that of ``tokred.analysis.difference``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tokred.analysis.compare import difference_at
from tokred.analysis.curves import Curve, reaches
from tokred.analysis.difference import against_first
from tokred.analysis.figure import legend_below, legend_inches, new_figure, panel_title, save_figure
from tokred.analysis.look import Look, looks, named, printable
from tokred.analysis.rows import grouped, spanned

MOST_BUDGETS = 3
COLUMN_INCHES, LINE_INCHES, AROUND_INCHES = 2.5, 0.24, 1.0
LETTER_INCHES = 0.075


@dataclass(frozen=True)
class Slice:
    """One method minus the baseline at one budget, with a 95 % interval that stands alone: it shows how much, and claims
    nothing. Where ``not_reached`` names who does not reach the budget there is no number."""

    backbone: str
    weights: str
    data: str
    method: str
    label: str
    baseline: str
    metric: str
    budget: float
    num_samples: int
    num_clusters: int | None
    not_reached: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    num_seeds: int = 1

    @property
    def group(self) -> tuple[str, str, str]:
        return self.backbone, self.weights, self.data


def slices(some: Sequence[Curve], budgets: Sequence[float] | None = None) -> list[Slice]:
    """Every reduced method but the baseline, at every budget; by default at those that most of them reach, at most three."""
    pairs = against_first(some)
    return [_slice(*pair, budget) for pair in pairs for budget in (budgets or _reached(pairs))]


def _reached(pairs: Sequence[tuple[Curve, Curve]]) -> list[float]:
    """In whole percent, largest first: those near which something was run."""
    near = {round(float(share), 2) for pair in pairs for curve in pair for share in curve.share_K}
    times = {budget: sum(all(reaches(one, budget) for one in pair) for pair in pairs) for budget in near}
    often = sorted((budget for budget in near if times[budget]), key=lambda budget: (-times[budget], budget))
    few = (
        often
        if len(often) <= MOST_BUDGETS
        else _spread([one for one in often if times[one] == times[often[0]]] or often)
    )
    return sorted(few[:MOST_BUDGETS], reverse=True)


def _spread(budgets: Sequence[float]) -> list[float]:
    """The lowest, the highest and one between them."""
    places = np.unique(np.linspace(0, len(budgets) - 1, MOST_BUDGETS).round().astype(int))
    return [sorted(budgets)[place] for place in places]


def draw_forest(
    panel: Sequence[Slice], ax: Axes | None = None, *, given: Mapping[tuple[str, str], Look] | None = None
) -> Axes:
    """``panel``: one budget of one backbone, the first method on top."""
    given = given or looks(named(one.method) for one in panel)
    ax = ax or new_figure(COLUMN_INCHES + 1.4, AROUND_INCHES + LINE_INCHES * len(panel)).subplots()
    ax.axvline(0, color="black", linewidth=1.0, zorder=1)
    for place, one in enumerate(panel):
        _draw_slice(ax, one, place, given[named(one.method)])
    ax.set_yticks(range(len(panel)), [printable(one.label) for one in panel])
    ax.set_ylim(len(panel) - 0.4, -0.6)
    ax.xaxis.set_major_formatter(lambda share, _: f"{round(100 * share, 2):g}")
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", length=0)
    ax.set_title(f"at {100 * panel[0].budget:g} % of the MACs", size=9, loc="left")
    return ax


def save_forest(some: Sequence[Curve], folder: str | Path, budgets: Sequence[float] | None = None) -> list[Path]:
    """``forest`` as png, svg and csv; nothing where no two methods reach one of the budgets."""
    found, given = slices(some, budgets), looks(named(curve.method) for curve in some)
    if all(one.value is None for one in found):
        return []
    return save_figure(partial(_figure, found, given), found, Path(folder) / "forest")


def _slice(curve: Curve, baseline: Curve, budget: float) -> Slice:
    names = (*curve.group, curve.method, curve.label, baseline.label, curve.metric)
    about = Slice(*names, budget, curve.num_samples, curve.num_clusters)
    found = difference_at(curve, baseline, budget)
    if found is None:
        return replace(
            about, not_reached=" and ".join(one.label for one in (curve, baseline) if not reaches(one, budget))
        )
    parts = ("value", "low", "high", "num_seeds")
    return replace(about, **{part: getattr(found, part) for part in parts})


def _draw_slice(ax: Axes, one: Slice, place: int, look: Look) -> None:
    if one.value is None or one.low is None or one.high is None:
        where = ax.get_yaxis_transform()  # in the middle, whatever the scale
        words: dict[str, Any] = {"ha": "center", "va": "center", "size": 7.5, "color": "0.45"}
        ax.text(0.5, place, "not reached", transform=where, bbox={"facecolor": "white", "edgecolor": "none"}, **words)
        return
    ax.errorbar(
        [one.value],
        [place],
        xerr=[[max(0.0, one.value - one.low)], [max(0.0, one.high - one.value)]],
        marker=look.marker,
        markersize=5.5,
        color=look.colour,
        ecolor=(look.colour, 0.7),
        elinewidth=1.3,
    )


def _figure(found: Sequence[Slice], given: Mapping[tuple[str, str], Look]) -> Figure:
    by_group = grouped(found, lambda one: one.group)
    groups, budgets = [own[0].group for own in by_group], list(dict.fromkeys(one.budget for one in found))
    lines = [len(own) // len(budgets) for own in by_group]
    width = COLUMN_INCHES * len(budgets) + LETTER_INCHES * max(len(printable(one.label)) for one in found) + 0.3
    heights = [LINE_INCHES * num + AROUND_INCHES for num in lines]
    note = _note(found)
    figure = new_figure(width, sum(heights) + legend_inches([], width, note=note) + 0.4)
    panels = figure.subplots(
        len(groups), len(budgets), squeeze=False, sharex="row", gridspec_kw={"height_ratios": heights}
    )
    for row, own in zip(panels, by_group, strict=True):
        for place, (ax, budget) in enumerate(zip(row, budgets, strict=True)):
            draw_forest([one for one in own if one.budget == budget], ax, given=given)
            ax.tick_params(labelleft=place == 0, labelbottom=True)
        title = panel_title(own[0].group, groups).replace("\n", ", ")
        row[0].set_title(f"{title}: minus {printable(own[0].baseline)}\n{row[0].get_title('left')}", size=9, loc="left")
    panels[-1, len(budgets) // 2].set_xlabel(f"{found[0].metric}: difference, points\n(higher is better)")
    legend_below(figure, [], note=note)
    return figure


def _note(found: Sequence[Slice]) -> str:
    samples = spanned(one.num_samples for one in found)
    return f"n = {samples} samples; 95 % intervals, each alone: they show how much, the report's comparisons what is claimed"
