"""Curves from made-up records, and their points against loops and fine integration."""

import numpy as np
import pytest

from tests.records import full_run, made_curve, new_run
from tokred.analysis.curves import (
    accuracy_at,
    check_comparable,
    curves,
    on_shared_samples,
    reaches,
    shared_budgets,
    weights_at,
    weights_over,
)
from tokred.analysis.rows import rows
from tokred.record import Record, wilson


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return full_run(tmp_path_factory.mktemp("run")).finish()


def curve_of(some, label, backbone="mini_cls"):
    (curve,) = [one for one in some if (one.label, one.backbone) == (label, backbone)]
    return curve


def test_a_sweep_gives_a_curve_for_each_method_with_its_options_on_each_backbone(store):
    labels = ["the unreduced model", "tome", "tome proportional_attention=false", "vid_tldr", "random_drop"]
    assert [one.label for one in curves(store)] == labels * 2


def test_what_a_curve_has_right_is_what_the_records_say(store):
    curve = curve_of(curves(store), "vid_tldr")
    for record in store.planned():
        if record.cell["method"] == "vid_tldr" and record.cell["backbone"] == "mini_cls":
            place = curve.share_K.tolist().index(record.result["gmacs"] / record.result["gmacs_unreduced"])
            arrays = store.predictions(record.key)
            assert np.array_equal(curve.right_SKN[0, place], arrays["prediction"] == arrays["label"])


def test_the_seeds_of_a_random_method_are_seeds_of_one_curve(store):
    assert curve_of(curves(store), "random_drop").right_SKN.shape == (3, 4, 400)


def test_a_point_that_was_run_has_the_accuracy_of_its_row(store):
    row = next(row for row in rows(store) if row.method == "tome" and row.budget == 0.55)
    found = accuracy_at(curve_of(curves(store), "tome"), 0.55)
    assert found.value == pytest.approx(row.value)


def test_the_interval_of_a_point_that_was_run_is_wilsons_of_one_sample_less():
    curve = made_curve(shares=(0.5,))
    num_correct, num = int(curve.right_SKN.sum()), curve.num_samples
    found = accuracy_at(curve, 0.5)  # the standard error has N - 1 below it, and so has the interval
    expected = wilson(num_correct / num * (num - 1), num - 1)
    assert (found.low, found.high) == pytest.approx(expected)


def test_between_two_points_each_sample_is_interpolated_in_ln_macs():
    curve, budget = made_curve(shares=(0.4, 0.8)), 0.5
    part = (np.log(0.8) - np.log(budget)) / (np.log(0.8) - np.log(0.4))
    expected = [part * a + (1 - part) * b for a, b in zip(*curve.right_SKN[0].astype(float), strict=True)]
    assert curve.score(weights_at(curve, budget))[0] == pytest.approx(expected)


@pytest.mark.parametrize("window", [(0.4, 0.8), (0.45, 0.7), (0.61, 0.62)])
def test_the_weights_of_a_window_are_those_of_many_points_in_it(window):
    curve = made_curve(shares=(0.4, 0.5, 0.8))
    points = np.exp(np.linspace(*np.log(window), 4001))
    expected = np.trapezoid([weights_at(curve, min(max(point, 0.4), 0.8)) for point in points], axis=0) / 4000
    assert weights_over(curve, window) == pytest.approx(expected, abs=1e-6)


def test_the_weights_of_a_window_sum_to_one():
    assert weights_over(made_curve(), (0.42, 0.77)).sum() == pytest.approx(1)


def test_beyond_its_ends_a_curve_has_no_accuracy():
    curve = made_curve(shares=(0.4, 0.8))
    assert accuracy_at(curve, 0.39) is None
    assert accuracy_at(curve, 0.81) is None


def test_a_window_beyond_the_ends_is_refused():
    with pytest.raises(ValueError, match=r"run at 40.0 to 80.0 % of the MACs, which does not reach 30.0 %"):
        weights_over(made_curve(), (0.3, 0.8))


def test_a_budget_met_as_closely_as_budgets_are_met_is_reached():
    assert reaches(made_curve(shares=(0.5012, 0.8)), 0.5)


def test_the_shared_budgets_are_those_that_all_reach():
    assert shared_budgets([made_curve(shares=(0.4, 0.6, 0.8)), made_curve(shares=(0.501, 0.7))]) == [0.5, 0.6, 0.7]


@pytest.mark.parametrize(("axis", "values", "labels"), [
    ("shape", ["front", "constant"], ["tome front", "tome constant"]),
    ("layers", [[1, 3], [2]], ["tome at 1,3", "tome at 2"]),
])  # fmt: skip
def test_shapes_and_layers_make_curves_of_their_own(tmp_path, axis, values, labels):
    run = new_run(tmp_path)
    for value in values:
        for share in (0.4, 0.6):
            schedule = {"kind": "budget", "amount": share, "shape": "constant", "layers": None} | {axis: value}
            run.add("tome", share=share, schedule=schedule)
    assert [one.label for one in curves(run.finish())] == labels


def test_two_budgets_that_came_to_the_same_are_one_point(tmp_path):
    run = new_run(tmp_path)
    keys = [run.add("tome", share=0.5, schedule=_budget(amount)) for amount in (0.5, 0.501)]
    store = run.finish()
    store.add(store.get(keys[1]), store.predictions(keys[0]))
    assert curves(store)[0].share_K.tolist() == [0.5]


