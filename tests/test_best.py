"""The best of many, chosen on one half and measured on the other."""

import numpy as np
import pytest
from scipy.stats import norm

from tests.records import made_curve
from tokred.analysis.best import IN_COMMON, best_at, cross_fitted, halves


def test_each_half_is_measured_with_the_choice_of_the_other():
    draw, index_N = np.random.default_rng(0), np.arange(200)
    scores, half_N = [(draw.random((1, 200)) < 0.5).astype(float) for _ in range(5)], halves(index_N)
    means = [[score[0, half_N == half].mean() for score in scores] for half in (0, 1)]
    picked = [max(range(5), key=means[half].__getitem__) for half in (0, 1)]
    expected = scores[picked[0]][0, half_N == 1].sum() + scores[picked[1]][0, half_N == 0].sum()
    found = cross_fitted(list("abcde"), scores, index_N=index_N)
    assert found.estimate.value == pytest.approx(expected / 200)
    assert found.chosen == tuple("abcde"[place] for place in picked)


def test_the_luck_of_having_been_chosen_is_gone():
    """40 configurations of an accuracy of 0.75, in 100 sweeps of 500 samples."""
    draw, found = np.random.default_rng(1), []
    for _ in range(100):
        scores = [(draw.random((1, 500)) < 0.75).astype(float) for _ in range(40)]
        found.append(cross_fitted([str(n) for n in range(40)], scores, index_N=np.arange(500)))
    assert np.mean([one.naive for one in found]) > 0.78
    # 100 sweeps of 500 samples have a standard error of 0.002
    assert np.mean([one.estimate.value for one in found]) == pytest.approx(0.75, abs=0.006)


def test_what_the_halves_have_in_common_is_the_most_that_equal_candidates_can():
    """By integration of the density of the largest of J normal numbers."""
    x = np.linspace(-8, 8, 20_001)
    means = {j: np.trapezoid(x * j * norm.pdf(x) * norm.cdf(x) ** (j - 1), x) for j in range(2, 60)}
    assert max(mean**2 / (j - 1) for j, mean in means.items()) == pytest.approx(IN_COMMON, abs=0.003)


def test_the_interval_of_a_choice_among_equals_is_wider_than_that_of_one_of_them():
    draw, index_N = np.random.default_rng(2), np.arange(1000)
    scores = [(draw.random((1, 1000)) < 0.5).astype(float) for _ in range(3)]
    among, alone = cross_fitted(list("abc"), scores, index_N=index_N), cross_fitted(["a"], scores[:1], index_N=index_N)
    ratio = (among.estimate.high - among.estimate.low) / (alone.estimate.high - alone.estimate.low)
    assert ratio == pytest.approx(1.36**0.5, rel=0.02)  # here all of a candidate is its own


def test_the_half_of_a_sample_hangs_on_its_name_alone():
    index_N = np.arange(1000)
    shuffled = np.random.default_rng(0).permutation(1000)
    assert np.array_equal(halves(index_N[shuffled]), halves(index_N)[shuffled])
    assert 450 < halves(index_N).sum() < 550


def test_the_samples_of_a_video_stay_in_one_half():
    cluster_N = np.repeat(np.arange(40), 5)
    half_V = halves(np.arange(40))
    low, high = (
        np.repeat(half_V == half, 5).astype(float)[None] for half in (0, 1)
    )  # each right on one half of the videos
    found = cross_fitted(["low", "high"], [low, high], index_N=np.arange(200), cluster_N=cluster_N)
    assert found.estimate.value == 0.0


def test_a_clear_winner_is_chosen_by_both_halves():
    some = [made_curve("tome", accuracies=(0.8, 0.85, 0.9)), made_curve("evit", accuracies=(0.5, 0.6, 0.7))]
    found = best_at(some, 0.6)
    assert found.chosen == ("tome", "tome")
    assert found.estimate.value == found.naive


def test_a_budget_that_none_reaches_is_refused():
    with pytest.raises(ValueError, match="none of the 1 curves reaches 95 %"):
        best_at([made_curve()], 0.95)
