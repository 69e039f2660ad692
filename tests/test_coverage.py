"""Simulated sweeps whose truth is known: benchmarks/coverage.py on few of them here, on a thousand where slow tests run."""

import runpy
from pathlib import Path

import pytest

BENCH = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "coverage.py"))
AT_ZERO = "share of variance: interplay"  # is next to nothing there: an interval that ends at 0 holds it more often


def test_intervals_hold_the_truth_in_about_95_percent_of_simulations():
    rates = BENCH["coverage"](150, 500)
    # 150 simulations of 95 % have a standard error of 1.8 %
    assert {name: rate for name, rate in rates.items() if not 0.895 <= rate <= 0.995} == {}


def test_a_report_in_which_nothing_differs_claims_hardly_ever_anything():
    assert (
        BENCH["false_claims"](8, 300) <= 1 / 8
    )  # at 5 %, two of 8 would be claimed in one of 20 tests, were they not seeded


@pytest.mark.slow
@pytest.mark.parametrize("num_samples", [500, 2000])
def test_intervals_hold_the_truth_in_93_to_97_percent_of_a_thousand_simulations(num_samples):
    rates = BENCH["coverage"](1000, num_samples) | BENCH["bootstrap_coverage"](1000, num_samples, num_draws=500)
    assert rates.pop(AT_ZERO) > 0.93
    assert {name: rate for name, rate in rates.items() if not 0.93 <= rate <= 0.97} == {}


@pytest.mark.slow
def test_a_report_of_225_comparisons_claims_what_is_not_so_in_at_most_7_percent_of_simulations():
    assert BENCH["false_claims"](300, 500) <= 0.07