def test_two_results_at_the_same_macs_are_no_curve(tmp_path):
    run = new_run(tmp_path)
    for amount, accuracy in ((0.5, 0.9), (0.501, 0.8)):
        run.add("tome", share=0.5, accuracy=accuracy, schedule=_budget(amount))
    with pytest.raises(ValueError, match="tome has two configurations of 50.00 % of the MACs"):
        curves(run.finish())


def test_a_seed_that_failed_at_one_budget_is_left_out_of_the_curve(tmp_path):
    run = new_run(tmp_path)
    for share in (0.4, 0.6):
        for seed in range(3):
            failed = share == 0.4 and seed == 1
            run.add("random_drop", share=share, seed=seed, status="failed" if failed else "done")
    assert curves(run.finish())[0].right_SKN.shape[:2] == (2, 2)


def test_missing_predictions_are_refused(tmp_path):
    run = new_run(tmp_path)
    key = run.add("tome", share=0.5)
    store = run.finish()
    store.predictions_path(key).unlink()
    with pytest.raises(ValueError, match="predictions of some are missing"):
        curves(store)


@pytest.fixture(scope="module")
def retrieval(tmp_path_factory):
    """20 videos with 3 texts each, at two budgets."""
    run = new_run(tmp_path_factory.mktemp("retrieval"))
    for share in (0.5, 0.8):
        key = run.add("tome", share=share)
        draw = np.random.default_rng(int(10 * share))
        arrays = {
            "index": np.arange(60),
            "cluster": np.repeat(np.arange(20), 3),
            "prediction": np.zeros(60, int),
            "text_rank": draw.integers(0, 3, 60),
            "video_index": np.arange(20),
            "video_rank": draw.integers(0, 3, 20),
        }
        metrics = {
            "T2V R@1": {"index": "index", "ranks": "text_rank", "at": 1, "num_samples": 60, "num_correct": 0},
            "V2T R@1": {"index": "video_index", "ranks": "video_rank", "at": 1, "num_samples": 20, "num_correct": 0},
            "mean R": {"value": 0.4},
        }
        record = run.store.get(key)
        run.store.add(
            Record(key, record.cell, "done", None, record.result | {"metric": "T2V R@1", "metrics": metrics}), arrays
        )
    return run.finish()


def test_texts_that_look_for_videos_are_clustered_by_video(retrieval):
    (curve,) = curves(retrieval)
    assert (curve.metric, curve.num_samples, curve.num_clusters) == ("T2V R@1", 60, 20)


def test_videos_that_look_for_texts_are_samples_of_their_own(retrieval):
    (curve,) = curves(retrieval, "V2T R@1")
    expected = [retrieval.predictions(record.key)["video_rank"] < 1 for record in retrieval.planned()]
    assert np.array_equal(curve.right_SKN[0], expected)
    assert curve.num_clusters is None


def test_a_mean_of_metrics_has_no_curve(retrieval):
    with pytest.raises(ValueError, match="mean R is a mean of other metrics"):
        curves(retrieval, "mean R")


def test_an_unknown_metric_is_refused_with_those_that_are_known(retrieval):
    with pytest.raises(ValueError, match="no metric 'R@5' in these records; they have T2V R@1, V2T R@1, mean R"):
        curves(retrieval, "R@5")


@pytest.mark.parametrize(("change", "why"), [
    ({"identity": {"data": "other", "preprocess": "p"}}, "they differ in data; run both in one sweep"),
    ({"identity": {"data": "d", "preprocess": "q"}}, "they differ in preprocess; run both in one sweep"),
    ({"identity": {"data": "d"}}, "they differ in preprocess"),
    ({"identity": {"data": "d", "preprocess": "p"}, "metric": "R@1"}, "one is in accuracy, the other in R@1"),
    ({"identity": {"data": "d", "preprocess": "p"}, "gmacs_unreduced": 2.0}, "1 and 2 GMACs"),
    ({"identity": {"data": "d", "preprocess": "p"}, "index_N": np.arange(1, 301)}, "over other samples"),
])  # fmt: skip
def test_curves_of_other_data_transforms_or_samples_are_not_compared(change, why):
    first = made_curve(identity={"data": "d", "preprocess": "p"})
    with pytest.raises(ValueError, match=f"tome and evit cannot be compared: .*{why}"):
        check_comparable(first, made_curve("evit", **change))


def test_digests_come_from_the_records_and_weights_may_differ(tmp_path):
    run = new_run(tmp_path)
    key = run.add("tome", share=0.5)
    record = run.store.get(key)
    result = record.result | {"identity": {"data": "d", "preprocess": "p", "weights": "w"}}
    run.store.add(Record(key, record.cell, "done", None, result))
    assert curves(run.finish())[0].identity == {"data": "d", "preprocess": "p"}


def test_curves_of_two_folders_are_cut_to_the_samples_they_share():
    first, second = made_curve(), made_curve("evit", index_N=np.arange(100, 400))
    cut = on_shared_samples([first, second])
    assert np.array_equal(cut[0].right_SKN, first.right_SKN[..., 100:])
    assert np.array_equal(cut[1].right_SKN, second.right_SKN[..., :200])


def test_shares_that_do_not_rise_are_refused():
    with pytest.raises(ValueError, match="must rise in MACs"):
        made_curve(shares=(0.5, 0.5))


def _budget(amount):
    return {"kind": "budget", "amount": amount, "shape": "constant", "layers": None}
