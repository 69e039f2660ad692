"""What two reductions agree on, against counts of all pairs, scipy and hand-made cases."""

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import spearmanr

from tests.traces import made_trace
from tokred.analysis.partitions import (
    adjusted_rand,
    normalized_mutual_information,
    overlap,
    overlap_by_chance,
    rank_correlation,
    survival_SP,
)

ALONE, FIRST_TWO = [0, 1, 2, 3], [0, 0, 2, 3]


def drawn(seed, num=5, size=12):
    """Random groups by the first member, some tokens dropped."""
    draw = np.random.RandomState(seed)
    labels = draw.randint(-1, 4, (num, size))
    return np.array([[-1 if one < 0 else list(row).index(one) for one in row] for row in labels])


def rand_by_pairs(a, b):
    """Hubert and Arabie 1985, with every pair looked at."""
    pairs = list(combinations(range(len(a)), 2))
    in_a, in_b = ([one[i] == one[j] for i, j in pairs] for one in (a, b))
    both, num_a, num_b = sum(map(min, in_a, in_b)), sum(in_a), sum(in_b)
    expected = num_a * num_b / len(pairs)
    return (both - expected) / ((num_a + num_b) / 2 - expected)


def one(measure, a, b):
    return float(measure(np.array([a]), np.array([b]))[0])


def test_the_rand_index_is_that_of_all_pairs():
    a, b = drawn(0), drawn(1)
    expected = [rand_by_pairs(*rows) for rows in zip(a.tolist(), b.tolist(), strict=True)]
    assert adjusted_rand(a, b).tolist() == pytest.approx(expected)


def test_the_rand_index_has_its_published_value():
    # the example of scikit-learn's documentation of adjusted_rand_score: 0.57
    assert one(adjusted_rand, [0, 0, 2, 3], [0, 0, 2, 2]) == pytest.approx(4 / 7)


@pytest.mark.parametrize("same", [ALONE, [0, 0, 0, 0], [-1, -1, -1, -1], FIRST_TWO, [0, -1, 0, 3]])
@pytest.mark.parametrize("measure", [adjusted_rand, normalized_mutual_information])
def test_the_same_partition_agrees_wholly(measure, same):
    assert one(measure, same, same) == pytest.approx(1)


def test_tokens_dropped_by_both_are_together():
    assert one(adjusted_rand, [0, 1, -1, -1], [0, 1, 2, 2]) == pytest.approx(1)


def test_random_partitions_have_a_rand_index_about_0():
    # 400 draws of 12 tokens: the mean's standard error is about 0.01
    assert abs(adjusted_rand(drawn(2, num=400), drawn(3, num=400)).mean()) < 0.03


def test_mutual_information_follows_from_all_shares():
    a, b = drawn(4), drawn(5)
    for sample, value in enumerate(normalized_mutual_information(a, b)):
        pairs = list(zip(a[sample].tolist(), b[sample].tolist(), strict=True))

        def entropy(labels):
            shares = [labels.count(label) / len(labels) for label in set(labels)]
            return -sum(share * np.log(share) for share in shares)

        of_a, of_b = (entropy([pair[side] for pair in pairs]) for side in (0, 1))
        assert value == pytest.approx((of_a + of_b - entropy(pairs)) / ((of_a + of_b) / 2))


def test_overlap_counts_tokens_kept_as_they_are():
    # kept as they are: {2, 3} and {0, 1, 3}
    assert one(overlap, FIRST_TWO, [0, 1, -1, 3]) == 1 / 4


def test_overlap_of_pruned_tokens_is_that_of_the_kept_sets():
    a, b = {0, 2, 5, 7}, {0, 1, 5, 6}
    rows = [[place if place in kept else -1 for place in range(8)] for kept in (a, b)]
    assert one(overlap, *rows) == len(a & b) / len(a | b)


def test_overlap_has_no_value_where_nothing_is_kept_as_it_is():
    assert np.isnan(one(overlap, [0, 0, 2, 2], [-1, -1, -1, -1]))


def test_overlap_by_chance_is_about_that_of_random_tokens():
    draw = np.random.RandomState(0)

    def kept(num):
        rows = np.full((3000, 20), -1)
        for row in rows:
            places = draw.permutation(20)[:num]
            row[places] = places
        return rows

    a, b = kept(8), kept(12)
    # the overlap of the mean intersection; the mean overlap lies a little above
    assert overlap(a, b).mean() == pytest.approx(overlap_by_chance(a, b)[0], abs=0.01)


def test_survival_counts_the_layers_a_token_passes_as_it_is():
    trace = made_trace([ALONE], [FIRST_TWO], [[0, 0, -1, 3]], depth=4)
    assert survival_SP(trace).tolist() == [[1, 1, 2, 4]]


def test_rank_correlation_is_spearmans():
    a, b = np.random.RandomState(0).randint(0, 4, (2, 6, 15))
    expected = [spearmanr(*rows).statistic for rows in zip(a, b, strict=True)]
    assert rank_correlation(a, b).tolist() == pytest.approx(expected)


def test_rank_correlation_has_no_value_where_all_tokens_are_alike():
    assert np.isnan(rank_correlation(np.ones((1, 4), int), np.arange(4)[None])).all()
