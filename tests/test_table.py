"""The rows of a made-up sweep, how they are printed, and their CSV."""

import csv
import io
import os
from dataclasses import fields, replace

import numpy as np
import pytest
from rich.console import Console

from tests.records import NUM_SAMPLES, add_retrieval, full_run, new_run
from tokred.analysis.report.tables import metrics_table
from tokred.analysis.rows import Row, rows, write_csv
from tokred.analysis.speeds import speeds
from tokred.analysis.statistics import accuracy_over_seeds
from tokred.analysis.table import print_left_out, print_metrics, print_table
from tokred.record import NULL, Record, wilson


def printed(table, width):
    file = io.StringIO()
    print_table(table, Console(file=file, width=width))
    return file.getvalue()


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return rows(full_run(tmp_path_factory.mktemp("run")).finish())


def row_of(table, **what):
    (row,) = [row for row in table if all(getattr(row, name) == value for name, value in what.items())]
    return row


def test_the_unreduced_model_is_first_in_each_group(full):
    assert [row.method for row in full].count("none") == 2
    for backbone in ("mini_cls", "mini_mean"):
        assert next(row for row in full if row.backbone == backbone).method == "none"


def test_rows_are_ordered_by_method_then_by_falling_share(full):
    done = [row for row in full if row.backbone == "mini_cls" and row.status == "done"][1:]
    assert [(row.label, -row.gmacs_share) for row in done] == sorted((row.label, -row.gmacs_share) for row in done)


def test_groups_keep_the_order_of_the_plan(tmp_path):
    run = new_run(tmp_path)
    for backbone in ("zeta", "alpha"):
        run.add("tome", share=0.5, backbone=backbone)
    assert [row.backbone for row in rows(run.finish())] == ["zeta", "alpha"]


def test_a_row_says_to_which_layers_its_tokens_were_restricted(tmp_path):
    run = new_run(tmp_path)
    for layers in ([1, 3], None):
        run.add("tome", schedule={"kind": "budget", "amount": 0.5, "shape": "constant", "layers": layers})
    assert [(row.layers, row.schedule) for row in rows(run.finish())] == [
        ("1,3", "budget 0.5 at 1,3"),
        ("", "budget 0.5"),
    ]


def test_an_accuracy_comes_with_its_wilson_interval(tmp_path):
    run = new_run(tmp_path)
    key = run.add("tome", share=0.5, accuracy=0.85)
    store = run.finish()
    (row,) = rows(store)
    num_correct = store.get(key).result["num_correct"]
    assert (row.value, row.low, row.high) == (num_correct / NUM_SAMPLES, *wilson(num_correct, NUM_SAMPLES))


def test_the_difference_is_paired_by_sample_index_not_by_place(tmp_path):
    run = new_run(tmp_path)
    run.add("none", accuracy=0.9)
    key = run.add("tome", share=0.5, accuracy=0.8)
    store = run.finish()
    before = rows(store)
    arrays, shuffled = store.predictions(key), np.random.RandomState(0).permutation(NUM_SAMPLES)
    store.add(store.get(key), {name: array[shuffled] for name, array in arrays.items()})
    assert rows(store) == before


def test_the_difference_is_over_the_samples_that_both_have(tmp_path):
    run = new_run(tmp_path)
    unreduced = run.add("none", accuracy=0.9)
    key = run.add("tome", share=0.5, accuracy=0.8)
    store = run.finish()
    mine, other = store.predictions(key), store.predictions(unreduced)
    store.add(store.get(key), {name: array[100:] for name, array in mine.items()})
    right, was_right = (arrays["prediction"] == arrays["label"] for arrays in (mine, other))
    expected = sum(int(a) - int(b) for a, b in zip(right[100:], was_right[100:], strict=True)) / (NUM_SAMPLES - 100)
    assert row_of(rows(store), method="tome").difference == pytest.approx(expected)


def test_samples_without_a_label_do_not_count(tmp_path):
    run = new_run(tmp_path)
    run.add("none")
    key = run.add("tome", share=0.5, accuracy=0.8)
    store = run.finish()
    arrays = store.predictions(key)
    arrays["label"][:390], arrays["prediction"][390:] = -1, -2
    store.add(store.get(key), arrays)
    unreduced = store.predictions(run.keys[0])
    expected = -np.mean((unreduced["prediction"] == unreduced["label"])[390:])
    assert row_of(rows(store), method="tome").difference == pytest.approx(expected)


