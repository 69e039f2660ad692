"""The matrix of pairs against the claims it is made of, and the structure of what is drawn."""

import pytest

from tests.records import made_curve
from tests.test_heatmap import words_of
from tokred.analysis.claims import claims
from tokred.analysis.pairwise import compared, draw_pairwise, save_pairwise

LOSS = {"tome": 0.0, "vid_tldr": 0.01, "top_k": 0.2}


@pytest.fixture(scope="module")
def some():
    """A backbone with two sets of weights, whose claims name the backbone alone."""
    return [
        made_curve(name, accuracies=(0.7 - loss, 0.75 - loss, 0.8 - loss), weights=weights, seed=n + 10 * len(weights))
        for weights in ("w", "other")
        for n, (name, loss) in enumerate(LOSS.items())
    ]


@pytest.fixture(scope="module")
def found(some):
    return compared(some)


def test_each_pair_is_the_claim_of_its_weights(some, found):
    assert [(one.weights, one.first, one.second) for one in found][:3] == [
        ("w", "tome", "vid_tldr"),
        ("w", "tome", "top_k"),
        ("w", "vid_tldr", "top_k"),
    ]
    for one in found:
        first, second = (
            next(c for c in some if (c.weights, c.label) == (one.weights, label)) for label in (one.first, one.second)
        )
        alone = claims([first, second])[0][0]
        assert (one.value, one.low, one.high) == (alone.value, alone.low, alone.high)


def test_all_backbones_are_one_family(found):
    assert {one.num_comparisons for one in found} == {6}


def test_above_the_diagonal_is_the_difference_with_a_star_where_it_is_claimed(found):
    panel = found[:3]
    texts = {text.get_position(): text.get_text() for text in draw_pairwise(panel).texts}
    assert [one.claimed for one in panel] == [False, True, True]
    for one, place in zip(panel, ((1.5, 0.5), (2.5, 0.5), (2.5, 1.5)), strict=True):
        assert texts[place] == f"{100 * one.value:+.1f}{'*' * one.claimed}"
        assert texts[place[::-1]] == f"{100 * one.smallest:.1f}"


def test_a_pair_with_too_few_shared_budgets_is_a_dash_with_its_reason():
    some = [made_curve("tome"), made_curve("top_k", seed=1), made_curve("evit", shares=(0.75, 0.9, 0.95), seed=2)]
    found = compared(some)
    assert [bool(one.reason) for one in found] == [False, True, True]
    assert [text.get_text() for text in draw_pairwise(found).texts].count("-") == 4


def test_the_figure_says_n_the_family_and_what_a_star_is(some, tmp_path):
    paths = save_pairwise(some, tmp_path)
    assert [path.name for path in paths if path.suffix == ".svg"] == ["pairwise-b.svg", "pairwise-b--2.svg"]
    words = " ".join(words_of(paths[1]))
    assert "* after Holm over 6 comparisons" in words and "n = 300 samples" in words


def test_one_method_makes_no_matrix(tmp_path):
    assert save_pairwise([made_curve("tome")], tmp_path) == []
