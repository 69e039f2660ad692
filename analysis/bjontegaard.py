"""Bjontegaard's deltas, for readers of codec papers: accuracy at equal MACs and MACs at equal accuracy, of two curves of points.

Piecewise cubic Hermite interpolation (PCHIP) over ln MACs (arXiv 2304.12852); Akima's and one cubic give other numbers. They are
secondary: they have no intervals, and MACs at equal accuracy hang on where a flat curve crosses a level. The headline is
``tokred.analysis.compare.delta_auc``.
"""

import numpy as np
from scipy.interpolate import PchipInterpolator

LEAST_POINTS, LEAST_OVERLAP = 3, 0.5


def bd_accuracy(
    gmacs_K: np.ndarray, accuracy_K: np.ndarray, reference_gmacs_J: np.ndarray, reference_accuracy_J: np.ndarray
) -> float | None:
    """How much more accurate than the reference at equal MACs, in the unit of the accuracies; None where it is undefined.

    Undefined is it with fewer than 3 points, or where the curves share less than half of what either covers.

    >>> gmacs = np.array([1.0, 2.0, 4.0])
    >>> round(bd_accuracy(gmacs, np.array([71.0, 76.0, 78.0]), gmacs, np.array([70.0, 75.0, 77.0])), 6)
    1.0
    """
    curve = _by_x(np.log(gmacs_K), accuracy_K)
    return _mean_gap(curve, _by_x(np.log(reference_gmacs_J), reference_accuracy_J))


def bd_rate(
    gmacs_K: np.ndarray, accuracy_K: np.ndarray, reference_gmacs_J: np.ndarray, reference_accuracy_J: np.ndarray
) -> float | None:
    """The share of MACs more (or less: negative) than the reference at equal accuracy; None where it is undefined, as above.

    Only points count that no cheaper one is as accurate as: elsewhere MACs are no function of the accuracy.
    """
    envelopes = [_envelope(gmacs_K, accuracy_K), _envelope(reference_gmacs_J, reference_accuracy_J)]
    gap = _mean_gap(*envelopes)
    return None if gap is None else float(np.expm1(gap))


def _by_x(x_K: np.ndarray, y_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(x_K)
    return np.asarray(x_K, float)[order], np.asarray(y_K, float)[order]


def _envelope(gmacs_K: np.ndarray, accuracy_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rising accuracies, and ln MACs at each."""
    x_K, y_K = _by_x(np.log(gmacs_K), accuracy_K)
    best_before = np.append(-np.inf, np.maximum.accumulate(y_K)[:-1])
    return y_K[y_K > best_before], x_K[y_K > best_before]


def _mean_gap(curve: tuple[np.ndarray, np.ndarray], reference: tuple[np.ndarray, np.ndarray]) -> float | None:
    """Of the two interpolations, over what both cover."""
    ends = [(x.min(), x.max()) for x, _ in (curve, reference) if len(x) >= LEAST_POINTS]
    if len(ends) < 2:
        return None
    low, high = max(low for low, _ in ends), min(high for _, high in ends)
    if high - low < LEAST_OVERLAP * (max(high for _, high in ends) - min(low for low, _ in ends)):
        return None
    areas = [float(PchipInterpolator(*points).integrate(low, high)) for points in (curve, reference)]
    return float((areas[0] - areas[1]) / (high - low))
