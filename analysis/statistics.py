"""How sure a number is: intervals and paired tests over per-sample results.

Two cells of a sweep see the same samples, so their difference is judged on the samples on which they disagree. At 6 %
disagreement that needs five times fewer samples than two separate intervals would.

Samples that share a video (its captions, its questions) are no independent evidence: ``cluster_N`` says which do, and the
interval then counts videos.

Dimension key: S seeds, N samples.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri, stdtr, stdtrit
from scipy.stats import binom

from tokred.record import wilson

Z = 1.959963984540054  # the normal quantile of a two-sided 95 % interval
ROUNDING = 1e-12  # a standard error below it is none
POWER_Z = 0.8416212335729143  # of a power of 80 %


@dataclass(frozen=True)
class Estimate:
    """A share (0..1) or a difference of two (-1..1), with its 95 % interval."""

    value: float
    low: float
    high: float


class Error(NamedTuple):
    """A standard error and its degrees of freedom; arrays where it is of several."""

    size: Any
    degrees: Any


def discordant(correct_N: np.ndarray, reference_N: np.ndarray) -> tuple[int, int]:
    """How many samples only the first has right, and how many only the second."""
    first_N, second_N = np.asarray(correct_N, bool), np.asarray(reference_N, bool)
    if first_N.shape != second_N.shape or first_N.ndim != 1:
        raise ValueError(f"two results on the same samples are paired; got shapes {first_N.shape} and {second_N.shape}")
    return int(np.sum(first_N & ~second_N)), int(np.sum(~first_N & second_N))


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """The two-sided p of McNemar's test from the binomial distribution; conservative. 1 where nothing is discordant.

    >>> round(mcnemar_exact(31, 14), 6)
    0.016094
    """
    return min(1.0, float(2 * binom.cdf(min(only_first, only_second), only_first + only_second, 0.5)))


def mcnemar_mid_p(only_first: int, only_second: int) -> float:
    """The mid-p of McNemar's test, which keeps to its level better than the exact p (Fagerland et al. 2013).

    >>> round(mcnemar_mid_p(31, 14), 6)
    0.011352
    """
    fewer, total = min(only_first, only_second), only_first + only_second
    return min(1.0, float(2 * binom.cdf(fewer, total, 0.5) - binom.pmf(fewer, total, 0.5)))


def agresti_min(only_first: int, only_second: int, num_samples: int) -> tuple[float, float]:
    """The 95 % interval of a paired difference: Wald's after 0.5 is added to the four cells (Agresti and Min 2005).

    >>> [round(end, 4) for end in agresti_min(31, 14, 1000)]
    [0.0037, 0.0302]
    """
    total = num_samples + 2
    difference, spread = only_first - only_second, only_first + only_second + 1
    half = Z * math.sqrt(spread - difference**2 / total)
    return max(-1.0, (difference - half) / total), min(1.0, (difference + half) / total)


def paired_difference(correct_N: np.ndarray, reference_N: np.ndarray) -> Estimate:
    """The first share correct minus the second. Where no sample is discordant: 0 with the rule of three, 3/N."""
    only_first, only_second = discordant(correct_N, reference_N)
    num_samples = _at_least_one(len(correct_N))
    value = (only_first - only_second) / num_samples
    if only_first + only_second == 0:
        return _within(value, 3 / num_samples, -1.0, 1.0)
    return Estimate(value, *agresti_min(only_first, only_second, num_samples))


def accuracy(num_correct: int, num_samples: int) -> Estimate:
    """The share correct with Wilson's interval."""
    value = num_correct / _at_least_one(num_samples)
    low, high = wilson(num_correct, num_samples)
    return Estimate(value, min(low, value), max(high, value))  # rounding puts wilson(0, 3)'s low end at 5e-17


def accuracy_over_seeds(correct_SN: np.ndarray, cluster_N: np.ndarray | None = None) -> Estimate:
    """The mean over seeds of the share correct; the interval is over samples and seeds (see ``standard_error``): Wilson's, of as
    many samples as would have that standard error."""
    correct_SN = np.asarray(correct_SN, float)
    num_samples = _at_least_one(correct_SN.shape[1])
    num = num_samples if cluster_N is None else len(np.unique(cluster_N))
    return share_with(error_of_mean(correct_SN, cluster_N), float(correct_SN.mean()), num)