def test_agreement_is_with_the_unreduced_models_predictions(tmp_path):
    run = new_run(tmp_path)
    run.add("none", metric="agreement", accuracy=1.0)
    run.add("tome", metric="agreement", share=0.5, accuracy=0.8)
    row = row_of(rows(run.finish()), method="tome")
    assert row.metric == "agreement"
    assert row.difference == pytest.approx(row.value - 1)


def test_seeds_are_pooled_into_one_row(tmp_path):
    run = new_run(tmp_path)
    run.add("none")
    keys = [run.add("random_drop", share=0.5, accuracy=0.8, seed=seed) for seed in range(4)]
    store = run.finish()
    accuracies = [store.get(key).result["num_correct"] / NUM_SAMPLES for key in keys]
    row = row_of(rows(store), method="random_drop")
    assert row.num_seeds == 4
    assert row.value == pytest.approx(np.mean(accuracies))
    assert row.seed_sd == pytest.approx(np.std(accuracies, ddof=1))
    assert row.low < row.value < row.high
    assert row.difference_low < row.difference < row.difference_high


def test_seeds_that_failed_are_a_row_of_their_own(tmp_path):
    run = new_run(tmp_path)
    for seed in range(3):
        status = {"status": "failed", "reason": "out of memory"} if seed == 1 else {}
        run.add("random_drop", share=0.5, seed=seed, **status)
    done, failed = rows(run.finish())
    assert (done.num_seeds, failed.num_seeds, failed.reason) == (2, 1, "out of memory")


def test_what_was_refused_stays_with_its_reason(full):
    refused = [row for row in full if row.status == "refused"]
    assert [row.reason for row in refused] == ["evit needs a CLS token; mini_mean has none"] * 2
    assert all(row.value is None and row.gmacs is None for row in refused)


def test_an_unreduced_model_that_failed_leaves_no_difference(tmp_path):
    run = new_run(tmp_path)
    run.add("none", status="failed", reason="x")
    run.add("tome", share=0.5)
    row = row_of(rows(run.finish()), method="tome")
    assert row.value is not None and row.difference is None


def test_other_data_are_not_compared(tmp_path):
    run = new_run(tmp_path)
    run.add("none", data={"name": "moving_shapes", "split": "val"})
    run.add("tome", share=0.5)
    assert row_of(rows(run.finish()), method="tome").difference is None


def test_a_record_without_predictions_still_has_its_accuracy(tmp_path):
    run = new_run(tmp_path)
    run.add("none")
    key = run.add("tome", share=0.5)
    store = run.finish()
    store.predictions_path(key).unlink()
    row = row_of(rows(store), method="tome")
    assert row.value is not None and row.difference is None


def test_no_readable_sample_gives_no_accuracy(tmp_path):
    run = new_run(tmp_path)
    run.add("tome", share=0.5, num_samples=0, num_broken=7)
    store = run.finish()
    (row,) = rows(store)
    assert (row.value, row.num_broken) == (None, 7)
    printed([row], 120)


def test_cells_of_an_older_plan_are_left_out(tmp_path):
    run = new_run(tmp_path)
    run.add("none")
    run.add("tome", share=0.5)
    run.keys.pop()
    assert [row.method for row in rows(run.finish())] == ["none"]


def test_cells_of_another_precision_are_not_compared(tmp_path):
    run = new_run(tmp_path)
    key = run.add("none")
    run.add("tome", share=0.5)
    store = run.finish()
    record = store.get(key)
    store.add(replace(record, cell={**record.cell, "precision": "bf16-mixed"}), store.predictions(key))
    assert row_of(rows(store), method="tome").difference is None


def test_of_two_timings_the_latest_counts(tmp_path):
    run = new_run(tmp_path)
    key = run.add("tome", share=0.5)
    for name, finished, ratio in (("a", "2026-01-02T00:00:00Z", 2.0), ("b", "2026-01-01T00:00:00Z", 1.5)):
        timing = run.time({key: ratio})
        run.store.add_timing(replace(timing, name=name, conditions={"finished": finished}))
    (row,) = rows(run.finish())
    assert row.speedup == 2.0


def test_a_speedup_comes_from_the_timing_and_the_unreduced_model_is_one(tmp_path):
    run = new_run(tmp_path)
    run.add("none")
    run.time({run.add("tome", share=0.5): 1.8})
    unreduced, row = rows(run.finish())
    assert unreduced.speedup == 1.0
    assert (row.speedup, row.speedup_low, row.speedup_high) == pytest.approx((1.8, 1.8 * 0.995, 1.8 * 1.005))


