"""Methods against one of them at every budget: the difference of accuracy over MACs, with a band for all budgets at once.

``along`` gives the numbers, ``draw_difference`` draws a panel of a few methods, and ``save_difference`` makes the files. The
baseline of a backbone is the method that the sweep named first, of those that ran there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tokred.analysis.compare import band
from tokred.analysis.curves import SAME_COST, Curve
from tokred.analysis.figure import legend_below, legend_inches, new_figure, panel_title, save_figure
from tokred.analysis.look import Look, looks, named, printable
from tokred.analysis.rows import grouped, spanned

MOST = 4  # bands that can be told apart in one panel
PANEL_INCHES, COLUMNS = (4.6, 3.3), 2
STYLES = ("-", "--", ":", "-.")  # of one method's curves, by their shapes and layers


@dataclass(frozen=True)
class Along:
    """One budget, a share of the unreduced MACs, of one method minus the baseline. In 95 % of draws the whole true line lies
    between ``low`` and ``high``; over the lines of several methods that is not so. ``is_run``: a configuration of the method is
    the nearest thing here, not only interpolated."""

    backbone: str
    weights: str
    data: str
    method: str
    label: str
    baseline: str
    metric: str
    budget: float
    gmacs: float
    value: float
    low: float
    high: float
    is_run: bool
    num_samples: int
    num_clusters: int | None
    num_seeds: int

    @property
    def group(self) -> tuple[str, str, str]:
        return self.backbone, self.weights, self.data


def against_first(some: Sequence[Curve]) -> list[tuple[Curve, Curve]]:
    """(curve, baseline) for every reduced curve but the baseline of its backbone, which is the first."""
    by_group = grouped((curve for curve in some if curve.method != "none"), lambda curve: curve.group)
    return [(curve, own[0]) for own in by_group for curve in own[1:]]


def along(some: Sequence[Curve]) -> list[Along]:
    """Over the budgets that both reach; nothing of a method that reaches none of the baseline's."""
    found: list[Along] = []
    for curve, baseline in against_first(some):
        window = _both_reach(curve, baseline)
        if window is not None:
            found += _of_pair(curve, baseline, window)
    return found


def draw_difference(
    panel: Sequence[Along],
    ax: Axes | None = None,
    *,
    given: dict[tuple[str, str], Look] | None = None,
    styles: dict[str, str] | None = None,
) -> Axes:
    """``panel``: a few methods of one backbone. Without ``ax``: a new figure, with a legend. ``styles``: by label, where several
    panels share a legend."""
    given, styles = given or looks(named(one.method) for one in panel), styles or _styles(panel)
    if ax is None:
        figure = new_figure(*PANEL_INCHES)
        ax = figure.subplots()
        legend_below(figure, _handles(panel, given))
    ax.axhline(0, color="black", linewidth=1.0, zorder=1)
    for line in grouped(panel, lambda one: one.label):
        _draw_line(ax, line, given[named(line[0].method)], styles[line[0].label])
    ax.set_xlabel("MACs, % of the unreduced model's (lower is better)")
    ax.set_ylabel(f"{panel[0].metric}: difference, points\n(higher is better)")
    ax.xaxis.set_major_formatter(lambda share, _: f"{round(100 * share, 2):g}")
    ax.yaxis.set_major_formatter(lambda share, _: f"{round(100 * share, 2):g}")
    ax.margins(x=0.06)
    return ax


def save_difference(some: Sequence[Curve], folder: str | Path) -> list[Path]:
    """``difference`` as png, svg and csv; nothing where no backbone has two methods that reach the same budget."""
    found, given = along(some), looks(named(curve.method) for curve in some)
    return save_figure(partial(_figure, found, given), found, Path(folder) / "difference") if found else []


def _both_reach(first: Curve, second: Curve) -> tuple[float, float] | None:
    """Budgets within 0.5 % of each other are the same."""
    low = max(first.share_K[0], second.share_K[0])
    high = min(first.share_K[-1], second.share_K[-1])
    if low > high * (1 + SAME_COST):
        return None
    return (float(min(low, high)), float(high))


