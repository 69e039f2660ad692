"""What is left of objects and background, on hand-made tokens."""

import numpy as np
import pytest

from tests.traces import made, made_trace
from tokred.analysis.foreground import (
    draw_retained,
    dropped,
    mixed_groups,
    retained,
    save_foreground,
    tokens_left,
)

OBJECT = np.array([[1.0, 0.5, 0.0, 0.0]])
ALONE, MERGED, PRUNED = [[0, 1, 2, 3]], [[0, 1, 1, 1]], [[0, -1, 2, -1]]


def left(state, share):
    return float(tokens_left(np.array(state), share)[0])


@pytest.mark.parametrize(
    ("state", "objects", "rest"),
    [
        (ALONE, 1.0, 1.0),
        (PRUNED, 1 / 1.5, 1 / 2.5),
        (MERGED, (1 + 0.5 / 3) / 1.5, (2.5 / 3) / 2.5),
        ([[0, 0, 0, 0]], 0.25, 0.25),
    ],
)
def test_tokens_are_weighed_by_their_share_of_object(state, objects, rest):
    assert left(state, OBJECT) == pytest.approx(objects)
    assert left(state, 1 - OBJECT) == pytest.approx(rest)


def test_objects_and_background_add_up_to_the_tokens_that_are_left():
    draw = np.random.RandomState(0)
    labels, object_SP = draw.randint(-1, 5, (6, 20)), draw.rand(6, 20)
    first_SP = np.array([[-1 if one < 0 else list(row).index(one) for one in row] for row in labels])
    total = sum(tokens_left(first_SP, share) * share.sum(1) for share in (object_SP, 1 - object_SP))
    assert total.tolist() == pytest.approx([len(set(row) - {-1}) for row in first_SP.tolist()])


def test_a_sample_without_objects_has_no_value():
    assert np.isnan(left(ALONE, np.zeros((1, 4))))


def test_dropped_are_the_tokens_in_no_group():
    assert float(dropped(np.array(PRUNED), OBJECT)[0]) == pytest.approx(0.5 / 1.5)
    assert float(dropped(np.array(MERGED), OBJECT)[0]) == 0


@pytest.mark.parametrize(
    ("state", "expected"),
    [([[0, 0, 2, 2]], 0.0), ([[0, 1, 1, 3]], 1.0), ([[0, 1, 0, 1]], 1.0), ([[0, 0, 0, 3]], 1.0), (PRUNED, None)],
)
def test_mixed_groups_hold_object_and_background(state, expected):
    (value,) = mixed_groups(np.array(state), OBJECT)
    assert np.isnan(value) if expected is None else value == expected


def test_half_of_the_groups_mixed_is_a_half():
    (value,) = mixed_groups(np.array([[0, 0, 2, 2, 4, 4]]), np.array([[1, 0, 0, 0, 1, 1]]))
    assert value == pytest.approx(1 / 3)


@pytest.fixture
def traced():
    objects = np.repeat(OBJECT, 3, axis=0)
    tome = made_trace(ALONE * 3, MERGED * 3, object_SP=objects)
    drop = [made_trace(state * 3, state * 3, object_SP=objects) for state in (PRUNED, ALONE)]
    none = made_trace(ALONE * 3, object_SP=objects, layers=(), depth=2)
    return [made("none", none), made("tome", tome), made("random_drop", *drop)]


def test_every_layer_of_every_reduced_row_has_its_numbers(traced):
    found = retained(traced)
    assert [(one.method, one.layer) for one in found] == [
        ("tome", 0),
        ("tome", 1),
        ("random_drop", 0),
        ("random_drop", 1),
    ]
    assert (found[0].object_left, found[1].mixed, found[0].mixed) == (1.0, 1.0, None)


def test_seeds_are_the_mean(traced):
    assert retained(traced)[-1].object_left == pytest.approx((1 + 1 / 1.5) / 2)


def test_data_that_does_not_know_its_objects_makes_nothing(traced, tmp_path):
    unknown = [made("tome", made_trace(MERGED * 3))]
    assert retained(unknown) == [] and save_foreground(unknown, tmp_path) == []


def test_a_panel_has_two_lines_a_setting_from_all_tokens_on(traced):
    ax = draw_retained([one for one in retained(traced) if one.method == "tome"])
    assert [line.get_ydata()[0] for line in ax.lines] == [1.0, 1.0]
    assert [line.get_linestyle() for line in ax.lines] == ["-", "--"]


def test_one_file_a_backbone(traced, tmp_path):
    names = [path.name for path in save_foreground(traced, tmp_path)]
    assert names == ["foreground-b.png", "foreground-b.svg", "foreground-b.csv"]