def test_the_reductions_share_of_the_time_comes_from_the_timing(tmp_path):
    run = new_run(tmp_path)
    run.add("none")
    key = run.add("tome", share=0.5)
    timing = run.time({key: 1.8})
    timed = replace(timing.models[key], reduction_time_share=0.256)
    run.store.add_timing(replace(timing, models=timing.models | {key: timed}))
    table = rows(run.finish())
    assert [row.reduction_time_share for row in table] == [None, 0.256]
    (line,) = [line for line in printed(table, 160).splitlines() if line.startswith("tome")]
    assert line.split()[-1] == "25.6"


@pytest.mark.parametrize(
    ("schedule", "label"),
    [
        ({"kind": "budget", "amount": 0.5, "shape": "decreasing", "layers": None}, "budget 0.5"),
        ({"kind": "r", "amount": 13, "shape": None, "layers": None}, "r 13"),
        ({"kind": "r", "amount": [8, -1], "shape": None, "layers": None}, "r [8, -1]"),
        ({"kind": "keep_rate", "amount": 0.7, "shape": None, "layers": [3, 6, 9]}, "keep_rate 0.7 at 3,6,9"),
    ],
)
def test_a_schedule_is_named_as_it_was_asked_for(tmp_path, schedule, label):
    run = new_run(tmp_path)
    run.add("tome", share=0.5, schedule=schedule)
    assert rows(run.finish())[0].schedule == label


def test_options_are_part_of_the_label(full):
    assert "tome proportional_attention=false" in {row.label for row in full}


def test_control_characters_do_not_reach_a_row(full):
    assert row_of(full, status="failed").reason == "RuntimeError: out of memory at layer 3"


@pytest.mark.parametrize("width", [120, 80, 50])
def test_the_table_fits_its_console(full, width):
    assert max(map(len, printed(full, width).splitlines())) <= width


def test_nothing_is_left_out_at_120_columns(full):
    text = printed(full, 120)
    assert "Left out" not in text
    for row in (row for row in full if row.status == "done"):
        assert f" {100 * row.value:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}] " in text


def test_a_narrow_table_says_what_it_leaves_out(full):
    assert "Left out at a width of 80: tokens left, GMACs" in " ".join(printed(full, 80).split())


def test_a_pipe_gets_no_colour_codes(full):
    assert "\x1b" not in printed(full, 120)


def test_each_row_is_one_line(full):
    text = printed(full, 120)
    assert sum("budget 0." in line for line in text.splitlines() if "evit" not in line) == 32


def test_agreement_is_called_agreement(tmp_path):
    run = new_run(tmp_path)
    run.add("none", metric="agreement", accuracy=1.0)
    text = printed(rows(run.finish()), 120)
    assert "agreement\n" in "\n".join(text.split()) and "accuracy" not in text
    assert "Agreement is the share of samples on which the prediction is the unreduced model's." in text


def test_failed_cells_follow_with_their_reasons(full):
    text = printed(full, 120)
    assert "3 of 53 cells have no result:" in text  # 37 rows, whose seeds are cells
    assert "mini_mean, evit (budget 0.7; budget 0.55): refused: evit needs a CLS token" in text


def test_notes_name_n_broken_files_and_the_timings_verdict(full):
    text = printed(full, 200)
    assert f"n = {NUM_SAMPLES} samples" in text
    assert "Broken files in moving_shapes" in text
    assert "Timing of mini_cls, eager, batch 8: ok; speed differences under 1.0 % are below resolution." in text
    assert "Timing of mini_mean, eager, batch 8: noisy; speed differences under 8.0 % are below resolution." in text


@pytest.mark.parametrize(("ratio", "cell"), [(1.1, " 1.10 ["), (1.07, "~1.07 ["), (0.95, "~0.95 [")])
def test_a_speedup_below_resolution_is_marked(tmp_path, ratio, cell):
    run = new_run(tmp_path)
    run.add("none")
    run.time({run.add("tome", share=0.5): ratio}, verdict="noisy", noise=0.08)
    text = printed(rows(run.finish()), 120)
    assert cell in text and ("~: the speed-up differs from 1 by no more than" in text) is (cell[0] == "~")


@pytest.mark.parametrize(
    ("timings", "shown"),
    [
        ([("eager", 1), ("eager", 8), ("compiled", 1)], ("eager", 1)),
        ([("compiled", 8), ("eager", 1)], ("eager", 1)),  # of the first there is none
        ([("compiled", 1), ("eager", 1)], ("compiled", 1)),
        ([("eager", 32)], ("compiled", 1)),  # none of them: the latest
    ],
)
def test_the_table_shows_the_first_mode_and_batch_size_of_the_sweep(tmp_path, timings, shown):
    run = new_run(tmp_path)
    run.add("none")
    key, there = run.add("tome", share=0.5), [("eager", 1), ("eager", 8), ("compiled", 1)]
    for number, (mode, size) in enumerate(there):
        timing = run.time({key: 1.5 + number}, mode=mode, batch_size=size)
        run.store.add_timing(replace(timing, conditions={"finished": f"2026-01-0{number + 1}T00:00:00Z"}))
    for row in rows(run.finish(timings)):
        assert (row.timing_mode, row.timing_batch_size) == shown
    assert row.speedup == 1.5 + there.index(shown)


