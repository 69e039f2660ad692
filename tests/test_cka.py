"""Likeness of features against the formulas, written out slowly."""

from itertools import permutations

import numpy as np
import pytest

from tokred.analysis.cka import cosine, debiased_cka, jackknife, linear_cka

DRAW = np.random.RandomState(0)
X, Y = DRAW.randn(7, 5), DRAW.randn(7, 5)


def hsic_by_tuples(k, l):  # noqa: E741
    """The U-statistic of Gretton et al.: means over distinct samples."""
    num = len(k)
    two = np.mean([k[i, j] * l[i, j] for i, j in permutations(range(num), 2)])
    three = np.mean([k[i, j] * l[i, q] for i, j, q in permutations(range(num), 3)])
    four = np.mean([k[i, j] * l[q, r] for i, j, q, r in permutations(range(num), 4)])
    return two + four - 2 * three


def test_cosine_is_that_of_each_pair():
    expected = [x @ y / np.sqrt((x @ x) * (y @ y)) for x, y in zip(X, Y, strict=True)]
    assert cosine(X, Y).tolist() == pytest.approx(expected)


def test_cka_is_hsic_with_the_centering_matrix():
    num = len(X)
    center = np.eye(num) - 1 / num
    x, y = (center @ one @ one.T @ center for one in (X, Y))
    assert linear_cka(X, Y) == pytest.approx(np.trace(x @ y) / np.sqrt(np.trace(x @ x) * np.trace(y @ y)))


def test_debiased_cka_is_that_of_all_tuples_of_samples():
    x, y = X @ X.T, Y @ Y.T
    expected = hsic_by_tuples(x, y) / np.sqrt(hsic_by_tuples(x, x) * hsic_by_tuples(y, y))
    assert debiased_cka(X, Y) == pytest.approx(expected)


@pytest.mark.parametrize("cka", [linear_cka, debiased_cka])
def test_cka_does_not_see_rotation_scale_and_shift(cka):
    turn, _ = np.linalg.qr(DRAW.randn(5, 5))
    assert cka(X, 3 * X @ turn + 10) == pytest.approx(1)


def test_of_noise_cka_is_high_and_debiased_cka_is_0():
    draw = np.random.RandomState(1)
    pairs = draw.randn(100, 2, 32, 96)
    assert np.mean([linear_cka(*pair) for pair in pairs]) > 0.6
    # the standard error of the mean is about 0.003
    assert abs(np.mean([debiased_cka(*pair) for pair in pairs])) < 0.02


def test_debiased_cka_of_three_samples_has_no_value():
    assert np.isnan(debiased_cka(X[:3], Y[:3]))


def test_the_jackknife_of_a_mean_has_its_standard_error():
    values = X[:, 0]
    found = jackknife(lambda part: float(part.mean()), values)
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert (found.value, found.high) == pytest.approx((values.mean(), values.mean() + 1.96 * error))


def test_the_jackknife_of_what_has_no_value_is_none():
    assert jackknife(debiased_cka, X[:4], Y[:4]) is None
