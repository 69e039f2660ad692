"""Two methods over several backbones."""

import math
from itertools import product

import numpy as np
import pytest

from tests.records import made_curve
from tokred.analysis.across import across
from tokred.analysis.compare import difference_over

GOOD, BAD = (0.80, 0.84, 0.86), (0.66, 0.70, 0.73)


def pair(number, first=GOOD, second=BAD, **more):
    curves = (
        made_curve("tome", accuracies=first, seed=number, backbone=f"b{number}", **more),
        made_curve("evit", accuracies=second, seed=number + 100, backbone=f"b{number}", **more),
    )
    return curves


def test_on_different_data_the_squared_errors_add_up():
    pairs = [pair(number, data=f"d{number}") for number in range(3)]
    found = across(pairs)
    error = math.sqrt(sum(difference_over(*one).error ** 2 for one in pairs)) / 3
    assert (found.high - found.low) / 2 == pytest.approx(1.959964 * error)


def test_on_the_same_samples_what_backbones_say_hangs_together():
    same = [pair(1, data="d") for _ in range(3)]
    found, alone = across(same), difference_over(*same[0])
    assert (found.low, found.high) == pytest.approx(
        (alone.low, alone.high)
    )  # three times the same is no more than once


def test_the_error_on_shared_samples_is_that_of_each_samples_mean():
    pairs = [pair(number, data="d") for number in range(3)]
    weight_K = np.array([0.2925, 0.5, 0.2075])  # half of each gap of ln 0.4, 0.6, 0.8, over their sum
    d_N = np.mean([weight_K @ (a.right_SKN[0].astype(float) - b.right_SKN[0]) for a, b in pairs], axis=0)
    found = across(pairs)
    half = 1.959964 * d_N.std(ddof=1) / math.sqrt(len(d_N))
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=1e-3)


def test_the_mean_the_wins_and_what_is_left_without_one():
    pairs = [pair(1), pair(2), pair(3, second=GOOD), pair(4, first=BAD, second=GOOD)]
    found, values = across(pairs), [difference_over(*one).value for one in pairs]
    assert found.value == pytest.approx(np.mean(values))
    assert (found.wins, found.ties, found.losses) == (2, 1, 1)
    without = [np.mean(values[:place] + values[place + 1 :]) for place in range(4)]
    assert (found.lowest, found.highest) == pytest.approx((min(without), max(without)))


def test_fewer_than_six_backbones_have_no_p():
    assert across([pair(number) for number in range(5)]).p is None


def test_the_p_over_backbones_is_that_of_all_sign_flips():
    found = across([pair(number, second=GOOD if number % 2 else BAD) for number in range(6)])
    values = [one.value for one in found.differences]
    flips = [
        abs(sum(sign * value for sign, value in zip(signs, values, strict=True)))
        for signs in product((1, -1), repeat=6)
    ]
    assert found.p == pytest.approx(np.mean([flip >= abs(sum(values)) - 1e-12 for flip in flips]))


def test_one_backbone_is_refused():
    with pytest.raises(ValueError, match="needs two of them at least; got 1"):
        across([pair(1)])
