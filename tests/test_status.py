"""How a sweep stands: counts, what failed and why, what is left, on one screen."""

import time

import pytest

from tests.records import Run
from tokred.record import Store
from tokred.sealed import write_json
from tokred.sweeps.claims import SWEEP, Claims
from tokred.sweeps.cli import main
from tokred.sweeps.status import lines, read_status


@pytest.fixture
def store(tmp_path):
    """Of ten cells three done, one refused, two failed, one damaged; it began ten minutes ago, with one cell there."""
    run = Run(Store(tmp_path / "run").create())
    for method, status, reason in (
        ("none", "done", None),
        ("tome", "done", None),
        ("evit", "done", None),
        ("dpc_knn", "refused", "no class token"),
        ("hangs", "failed", "gave no sign of progress\nfor 3 s"),
        ("nan", "invalid", "not finite"),
    ):
        run.add(method, status=status, reason=reason)
    (run.store.cells / "damaged.json").write_text("{")
    keys = [*run.keys, "damaged", "h", "i", "j"]
    plan = {"keys": keys, "timings": [], "words": [], "started": time.time() - 600, "kept": 1}
    write_json(run.store.folder / "plan.json", plan)
    return run.store


def test_cells_are_counted_by_how_they_stand(store):
    status = read_status(store)
    assert status.num_cells == 10 and status.num_open == 4 and not status.busy and status.left_s is None
    assert +status.counts == {"done": 3, "refused": 1, "failed": 1, "invalid": 1, "damaged": 1}


def test_what_runs_is_told_from_what_waits_and_the_rest_takes_as_long_as_the_first(store):
    with Claims(store.folder) as claims:
        claims.take("h")
        status = read_status(store)
    assert status.counts["running"] == 1 and status.busy
    assert status.left_s == pytest.approx(600 / (6 - 1) * 4, rel=0.01)


def test_the_screen_says_it_in_lines(store):
    with Claims(store.folder) as claims:
        claims.take("h")
        said = list(lines(read_status(store), store))
    counts = "10 cells: 3 done, 1 refused, 1 failed, 1 invalid, 1 damaged, 1 running, 2 waiting"
    assert said[0] == f"{store.folder}: {counts}"
    assert said[1] == "about 8 min left for the accuracies"
    assert "  1 x hangs: gave no sign of progress for 3 s" in said


def test_a_sweep_whose_processes_are_yet_to_come_is_no_sweep_that_is_over(store):
    with Claims(store.folder) as claims:
        claims.take_first(SWEEP)
        status = read_status(store)
        assert status.begun and not status.busy
        assert list(lines(status, store))[1] == "a sweep has begun: its processes start, or wait for their turn"


def test_many_reasons_fit_a_screen(tmp_path):
    run = Run(Store(tmp_path).create())
    for number in range(40):
        run.add(f"m{number}", status="failed", reason=f"{number} " + "x" * 400)
    said = list(lines(read_status(run.finish()), run.store))
    assert len(said) < 20 and max(map(len, said)) < 200 and said[-1].startswith("  and 30 other reasons")


def test_the_command_prints_it(store, capsys):
    assert main(["status", str(store.folder)]) == 0
    said = capsys.readouterr().out
    assert "3 done" in said and "nothing runs; the same command goes on from here" in said


@pytest.mark.parametrize("words", [[], ["a", "b"], ["nowhere"]])
def test_what_is_no_run_folder_is_one_line(words, capsys):
    assert main(["status", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_of_the_first_schema_has_a_status():
    from tests.test_record import GOLDEN

    assert read_status(Store(GOLDEN / "run_schema_1")).counts["done"] == 2
