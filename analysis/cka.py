"""How like the unreduced model's the features of reduced models are.

Dimension key: S samples, C channels.
"""

from collections.abc import Callable

import numpy as np

from tokred.analysis.statistics import Estimate


def cosine(x_SC: np.ndarray, y_SC: np.ndarray) -> np.ndarray:
    """(S,): of each sample's two features."""
    x_SC, y_SC = np.asarray(x_SC, float), np.asarray(y_SC, float)
    return (x_SC * y_SC).sum(1) / (np.linalg.norm(x_SC, axis=1) * np.linalg.norm(y_SC, axis=1))


def linear_cka(x_SC: np.ndarray, y_SC: np.ndarray) -> float:
    """Centered kernel alignment with linear kernels (Kornblith et al. 2019, arXiv 1905.00414). Of few samples it is high for
    features that have nothing in common, about C / (C + S) of noise; ``debiased_cka`` is not."""
    x_SC, y_SC = (np.asarray(one, float) - np.mean(one, axis=0, dtype=float) for one in (x_SC, y_SC))
    x, y = x_SC @ x_SC.T, y_SC @ y_SC.T
    return float((x * y).sum() / (np.linalg.norm(x) * np.linalg.norm(y)))


def debiased_cka(x_SC: np.ndarray, y_SC: np.ndarray) -> float:
    """The same by the unbiased estimate of HSIC (Song et al. 2012, JMLR 13, eq. 5): 0 on average for unrelated features. NaN
    below four samples, or where one has no spread."""
    if len(x_SC) < 4:
        return float("nan")
    x, y = _kernel(x_SC), _kernel(y_SC)
    scale = _hsic(x, x) * _hsic(y, y)
    return float(_hsic(x, y) / np.sqrt(scale)) if scale > 0 else float("nan")


def jackknife(statistic: Callable[..., float], *parts: np.ndarray) -> Estimate | None:
    """The statistic of all samples, with the 95 % interval from leaving out each in turn; None where it has no value."""
    value, num = statistic(*parts), len(parts[0])
    left = np.array([statistic(*(np.delete(part, one, axis=0) for part in parts)) for one in range(num)])
    if not np.isfinite([value, *left]).all():
        return None
    half = 1.96 * float(np.sqrt((num - 1) / num * ((left - left.mean()) ** 2).sum()))
    return Estimate(value, value - half, value + half)


def _kernel(x_SC: np.ndarray) -> np.ndarray:
    """Inner products of centred features, 0 on the diagonal; the estimate is the same whatever the centre, and rounds less."""
    x_SC = np.asarray(x_SC, float) - np.mean(x_SC, axis=0, dtype=float)
    x = x_SC @ x_SC.T
    np.fill_diagonal(x, 0.0)
    return x


def _hsic(x: np.ndarray, y: np.ndarray) -> float:
    num = len(x)
    crossed = x.sum() * y.sum() / ((num - 1) * (num - 2))
    return float(((x * y).sum() + crossed - 2 / (num - 2) * (x.sum(0) @ y.sum(0))) / (num * (num - 3)))