def share_with(error: Error, value: float, num_samples: int) -> Estimate:
    """A share with Wilson's interval, of as many samples as would have that error; where there is none, of ``num_samples``."""
    if error.size < ROUNDING or not 0 < value < 1:  # a zero-width interval would claim too much
        return replace(accuracy(round(value * num_samples), num_samples), value=value)
    num_effective = value * (1 - value) / error.size**2
    low, high = wilson(value * num_effective, num_effective, z=quantile(error.degrees))
    return Estimate(value, min(low, value), max(high, value))


def paired_difference_over_seeds(
    correct_SN: np.ndarray, reference_N: np.ndarray, cluster_N: np.ndarray | None = None
) -> Estimate:
    """The mean over seeds of the share correct, minus the reference's. Where nothing varies: the rule of three."""
    difference_SN = np.asarray(correct_SN, float) - np.asarray(reference_N, float)
    _at_least_one(difference_SN.shape[1])
    error = or_rule_of_three(error_of_mean(difference_SN, cluster_N), difference_SN.shape[1], cluster_N)
    return _within(float(difference_SN.mean()), quantile(error.degrees) * error.size, -1.0, 1.0)


def or_rule_of_three(error: Error, num_samples: int, cluster_N: np.ndarray | None) -> Error:
    """The error; where nothing varies, that whose interval reaches 3 / N to either side (N videos, where samples share some)."""
    num = num_samples if cluster_N is None else len(np.unique(cluster_N))
    return error if error.size >= ROUNDING else Error(3 / num / quantile(error.degrees), error.degrees)


def detectable(error: float, num: float, *, degrees: float = math.inf, num_comparisons: int = 1) -> float:
    """The true difference that at least 80 % of new draws would show at the 5 % level, or as one of several comparisons at its
    part of that: k = 2.8 standard errors, the quantile of the interval and the normal quantile of 80 % (Miller 2024, arXiv
    2411.00640). At least k^2 / ``num`` samples, or clusters: a difference takes as many discordant samples, so that where those
    seen are few, the error of one that large is larger than the error seen.
    """
    k = quantile(degrees, tail=0.025 / num_comparisons) + POWER_Z
    return max(k * error, k * k / num)


def least_detectable(low: float, high: float, num_samples: int, num_clusters: int | None = None) -> float:
    """``detectable``, from a 95 % interval that stands alone.

    >>> round(least_detectable(-0.0152, 0.0152, 1000), 4)  # 60 of 1000 samples discordant, none the more often
    0.0217
    """
    degrees = math.inf if num_clusters is None else max(1, num_clusters - 1)
    return detectable((high - low) / 2 / quantile(degrees), num_clusters or num_samples, degrees=degrees)


def p_of_interval(low: float, high: float, num_clusters: int | None = None) -> float:
    """The two-sided p that belongs to a 95 % interval of a difference: below 5 % where it leaves out zero.

    >>> round(p_of_interval(0.0, 0.02), 4)
    0.05
    """
    degrees = math.inf if num_clusters is None else max(1, num_clusters - 1)
    half = (high - low) / 2
    return two_sided_p((low + high) / 2, Error(half / quantile(degrees), degrees)) if half > ROUNDING else 1.0


def planned_detectable(num_samples: int, discordant: float, *, num_comparisons: int = 1) -> float:
    """The true difference that a sweep of ``num_samples`` will show with a power of 80 %, where two methods disagree on a share
    ``discordant`` of them; of several comparisons each at its part of the 5 %.

    >>> round(planned_detectable(10_000, 0.06), 4)
    0.0069
    """
    if num_samples < 1 or num_comparisons < 1:
        raise ValueError(f"samples and comparisons are counted from 1; got {num_samples} and {num_comparisons}")
    if not 0 < discordant <= 1:
        raise ValueError(
            f"the share of samples on which two methods disagree is above 0 and at most 1; got {discordant:g}"
        )
    return detectable(math.sqrt(discordant / num_samples), num_samples, num_comparisons=num_comparisons)


def standard_error(values_SN: np.ndarray, cluster_N: np.ndarray | None = None) -> float:
    """The standard error of the mean of ``values_SN`` over new samples (or clusters of them) and new seeds.

    The spread over samples of the seeds' mean already holds each sample's own seed noise. Added is only what the seeds
    change on all samples together: the variance of the seeds' means beyond that noise. Of five seeds and more its 95 % intervals
    hold the truth in 94 to 98 % of draws, of two that differ much in fewer than 90 %.
    """
    return float(error_of_mean(values_SN, cluster_N).size)


