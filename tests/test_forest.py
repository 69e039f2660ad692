"""Differences at fixed budgets against those of two single cells, and the structure of what is drawn."""

import numpy as np
import pytest

from tests.records import made_curve
from tests.test_heatmap import words_of
from tokred.analysis.forest import draw_forest, save_forest, slices
from tokred.analysis.statistics import paired_difference


@pytest.fixture(scope="module")
def some():
    shares = (0.5, 0.75, 0.85)
    return [
        made_curve("none", shares=(1.0,), accuracies=(0.9,)),
        made_curve("tome", shares=shares, accuracies=(0.7, 0.75, 0.8)),
        made_curve("top_k", shares=shares, accuracies=(0.4, 0.7, 0.8), seed=1),
        made_curve("evit", shares=(0.75, 0.85, 0.95), accuracies=(0.75, 0.8, 0.8), seed=2),
    ]


def at(found, label, budget):
    (one,) = [one for one in found if (one.label, one.budget) == (label, budget)]
    return one


def test_at_a_budget_that_was_run_it_is_the_difference_of_two_cells(some):
    one = at(slices(some), "top_k", 0.5)
    expected = paired_difference(some[2].right_SKN[0, 0], some[1].right_SKN[0, 0])
    assert (one.value, one.low, one.high) == pytest.approx((expected.value, expected.low, expected.high))


def test_who_does_not_reach_a_budget_is_named(some):
    found = slices(some, (0.9, 0.75, 0.5))
    assert at(found, "evit", 0.5).not_reached == "evit"
    assert at(found, "evit", 0.9).not_reached == "tome"
    assert at(found, "top_k", 0.9).not_reached == "top_k and tome"
    assert at(found, "evit", 0.75).not_reached == ""


def test_by_default_the_budgets_are_those_that_most_reach(some):
    assert list(dict.fromkeys(one.budget for one in slices(some))) == [0.85, 0.75, 0.5]


def test_a_budget_has_a_marker_with_its_interval_or_says_that_it_is_not_reached(some):
    panel = [one for one in slices(some) if one.budget == 0.5]
    ax = draw_forest(panel)
    (bars,) = ax.collections
    low, high = bars.get_segments()[0][:, 0]
    assert (low, high) == pytest.approx((panel[0].low, panel[0].high))
    assert [text.get_text() for text in ax.texts] == ["not reached"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["top_k", "evit"]


def test_the_figure_says_n_and_that_its_intervals_claim_nothing(some, tmp_path):
    words = words_of(save_forest(some, tmp_path)[1])
    assert (
        "n = 300 samples; 95 % intervals, each alone: they show how much, the report's comparisons what is claimed"
        in words
    )
    assert any("b: minus tome" in word for word in words)


def test_where_no_budget_is_reached_there_is_no_figure(tmp_path):
    some = [made_curve("tome", shares=np.array([0.1, 0.2])), made_curve("top_k", shares=np.array([0.5, 0.6]))]
    assert save_forest(some, tmp_path) == []
