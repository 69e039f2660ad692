"""Differences at fixed budgets against those of two single cells, and the structure of what is drawn."""

import numpy as np
import pytest

from tests.records import made_curve
from tests.test_heatmap import words_of
from tokred.analysis.claims import holm
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
    found = slices(some)
    assert at(found, "evit", 0.5).not_reached == "evit"
    assert at(found, "evit", 0.9).not_reached == "tome"
    assert at(found, "top_k", 0.9).not_reached == "top_k and tome"
    assert at(found, "evit", 0.75).not_reached == ""


def test_the_family_of_holm_is_all_that_has_a_number(some):
    found = [one for one in slices(some) if one.value is not None]
    assert [one.adjusted_p for one in found] == holm([one.p for one in found])
    assert {one.num_comparisons for one in found} == {3}


def test_a_budget_has_a_marker_with_its_interval_or_says_that_it_is_not_reached(some):
    panel = [one for one in slices(some) if one.budget == 0.5]
    ax = draw_forest(panel)
    (bars,) = ax.collections
    low, high = bars.get_segments()[0][:, 0]
    assert (low, high) == pytest.approx((panel[0].low, panel[0].high))
    assert [text.get_text() for text in ax.texts] == ["not reached"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["top_k", "evit"]


def test_a_marker_is_filled_where_the_difference_holds_after_holm(some):
    clear, unclear = at(slices(some), "top_k", 0.5), at(slices(some), "evit", 0.75)
    assert clear.adjusted_p < 0.05 < unclear.adjusted_p
    filled = [draw_forest([one]).lines[-1].get_markerfacecolor() != "white" for one in (clear, unclear)]
    assert filled == [True, False]


def test_the_figure_says_n_and_how_many_comparisons(some, tmp_path):
    words = words_of(save_forest(some, tmp_path)[1])
    assert "n = 300 samples; 95 % intervals, each alone; 3 comparisons, Holm over all of them" in words
    assert "b: minus tome" in words or any("b: minus tome" in word for word in words)


def test_where_no_budget_is_reached_there_is_no_figure(tmp_path):
    some = [made_curve(name, shares=np.array([0.1, 0.2])) for name in ("tome", "top_k")]
    assert save_forest(some, tmp_path) == []