def test_what_was_not_timed_is_said_with_its_reason(tmp_path):
    run = new_run(tmp_path)
    run.add("none")
    tome, ats = run.add("tome", share=0.5), run.add("ats", share=0.5)
    run.time({tome: 1.5}, mode="compiled", left_out={ats: "it has no one graph"})
    dropped = replace(
        run.time({}, batch_size=64), models={}, left_out=dict.fromkeys((NULL, tome, ats), "out of memory")
    )
    run.store.add_timing(dropped)
    file = io.StringIO()
    print_left_out(speeds(run.finish()), Console(file=file, width=120))
    assert sorted(file.getvalue().splitlines()) == [
        "Not timed: mini_cls, compiled, batch 8, ats budget 0.5: it has no one graph",
        "Not timed: mini_cls, eager, batch 64: out of memory",
    ]


def test_without_a_timing_there_is_no_speed_column(tmp_path):
    run = new_run(tmp_path)
    run.add("none")
    text = printed(rows(run.finish()), 120)
    assert "speed-up" not in text and "Speed was not measured." in text


def test_shapes_are_a_column_only_where_they_differ(tmp_path):
    run = new_run(tmp_path)
    for shape in ("decreasing", "constant"):
        run.add("tome", share=0.5, schedule={"kind": "budget", "amount": 0.5, "shape": shape, "layers": None})
    table = rows(run.finish())
    assert "shape" in printed(table, 120).splitlines()[2]
    assert "Shape of the schedules that meet a budget: constant." in printed(table[1:], 120)


def test_names_are_not_read_as_markup(tmp_path):
    run = new_run(tmp_path)
    run.add("[red]mine[/red]", share=0.5)
    run.add("[/]", status="failed", reason="[bold]no[/bold] [/x]")
    text = printed(rows(run.finish()), 120)
    assert "[red]mine[/red]" in text and "[bold]no[/bold] [/x]" in text


def test_a_long_option_stands_beside_the_next_rows(full):
    lines = printed(full, 120).splitlines()
    first = next(place for place, line in enumerate(lines) if line.startswith(" proportional_"))
    assert lines[first - 1].startswith("tome") and lines[first + 1].startswith(" attention=false")


def test_an_empty_sweep_prints_nothing():
    assert printed([], 80) == ""


def test_numbers_are_rounded_for_reading():
    row = Row("b", "w", "d", "tome", "", "r 1", "", "done", metric="accuracy", num_samples=9, value=0.90456, low=0.881)
    row = replace(row, high=0.9194, difference=-0.0001, difference_low=-0.02, difference_high=0.013, gmacs=17.5822)
    text = printed([replace(row, gmacs_share=0.5, num_tokens=98)], 120)
    for number in ("90.5 [88.1, 91.9]", "+0.0 [-2.0, +1.3]", " 17.6 ", " 50.0 ", " 98"):
        assert number in text


