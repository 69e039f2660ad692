"""Traces read back: groups, settings, samples that are compared, seeds that are paired."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from tests.records import new_run
from tests.traces import made, made_row, made_trace, stored
from tokred.analysis.traces import (
    alone_SP,
    few_settings,
    group_size_SP,
    over_samples,
    read_traces,
    seed_pairs,
    settings,
)

STATE = np.array([[0, 0, 2, -1], [-1, 1, 1, 1]])


def test_group_sizes_are_counts_of_each_sample():
    assert group_size_SP(STATE).tolist() == [[2, 2, 1, 0], [0, 3, 3, 3]]


def test_alone_are_tokens_neither_dropped_nor_merged():
    assert alone_SP(STATE).tolist() == [[False, False, True, False], [False] * 4]


def test_between_reductions_groups_stay():
    trace = made_trace([[0, 0, 2]], [[0, 0, -1]], depth=5, layers=(1, 3))
    states = [trace.first_SP(layer).tolist() for layer in range(5)]
    assert states == [[[0, 1, 2]], [[0, 0, 2]], [[0, 0, 2]], [[0, 0, -1]], [[0, 0, -1]]]


def test_a_setting_names_the_shape_only_where_shapes_differ():
    rows = [
        made_row(shape="front"),
        made_row("ats"),
        made_row(shape="front", backbone="c"),
        made_row(shape="constant", backbone="c"),
    ]
    assert settings(rows) == ["budget 0.5", "budget 0.5", "budget 0.5 front", "budget 0.5 constant"]


def test_the_interval_over_samples_is_students():
    values = np.random.RandomState(0).randn(9)
    found = over_samples(np.append(values, np.nan))
    low, high = ttest_1samp(values, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((low, high))


def test_one_sample_has_no_interval():
    assert over_samples(np.array([1.0, np.nan])) is None


def test_of_many_settings_the_ends_and_the_middle_are_drawn():
    some = [
        made("tome", made_trace(STATE), setting=f"budget {share}", gmacs=share) for share in (0.5, 0.9, 0.8, 0.7, 0.6)
    ]
    assert few_settings(some) == ["budget 0.9", "budget 0.7", "budget 0.5"]


def test_seeds_of_one_number_are_not_compared():
    a, b = (made(method, made_trace(STATE), made_trace(STATE)) for method in ("random_drop", "random_merge"))
    found = seed_pairs(a, b)
    assert len(found) == 2 and all(
        one is seed and other is not twin for (one, other), seed, twin in zip(found, a.traces, b.traces, strict=True)
    )


def test_a_row_with_itself_is_its_pairs_of_seeds():
    a = made("random_drop", *(made_trace(STATE) for _ in range(3)))
    assert len(seed_pairs(a, a)) == 3


@pytest.fixture
def store(tmp_path):
    """The unreduced model, tome with samples 0 to 3 of which the last was picked, and evit with 1 to 4."""
    run = new_run(tmp_path)
    run.add("none")
    run.add("tome", share=0.5)
    run.add("evit", share=0.5)
    for key, index, num in zip(run.keys, (range(5), range(4), range(1, 5)), (5, 3, 4), strict=True):
        own = made_trace([[0, 0, 2]] * len(index), index_S=np.array(index))
        run.store.add_trace(key, stored(own, num_spread=num))
    return run.finish()


def test_rows_are_compared_on_the_samples_that_all_have_and_that_were_not_picked(store):
    found = read_traces(store)
    assert [one.row.method for one in found] == ["none", "evit", "tome"]
    assert {tuple(one.traces[0].index_S) for one in found} == {(1, 2)}


def test_picked_samples_are_there_for_pictures(store):
    assert {tuple(one.traces[0].index_S) for one in read_traces(store, telling=True)} == {(1, 2, 3)}


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("first_RSP", None, "first_RSP must be there"),
        ("feature_SC", np.zeros((2, 3)), "feature_SC has the shape"),
        ("grid", np.array([1, 1, 4]), "does not have 3 tokens"),
        ("first_RSP", np.full((1, 5, 3), 3), "groups must be places of tokens"),
        ("index_S", np.full(5, np.nan), "index_S must be there, of whole numbers"),
    ],
)
def test_a_trace_of_another_kind_is_one_line_that_names_it(name, array, said, store):
    key = store.plan()["keys"][0]
    arrays = (store.trace(key) or {}) | {name: array}
    store.add_trace(key, {part: one for part, one in arrays.items() if one is not None})
    with pytest.raises(ValueError, match="is not a readable trace") as error:
        read_traces(store)
    assert said in str(error.value) and str(store.trace_path(key)) in str(error.value)


def test_cells_without_a_trace_are_left_out(store):
    store.trace_path(store.planned()[1].key).unlink()
    assert [one.row.method for one in read_traces(store)] == ["none", "evit"]


def test_a_trace_that_cannot_be_read_is_named(store):
    path = store.trace_path(store.planned()[1].key)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="not a readable trace"):
        read_traces(store)
