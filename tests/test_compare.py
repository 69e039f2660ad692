"""Differences of curves against loops, enumeration, McNemar and a plain multiplier bootstrap."""

import math
from itertools import product

import numpy as np
import pytest

from tests.records import made_curve
from tokred.analysis.compare import (
    band,
    common_window,
    delta_auc,
    difference_at,
    difference_over,
    dominates,
    not_worse,
    permutation_p,
    sign_flips,
)
from tokred.analysis.curves import Curve, weights_at, weights_over
from tokred.analysis.statistics import agresti_min, mcnemar_exact, mcnemar_mid_p

GOOD, BAD = (0.80, 0.84, 0.86), (0.70, 0.75, 0.78)


def one_point(right_N, label="tome", share=0.5):
    right_N = np.asarray(right_N, bool)
    return Curve(label, np.array([share]), right_N[None, None], np.arange(len(right_N)), method=label)


def discordant_pair(only_first=31, only_second=14, both=700, neither=255):
    first = [1] * only_first + [0] * only_second + [1] * both + [0] * neither
    second = [0] * only_first + [1] * only_second + [1] * both + [0] * neither
    return one_point(first), one_point(second, "evit", share=0.501)


def test_of_one_point_each_the_difference_is_mcnemars():
    found = difference_over(*discordant_pair())
    assert found.value == pytest.approx(0.017)
    assert (found.low, found.high) == pytest.approx(agresti_min(31, 14, 1000))
    assert found.p == pytest.approx(mcnemar_mid_p(31, 14))


def test_of_one_point_each_the_permutations_p_is_mcnemars_exact_p():
    found = delta_auc(*discordant_pair(), num_draws=40_000)
    assert found.p_permutation == pytest.approx(mcnemar_exact(31, 14), abs=0.002)  # 3 standard errors of 40,000 draws


def test_the_permutations_p_is_that_of_all_sign_flips():
    first, second = made_curve(num_samples=12, seed=1), made_curve("evit", num_samples=12, accuracies=BAD, seed=2)
    window = (0.4, 0.8)
    d_N = (first.score(weights_over(first, window)) - second.score(weights_over(second, window)))[0]
    observed = abs(d_N.sum())
    extreme = [abs(np.dot(signs, d_N)) >= observed - 1e-12 for signs in product((-1, 1), repeat=12)]
    found = delta_auc(first, second, num_draws=40_000)
    assert found.p_permutation == pytest.approx(np.mean(extreme), abs=0.008)


def test_flips_of_clusters_keep_the_samples_of_a_video_together():
    cluster_N = np.repeat(np.arange(6), 5)
    curve = made_curve(shares=(0.5,), num_samples=30, cluster_N=cluster_N)
    sums_G = [curve.right_SKN[0, 0][cluster_N == video].sum() for video in range(6)]
    possible = {round(float(np.dot(signs, sums_G)), 6) for signs in product((-1, 1), repeat=6)}
    assert set(sign_flips([curve], num_draws=500)[:, 0].round(6).tolist()) <= possible


def test_a_p_of_permutations_is_never_zero():
    assert permutation_p(100.0, np.zeros(999)) == pytest.approx(1 / 1000)


def test_delta_auc_is_the_mean_gap_over_ln_macs():
    first, second = made_curve(seed=1), made_curve("evit", shares=(0.42, 0.5, 0.81), accuracies=BAD, seed=2)
    x = np.linspace(np.log(0.42), np.log(0.8), 20_001)
    means = [np.interp(x, np.log(curve.share_K), curve.right_SKN.mean(axis=(0, 2))) for curve in (first, second)]
    expected = np.trapezoid(means[0] - means[1], x) / (x[-1] - x[0])
    found = difference_over(first, second)
    assert found.value == pytest.approx(expected, abs=1e-7)
    assert found.window == pytest.approx((0.42, 0.8))


def test_the_error_of_delta_auc_is_that_of_the_samples_scores():
    first, second = made_curve(seed=1), made_curve("evit", accuracies=BAD, seed=2)
    weight_K, total = weights_over(first, (0.4, 0.8)), []
    for sample in range(first.num_samples):
        gaps = first.right_SKN[0, :, sample].astype(float) - second.right_SKN[0, :, sample]
        total.append(sum(w * gap for w, gap in zip(weight_K, gaps, strict=True)))
    mean = sum(total) / len(total)
    variance = sum((one - mean) ** 2 for one in total) / (len(total) - 1) / len(total)
    found = difference_over(first, second)
    assert found.error == pytest.approx(math.sqrt(variance), rel=1e-12)
    assert (found.low, found.high) == pytest.approx((mean - 1.959964 * found.error, mean + 1.959964 * found.error))


def test_the_smallest_detectable_difference_is_2_8_standard_errors():
    found = difference_over(made_curve(seed=1), made_curve("evit", seed=2))
    assert found.smallest == pytest.approx(2.8 * found.error, rel=1e-3)


def test_at_a_budget_the_difference_is_that_of_the_interpolated_samples():
    first, second = made_curve(seed=1), made_curve("evit", accuracies=BAD, seed=2)
    d_N = (first.score(weights_at(first, 0.7)) - second.score(weights_at(second, 0.7)))[0]
    found = difference_at(first, second, 0.7)
    assert (found.value, found.error) == pytest.approx((d_N.mean(), d_N.std(ddof=1) / math.sqrt(300)))


def test_a_budget_that_one_does_not_reach_has_no_difference():
    assert difference_at(made_curve(), made_curve("evit", shares=(0.4, 0.6)), 0.7) is None


