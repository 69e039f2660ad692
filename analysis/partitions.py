"""How far two reductions agree on the same tokens: what they keep, what they put together, and in which order.

All take two traces' groups by the place of each group's first member (-1: dropped), and give a number for each sample.

Dimension key: S samples, P input tokens.
"""

import numpy as np
from scipy.stats import rankdata

from tokred.analysis.traces import Trace, alone_SP


def overlap(a_SP: np.ndarray, b_SP: np.ndarray) -> np.ndarray:
    """(S,): intersection over union of the tokens kept as they are, neither dropped nor merged; NaN where neither keeps one.

    Of pruning methods that is TokenReduction's measure (Haurum et al. 2023, arXiv 2308.04657), which knows no merged tokens.
    """
    a_SP, b_SP = alone_SP(a_SP), alone_SP(b_SP)
    return _ratio((a_SP & b_SP).sum(1), (a_SP | b_SP).sum(1))


def overlap_by_chance(a_SP: np.ndarray, b_SP: np.ndarray) -> np.ndarray:
    """(S,): about what ``overlap`` would be of as many tokens drawn at random: that of the expected intersection."""
    num_a, num_b = alone_SP(a_SP).sum(1), alone_SP(b_SP).sum(1)
    shared = num_a * num_b / a_SP.shape[1]
    return _ratio(shared, num_a + num_b - shared)


def adjusted_rand(a_SP: np.ndarray, b_SP: np.ndarray) -> np.ndarray:
    """(S,): the adjusted Rand index (Hubert and Arabie 1985): 1 the same partition, 0 as by chance. The dropped are one group,
    so that it also says how far two agree on what to drop."""
    together, of_a, of_b = (_pairs(*both) for both in ((a_SP, b_SP), (a_SP, a_SP), (b_SP, b_SP)))
    expected = of_a * of_b / (a_SP.shape[1] * (a_SP.shape[1] - 1) / 2)
    most = (of_a + of_b) / 2
    return np.where(most == expected, 1.0, (together - expected) / np.where(most == expected, 1.0, most - expected))


def normalized_mutual_information(a_SP: np.ndarray, b_SP: np.ndarray) -> np.ndarray:
    """(S,): mutual information over the mean of the two entropies, TokenReduction's measure for merging. Not adjusted: of many
    small groups it is high by chance. The dropped are one group."""
    both, of_a, of_b = (_entropy(*pair) for pair in ((a_SP, b_SP), (a_SP, a_SP), (b_SP, b_SP)))
    most = (of_a + of_b) / 2
    return np.where(most == 0, 1.0, (of_a + of_b - both) / np.where(most == 0, 1.0, most))


def survival_SP(trace: Trace) -> np.ndarray:
    """Through how many layers each input token comes as it is, neither dropped nor merged."""
    return np.sum([alone_SP(trace.first_SP(layer)) for layer in range(trace.depth)], axis=0)


def rank_correlation(a_SP: np.ndarray, b_SP: np.ndarray) -> np.ndarray:
    """(S,): Spearman's correlation over the tokens, ties at their mean rank; NaN where one is the same for all tokens."""
    ranks = [rankdata(one, axis=1) for one in (a_SP, b_SP)]
    a, b = (rank - rank.mean(1, keepdims=True) for rank in ranks)
    return _ratio((a * b).sum(1), np.sqrt((a * a).sum(1) * (b * b).sum(1)))


def _counts(a_SP: np.ndarray, b_SP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cells of all samples' contingency tables that are not empty: which sample's, and how many tokens."""
    S, P = a_SP.shape
    code_SP = (np.arange(S)[:, None] * (P + 1) + a_SP + 1) * (P + 1) + b_SP + 1
    codes, counts = np.unique(code_SP, return_counts=True)
    return codes // (P + 1) ** 2, counts


def _pairs(a_SP: np.ndarray, b_SP: np.ndarray) -> np.ndarray:
    """(S,): pairs of tokens that are in one group in both."""
    sample, count = _counts(a_SP, b_SP)
    return np.bincount(sample, count * (count - 1) / 2, len(a_SP))


def _entropy(a_SP: np.ndarray, b_SP: np.ndarray) -> np.ndarray:
    sample, count = _counts(a_SP, b_SP)
    share = count / a_SP.shape[1]
    return -np.bincount(sample, share * np.log(share), len(a_SP)) + 0.0


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    return np.divide(over, under, out=np.full(len(over), np.nan), where=under > 0)
