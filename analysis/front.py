"""How sure a Pareto front is: the chance of each configuration to be on it, and the area under it, over draws of the samples.

A front of noisy points is noise where gaps are small: at 2,000 samples, of points 0.1 to 0.2 points of accuracy apart one is on
the front of every second draw only.

Dimension key: K configurations, N samples, R draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokred.analysis.bootstrap import NUM_DRAWS, bootstrap_means, spread
from tokred.analysis.curves import SAME_COST, Curve, check_comparable
from tokred.analysis.rows import Row, aligned, grouped, of_metric, rows_with_records, samples_of
from tokred.analysis.statistics import Estimate
from tokred.record import Record, Store

SURE = 0.95  # the chance from which on a point is drawn as one of the front
DEPTH = 0.10  # how far below the unreduced model's accuracy an area begins


@dataclass(frozen=True)
class Member:
    """A configuration; ``on_front`` in these samples, ``probability`` over draws of them."""

    label: str
    backbone: str
    gmacs: float
    share: float
    value: float
    on_front: bool
    probability: float

    @property
    def is_sure(self) -> bool:
        return self.probability >= SURE


def members(some: Sequence[Curve], *, num_draws: int = NUM_DRAWS, seed: int = 0) -> list[Member]:
    """Of all configurations of the curves of one backbone, the unreduced model among them if it is given."""
    for curve in some[1:]:
        check_comparable(some[0], curve)
    share_K = np.concatenate([curve.share_K for curve in some])
    means = _means(some, num_draws, seed)
    now_K, chance_K = on_front(share_K, means[:1])[0], on_front(share_K, means[1:]).mean(axis=0)
    places = [(curve, place) for curve in some for place in range(len(curve.share_K))]
    return [
        Member(
            *(curve.label, curve.backbone, float(curve.gmacs_K[place]), float(curve.share_K[place])),
            *(float(value), bool(now), float(chance)),
        )
        for (curve, place), value, now, chance in zip(places, means[0], now_K, chance_K, strict=True)
    ]


def accuracies_drawn(store: Store, *, num_draws: int = NUM_DRAWS, seed: int = 0) -> dict[Row, np.ndarray]:
    """(R,) of each row that has samples of its own: its accuracy in draws of those that all rows of its group have."""
    pairs = [(row, cell) for row, cell in rows_with_records(store) if row.value is not None]
    found: dict[Row, np.ndarray] = {}
    for group in grouped(pairs, lambda pair: pair[0].group):
        own = [(row, cell) for row, cell in group if "num_samples" in of_metric(cell[0], row.metric)]
        found |= _drawn_together(own, store, num_draws, seed)
    return found


def _drawn_together(
    pairs: Sequence[tuple[Row, list[Record]]], store: Store, num_draws: int, seed: int
) -> dict[Row, np.ndarray]:
    shared = aligned([samples_of(store, record, row.metric) for row, cell in pairs for record in cell])
    if shared is None:
        return {}
    ends = np.cumsum([len(cell) for _, cell in pairs])
    sum_KN = np.add.reduceat(shared.right_N.astype(np.float64), np.append(0, ends[:-1]), axis=0)
    drawn_RK = bootstrap_means(sum_KN, cluster_N=shared.cluster_N, num_draws=num_draws, seed=seed)
    return {row: drawn_R / len(cell) for (row, cell), drawn_R in zip(pairs, drawn_RK.T, strict=True)}


def on_front(cost_K: np.ndarray, value_RK: np.ndarray, near: float = SAME_COST) -> np.ndarray:
    """(R, K): whether no other configuration is as cheap and as good, and cheaper or better. Costs as ``near`` are the same."""
    value_RK = np.round(value_RK, 12)  # means over seeds are equal but for rounding
    found = np.empty(value_RK.shape, bool)
    for place, cost in enumerate(cost_K):
        best_cheaper_R = _best(value_RK[:, cost_K < cost * (1 - near)])
        best_as_cheap_R = _best(value_RK[:, cost_K <= cost * (1 + near)])
        found[:, place] = (value_RK[:, place] > best_cheaper_R) & (value_RK[:, place] >= best_as_cheap_R)
    return found


def hypervolume(curve: Curve, unreduced: Curve, *, num_draws: int = NUM_DRAWS, seed: int = 0) -> Estimate:
    """The area between a curve's front and the reference point, as a share of what a free model of the unreduced one's accuracy
    would have. The reference point is the unreduced model's MACs, and 10 points below its accuracy in these samples.

    Of two curves with as many configurations as each other alone: more noisy points have more area. See below for the two.
    """
    check_comparable(curve, unreduced)
    area_R = _areas(curve, unreduced, _means([curve], num_draws, seed))
    return spread(float(area_R[0]), area_R[1:])


def hypervolume_difference(
    first: Curve, second: Curve, unreduced: Curve, *, num_draws: int = NUM_DRAWS, seed: int = 0
) -> Estimate:
    """The area of the first minus that of the second, on the same draws."""
    for curve in (first, second):
        check_comparable(curve, unreduced)
    if len(first.share_K) != len(second.share_K):
        counts = f"{len(first.share_K)} and {len(second.share_K)}"
        raise ValueError(
            f"areas are compared at equal numbers of configurations; {first.label} and {second.label} have {counts}"
        )
    means = _means([first, second], num_draws, seed)
    ends = (means[:, : len(first.share_K)], means[:, len(first.share_K) :])
    gap_R = _areas(first, unreduced, ends[0]) - _areas(second, unreduced, ends[1])
    return spread(float(gap_R[0]), gap_R[1:])


def area(cost_K: np.ndarray, value_RK: np.ndarray, reference: tuple[float, float]) -> np.ndarray:
    """(R,): what the points dominate, of costs up to the reference's and values down to it."""
    order = np.argsort(cost_K)
    order = order[cost_K[order] < reference[0]]
    if not len(order):
        return np.zeros(len(value_RK))
    height_RK = np.maximum.accumulate(np.maximum(value_RK[:, order] - reference[1], 0.0), axis=1)
    return height_RK @ np.diff(cost_K[order], append=reference[0])


def _areas(curve: Curve, unreduced: Curve, value_RK: np.ndarray) -> np.ndarray:
    reference = (float(unreduced.share_K[-1]), float(unreduced.right_SKN.mean()) - DEPTH)
    return area(curve.share_K, value_RK, reference) / (reference[0] * DEPTH)


def _best(value_RJ: np.ndarray) -> np.ndarray:
    return value_RJ.max(axis=1, initial=-np.inf)


def _means(some: Sequence[Curve], num_draws: int, seed: int) -> np.ndarray:
    """(1 + R, K): first of these samples, then of the draws. Seeds are summed, and so stay whole, and divided at the end."""
    sum_KN = np.concatenate([curve.right_SKN.sum(axis=0, dtype=np.float64) for curve in some])
    seeds_K = np.concatenate([np.full(len(curve.share_K), curve.num_seeds) for curve in some])
    drawn_RK = bootstrap_means(sum_KN, cluster_N=some[0].cluster_N, num_draws=num_draws, seed=seed)
    return np.concatenate([sum_KN.mean(axis=1)[None], drawn_RK]) / seeds_K
