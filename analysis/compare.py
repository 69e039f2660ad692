"""Two curves of one backbone at equal compute: the difference at a budget, and over a range of them.

``delta_auc`` is the headline: by how many points one method is better on average over the budgets that both reach. A difference
at a budget, or the mean of many, is a weighted sum of configurations for each sample, and so has the interval and the p of a
paired difference. Budgets and windows are shares of the unreduced model's MACs.

Dimension key: K configurations, S seeds, N samples, G clusters of samples (or samples), F points of a grid, R draws.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from tokred.analysis.curves import SAME_COST, Curve, check_comparable, hats, reaches, weights_over
from tokred.analysis.statistics import (
    ROUNDING,
    Error,
    Z,
    by_cluster,
    detectable,
    discordant,
    error_of_difference,
    mcnemar_mid_p,
    or_rule_of_three,
    paired_difference,
    quantile,
    two_sided_p,
)

LEAST_OVERLAP, GOOD_OVERLAP = 0.5, 0.75  # below the first there is no comparison, below the second a warning
NUM_POINTS = 33  # of a band
NUM_SIGNS, NUM_ERRORS = 10_000, 2_000
AT_ONCE = 1 << 22  # random numbers held at a time


@dataclass(frozen=True)
class Difference:
    """The share that ``first`` has right minus that of ``second``, over ``window``, with a 95 % interval.

    ``p`` belongs to the interval; ``p_permutation`` is of sign flips (of samples, or of videos), where it was asked for.
    ``error`` is the standard error, of so many ``degrees`` of freedom (inf: the normal). ``smallest``: the true difference that
    at least 80 % of new draws of as many samples would show. ``overlap``: the part of the MACs that
    either was run at, in ln, which both were.
    """

    first: str
    second: str
    backbone: str
    metric: str
    window: tuple[float, float]
    overlap: float
    value: float
    low: float
    high: float
    p: float
    error: float
    degrees: float
    smallest: float
    num_samples: int
    num_clusters: int | None
    num_seeds: int
    p_permutation: float | None = None


@dataclass(frozen=True, eq=False)
class Band:
    """A difference at F budgets; in 95 % of draws the whole of the true line lies between ``low_F`` and ``high_F``."""

    budget_F: np.ndarray
    value_F: np.ndarray
    low_F: np.ndarray
    high_F: np.ndarray


def difference_at(first: Curve, second: Curve, budget: float) -> Difference | None:
    """At one budget, both interpolated by sample; None where one of them does not reach it."""
    check_comparable(first, second)
    if not (reaches(first, budget) and reaches(second, budget)):
        return None
    return difference_over(first, second, (budget, budget))


def delta_auc(
    first: Curve,
    second: Curve,
    window: tuple[float, float] | None = None,
    *,
    num_draws: int = NUM_SIGNS,
    seed: int = 0,
) -> Difference:
    """The mean difference over a window in ln MACs, with the p of sign flips; without a window over the budgets that both reach.

    Raises ValueError where these are less than half of those that either reaches.
    """
    found = difference_over(first, second, window)
    flips_RK = sign_flips([first, second], num_draws=num_draws, seed=seed)
    weight_K = np.concatenate([weights_over(first, found.window), -weights_over(second, found.window)])
    return replace(found, p_permutation=permutation_p(found.value * first.num_samples, flips_RK @ weight_K))


def difference_over(first: Curve, second: Curve, window: tuple[float, float] | None = None) -> Difference:
    """``delta_auc`` without its permutations."""
    check_comparable(first, second)
    overlap, window = (1.0, window) if window else common_window(first, second)
    scores = first.score(weights_over(first, window)), second.score(weights_over(second, window))
    error = or_rule_of_three(error_of_difference(*scores, first.cluster_N), first.num_samples, first.cluster_N)
    value = float(scores[0].mean() - scores[1].mean())
    low, high, p = _interval(scores, value, error, first.cluster_N is not None)
    return Difference(
        *(first.label, second.label, first.backbone, first.metric, window, overlap, value, low, high, p),
        error=float(error.size),
        degrees=float(error.degrees),
        smallest=float(detectable(error.size, first.num_clusters or first.num_samples, degrees=error.degrees)),
        num_samples=first.num_samples,
        num_clusters=first.num_clusters,
        num_seeds=max(first.num_seeds, second.num_seeds),
    )


def common_window(first: Curve, second: Curve) -> tuple[float, tuple[float, float]]:
    """What both curves cover: its part of what either does, in ln MACs, and its ends."""
    ends = [(curve.share_K[0], curve.share_K[-1]) for curve in (first, second)]
    low, high = max(low for low, _ in ends), min(high for _, high in ends)
    least, most = min(low for low, _ in ends), max(high for _, high in ends)
    if most <= least * (1 + SAME_COST):  # one budget
        return 1.0, (float(high), float(high))
    overlap = max(0.0, math.log(high / low) / math.log(most / least))
    if overlap < LEAST_OVERLAP:
        ranges = " and ".join(f"{100 * a:.0f} to {100 * b:.0f}" for a, b in ends)
        raise ValueError(
            f"{first.label} and {second.label} were run at {ranges} % of the MACs, of which they share {100 * overlap:.0f} %; "
            "at least 50 % are needed: run both at more of the same budgets, or give a window that both reach"
        )
    return overlap, (float(low), float(high))


def band(
    first: Curve,
    second: Curve,
    window: tuple[float, float] | None = None,
    *,
    num_draws: int = NUM_ERRORS,
    seed: int = 0,
) -> Band:
    """The difference along the budgets, with a band for all of them at once (from draws of the largest error)."""
    check_comparable(first, second)
    window = window or common_window(first, second)[1]
    budget_F = np.exp(np.linspace(math.log(window[0]), math.log(window[1]), NUM_POINTS))
    weights = [hats(np.log(curve.share_K), np.log(budget_F)) for curve in (first, second)]
    scores = [
        weight_FK @ curve.right_SKN.astype(float) for weight_FK, curve in zip(weights, (first, second), strict=True)
    ]
    error = error_of_difference(scores[0], scores[1], first.cluster_N)
    difference_FN = scores[0].mean(axis=0) - scores[1].mean(axis=0)
    value_F = difference_FN.mean(axis=1)
    width = _largest_error(by_cluster(difference_FN - value_F[:, None], first.cluster_N), num_draws, seed)
    widths_F = width * np.array([quantile(degrees) / Z for degrees in error.degrees])  # wider, where Student's is
    half_F = np.where(error.size < ROUNDING, 3 / (first.num_clusters or first.num_samples), widths_F * error.size)
    return Band(budget_F, value_F, np.maximum(value_F - half_F, -1.0), np.minimum(value_F + half_F, 1.0))


def dominates(first: Curve, second: Curve, window: tuple[float, float] | None = None, *, seed: int = 0) -> bool:
    """Whether ``first`` is better at every budget of the window: the band leaves out zero all along."""
    return bool(np.all(band(first, second, window, seed=seed).low_F > 0))


def not_worse(first: Curve, second: Curve, window: tuple[float, float] | None = None, *, by: float = 0.005) -> bool:
    """Whether ``first`` is worse by no more than ``by`` on average over the window: the one-sided 95 % end lies above."""
    found = difference_over(first, second, window)
    return found.value - quantile(found.degrees, tail=0.05) * found.error > -by


def sign_flips(some: list[Curve], *, num_draws: int = NUM_SIGNS, seed: int = 0) -> np.ndarray:
    """(R, K), for all configurations of the curves, one after the other: their sums over samples (or videos), each with
    the sign of a draw. The sum of a flipped difference is the difference of two of these: pairs of curves share the work."""
    mean_KN = np.concatenate([curve.right_SKN.mean(axis=0) for curve in some])
    value_GK = np.ascontiguousarray(by_cluster(mean_KN, some[0].cluster_N).T)
    draw, step = np.random.default_rng(seed), max(1, AT_ONCE // len(value_GK))
    parts = [
        (2.0 * draw.integers(0, 2, (min(step, num_draws - start), len(value_GK)), dtype=np.int8) - 1) @ value_GK
        for start in range(0, num_draws, step)
    ]
    return np.concatenate(parts)


def permutation_p(total: float, flipped_R: np.ndarray) -> float:
    """Two-sided, of a sum among its sign flips; never 0, as the sum itself counts as a draw."""
    slack = 1e-9 * max(1.0, abs(total))  # equal but for rounding
    return float((1 + np.sum(np.abs(flipped_R) >= abs(total) - slack)) / (1 + len(flipped_R)))


def _interval(
    scores: tuple[np.ndarray, np.ndarray], value: float, error: Error, has_clusters: bool
) -> tuple[float, float, float]:
    """Low, high and p. Of two configurations of one seed McNemar's mid-p and the interval of Agresti and Min."""
    if not has_clusters and all(len(one) == 1 and np.all((one == 0) | (one == 1)) for one in scores):
        first_N, second_N = (one[0] > 0 for one in scores)
        found = paired_difference(first_N, second_N)
        return found.low, found.high, mcnemar_mid_p(*discordant(first_N, second_N))
    half = quantile(error.degrees) * error.size
    return float(max(-1.0, value - half)), float(min(1.0, value + half)), two_sided_p(value, error)


def _largest_error(residual_FG: np.ndarray, num_draws: int, seed: int) -> float:
    """The 95 % quantile of the largest error along the grid, in standard errors (of samples).

    A sum of residuals, each times a normal number, is normal with their covariance: it is drawn from that, F numbers a draw
    and not G.
    """
    spread_F = np.sqrt(np.sum(residual_FG**2, axis=1))
    varies = spread_F > ROUNDING
    if not np.any(varies):
        return 0.0
    scaled_FG = residual_FG[varies] / spread_F[varies, None]
    size_F, axis_FF = np.linalg.eigh(scaled_FG @ scaled_FG.T)
    draws_RF = np.random.default_rng(seed).standard_normal((num_draws, len(size_F)))
    errors_RF = (draws_RF * np.sqrt(np.maximum(size_F, 0.0))) @ axis_FF.T
    return float(np.quantile(np.abs(errors_RF).max(axis=1), 0.95))