def test_the_csv_has_a_named_column_for_each_field(full, tmp_path):
    with open(write_csv(full, tmp_path / "rows.csv"), newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == [field.name for field in fields(Row)]
    assert len(lines) == len(full)
    assert 0 < float(lines[0]["value"]) < 1


@pytest.mark.parametrize("name", ["=1+1", "+cmd", "-2", "@SUM(A1)", "\tx"])
def test_the_csv_holds_no_formulas(tmp_path, name):
    path = write_csv([Row("b", "w", "d", name, "", "r 1", "", "failed")], tmp_path / "rows.csv")
    with open(path, newline="") as file:
        assert next(csv.DictReader(file))["method"] == f"'{name}"


def test_negative_numbers_stay_numbers_in_the_csv(tmp_path):
    path = write_csv([Row("b", "w", "d", "tome", "", "r 1", "", "done", difference=-0.5)], tmp_path / "rows.csv")
    with open(path, newline="") as file:
        assert next(csv.DictReader(file))["difference"] == "-0.5"


def test_a_csv_that_cannot_be_finished_leaves_the_old_one(full, tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    path.write_text("old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_csv(full, path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_records_of_one_cell_do_not_depend_on_the_order_of_its_keys(tmp_path):
    run = new_run(tmp_path)
    key = run.add("random_drop", share=0.5, seed=0)
    run.add("random_drop", share=0.5, seed=1)
    store = run.finish()
    record = store.get(key)
    turned = Record(key, dict(reversed(record.cell.items())), "done", None, record.result)
    store.add(turned, store.predictions(key))
    assert len(rows(store)) == 1


# Several metrics, and samples that share a video


@pytest.fixture
def found(tmp_path):
    run = new_run(tmp_path)
    arrays = add_retrieval(run, "none"), add_retrieval(run, "tome", share=0.6, seed=1)
    return rows(run.finish(), every_metric=True), arrays


def test_every_metric_is_a_row_and_the_headline_comes_first(found):
    assert [row.metric for row in found[0]] == ["T2V R@1", "V2T R@5", "mean R", "ITC T2V R@1"] * 2


def test_a_recall_is_counted_on_its_own_samples_and_differs_pairwise(found):
    table, (unreduced, tome) = found
    row = row_of(table, method="tome", metric="V2T R@5")
    assert (row.num_samples, row.num_clusters) == (20, None)
    right = tome["video_rank"] < 5
    assert row.value == pytest.approx(right.mean())
    assert row.difference == pytest.approx((right.astype(int) - (unreduced["video_rank"] < 5)).mean())


def test_texts_that_share_a_video_widen_the_interval(found):
    row = row_of(found[0], method="tome", metric="T2V R@1")
    assert (row.num_samples, row.num_clusters) == (60, 20)
    right = found[1][1]["text_rank"] < 1
    expected = accuracy_over_seeds(right[None], np.arange(60) // 3)
    assert (row.low, row.high) == pytest.approx((expected.low, expected.high))


def test_a_mean_of_recalls_has_a_value_and_no_interval(found):
    row = row_of(found[0], method="tome", metric="mean R")
    assert row.value == 0.3 and row.low is row.difference is row.num_samples is None


def printed_metrics(table, width):
    file = io.StringIO()
    print_metrics(table, Console(file=file, width=width))
    return file.getvalue()


@pytest.mark.parametrize("width", [120, 60])
def test_the_tables_of_metrics_hold_each_one_and_fit_the_console(found, width):
    text = printed_metrics(found[0], width)
    assert max(map(len, text.splitlines()[1:])) <= width  # the title is prose
    for metric in ("T2V R@1", "V2T R@5", "mean R", "ITC T2V R@1"):
        assert metric in text


def test_recalls_of_the_joint_space_alone_stand_apart(found):
    (first, second) = [line for line in printed_metrics(found[0], 200).splitlines() if line.startswith("method")]
    assert "mean R" in first and "ITC" not in first and "ITC T2V R@1" in second


def test_rows_of_several_shapes_are_told_apart_in_the_tables_of_metrics(found):
    several = [replace(row, shape=shape) for row in found[0] for shape in ("constant", "stages")]
    assert " stages " in printed_metrics(several, 200) and " shape " not in printed_metrics(found[0], 200)
    headings = [[heading.text for heading in metrics_table(some).headings] for some in (several, found[0])]
    assert ["shape" in some for some in headings] == [True, False]


def test_one_metric_needs_no_table_of_metrics(full):
    assert printed_metrics(full, 120) == ""


def test_the_note_says_that_intervals_count_videos(found):
    text = printed([row for row in found[0] if row.metric == "T2V R@1"], 120)
    assert "intervals count videos, 20, not samples" in " ".join(text.split())


def test_a_schedule_at_the_macs_of_another_method_is_named_so(tmp_path):
    run = new_run(tmp_path)
    matched = {"kind": "r", "amount": [60, 20], "shape": None, "layers": None, "match": "vid_tldr"}
    run.add("tome", share=0.7, schedule=matched)
    (row,) = rows(run.finish())
    assert row.schedule == "r [60, 20], MACs of vid_tldr"


def test_who_is_more_than_two_percent_off_a_budget_is_named_with_what_was_spent(tmp_path):
    run, budget = new_run(tmp_path), {"kind": "budget", "amount": 0.5, "shape": None, "layers": None}
    run.add("ltmp", share=0.529, schedule=budget)
    run.add("tome", share=0.5005, schedule=budget)
    ltmp, tome = rows(run.finish())
    text = " ".join(printed([ltmp, tome], 120).split())
    assert "more than 2 % off it, in % of the MACs: ltmp 52.9 of 50. Compare them at what they spent." in text
    assert "off it" not in printed([tome], 120)
