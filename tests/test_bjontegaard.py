"""Bjontegaard's deltas against published values."""

import numpy as np
import pytest

from tokred.analysis.bjontegaard import bd_accuracy, bd_rate

# the example of the package bjontegaard (1.3.0), which agrees with the spreadsheet of JVET
RATE, PSNR = np.array([9487.76, 4593.60, 2486.44, 1358.24]), np.array([40.037, 38.615, 36.845, 34.851])
RATE_2, PSNR_2 = np.array([9787.80, 4469.00, 2451.52, 1356.24]), np.array([40.121, 38.651, 36.970, 34.987])
GMACS, ACCURACY = np.array([4.6, 4.0, 3.5, 3.0, 2.5, 2.0]), np.array([79.8, 79.7, 79.4, 78.9, 77.8, 74.9])
GMACS_2, ACCURACY_2 = np.array([4.6, 4.1, 3.4, 2.9, 2.6, 2.1]), np.array([79.8, 79.75, 79.5, 79.2, 78.6, 76.5])


def test_the_codecs_example_has_its_published_values():
    assert 100 * bd_rate(RATE_2, PSNR_2, RATE, PSNR) == pytest.approx(-4.4174853506, abs=1e-10)
    assert bd_accuracy(RATE_2, PSNR_2, RATE, PSNR) == pytest.approx(0.1196927854, abs=1e-10)


def test_two_curves_of_token_reduction_have_their_golden_value():
    assert bd_accuracy(GMACS_2, ACCURACY_2, GMACS, ACCURACY) == pytest.approx(0.31548840831, abs=1e-11)


def test_half_the_macs_at_the_same_accuracies_are_a_rate_of_minus_a_half():
    assert bd_rate(GMACS / 2, ACCURACY, GMACS, ACCURACY) == pytest.approx(-0.5)


def test_points_that_a_cheaper_one_is_as_good_as_do_not_count_for_the_rate():
    gmacs, accuracy = np.append(GMACS, [3.2, 4.2]), np.append(ACCURACY, [78.0, 79.7])
    assert bd_rate(gmacs, accuracy, GMACS_2, ACCURACY_2) == bd_rate(GMACS, ACCURACY, GMACS_2, ACCURACY_2)


def test_a_flat_curve_has_no_rate():
    assert bd_rate(GMACS, np.full(6, 79.0), GMACS_2, ACCURACY_2) is None


def test_two_points_are_too_few():
    assert bd_accuracy(GMACS[:2], ACCURACY[:2], GMACS_2, ACCURACY_2) is None


def test_curves_far_apart_have_no_delta():
    assert bd_accuracy(GMACS / 2, ACCURACY, GMACS_2, ACCURACY_2) is None
    assert bd_rate(GMACS, ACCURACY - 4, GMACS_2, ACCURACY_2) is None
