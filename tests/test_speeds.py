"""The rows of timings.csv, from made-up timings."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from tests.records import new_run
from tokred.analysis.rows import write_csv
from tokred.analysis.speeds import speeds
from tokred.record import NULL


@pytest.fixture
def run(tmp_path):
    """Its unreduced model and tome, timed in two modes and at two batch sizes."""
    run = new_run(tmp_path)
    run.add("none")
    tome = run.add("tome", share=0.5)
    run.timings = {
        (mode, size): run.time({tome: 2.0}, mode=mode, batch_size=size)
        for mode in ("eager", "compiled")
        for size in (1, 8)
    }
    return run


def of_tome(run, mode="eager", batch_size=8):
    (row,) = [s for s in speeds(run.finish()) if (s.method, s.mode, s.batch_size) == ("tome", mode, batch_size)]
    return row


def test_every_cell_has_a_row_for_each_mode_and_batch_size(run):
    found = {(speed.method, speed.mode, speed.batch_size) for speed in speeds(run.finish())}
    assert found == {(m, mode, n) for m in ("none", "tome") for mode in ("eager", "compiled") for n in (1, 8)}
    assert len(speeds(run.finish())) == 8


def test_latency_and_throughput_follow_from_the_raw_times(run):
    (key,) = set(run.timings["eager", 8].models) - {NULL}
    times, row = np.sort(run.timings["eager", 8].models[key].times_ms), of_tome(run)
    assert row.latency_ms_median_this_run == pytest.approx((times[14] + times[15]) / 2)
    assert row.latency_ms_min_this_run == times[0] and row.num_rounds == 30
    assert row.latency_ms_iqr_this_run == pytest.approx(np.quantile(times, 0.75) - np.quantile(times, 0.25))
    assert row.samples_per_s_this_run == pytest.approx(8 / (row.latency_ms_median_this_run / 1000))


def test_ratios_verdict_and_memory_are_those_of_the_timing(run):
    row = of_tome(run)
    assert (row.speedup, row.speedup_low, row.speedup_high) == pytest.approx((2.0, 1.99, 2.01))
    assert (row.cpu_ratio, row.cpu_ratio_low, row.cpu_ratio_high) == pytest.approx((2.0, 1.99, 2.01))
    assert (row.verdict, row.resolution, row.peak_mib, row.threads) == ("ok", 0.005, 32, 1)


def test_the_unreduced_models_row_is_the_control(run):
    row = next(speed for speed in speeds(run.finish()) if speed.method == "none")
    assert row.schedule == "unreduced" and row.speedup == 1.0 and row.verdict == "ok" and row.peak_mib == 64


def test_of_two_measurements_the_latest_counts(run):
    timing = run.timings["eager", 8]
    run.store.add_timing(replace(timing, name="later", resolution=0.5, conditions={"finished": "2026-01-02T00:00:00Z"}))
    assert of_tome(run).resolution == 0.5


def test_what_was_left_out_is_a_row_with_its_reason(run):
    key = run.add("ats", share=0.7)
    run.store.add_timing(replace(run.timings["compiled", 1], left_out={key: "no one graph"}))
    (row,) = [speed for speed in speeds(run.finish()) if speed.method == "ats"]
    assert (row.mode, row.batch_size, row.reason, row.speedup) == ("compiled", 1, "no one graph", None)


def test_cells_of_an_older_plan_are_left_out(run):
    run.keys.pop()
    assert {speed.method for speed in speeds(run.finish())} <= {"none"}


def test_the_columns_end_in_their_units(run, tmp_path):
    with open(write_csv(speeds(run.finish()), tmp_path / "timings.csv")) as file:
        columns = csv.DictReader(file).fieldnames
    assert {"latency_ms_median_this_run", "latency_ms_min_this_run", "latency_ms_iqr_this_run"} <= set(columns)
    assert {"samples_per_s_this_run", "peak_mib", "reserved_mib", "compile_s", "batch_size", "mode"} <= set(columns)
