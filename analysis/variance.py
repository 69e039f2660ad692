"""Does the method matter, or the schedule? The variance of what is lost at equal MACs, by what it comes from.

Each curve gives its difference to the unreduced model at one budget, interpolated, so that all have spent the same. A linear
model without interactions explains it by method (with its options), shape of the schedule, layers and backbone. A factor's part
is what it adds to the explained sum of squares, averaged over all orders in which factors can be added (Lindeman, Merenda and
Gold 1980; the Shapley value), so that factors that came together share what they explain. ``interplay`` is what the factors do
only in combination. ``seed`` is the variance between seeds of one random method, all else alike, that would remain with samples
without end. Every part is a quadratic form of the differences; what the noise of the samples puts into it in expectation is taken
off, down to 0. The interval is of Poisson draws of the samples.

What it cannot say: which level is better (that is for claims), anything of levels that were not run, or of two factors that never
vary apart. Cells that are missing make factors overlap. A method that takes no shape counts as one of a shape of its own.

Dimension key: O observations (curves x seeds), N samples, G clusters of samples (or samples), R draws.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import combinations
from math import factorial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tokred.analysis.bootstrap import NUM_DRAWS, bootstrap_means
from tokred.analysis.curves import Curve, reaches, shared_budgets, weights_at
from tokred.analysis.figure import new_figure, save_figure
from tokred.analysis.look import printable
from tokred.analysis.statistics import by_cluster

FACTORS: dict[str, Callable[[Curve], str]] = {
    "method": lambda curve: curve.method,
    "shape": lambda curve: curve.shape,
    "layers": lambda curve: curve.layers,
    "backbone": lambda curve: f"{curve.backbone} {curve.weights}",
}
INTERPLAY, SEED = "interplay", "seed"
COLOUR = "#0072B2"  # of Okabe and Ito


@dataclass(frozen=True)
class Part:
    """A factor's share of the variance at a budget, with its 95 % interval; one that ends at 0 holds the truth more often. ``sd``
    is the standard deviation that the factor alone would give, as a share of samples. All are 0 where there is no more than the
    noise of the samples."""

    budget: float
    factor: str
    num_levels: int
    share: float
    low: float
    high: float
    sd: float
    num_curves: int
    num_left_out: int
    num_samples: int
    metric: str = "accuracy"


def decompose(some: Sequence[Curve], budget: float, *, num_draws: int = NUM_DRAWS, seed: int = 0) -> list[Part]:
    """The parts of those factors of which several levels were run, largest first. ``some`` holds the unreduced models too.

    Curves that do not reach the budget are left out and counted. All are over the same samples of one data set.
    """
    reduced = [curve for curve in some if curve.method != "none"]
    there = [curve for curve in reduced if reaches(curve, budget)]
    if len(there) < 2:
        raise ValueError(
            f"{len(there)} of {len(reduced)} curves reach {100 * budget:.0f} % of the MACs; two are needed"
        )
    loss_ON, weight_O, curve_O = _losses(there, _unreduced(some), budget)
    forms, cluster_N = _forms(there, weight_O, curve_O), there[0].cluster_N
    noise_OO = _noise(loss_ON, cluster_N)
    noise = {name: float(np.sum(form_OO * noise_OO)) for name, form_OO in forms.items()}
    found = {name: _beyond(loss_ON.mean(axis=1)[None], form, noise[name]) for name, form in forms.items()}
    drawn_RO = bootstrap_means(loss_ON, cluster_N=cluster_N, num_draws=num_draws, seed=seed)
    # a draw has the noise of the samples and that of having drawn them: twice as much
    drawn = {name: _beyond(drawn_RO, form, 2 * noise[name]) for name, form in forms.items()}
    parts = [_part(name, there, budget, len(reduced), found, drawn) for name in forms]
    return sorted(parts, key=lambda part: -part.share)


def save_variance(some: Sequence[Curve], folder: str | Path, budgets: Sequence[float] = ()) -> list[Path]:
    """``variance`` as png, svg and the csv of what was drawn. Without ``budgets`` all that every reduced curve reaches."""
    budgets = budgets or shared_budgets([curve for curve in some if curve.method != "none"])
    if not budgets:
        raise ValueError("no budget is reached by all curves; say at which to compare (budgets=)")
    parts = [part for budget in budgets for part in decompose(some, budget)]
    return save_figure(partial(_figure, parts), parts, Path(folder) / "variance")


def can_be_decomposed(some: Sequence[Curve]) -> bool:
    """Whether two factors vary, and all reduced curves reach some budget: else there is nothing to tell apart."""
    reduced = [curve for curve in some if curve.method != "none"]
    varied = [name for name, level in FACTORS.items() if len({level(curve) for curve in reduced}) > 1]
    return len(varied) > 1 and bool(shared_budgets(reduced))


def draw_variance(parts: Sequence[Part], ax: Axes | None = None) -> Axes:
    """Bars of one budget, the largest on top, with their intervals."""
    ax = ax or new_figure(5.6, 0.7 + 0.4 * len(parts)).subplots()
    middle = np.array([100 * part.share for part in parts])
    ends = np.array([[100 * part.low, 100 * part.high] for part in parts]).T
    reach = np.maximum(np.stack([middle - ends[0], ends[1] - middle]), 0.0)
    ax.barh(range(len(parts)), middle, height=0.6, color=COLOUR, alpha=0.55)
    ax.errorbar(middle, range(len(parts)), xerr=reach, fmt="none", ecolor="0.25", elinewidth=1.4, capsize=3)
    ax.set_yticks(range(len(parts)), [_named(part) for part in parts])
    ax.set_ylim(len(parts) - 0.4, -0.6)
    ax.set_xlim(0, 102)
    ax.grid(visible=False, axis="y")
    points = 100 * sum(part.sd**2 for part in parts) ** 0.5
    ax.set_title(f"at {100 * parts[0].budget:.0f} % of the unreduced MACs: SD {points:.1f} points", size="medium")
    return ax


def _unreduced(some: Sequence[Curve]) -> dict[tuple[str, str], np.ndarray]:
    return {(c.backbone, c.weights): c.right_SKN.mean(axis=(0, 1)) for c in some if c.method == "none"}


def _losses(
    there: Sequence[Curve], unreduced: dict[tuple[str, str], np.ndarray], budget: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Differences (O, N), the weight of each, such that a curve counts once whatever its seeds, and its curve's place."""
    losses, weights, places = list[np.ndarray](), list[float](), list[int]()
    for place, curve in enumerate(there):
        if (curve.backbone, curve.weights) not in unreduced:
            raise ValueError(f"{curve.backbone} has no unreduced model to lose against; hand its curve over too")
        if not np.array_equal(curve.index_N, there[0].index_N) or curve.identity.get("data") != there[0].identity.get(
            "data"
        ):
            raise ValueError(
                f"{there[0].label} on {there[0].backbone} and {curve.label} on {curve.backbone} are over other samples; take "
                "one data set, and the samples that all share (on_shared_samples)"
            )
        score_SN = curve.score(weights_at(curve, budget)) - unreduced[curve.backbone, curve.weights]
        losses.extend(score_SN)
        weights += [1 / len(score_SN)] * len(score_SN)
        places += [place] * len(score_SN)
    return np.array(losses), np.array(weights), np.array(places)


