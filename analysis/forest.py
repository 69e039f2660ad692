"""Methods against one of them at a few fixed budgets: differences with their intervals, a column for each budget.

``slices`` gives the numbers, ``draw_forest`` draws one budget of one backbone, and ``save_forest`` makes the files. The baseline
is that of ``tokred.analysis.difference``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tokred.analysis.claims import LEVEL, holm
from tokred.analysis.compare import difference_at
from tokred.analysis.curves import Curve, reaches
from tokred.analysis.difference import against_first
from tokred.analysis.figure import legend_below, legend_inches, new_figure, panel_title, save_figure
from tokred.analysis.look import Look, looks, named, printable
from tokred.analysis.rows import counted, grouped

BUDGETS = (0.9, 0.75, 0.5)  # shares of the unreduced MACs
COLUMN_INCHES, LINE_INCHES, AROUND_INCHES = 2.5, 0.24, 1.0
LETTER_INCHES = 0.075


@dataclass(frozen=True)
class Slice:
    """One method minus the baseline at one budget, with a 95 % interval that stands alone; ``adjusted_p`` is Holm's over the
    ``num_comparisons`` of the figure. Where ``not_reached`` names who does not reach the budget there is no number."""

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
    p: float | None = None
    smallest: float | None = None
    num_seeds: int = 1
    num_comparisons: int = 0
    adjusted_p: float | None = None

    @property
    def group(self) -> tuple[str, str, str]:
        return self.backbone, self.weights, self.data


def slices(some: Sequence[Curve], budgets: Sequence[float] = BUDGETS) -> list[Slice]:
    """Every reduced method but the baseline, at every budget."""
    found = [_slice(*pair, budget) for pair in against_first(some) for budget in budgets]
    adjusted = iter(holm([one.p for one in found if one.p is not None]))
    num = sum(one.p is not None for one in found)
    return [one if one.p is None else replace(one, adjusted_p=next(adjusted), num_comparisons=num) for one in found]


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


def save_forest(some: Sequence[Curve], folder: str | Path, budgets: Sequence[float] = BUDGETS) -> list[Path]:
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
    parts = ("value", "low", "high", "p", "smallest", "num_seeds")
    return replace(about, **{part: getattr(found, part) for part in parts})


def _draw_slice(ax: Axes, one: Slice, place: int, look: Look) -> None:
    if one.value is None or one.low is None or one.high is None:
        where = ax.get_yaxis_transform()  # in the middle, whatever the scale
        ax.text(0.5, place, "not reached", transform=where, ha="center", va="center", size=7.5, color="0.45")
        return
    ax.errorbar(
        [one.value],
        [place],
        xerr=[[max(0.0, one.value - one.low)], [max(0.0, one.high - one.value)]],
        marker=look.marker,
        markersize=5.5,
        color=look.colour,
        markerfacecolor=look.colour if _is_told(one) else "white",
        ecolor=(look.colour, 0.7),
        elinewidth=1.3,
    )


def _is_told(one: Slice) -> bool:
    return one.adjusted_p is not None and one.adjusted_p <= LEVEL


def _figure(found: Sequence[Slice], given: Mapping[tuple[str, str], Look]) -> Figure:
    by_group = grouped(found, lambda one: one.group)
    groups, budgets = [own[0].group for own in by_group], list(dict.fromkeys(one.budget for one in found))
    lines = [len(own) // len(budgets) for own in by_group]
    width = COLUMN_INCHES * len(budgets) + LETTER_INCHES * max(len(printable(one.label)) for one in found) + 0.3
    heights = [LINE_INCHES * num + AROUND_INCHES for num in lines]
    handles, note = _handles(), _note(found)
    figure = new_figure(width, sum(heights) + legend_inches(handles, width, note=note) + 0.2)
    panels = figure.subplots(
        len(groups), len(budgets), squeeze=False, sharex="row", gridspec_kw={"height_ratios": heights}
    )
    for row, own in zip(panels, by_group, strict=True):
        for place, (ax, budget) in enumerate(zip(row, budgets, strict=True)):
            draw_forest([one for one in own if one.budget == budget], ax, given=given)
            ax.tick_params(labelleft=place == 0, labelbottom=True)
        title = panel_title(own[0].group, groups).replace("\n", ", ")
        row[0].set_title(f"{title}: minus {printable(own[0].baseline)}\n{row[0].get_title('left')}", size=9, loc="left")
    panels[-1, len(budgets) // 2].set_xlabel(f"{found[0].metric}: difference, points (higher is better)")
    legend_below(figure, handles, note=note)
    return figure


def _note(found: Sequence[Slice]) -> str:
    samples = counted(one.num_samples for one in found)
    num = max(one.num_comparisons for one in found)
    return f"n = {samples} samples; 95 % intervals, each alone; {num} comparisons, Holm over all of them"


def _handles() -> list[Line2D]:
    shared: dict[str, Any] = {"color": "0.3", "marker": "o", "linestyle": "none"}
    return [
        Line2D([], [], **shared, label=f"filled: p at most {LEVEL:g} after Holm"),
        Line2D([], [], **shared, markerfacecolor="white", label="hollow: no difference detected"),
    ]
