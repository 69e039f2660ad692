"""The best of many without the luck of the choice: picked on one half of the samples, measured on the other, and swapped.

Of 40 configurations that are truly equal the best of 2,000 samples looks 0.8 points better than it is.

Dimension key: J candidates, S seeds, N samples.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokred.analysis.curves import Curve, check_comparable, reaches, weights_at
from tokred.analysis.statistics import Error, Estimate, error_of_mean, share_with

# The covariance of the halves over the variance of a candidate's own part: of J equally good ones the square of the expected
# maximum of J normal numbers over J - 1, at most 0.358, at J = 3.
IN_COMMON = 0.36


@dataclass(frozen=True)
class Best:
    """``estimate``: what choosing on the other half gives; ``naive``: the highest accuracy on all samples, which chance has a
    part in. ``chosen``: the label that either half's choice fell on. The interval is over samples, of these seeds."""

    estimate: Estimate
    naive: float
    chosen: tuple[str, str]
    num_candidates: int


def best_at(some: Sequence[Curve], budget: float) -> Best:
    """Of the curves of one backbone that reach a budget. Of several seeds the mean; two random methods need equally many."""
    there = [curve for curve in some if reaches(curve, budget)]
    if not there:
        raise ValueError(
            f"none of the {len(some)} curves reaches {100 * budget:.0f} % of the MACs; take a budget they were run at"
        )
    for curve in there[1:]:
        check_comparable(there[0], curve)
    scores = [curve.score(weights_at(curve, budget)) for curve in there]
    first = there[0]
    return cross_fitted([c.label for c in there], scores, index_N=first.index_N, cluster_N=first.cluster_N)


def cross_fitted(
    labels: Sequence[str], scores: Sequence[np.ndarray], *, index_N: np.ndarray, cluster_N: np.ndarray | None = None
) -> Best:
    """``scores``: of each candidate (S, N). The samples of a video stay in one half."""
    half_N = halves(index_N if cluster_N is None else cluster_N)
    if not 0 < half_N.sum() < len(half_N):
        raise ValueError(
            f"{len(half_N)} samples cannot be halved; more are needed to choose on some and measure on others"
        )
    mean_JN = np.stack([score_SN.mean(axis=0) for score_SN in scores])
    picks = [int(np.argmax(mean_JN[:, half_N != half].mean(axis=1))) for half in (0, 1)]  # by the other half
    pooled_N = np.where(half_N == 0, mean_JN[picks[0]], mean_JN[picks[1]])
    num = len(pooled_N) if cluster_N is None else len(np.unique(cluster_N))
    estimate = share_with(_error(pooled_N, mean_JN, cluster_N), float(pooled_N.mean()), num)
    naive = float(mean_JN.mean(axis=1).max())
    return Best(estimate, naive, (labels[picks[1]], labels[picks[0]]), len(labels))


def _error(pooled_N: np.ndarray, mean_JN: np.ndarray, cluster_N: np.ndarray | None) -> Error:
    """That of the mean, and what the two halves have in common: the luck by which a half chose is that of the candidates which
    the other half's choice is measured with. Of equally good candidates it is the most."""
    error, num = error_of_mean(pooled_N[None], cluster_N), len(mean_JN)
    own = error_of_mean((mean_JN - mean_JN.mean(axis=0))[None], cluster_N).size ** 2  # of each beyond what all share
    shared = IN_COMMON * float(np.mean(own)) * num / max(1, num - 1)
    return Error(np.sqrt(error.size**2 + shared), error.degrees)


def halves(id_N: np.ndarray) -> np.ndarray:
    """0 or 1 for each, by the checksum of its name: the same in every run, however the samples are ordered."""
    return np.array([zlib.crc32(str(one).encode()) & 1 for one in id_N.tolist()])
