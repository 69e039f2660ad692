"""What other draws of the samples would have given: means of many results over the same resamples.

Dimension key: K results, N samples, G clusters of samples (or samples), R draws.
"""

import numpy as np

from tokred.analysis.statistics import Estimate, by_cluster

NUM_DRAWS = 2_000
AT_ONCE = 1 << 22  # weights held at a time, whatever R and N are


def bootstrap_means(
    value_KN: np.ndarray, *, cluster_N: np.ndarray | None = None, num_draws: int = NUM_DRAWS, seed: int = 0
) -> np.ndarray:
    """(R, K): in each draw a sample (or all of a cluster) counts as often as a Poisson number of mean 1 says, for all K alike.

    Sums of whole numbers are exact, so that results that tie on the samples of a draw tie in it.
    """
    value_KG = by_cluster(value_KN, cluster_N)
    size_G = np.ones(value_KG.shape[1]) if cluster_N is None else np.unique(cluster_N, return_counts=True)[1]
    draw, step = np.random.default_rng(seed), max(1, AT_ONCE // num_draws)
    total_RK, count_R = np.zeros((num_draws, len(value_KG))), np.zeros(num_draws)
    for start in range(0, len(size_G), step):
        some = slice(start, start + step)
        weight_RG = draw.poisson(1.0, (num_draws, len(size_G[some]))).astype(float)
        total_RK += weight_RG @ value_KG[:, some].T.astype(float)
        count_R += weight_RG @ size_G[some]
    return total_RK / np.maximum(count_R, 1.0)[:, None]  # a draw of no sample at all, of very few


def spread(value: float, drawn_R: np.ndarray) -> Estimate:
    """With the 95 % interval of the percentiles of its draws."""
    low, high = np.quantile(drawn_R, (0.025, 0.975))
    return Estimate(value, min(float(low), value), max(float(high), value))