def _of_pair(curve: Curve, baseline: Curve, window: tuple[float, float]) -> list[Along]:
    found = band(curve, baseline, window)
    budgets, places = np.unique(found.budget_F, return_index=True)  # a window of one budget is one point
    nearest = {int(np.argmin(abs(np.log(budgets / share)))) for share in _inside(curve.share_K, budgets)}
    return [
        Along(
            *curve.group,
            *(curve.method, curve.label, baseline.label, curve.metric),
            budget=float(budget),
            gmacs=float(budget * curve.gmacs_unreduced),
            value=float(found.value_F[place]),
            low=float(found.low_F[place]),
            high=float(found.high_F[place]),
            is_run=number in nearest,
            num_samples=curve.num_samples,
            num_clusters=curve.num_clusters,
            num_seeds=max(curve.num_seeds, baseline.num_seeds),
        )
        for number, (budget, place) in enumerate(zip(budgets, places, strict=True))
    ]


def _inside(share_K: np.ndarray, budget_F: np.ndarray) -> np.ndarray:
    return share_K[(share_K >= budget_F[0] * (1 - SAME_COST)) & (share_K <= budget_F[-1] * (1 + SAME_COST))]


def _styles(panel: Sequence[Along]) -> dict[str, str]:
    """A line style for each label: where a method has several curves they share its colour."""
    of_method = [grouped(some, lambda one: one.label) for some in grouped(panel, lambda one: one.method)]
    return {line[0].label: STYLES[place % len(STYLES)] for own in of_method for place, line in enumerate(own)}


def _draw_line(ax: Axes, line: Sequence[Along], look: Look, style: str) -> None:
    x, y, low, high = ([getattr(one, part) for one in line] for part in ("budget", "value", "low", "high"))
    if len(line) == 1:
        ends = [[y[0] - low[0]], [high[0] - y[0]]]
        ax.errorbar(x, y, yerr=ends, marker=look.marker, color=look.colour, ecolor=(look.colour, 0.55), elinewidth=1.4)
        return
    ax.fill_between(x, low, high, color=look.colour, alpha=0.13, linewidth=0)
    for end in (low, high):
        ax.plot(x, end, color=look.colour, linewidth=0.6, alpha=0.6)
    run = [place for place, one in enumerate(line) if one.is_run]
    ax.plot(x, y, style, color=look.colour, linewidth=1.6, marker=look.marker, markersize=5.5, markevery=run, zorder=3)


def _panels(found: Sequence[Along]) -> list[list[Along]]:
    """Of each backbone as many as its methods need, a few in each."""
    panels = []
    for of_group in grouped(found, lambda one: one.group):
        lines = grouped(of_group, lambda one: one.label)
        for start in range(0, len(lines), MOST):
            panels.append([one for line in lines[start : start + MOST] for one in line])
    return panels


def _figure(found: Sequence[Along], given: dict[tuple[str, str], Look]) -> Figure:
    groups, panels = list(dict.fromkeys(one.group for one in found)), _panels(found)
    num_columns = min(COLUMNS, len(panels))
    num_rows, width = -(-len(panels) // num_columns), PANEL_INCHES[0] * num_columns
    handles, styles, note = _handles(found, given), _styles(found), _note(found)
    figure = new_figure(width, PANEL_INCHES[1] * num_rows + legend_inches(handles, width, note=note))
    axes = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    for panel, ax in zip(panels, axes, strict=False):
        draw_difference(panel, ax, given=given, styles=styles)
        ax.set_title(f"{panel_title(panel[0].group, groups)}\nminus {printable(panel[0].baseline)}", size=9.5)
    for ax in axes[len(panels) :]:
        ax.remove()
    _same_limits(panels, axes)
    legend_below(figure, handles, note=note)
    return figure


def _note(found: Sequence[Along]) -> str:
    samples = spanned(one.num_samples for one in found)
    return f"n = {samples} samples; bands: 95 %, for all budgets of a line at once; markers: where it was run"


def _same_limits(panels: Sequence[Sequence[Along]], axes: Sequence[Axes]) -> None:
    """In all panels of a backbone."""
    for same in grouped(zip(panels, axes, strict=False), lambda pair: pair[0][0].group):
        for which in ("xlim", "ylim"):
            ends = [getattr(ax, f"get_{which}")() for _, ax in same]
            for _, ax in same:
                getattr(ax, f"set_{which}")(min(low for low, _ in ends), max(high for _, high in ends))


def _handles(found: Sequence[Along], given: dict[tuple[str, str], Look]) -> list[Line2D]:
    styles, methods = _styles(found), {one.label: one.method for one in found}
    handles = []
    for label, method in methods.items():
        look, style = given[named(method)], cast(Any, styles[label])
        handles.append(Line2D([], [], color=look.colour, marker=look.marker, linestyle=style, label=printable(label)))
    return handles
