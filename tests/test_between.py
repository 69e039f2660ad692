"""What changed between two runs: pairs of cells, their differences against the formulas, and the page."""

import html
import shutil
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import ndtri

from tests.records import new_run
from tests.reports import bare_claims, page_of
from tokred.analysis.claims import holm
from tokred.analysis.report.between import between
from tokred.analysis.report.comparison import sentence, write_comparison
from tokred.analysis.report.how import OF_TWO_RUNS
from tokred.analysis.statistics import discordant, mcnemar_mid_p, paired_difference
from tokred.record import Store
from tokred.sweeps.cli import main


def a_run(folder, *, tome=0.85, data="a", device="cpu", more=(), precision=None, speedup=1.5):
    """The unreduced model and two methods; ``data``: the digest."""
    run = new_run(folder)
    keys = [run.add("none"), run.add("tome", accuracy=tome, share=0.5), run.add("evit", accuracy=0.8, share=0.5)]
    for method in more:
        run.add(method, share=0.5, status="done" if method != "ats" else "failed", reason="out of memory")
    for key in keys:
        record = run.store.get(key)
        cell = record.cell | ({"precision": precision} if precision else {})
        result = record.result | {"identity": {"data": data}}
        run.store.add(replace(record, cell=cell, result=result, conditions={"device": device}))
    run.time({keys[1]: speedup})
    return run.finish()


@pytest.fixture
def two(tmp_path):
    return a_run(tmp_path / "a"), a_run(tmp_path / "b", tome=0.7, device="gpu", more=("sta", "ats"), speedup=1.8)


def change_of(found, method):
    (change,) = [one for one in found.changes if one.after.method == method]
    return change


def test_a_difference_is_that_of_the_shared_samples_as_the_formulas_have_it(two):
    change = change_of(between(*two), "tome")
    rights = []
    for store in two:
        key = next(record.key for record in store.planned() if record.cell["method"] == "tome")
        arrays = store.predictions(key)
        rights.append(arrays["prediction"] == arrays["label"])
    expected = paired_difference(rights[1], rights[0])
    assert (change.value, change.low, change.high) == (expected.value, expected.low, expected.high)
    assert change.is_paired and change.num_samples == 400 and change.num_changed == np.sum(rights[0] != rights[1])
    assert change.p >= mcnemar_mid_p(*discordant(rights[1], rights[0]))


def test_the_compared_cells_are_one_family(two):
    found = between(*two)
    assert {change.num_comparisons for change in found.changes} == {3}
    alone = between(two[0], two[0])
    assert [change.p for change in alone.changes] == holm([1.0] * 3)


def test_a_run_and_itself_differ_in_nothing(two):
    found = between(two[0], two[0])
    assert all(change.num_changed == 0 and change.value == 0 and not change.is_detected for change in found.changes)
    assert (found.lost, found.gained, found.conditions) == ([], [], [])


def test_other_data_are_not_paired_and_that_is_said(two, tmp_path):
    other = a_run(tmp_path / "c", data="b")
    change = change_of(between(two[0], other), "tome")
    assert not change.is_paired and change.low < change.value < change.high
    assert (
        "unpaired: no samples of the two runs could be matched, so they are taken as independent; n = 400 before and 400 after"
        in sentence(change)
    )


def test_what_would_be_detected_unpaired_follows_from_its_standard_error(two, tmp_path):
    """Of pairs few samples set a floor, as a difference takes discordant ones; of independent shares none."""
    change = change_of(between(two[0], a_run(tmp_path / "c", data="b")), "tome")
    k = ndtri(1 - 0.025 / change.num_comparisons) + ndtri(0.8)
    few = replace(change, num_samples=20)
    assert few.smallest == change.smallest == pytest.approx(k * change.error)
    assert replace(few, is_paired=True).smallest == pytest.approx(k**2 / 20)


def test_what_is_detected_has_an_interval_without_zero(two, tmp_path):
    """Near the edge p and interval come from different approximations."""
    change = change_of(between(*two), "tome")
    assert change.is_detected and not replace(change, low=-0.2, high=0.01).is_detected