def _forms(there: Sequence[Curve], weight_O: np.ndarray, curve_O: np.ndarray) -> dict[str, np.ndarray]:
    """The matrix of each part's quadratic form; together they give the whole sum of squares around the mean."""
    root_O = np.sqrt(weight_O)
    dummies = {
        name: np.array([[level(there[place]) == one for one in sorted(set(map(level, there)))] for place in curve_O])
        for name, level in FACTORS.items()
    }
    varied = [name for name, dummy_OL in dummies.items() if dummy_OL.shape[1] > 1]

    @cache
    def explained(names: frozenset[str]) -> np.ndarray:
        columns = [np.ones((len(root_O), 1)), *(dummies[name] for name in sorted(names))]
        return _projection(root_O[:, None] * np.concatenate(columns, axis=1))

    curves_OO = _projection(root_O[:, None] * (curve_O[:, None] == np.arange(len(there))))
    forms = {name: _shapley(name, varied, explained) for name in varied}
    forms[INTERPLAY] = curves_OO - explained(frozenset(varied))
    if len(curve_O) > len(there):
        forms[SEED] = np.eye(len(root_O)) - curves_OO
    scale_OO = np.outer(root_O, root_O)
    return {name: form * scale_OO for name, form in forms.items() if np.trace(form) > 1e-9}