def error_of_mean(values_SN: np.ndarray, cluster_N: np.ndarray | None = None) -> Error:
    """``standard_error`` with its degrees of freedom; of (S, ..., N) for each in between."""
    return _together(_of_samples(values_SN.mean(axis=0), cluster_N), _common_to_seeds(values_SN, cluster_N))


def error_of_difference(first_SN: np.ndarray, second_TN: np.ndarray, cluster_N: np.ndarray | None = None) -> Error:
    """As ``error_of_mean``, of the difference of two on the same samples, each with seeds of its own."""
    samples = _of_samples(first_SN.mean(axis=0) - second_TN.mean(axis=0), cluster_N)
    return _together(samples, _common_to_seeds(first_SN, cluster_N), _common_to_seeds(second_TN, cluster_N))


def quantile(degrees: float = math.inf, *, tail: float = 0.025) -> float:
    """Student's, or the normal of degrees without end.

    >>> round(quantile(), 2), round(quantile(9), 2)
    (1.96, 2.26)
    """
    return float(-ndtri(tail) if math.isinf(degrees) else -stdtrit(degrees, tail))


def two_sided_p(value: float, error: Error) -> float:
    """Of a value that is 0 but for its error."""
    z = -abs(value) / error.size
    return float(2 * (ndtr(z) if math.isinf(error.degrees) else stdtr(error.degrees, z)))


def by_cluster(value_KN: np.ndarray, cluster_N: np.ndarray | None) -> np.ndarray:
    """(K, G): the sums of the last axis over the samples of each cluster; as it is where each sample is its own."""
    if cluster_N is None:
        return value_KN
    _, group_N = np.unique(cluster_N, return_inverse=True)
    order_N = np.argsort(group_N, kind="stable")
    starts_G = np.searchsorted(group_N[order_N], np.arange(group_N.max() + 1))
    return np.add.reduceat(value_KN[..., order_N], starts_G, axis=-1, dtype=float)


class _Part(NamedTuple):
    """Of a variance; ``doubt``: the square of what it was estimated from over the degrees of freedom of that."""

    variance: Any
    doubt: Any = 0.0


def _of_samples(value_N: np.ndarray, cluster_N: np.ndarray | None) -> _Part:
    """G / (G - 1) sum_g (sum of the residuals of cluster g)^2 / N^2 (Miller 2024, arXiv 2411.00640, section 2.2); without
    clusters each sample is its own."""
    residual_G = by_cluster(value_N - value_N.mean(axis=-1, keepdims=True), cluster_N)
    num = residual_G.shape[-1]
    variance = num / max(1, num - 1) * np.sum(residual_G**2, axis=-1) / value_N.shape[-1] ** 2 * (num > 1)
    return _Part(variance, 0.0 if cluster_N is None else variance**2 / max(1, num - 1))


def _common_to_seeds(values_SN: np.ndarray, cluster_N: np.ndarray | None) -> _Part:
    """What a seed changes on all samples together: the variance of the seeds' means beyond each sample's own seed noise."""
    num_seeds, num_samples = len(values_SN), values_SN.shape[-1]
    if num_seeds == 1:
        return _Part(np.zeros(values_SN.shape[1:-1]))
    own = by_cluster(values_SN, cluster_N).var(axis=0, ddof=1).sum(axis=-1) / num_samples**2
    of_means = values_SN.mean(axis=-1).var(axis=0, ddof=1)
    return _Part(np.maximum(of_means - own, 0.0) / num_seeds, (of_means / num_seeds) ** 2 / (num_seeds - 1))


def _together(*parts: _Part) -> Error:
    """Degrees of freedom after Welch and Satterthwaite: few seeds say little of how much seeds differ."""
    variance, doubt = sum(part.variance for part in parts), sum(part.doubt for part in parts)
    degrees = np.where(doubt > 0, variance**2 / np.where(doubt > 0, doubt, 1.0), math.inf)
    return Error(np.sqrt(variance), np.maximum(degrees, 1.0))


def seed_sd(correct_SN: np.ndarray) -> float | None:
    """The standard deviation over seeds of the share correct; None for one seed."""
    return float(np.mean(correct_SN, axis=1).std(ddof=1)) if len(correct_SN) > 1 else None


def _within(value: float, half: float, lowest: float, highest: float) -> Estimate:
    return Estimate(value, max(lowest, value - half), min(highest, value + half))


def _at_least_one(num_samples: int) -> int:
    if num_samples < 1:
        raise ValueError("an estimate needs at least one sample; got none")
    return num_samples
