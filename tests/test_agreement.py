"""Pairs of methods: who is compared with whom, and what the matrix shows."""

import numpy as np
import pytest

from tests.traces import made, made_trace
from tokred.analysis import agreement
from tokred.analysis.agreement import draw_matrix, pairs, save_agreement
from tokred.analysis.partitions import adjusted_rand

ALONE, FIRST_TWO, LAST_TWO, PRUNED = [0, 1, 2, 3], [0, 0, 2, 3], [0, 1, 2, 2], [0, 1, -1, -1]


def two(*rows):
    """The last layer of two samples."""
    return made_trace([ALONE, ALONE], list(rows))


@pytest.fixture(scope="module")
def found():
    drops = [
        made("random_drop", two(PRUNED, FIRST_TWO), two(LAST_TWO, PRUNED), setting=name) for name in ("r 1", "r 2")
    ]
    others = [
        made("tome", two(FIRST_TWO, LAST_TWO), setting="r 1", gmacs=0.8),
        made("evit", two(FIRST_TWO, PRUNED), setting="r 1", gmacs=0.8),
        made("evit", two(PRUNED, PRUNED), setting="r 2", gmacs=0.4),
        made("none", two(ALONE, ALONE), setting="unreduced"),
        made("tome", two(PRUNED, PRUNED), setting="r 2", backbone="other"),
    ]
    return pairs([*drops, *others])


def test_pairs_are_of_one_backbone_and_setting(found):
    named = [(pair.backbone, pair.setting, pair.a, pair.b) for pair in found]
    assert named == [
        ("b", "r 1", "random_drop", "random_drop"),
        ("b", "r 1", "random_drop", "tome"),
        ("b", "r 1", "random_drop", "evit"),
        ("b", "r 1", "tome", "evit"),
        ("b", "r 2", "random_drop", "random_drop"),
        ("b", "r 2", "random_drop", "evit"),
    ]


def test_a_pair_is_the_mean_over_samples(found):
    (pair,) = (pair for pair in found if (pair.a, pair.b) == ("tome", "evit"))
    # sample 0: the same; sample 1: PRUNED drops 2 and 3, which are those that LAST_TWO puts together
    assert (pair.overlap, pair.rand, pair.num_samples) == (1.0, 1.0, 2)


def test_a_random_method_is_the_mean_over_its_seeds(found):
    (pair,) = (pair for pair in found if (pair.a, pair.b) == ("random_drop", "tome"))
    seeds = [np.array(rows) for rows in ([PRUNED, FIRST_TWO], [LAST_TWO, PRUNED])]
    values = [adjusted_rand(seed, np.array([FIRST_TWO, LAST_TWO])).mean() for seed in seeds]
    assert pair.rand == pytest.approx(np.mean(values))


def test_the_matrix_has_a_number_for_each_pair(found):
    panel = [pair for pair in found if pair.setting == "r 1"]
    ax = draw_matrix(panel)
    # three pairs twice, above and below; one method has seeds to compare
    assert len(ax.texts) == 2 * 3 + 1


def test_drawn_is_the_setting_that_spends_least_and_written_are_all(found, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        agreement, "save_figure", lambda draw, items, stem: asked.append((draw.args[0], items, stem)) or []
    )
    save_agreement(found, tmp_path)
    ((drawn, written, stem),) = asked
    assert {pair.setting for pair in drawn} == {"r 2"} and written == found and stem.name == "agreement-b"


def test_a_backbone_has_a_figure_with_its_numbers(found, tmp_path):
    names = [path.name for path in save_agreement(found, tmp_path)]
    assert names == ["agreement-b.png", "agreement-b.svg", "agreement-b.csv"]


def test_one_method_alone_makes_no_figure(tmp_path):
    alone = pairs([made("random_drop", two(PRUNED, PRUNED), two(PRUNED, PRUNED))])
    assert save_agreement(alone, tmp_path) == [] and not list(tmp_path.iterdir())
