"""Over many backbones: on what share of them a method loses no more than so much (Agarwal et al. 2021, arXiv 2108.13264).

``profiles`` gives the numbers, ``draw_profile`` draws them, and ``save_profile`` makes the files, from five backbones on. A
backbone counts with the mean difference to its unreduced model over the budgets that all curves reach.

Dimension key: M backbones, K methods, T thresholds, R draws.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tokred.analysis.bootstrap import bootstrap_means
from tokred.analysis.curves import Curve, shared_budgets, weights_over
from tokred.analysis.figure import legend_below, legend_inches, new_figure, save_figure
from tokred.analysis.look import looks, named, printable
from tokred.analysis.rows import grouped

ENOUGH = 5  # backbones from which on a share of them says something
WIDE_INCHES, HIGH_INCHES = 5.6, 3.6


@dataclass(frozen=True)
class Step:
    """On ``share`` of ``num_backbones`` backbones the difference to the unreduced model is ``difference`` or more, on average
    over the budgets from ``window_low`` to ``window_high``; with the 95 % interval, at this difference, of draws of the samples:
    it says nothing of other backbones."""

    method: str
    label: str
    metric: str
    difference: float
    share: float
    low: float
    high: float
    window_low: float
    window_high: float
    num_backbones: int
    num_samples: int


def profiles(some: Sequence[Curve], *, least: int = ENOUGH) -> list[Step]:
    """Of the methods that ran on all backbones, from ``least`` of these on; nothing where they share no budget."""
    groups = grouped(some, lambda curve: curve.group)
    labels = _on_all(groups)
    reduced = [curve for curve in some if curve.label in labels]
    budgets = shared_budgets(reduced) if len(groups) >= least and labels else []
    if not budgets or any(not any(curve.method == "none" for curve in group) for group in groups):
        return []
    window = (budgets[0], budgets[-1])
    scores = [_scores(group, labels, window) for group in groups]
    first = {curve.label: curve for curve in reversed(reduced)}
    about = (*window, len(groups), min(curve.num_samples for curve in reduced))
    now_MK, drawn_RMK = (
        np.stack(parts, axis=axis) for parts, axis in zip(zip(*scores, strict=True), (0, 1), strict=True)
    )
    return [
        Step(first[label].method, label, first[label].metric, *step, *about)
        for place, label in enumerate(labels)
        for step in _steps(now_MK[:, place], drawn_RMK[..., place], float(now_MK.min()))
    ]


def draw_profile(steps: Sequence[Step], ax: Axes | None = None) -> Axes:
    """A step line for each method, with its band."""
    given = looks(named(step.method) for step in steps)
    ax = ax or new_figure(WIDE_INCHES, HIGH_INCHES).subplots()
    for line in grouped(steps, lambda step: step.label):
        look = given[named(line[0].method)]
        x, y, low, high = ([getattr(step, part) for step in line] for part in ("difference", "share", "low", "high"))
        ax.step(x, y, where="pre", color=look.colour, linewidth=1.6, marker=look.marker, markersize=4.5)
        ax.fill_between(x, low, high, step="pre", color=look.colour, alpha=0.12, linewidth=0)
    ax.set_ylim(-0.03, 1.05)
    first = steps[0]
    window = " to ".join(dict.fromkeys(f"{100 * end:.0f}" for end in (first.window_low, first.window_high)))
    ax.set_xlabel(
        f"{first.metric}: difference to the unreduced model, points,\nmean over budgets of {window} % of its MACs"
    )
    ax.set_ylabel(f"share of the {first.num_backbones} backbones\nwith at least that, % (higher is better)")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(lambda share, _: f"{round(100 * share, 2):g}")
    return ax


def save_profile(some: Sequence[Curve], folder: str | Path) -> list[Path]:
    """``performance`` as png, svg and csv; nothing of fewer than five backbones."""
    steps = profiles(some)
    return save_figure(partial(_figure, steps), steps, Path(folder) / "performance") if steps else []


def _on_all(groups: Sequence[Sequence[Curve]]) -> list[str]:
    """The reduced methods that every backbone has."""
    held = [{curve.label for curve in group} for group in groups]
    names = dict.fromkeys(curve.label for group in groups for curve in group if curve.method != "none")
    return [name for name in names if all(name in own for own in held)]


def _scores(
    group: Sequence[Curve], labels: Sequence[str], window: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Of each method the difference to the unreduced model, (K,), and in draws of the samples, (R, K)."""
    by_label = {curve.label: curve for curve in group}
    none = next(curve for curve in group if curve.method == "none")
    unreduced_N = none.right_SKN.mean(axis=(0, 1))
    difference_KN = np.stack(
        [by_label[label].score(weights_over(by_label[label], window)).mean(axis=0) - unreduced_N for label in labels]
    )
    # equal seeds: backbones over the same samples are drawn alike
    return difference_KN.mean(axis=1), bootstrap_means(difference_KN, cluster_N=none.cluster_N)


def _steps(now_M: np.ndarray, drawn_RM: np.ndarray, lowest: float) -> list[tuple[float, float, float, float]]:
    """(difference, share, low, high) where the share changes, and at the lowest difference of all methods."""
    found = []
    for difference in np.unique([*now_M, lowest]):
        slack = 1e-12  # sums that are equal but for rounding
        share = float(np.mean(now_M >= difference - slack))
        low, high = np.quantile(np.mean(drawn_RM >= difference - slack, axis=1), (0.025, 0.975))
        found.append((float(difference), share, min(float(low), share), max(float(high), share)))
    assert math.isclose(found[0][1], 1.0)
    return found


def _figure(steps: Sequence[Step]) -> Figure:
    given = looks(named(step.method) for step in steps)
    handles = [
        Line2D([], [], color=(look := given[named(method)]).colour, marker=look.marker, label=printable(label))
        for label, method in {step.label: step.method for step in steps}.items()
    ]
    figure = new_figure(WIDE_INCHES, HIGH_INCHES + legend_inches(handles, WIDE_INCHES))
    draw_profile(steps, figure.subplots())
    legend_below(figure, handles)
    return figure
