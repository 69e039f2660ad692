"""Intervals and paired tests against published values, enumeration, loops and simulation."""

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from tokred.analysis.statistics import (
    accuracy,
    accuracy_over_seeds,
    agresti_min,
    by_cluster,
    discordant,
    error_of_difference,
    error_of_mean,
    least_detectable,
    mcnemar_exact,
    mcnemar_mid_p,
    paired_difference,
    paired_difference_over_seeds,
    planned_detectable,
    quantile,
    seed_sd,
    standard_error,
)


def test_mcnemar_has_the_golden_values():
    assert mcnemar_exact(31, 14) == pytest.approx(0.016094360031, abs=1e-12)
    assert mcnemar_mid_p(31, 14) == pytest.approx(0.011351591444, abs=1e-11)


def test_mid_p_is_the_exact_fraction():
    tail, tie = sum(math.comb(45, k) for k in range(15)), math.comb(45, 14)
    # 0.011351591436778: the golden value above is off by 7e-12, whence its tolerance
    assert mcnemar_mid_p(31, 14) == pytest.approx(float(Fraction(2 * tail - tie, 2**45)), rel=1e-12)


@pytest.mark.parametrize(("only_first", "only_second"), [(7, 2), (2, 7), (5, 5), (9, 0), (1, 0), (4, 5)])
def test_mcnemar_is_the_share_of_sign_flips_that_are_as_extreme(only_first, only_second):
    observed, total = abs(only_first - only_second), only_first + only_second
    sums = [abs(sum(signs)) for signs in product((-1, 1), repeat=total)]
    as_extreme, equal = sum(s >= observed for s in sums), sum(s == observed for s in sums)
    assert mcnemar_exact(only_first, only_second) == pytest.approx(as_extreme / len(sums), abs=1e-12)
    if only_first != only_second:  # at a tie both tails are the whole, and the mid-p is 1
        assert mcnemar_mid_p(only_first, only_second) == pytest.approx((as_extreme - equal / 2) / len(sums), abs=1e-12)


@pytest.mark.parametrize("p", [mcnemar_exact, mcnemar_mid_p])
def test_nothing_discordant_gives_a_p_of_one(p):
    assert p(0, 0) == 1.0


def test_agresti_min_is_walds_interval_of_four_cells_with_a_half_more():
    both, only_first, only_second, neither = 61.5, 31.5, 14.5, 894.5
    n = both + only_first + only_second + neither
    samples = [1.0] * 63 + [-1.0] * 29 + [0.0] * 1912  # twice the four cells, so that they are whole
    variance = sum((d - sum(samples) / len(samples)) ** 2 for d in samples) / len(samples)
    difference, half = (only_first - only_second) / n, 1.959963984540054 * math.sqrt(variance / n)
    assert agresti_min(31, 14, 1000) == pytest.approx((difference - half, difference + half), abs=1e-12)


def test_agresti_min_covers_the_truth_in_95_percent_of_draws():
    draw = np.random.RandomState(0)
    tables = draw.multinomial(1000, (0.78, 0.035, 0.025, 0.16), size=4000)
    intervals = [agresti_min(b, c, 1000) for _, b, c, _ in tables]
    covered = np.mean([low <= 0.01 <= high for low, high in intervals])
    assert 0.94 <= covered <= 0.97  # 4000 draws of 95 % have a standard error of 0.35 %


def test_a_difference_of_the_least_detectable_size_is_found_in_four_of_five_draws():
    """1000 samples, 6 % of them discordant: by the planning formula 2.8 sqrt(d / N)."""
    num, least = 1000, least_detectable(*agresti_min(30, 30, 1000), 1000)
    assert least == pytest.approx(2.8 * math.sqrt(0.06 / num), rel=0.02)
    shares = [(0.06 + least) / 2, (0.06 - least) / 2]
    draws = np.random.RandomState(0).multinomial(num, [*shares, 1 - sum(shares)], size=4000)
    found = np.mean([agresti_min(int(b), int(c), num)[0] > 0 for b, c, _ in draws])
    assert found == pytest.approx(
        0.8, abs=0.03
    )  # the draws' own standard error is 0.006; a discordant sample is 0.02 of power


def test_the_planned_difference_is_2_8_standard_errors():
    """Of 1,000 to 50,000 samples, 6 % of them discordant: 2.8 sqrt(d / N), in points."""
    found = [round(100 * planned_detectable(num, 0.06), 2) for num in (1000, 5000, 10_000, 50_000)]
    assert found == [2.17, 0.97, 0.69, 0.31]


def test_few_clusters_can_detect_less():
    assert least_detectable(-0.1, 0.1, 500, 500) == pytest.approx(least_detectable(-0.1, 0.1, 500), rel=0.01)
    of_ten = 1.5 / 2.262157 * (2.262157 + 0.841621)  # t's quantile at 9 degrees of freedom, from a printed table
    assert least_detectable(-1.5, 1.5, 500, 10) == pytest.approx(of_ten, rel=1e-5)