def test_the_difference_changes_sign_with_the_order():
    first, second = made_curve(seed=1), made_curve("evit", accuracies=BAD, seed=2)
    ahead, behind = delta_auc(first, second), delta_auc(second, first)
    assert (ahead.value, ahead.low, ahead.p, ahead.p_permutation) == pytest.approx(
        (-behind.value, -behind.high, behind.p, behind.p_permutation)
    )


def test_a_curve_against_itself_gets_the_rule_of_three():
    found = delta_auc(made_curve(), made_curve())
    assert (found.value, found.low, found.high, found.p, found.p_permutation) == pytest.approx((0, -0.01, 0.01, 1, 1))


def test_few_seeds_widen_the_interval_by_what_they_do_in_common():
    """Two seeds 10 points apart say little of what a third would do."""
    first, random = made_curve(), made_curve("random_drop", num_seeds=2, seed=3)
    apart = random.right_SKN.copy()
    apart[1, :, :30] = False
    moved = Curve("random_drop", random.share_K, apart, random.index_N)
    assert difference_over(first, moved).degrees < 3 < difference_over(first, random).degrees
    assert difference_over(first, moved).error > 1.5 * difference_over(first, random).error


def test_with_clusters_the_distribution_is_students():
    cluster_N = np.repeat(np.arange(20), 15)
    found = difference_over(made_curve(seed=1, cluster_N=cluster_N), made_curve("evit", seed=2, cluster_N=cluster_N))
    half = 2.093024 * found.error  # t's quantile at 19 degrees of freedom, from a printed table
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half))


# What two curves share


def test_curves_that_share_less_than_half_are_refused():
    with pytest.raises(ValueError, match=r"run at 20 to 50 and 45 to 90 % of the MACs, of which they share 7 %"):
        difference_over(made_curve(shares=(0.2, 0.3, 0.5)), made_curve("evit", shares=(0.45, 0.6, 0.9)))


def test_the_overlap_is_the_shared_part_of_ln_macs():
    overlap, window = common_window(made_curve(shares=(0.2, 0.3, 0.8)), made_curve(shares=(0.4, 0.5, 0.8)))
    assert overlap == pytest.approx(0.5)
    assert window == (0.4, 0.8)


def test_a_declared_window_must_be_reached_by_both():
    with pytest.raises(ValueError, match="evit was run at 45.0 to 90.0 %"):
        difference_over(made_curve(), made_curve("evit", shares=(0.45, 0.6, 0.9)), (0.4, 0.8))


# All budgets at once


def test_a_band_has_the_difference_in_it_at_33_budgets():
    first, second = made_curve(seed=1), made_curve("evit", accuracies=BAD, seed=2)
    found = band(first, second)
    expected = [difference_at(first, second, budget).value for budget in found.budget_F]
    assert found.value_F == pytest.approx(expected)
    assert len(expected) == 33


def test_a_band_of_one_point_is_an_interval():
    first, second = made_curve(seed=1), made_curve("evit", seed=2)
    found, alone = band(first, second, (0.7, 0.7), num_draws=20_000), difference_at(first, second, 0.7)
    assert found.high_F[0] - found.value_F[0] == pytest.approx(alone.high - alone.value, rel=0.03)


def test_the_width_of_a_band_is_that_of_a_multiplier_bootstrap():
    first, second = made_curve(seed=1), made_curve("evit", accuracies=BAD, seed=2)
    found, draw = band(first, second, num_draws=20_000), np.random.default_rng(5)
    d_FN = np.array(
        [
            first.score(weights_at(first, budget))[0] - second.score(weights_at(second, budget))[0]
            for budget in np.clip(found.budget_F, 0.4, 0.8)
        ]
    )
    residual_FN = d_FN - d_FN.mean(axis=1, keepdims=True)
    error_F = d_FN.std(axis=1, ddof=1) / math.sqrt(300)
    largest = [np.max(np.abs(residual_FN @ draw.standard_normal(300)) / (300 * error_F)) for _ in range(5_000)]
    half_F = np.quantile(largest, 0.95) * error_F
    assert (found.high_F - found.low_F) / 2 == pytest.approx(half_F, rel=0.03)  # the draws' own error is 1 %


def test_a_curve_far_above_another_dominates_it():
    assert dominates(made_curve(accuracies=GOOD, seed=1), made_curve("evit", accuracies=BAD, seed=2))


def test_a_curve_that_is_better_on_average_and_not_everywhere_does_not_dominate():
    first = made_curve(accuracies=(0.90, 0.84, 0.80), seed=1)
    second = made_curve("evit", accuracies=(0.70, 0.78, 0.82), seed=2)
    assert difference_over(first, second).low > 0
    assert not dominates(first, second)


def test_not_worse_by_more_than_needs_the_samples_to_say_so():
    few = made_curve(seed=1), made_curve("evit", seed=2)
    many = made_curve(seed=1, num_samples=20_000), made_curve("evit", seed=2, num_samples=20_000)
    assert (not_worse(*few), not_worse(*many)) == (False, True)


def test_the_same_seed_gives_the_same_bytes():
    first, second = made_curve(seed=1), made_curve("evit", accuracies=BAD, seed=2)
    assert repr(delta_auc(first, second, seed=3)) == repr(delta_auc(first, second, seed=3))
    assert band(first, second, seed=3).low_F.tobytes() == band(first, second, seed=3).low_F.tobytes()
