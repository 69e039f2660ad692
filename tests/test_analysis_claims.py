"""What a report claims: the correction, the family, and its sentences."""

from dataclasses import replace

import numpy as np
import pytest

from tests.records import full_run, made_curve
from tokred.analysis.claims import benjamini_hochberg, claim, claims, holm
from tokred.analysis.compare import delta_auc
from tokred.analysis.curves import Curve, curves

GOOD, BAD = (0.80, 0.84, 0.86), (0.66, 0.70, 0.73)


def three(**more):
    return [
        made_curve("tome", accuracies=GOOD, seed=1, **more),
        made_curve("evit", accuracies=GOOD, seed=2, **more),
        made_curve("drop", accuracies=BAD, seed=3, **more),
    ]


def test_holm_has_the_golden_values():
    assert holm([0.001, 0.01, 0.02, 0.03, 0.5]) == pytest.approx([0.005, 0.04, 0.06, 0.06, 0.5])


def test_holm_keeps_the_order_of_what_it_was_given():
    assert holm([0.5, 0.001, 0.03, 0.02, 0.01]) == pytest.approx([0.5, 0.005, 0.06, 0.06, 0.04])


def test_benjamini_and_hochberg_is_the_formula_written_as_a_loop():
    given = np.random.default_rng(0).random(20) ** 3
    ordered = sorted(given)
    expected = {p: min(ordered[j] * 20 / (j + 1) for j in range(i, 20)) for i, p in enumerate(ordered)}
    assert benjamini_hochberg(given) == pytest.approx([min(1.0, expected[p]) for p in given])


def test_all_pairs_of_all_backbones_are_one_family():
    found, left_out = claims([curve for backbone in "ab" for curve in three(backbone=backbone)])
    assert len(found) == 6
    assert {one.num_comparisons for one in found} == {6}
    assert left_out == []


def test_the_unreduced_model_is_in_no_pair(tmp_path):
    found, _ = claims(curves(full_run(tmp_path).finish()))
    assert len(found) == 2 * 6  # four methods on two backbones
    assert "the unreduced model" not in {label for one in found for label in (one.first, one.second)}


def test_a_family_has_the_permutations_of_its_pairs_alone():
    some = three()
    found, _ = claims(some, seed=3)
    alone = delta_auc(some[1], some[2], seed=3)
    assert found[2].p_permutation == pytest.approx(alone.p_permutation, abs=0.002)
    assert (found[2].value, found[2].p) == (alone.value, alone.p)


def test_a_claim_needs_the_p_of_the_interval_and_that_of_the_permutations():
    found, _ = claims(three())
    expected = holm([max(one.p, one.p_permutation) for one in found])
    assert [one.adjusted_p for one in found] == expected


def test_a_difference_that_the_correction_takes_is_not_claimed():
    """A McNemar p of 0.016 stands alone, and does not as one of six."""
    rights = [[1] * 31 + [0] * 14 + [1] * 255, [0] * 31 + [1] * 14 + [1] * 255]
    first, second = (Curve(name, np.array([0.5]), np.array([[one]]), np.arange(300)) for name, one in zip("ab", rights))
    assert claim(delta_auc(first, second)).is_claimed
    found, _ = claims([first, second, replace(first, label="c"), replace(first, label="d")])
    assert not any(one.is_claimed for one in found)


def test_an_interval_that_holds_zero_is_no_claim_whatever_its_p():
    """Near the edge McNemar's mid-p and the interval of Agresti and Min come from different approximations."""
    one = claim(delta_auc(*three()[:2]))
    sure = replace(one, adjusted_p=0.049, low=0.001, high=0.1)
    assert sure.is_claimed and not replace(sure, low=-0.001).is_claimed
    assert "no detectable difference" in replace(sure, low=-0.001).sentence()


def test_of_a_large_family_a_permutation_can_still_be_small_enough():
    some = [made_curve(f"m{n}", accuracies=GOOD if n % 2 else BAD, seed=n, num_samples=100) for n in range(24)]
    found, _ = claims(some, num_draws=10)
    least = min(one.p_permutation for one in found) * len(found)
    assert least <= 0.03


def test_a_pair_that_shares_too_few_budgets_is_named_with_the_reason():
    some = [made_curve(shares=(0.2, 0.3, 0.4)), made_curve("evit", shares=(0.6, 0.7, 0.8))]
    found, (one,) = claims(some)
    assert found == []
    assert (one.first, one.second) == ("tome", "evit")
    assert "of which they share 0 %" in one.reason


def test_a_claim_reads_as_a_sentence():
    found, _ = claims(three())
    one = found[1]
    expected = (
        f"tome beats drop on b at equal MACs by {100 * one.value:.2f} points of accuracy, 95 % "
        f"[{100 * one.low:+.2f}, {100 * one.high:+.2f}] (over 40 to 80 % of the unreduced MACs; n = 300; "
        f"p = {one.adjusted_p:.2g}, Holm over 3 comparisons)"
    )
    assert one.sentence() == expected


def test_the_better_one_is_named_first_whichever_way_it_was_subtracted():
    some = three()
    found, _ = claims([some[2], some[0]])
    assert found[0].value < 0
    assert found[0].sentence().startswith(f"tome beats drop on b at equal MACs by {-100 * found[0].value:.2f} points")


def test_without_a_claim_the_sentence_says_what_would_have_been_detected():
    found, _ = claims(three())
    one = found[0]
    assert one.sentence().startswith(
        f"tome and evit on b at equal MACs: no detectable difference (smallest detectable {100 * one.smallest_in_report:.2f} points)"
    )
    assert "beats" not in one.sentence()


def test_what_is_detectable_in_a_report_has_to_pass_its_correction():
    found, _ = claims(three())
    # the normal quantiles of 1 - 0.05 / 2 / 3 and of 80 %, from a printed table
    assert found[0].smallest_in_report == pytest.approx((2.39398 + 0.84162) * found[0].error, rel=1e-4)
    assert claim(delta_auc(*three()[:2])).smallest_in_report == pytest.approx(found[0].smallest)


def test_a_sentence_says_where_few_budgets_are_shared():
    some = [made_curve(shares=(0.3, 0.5, 0.8)), made_curve("evit", shares=(0.42, 0.6, 0.8), seed=2)]
    assert "only 66 % of their budgets are shared" in claims(some)[0][0].sentence()


def test_a_sentence_counts_videos_and_seeds():
    cluster_N = np.repeat(np.arange(60), 5)
    some = [made_curve(cluster_N=cluster_N), made_curve("drop", num_seeds=3, seed=2, cluster_N=cluster_N)]
    assert "n = 300 of 60 videos, 3 seeds;" in claims(some)[0][0].sentence()


def test_the_same_seed_gives_the_same_claims():
    assert repr(claims(three(), seed=1)) == repr(claims(three(), seed=1))


def test_what_is_not_claimed_says_which_minus_which():
    found, _ = claims(three())
    one = next(claim for claim in found if not claim.is_claimed)
    assert f"of {one.first} minus {one.second} {100 * one.value:+.2f} points, 95 % [" in one.sentence()
    assert f"smallest detectable {100 * one.smallest_in_report:.2f} points" in one.sentence()


def test_where_nothing_could_be_detected_no_size_is_said():
    found, _ = claims(three(num_samples=2))
    unclaimed = [claim for claim in found if not claim.is_claimed]
    assert unclaimed and all(
        "no difference of up to 100 points could be detected" in one.sentence() for one in unclaimed
    )