@pytest.mark.parametrize(("num", "differ"), [(100, 1), (200, 3), (300, 4), (1000, 17), (1000, 100)])
def test_where_few_samples_differ_what_is_said_to_be_detectable_is_found_in_four_of_five_draws(num, differ):
    least = least_detectable(*agresti_min(differ / 2, differ / 2, num), num)
    discordance = max(differ / num, least)
    shares = [(discordance + least) / 2, (discordance - least) / 2]
    draws = np.random.RandomState(0).multinomial(num, [*shares, 1 - sum(shares)], size=2000)
    assert np.mean([agresti_min(int(b), int(c), num)[0] > 0 for b, c, _ in draws]) > 0.77


def test_discordant_counts_both_kinds():
    assert discordant(np.array([1, 1, 0, 0, 1]), np.array([1, 0, 1, 0, 0])) == (2, 1)


def test_results_on_different_samples_are_refused():
    with pytest.raises(ValueError, match=r"\(3,\) and \(4,\)"):
        paired_difference(np.ones(3), np.ones(4))


def test_no_sample_at_all_is_refused():
    with pytest.raises(ValueError, match="at least one sample"):
        paired_difference(np.ones(0), np.ones(0))


def test_equal_results_get_the_rule_of_three():
    right = np.arange(300) % 4 > 0
    found = paired_difference(right, right)
    assert (found.value, found.low, found.high) == (0.0, -0.01, 0.01)


def test_the_difference_changes_sign_with_the_order():
    one, other = np.random.RandomState(0).rand(2, 200) < 0.7
    ahead, behind = paired_difference(one, other), paired_difference(other, one)
    assert (ahead.value, ahead.low, ahead.high) == pytest.approx((-behind.value, -behind.high, -behind.low))


@pytest.mark.parametrize("num_samples", [1, 2, 3, 5])
def test_no_interval_is_nan_and_each_holds_its_value(num_samples):
    results = [np.array(bits) for bits in product((0, 1), repeat=num_samples)]
    for one, other in product(results, results):
        found = [
            accuracy(int(one.sum()), num_samples),
            paired_difference(one, other),
            paired_difference_over_seeds(np.stack([one, one]), other),
            paired_difference_over_seeds(np.stack([one, other]), one),
            accuracy_over_seeds(np.stack([one, other])),
        ]
        assert all(-1 <= estimate.low <= estimate.value <= estimate.high <= 1 for estimate in found)


def test_the_standard_error_over_seeds_is_the_formula_written_as_loops():
    values = (np.random.RandomState(0).rand(4, 30) < 0.6).astype(float)
    num_seeds, num_samples = values.shape
    means = [sum(values[s][i] for s in range(num_seeds)) / num_seeds for i in range(num_samples)]
    mean = sum(means) / num_samples
    over_samples = sum((m - mean) ** 2 for m in means) / (num_samples - 1)
    of_seeds = [sum(values[s]) / num_samples for s in range(num_seeds)]
    over_seeds = sum((m - mean) ** 2 for m in of_seeds) / (num_seeds - 1)
    within = [
        sum((values[s][i] - means[i]) ** 2 for s in range(num_seeds)) / (num_seeds - 1) for i in range(num_samples)
    ]
    common = max(0.0, over_seeds - sum(within) / num_samples / num_samples)
    assert standard_error(values) == pytest.approx(
        math.sqrt(over_samples / num_samples + common / num_seeds), rel=1e-12
    )


@pytest.mark.parametrize("common", [0.0, 0.05])
def test_the_standard_error_over_seeds_is_the_spread_of_repeated_sweeps(common):
    """``common``: by how much a seed moves all samples together."""
    draw, sweeps = np.random.RandomState(0), []
    for _ in range(600):
        chance_SN = 0.2 + 0.5 * draw.rand(200) + common * draw.randn(6, 1)
        sweeps.append((draw.rand(6, 200) < chance_SN).astype(float))
    spread = np.var([values_SN.mean() for values_SN in sweeps])
    claimed = np.mean([standard_error(values_SN) ** 2 for values_SN in sweeps])
    # the variance of 600 draws is known to sqrt(2 / 600) = 6 %; the term that is cut at 0 adds a few percent
    assert 0.85 < claimed / spread < 1.25


def test_one_seed_is_the_ordinary_standard_error():
    values = np.random.RandomState(0).rand(1, 50)
    assert standard_error(values) == pytest.approx(values.std(ddof=1) / math.sqrt(50))


def test_seeds_that_all_get_everything_right_do_not_claim_certainty():
    found = accuracy_over_seeds(np.ones((3, 100)))
    assert found.value == found.high == 1.0
    assert found.low == pytest.approx(0.963, abs=1e-3)  # Wilson's end of 100 of 100