def test_no_sentence_of_the_page_claims_without_all_that_it_rests_on(two, tmp_path):
    for other in (two[1], a_run(tmp_path / "c", data="b")):
        path = write_comparison(two[0], other)
        assert bare_claims(page_of(path)) == []
        assert all(term.meaning in html.unescape(path.read_text()) for term in OF_TWO_RUNS)


def test_cells_of_one_run_alone_are_named_with_what_they_are_in_the_other(two):
    found = between(*two)
    assert [(row.method, said) for row, said in found.gained] == [("sta", "not in the run")]
    assert found.lost == []
    back = between(two[1], two[0])
    assert [(row.method, said) for row, said in back.lost] == [("sta", "not in the run")]


def test_a_cell_that_failed_is_named_with_the_reason(two, tmp_path):
    fine = new_run(tmp_path / "fine")
    for method in ("none", "ats"):
        fine.add(method, share=0.5)
    found = between(fine.finish(), two[1])
    assert ("ats", "failed: out of memory") in [(row.method, said) for row, said in found.lost]


def test_conditions_that_differ_are_listed(two):
    assert ("device", "cpu", "gpu") in between(*two).conditions


def test_what_is_the_same_in_all_cells_of_a_run_does_not_keep_cells_apart(two, tmp_path):
    other = a_run(tmp_path / "half", precision="bf16-mixed")
    found = between(two[0], other)
    assert len(found.changes) == 3 and ("precision", "32-true", "bf16-mixed") in found.conditions


def test_the_shape_names_a_cell_only_where_there_are_several(two, tmp_path):
    other = new_run(tmp_path / "other")
    other.add("tome", share=0.5, schedule={"kind": "budget", "amount": 0.5, "shape": "stages", "layers": None})
    settings = [
        {row.setting for row, _ in between(before, after).lost}
        for before, after in ((two[1], two[0]), (two[0], other.finish()))
    ]
    assert settings == [{"budget 0.5"}, {"unreduced", "budget 0.5, decreasing"}]


def test_the_page_shows_both_speedups_and_every_change(two):
    path = write_comparison(*two)
    page = page_of(path)
    assert path.name == "report-against-a.html"
    assert any(one.get("speed-up before, x [95 %]", "").startswith("1.50") for one in page.rows)
    assert any(one.get("speed-up after, x [95 %]", "").startswith("1.80") for one in page.rows)
    (row,) = [one for one in page.rows if one.get("cell", "").startswith("tome") and "finding" in one]
    assert (row["finding"], row["compared"], row["n"], row["comparisons"]) == ("lower", "paired", "400", "3")


def test_the_same_two_runs_make_the_same_bytes(two, tmp_path):
    first, second = write_comparison(*two).read_bytes(), write_comparison(*two, tmp_path / "again.html").read_bytes()
    assert first == second


def test_the_command_writes_where_it_is_told(two, tmp_path, capsys):
    out = tmp_path / "changed.html"
    assert main(["report", *(str(store.folder) for store in two), f"out={out}"]) == 0
    assert capsys.readouterr().out == f"report: {out}\n" and out.is_file()


def test_a_folder_that_is_no_run_is_one_line(two, tmp_path, capsys):
    assert main(["report", str(two[0].folder), str(tmp_path / "no")]) == 2
    assert (
        capsys.readouterr().err == f"error: a report needs the folder of a run; there is no folder {tmp_path / 'no'}\n"
    )


def test_predictions_that_are_gone_leave_two_independent_shares(two, tmp_path):
    shutil.copytree(two[0].folder, tmp_path / "bare")
    for path in (tmp_path / "bare" / "cells").glob("*.npz"):
        path.unlink()
    change = change_of(between(Store(tmp_path / "bare"), two[1]), "tome")
    assert not change.is_paired and change.value == pytest.approx(change.after.value - change.before.value)