def _shapley(name: str, varied: Sequence[str], explained: Callable[[frozenset[str]], np.ndarray]) -> np.ndarray:
    """What a factor adds to those before it, averaged over all orders."""
    others, total = [one for one in varied if one != name], np.zeros(())
    for size in range(len(others) + 1):
        weight = factorial(size) * factorial(len(others) - size) / factorial(len(varied))
        for before in combinations(others, size):
            total = total + weight * (explained(frozenset([*before, name])) - explained(frozenset(before)))
    return total


def _projection(column_OL: np.ndarray) -> np.ndarray:
    """Onto what the columns span, of which some may hang together."""
    left, size, _ = np.linalg.svd(column_OL, full_matrices=False)
    kept = left[:, size > 1e-9 * size.max()]
    return kept @ kept.T


def _noise(loss_ON: np.ndarray, cluster_N: np.ndarray | None) -> np.ndarray:
    """(O, O): the covariance of the means over other draws of the samples."""
    residual_OG = by_cluster(loss_ON - loss_ON.mean(axis=1, keepdims=True), cluster_N)
    num = residual_OG.shape[1]
    return residual_OG @ residual_OG.T * (num / max(1, num - 1)) / loss_ON.shape[1] ** 2


def _beyond(mean_RO: np.ndarray, form_OO: np.ndarray, noise: float) -> np.ndarray:
    return np.maximum(np.einsum("ro,ro->r", mean_RO @ form_OO, mean_RO) - noise, 0.0)


def _part(
    name: str,
    there: Sequence[Curve],
    budget: float,
    num_reduced: int,
    found: dict[str, np.ndarray],
    drawn: dict[str, np.ndarray],
) -> Part:
    levels = {factor: len({level(curve) for curve in there}) for factor, level in FACTORS.items()}
    levels |= {INTERPLAY: len(there), SEED: max(curve.num_seeds for curve in there)}
    low, high = np.quantile(_shares(drawn)[name], (0.025, 0.975))
    return Part(
        budget,
        name,
        levels[name],
        share=float(_shares(found)[name][0]),
        low=float(low),
        high=float(high),
        sd=float(np.sqrt(found[name][0] / (len(there) - 1))),
        num_curves=len(there),
        num_left_out=num_reduced - len(there),
        num_samples=there[0].num_samples,
        metric=there[0].metric,
    )


def _shares(parts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """0 of nothing: where the noise of the samples is all there is."""
    total_R = np.sum(list(parts.values()), axis=0)
    return {name: part_R / np.where(total_R > 0, total_R, 1.0) for name, part_R in parts.items()}


def _named(part: Part) -> str:
    return part.factor if part.factor == INTERPLAY else f"{part.factor} ({part.num_levels})"


def _figure(parts: Sequence[Part]) -> Figure:
    budgets = list(dict.fromkeys(part.budget for part in parts))
    most = max(sum(part.budget == budget for part in parts) for budget in budgets)
    figure = new_figure(5.6, (0.75 + 0.32 * most) * len(budgets) + 0.4)
    for budget, ax in zip(budgets, figure.subplots(len(budgets), squeeze=False).flat, strict=True):
        draw_variance([part for part in parts if part.budget == budget], ax)
    ax.set_xlabel(
        f"share of the variance of the difference in {printable(parts[0].metric)}\nto the unreduced model, %\n"
        f"(how many levels in parentheses;\n95 % over draws of the n = {parts[0].num_samples:,} samples)",
        size="small",
    )
    return figure