def test_the_seeds_sd_is_of_their_accuracies():
    assert seed_sd(np.array([[1, 1, 0, 0], [1, 1, 1, 0]])) == pytest.approx(0.25 / math.sqrt(2))
    assert seed_sd(np.ones((1, 4))) is None


@pytest.mark.parametrize("num_seeds", [5, 10])
def test_over_seeds_that_move_all_samples_intervals_cover_the_truth(num_seeds):
    """What seeds do in common is most of the error here, and is known from a few of them."""
    draw, covered = np.random.RandomState(4), 0
    for _ in range(1000):
        chance_S1 = 0.6 + 0.05 * draw.randn(num_seeds, 1)
        found = accuracy_over_seeds(draw.rand(num_seeds, 1000) < chance_S1)
        covered += found.low <= 0.6 <= found.high
    assert 0.93 <= covered / 1000 <= 0.97


def test_the_error_of_a_difference_adds_what_each_ones_seeds_do():
    draw = np.random.RandomState(5)
    first_SN, second_TN = draw.rand(3, 100) + draw.rand(3, 1), draw.rand(4, 100) + draw.rand(4, 1)
    both = error_of_difference(first_SN, second_TN).size
    alone = [error_of_mean(one).size ** 2 - one.mean(0).var(ddof=1) / 100 for one in (first_SN, second_TN)]
    samples = (first_SN.mean(0) - second_TN.mean(0)).var(ddof=1) / 100
    assert both == pytest.approx(math.sqrt(samples + sum(alone)))


@pytest.mark.parametrize(("degrees", "expected"), [(math.inf, 1.959964), (4, 2.776445), (19, 2.093024)])
def test_quantiles_are_those_of_printed_tables(degrees, expected):
    assert quantile(degrees) == pytest.approx(expected, abs=1e-6)


# Samples that share a video


def test_sums_by_cluster_are_those_of_a_loop():
    values_KN, cluster_N = np.random.RandomState(6).rand(3, 40), np.random.RandomState(7).randint(9, size=40)
    expected = [[sum(row[cluster_N == name]) for name in sorted(set(cluster_N))] for row in values_KN]
    assert by_cluster(values_KN, cluster_N) == pytest.approx(np.array(expected))


def test_the_error_with_clusters_is_that_of_a_loop_over_videos():
    draw = np.random.RandomState(0)
    cluster_N, right_N = draw.randint(12, size=60), draw.rand(60) < 0.6
    mean, total = right_N.mean(), 0.0
    for video in set(cluster_N.tolist()):
        total += sum(float(right) - mean for right, own in zip(right_N, cluster_N, strict=True) if own == video) ** 2
    expected = math.sqrt(12 / 11 * total / 60**2)
    assert standard_error(right_N[None].astype(float), cluster_N) == pytest.approx(expected, rel=1e-12)


def test_clusters_of_one_sample_change_nothing():
    right_SN = np.random.RandomState(1).rand(2, 50) < 0.5
    alone = standard_error(right_SN.astype(float), np.arange(50))
    assert alone == pytest.approx(standard_error(right_SN.astype(float)), rel=1e-12)


def test_the_same_sample_five_times_says_no_more_than_once():
    right_N = np.random.RandomState(2).rand(200) < 0.7
    five_N, cluster_N = np.repeat(right_N, 5), np.repeat(np.arange(200), 5)
    once, five = standard_error(right_N[None].astype(float)), standard_error(five_N[None].astype(float), cluster_N)
    assert five == pytest.approx(once, rel=1e-12)
    assert standard_error(five_N[None].astype(float)) < once / 2


def test_where_nothing_varies_the_clusters_count():
    right_N, cluster_N = np.ones(500, bool), np.repeat(np.arange(10), 50)
    paired = paired_difference_over_seeds(right_N[None], right_N, cluster_N)
    assert (paired.low, paired.high) == pytest.approx((-0.3, 0.3))
    assert accuracy_over_seeds(right_N[None], cluster_N).low == pytest.approx(accuracy(10, 10).low)


def test_intervals_with_clusters_cover_the_truth_in_95_percent_of_draws():
    """100 videos of 5 questions, each video as hard as drawn: a mean of 0.6 and a difference of 0."""
    draw, covered = np.random.RandomState(3), np.zeros(2)
    cluster_N = np.repeat(np.arange(100), 5)
    for _ in range(2000):
        ease_N = np.repeat(draw.beta(3, 2, size=100), 5)
        other_N = np.repeat(draw.beta(3, 2, size=100), 5)
        first_N, second_N = draw.rand(500) < ease_N, draw.rand(500) < other_N
        found = accuracy_over_seeds(first_N[None], cluster_N)
        paired = paired_difference_over_seeds(first_N[None], second_N, cluster_N)
        covered += found.low <= 0.6 <= found.high, paired.low <= 0 <= paired.high
    assert np.all((covered / 2000 > 0.935) & (covered / 2000 < 0.965))  # 3 standard errors of a share of 2,000
