"""One method against another over several backbones or data sets."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import permutation_test

from tokred.analysis.compare import Difference, difference_over
from tokred.analysis.curves import Curve, weights_over
from tokred.analysis.statistics import Z, by_cluster

ENOUGH = 6  # backbones from which on a p over backbones is given: of 5 the smallest there can be is 0.06


@dataclass(frozen=True)
class Across:
    """The mean difference over these backbones, with a 95 % interval over their samples: it says nothing of other backbones.

    ``wins``, ``ties`` and ``losses`` by each backbone's own 95 % interval, uncorrected. ``lowest`` and ``highest``: the mean with
    one backbone left out. ``p`` is over backbones, of sign flips; None of fewer than six.
    """

    first: str
    second: str
    value: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    lowest: float
    highest: float
    p: float | None
    differences: tuple[Difference, ...]


def across(pairs: Sequence[tuple[Curve, Curve]], window: tuple[float, float] | None = None, *, seed: int = 0) -> Across:
    """``pairs``: the two methods' curves on each backbone."""
    if len(pairs) < 2:
        raise ValueError(f"across backbones needs two of them at least; got {len(pairs)}")
    found = tuple(difference_over(first, second, window) for first, second in pairs)
    values = np.array([one.value for one in found])
    value, half = float(values.mean()), Z * _standard_error(pairs, found)
    without = (values.sum() - values) / (len(values) - 1)
    wins, losses = sum(one.low > 0 for one in found), sum(one.high < 0 for one in found)
    return Across(
        *(found[0].first, found[0].second, value, value - half, value + half),
        *(wins, len(found) - wins - losses, losses, float(without.min()), float(without.max())),
        p=_p(values, seed) if len(values) >= ENOUGH else None,
        differences=found,
    )


def _standard_error(pairs: Sequence[tuple[Curve, Curve]], found: Sequence[Difference]) -> float:
    """What backbones say of the same samples hangs together: their parts of the mean are summed by sample (or video) first, and
    only different data count as independent. Of different data alone this is the sum of the squared errors over M^2."""
    by_data: dict[tuple[str, bool], list[tuple[np.ndarray, np.ndarray]]] = {}
    beyond = 0.0  # of seeds, which are each backbone's own, and where nothing varies
    for (first, second), one in zip(pairs, found, strict=True):
        difference_N = _scored(first, one.window) - _scored(second, one.window)
        name_G, part_G = _parts(first, difference_N - one.value)
        beyond += max(0.0, one.error**2 - float(np.sum(part_G**2)))
        key = first.identity.get("data", first.data), first.cluster_N is None
        by_data.setdefault(key, []).append((name_G, part_G))
    return float(np.sqrt(sum(map(_square_of_sums, by_data.values())) + beyond)) / len(pairs)


def _square_of_sums(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Summed by name first."""
    place = np.unique(np.concatenate([names for names, _ in parts]), return_inverse=True)[1]
    return float(np.sum(np.bincount(place, np.concatenate([values for _, values in parts])) ** 2))


def _scored(curve: Curve, window: tuple[float, float]) -> np.ndarray:
    return curve.score(weights_over(curve, window)).mean(axis=0)


def _parts(curve: Curve, residual_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The samples' or videos' names, and the part of each in the error of the mean: its residual over N."""
    part_G = by_cluster(residual_N, curve.cluster_N) / curve.num_samples
    name_G = curve.index_N if curve.cluster_N is None else np.unique(curve.cluster_N)
    return name_G, part_G * np.sqrt(len(part_G) / max(1, len(part_G) - 1))


def _p(values: np.ndarray, seed: int) -> float:
    found = permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=9_999, rng=np.random.default_rng(seed)
    )
    return float(found.pvalue)
