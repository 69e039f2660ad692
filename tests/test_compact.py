"""The table of all cells in one file: complete, typed, and made anew when what it was made of has changed."""

import json

import pytest

from tests.records import full_run
from tokred.analysis import compact as compaction
from tokred.analysis.compact import compact, is_current
from tokred.analysis.rows import rows
from tokred.sweeps.cli import main

NEEDED = pytest.mark.skipif(
    compaction.find_spec("pyarrow") is None, reason="needs pyarrow: pip install -e '.[parquet]'"
)


@pytest.fixture
def store(tmp_path):
    return full_run(tmp_path / "run").finish([("eager", 8)])


@NEEDED
def test_it_holds_the_lines_of_the_results_in_their_types(store):
    from pyarrow import parquet

    table = parquet.read_table(compact(store))
    lines = table.to_pylist()
    assert [(line["method"], line["value"], line["speedup"]) for line in lines] == [
        (row.method, row.value, row.speedup) for row in rows(store, every_metric=True)
    ]
    assert (
        str(table.schema.field("num_samples").type) == "int64" and str(table.schema.field("seed_sd").type) == "double"
    )


@NEEDED
def test_each_line_names_its_records_and_their_specification(store):
    from pyarrow import parquet

    for line in parquet.read_table(compact(store)).to_pylist():
        cell = dict(store.get(line["keys"][0]).cell)
        cell.pop("seed")
        assert json.loads(line["spec"]) == cell and len(line["keys"]) == line["num_seeds"]


@NEEDED
def test_it_is_current_until_a_file_changes(store):
    assert not is_current(store)
    compact(store)
    assert is_current(store)
    store.forget(store.plan()["keys"][0])
    assert not is_current(store)


@NEEDED
def test_the_command_says_what_it_did(store, capsys):
    codes = [main(["compact", str(store.folder)]) for _ in range(2)]
    path = store.folder / "results.parquet"
    assert codes == [0, 0] and capsys.readouterr().out == f"written: {path}\nunchanged: {path}\n"


def test_without_pyarrow_it_is_one_line(store, monkeypatch, capsys):
    monkeypatch.setattr(compaction, "find_spec", lambda name: None)
    assert main(["compact", str(store.folder)]) == 2
    assert "needs pyarrow: pip install tokred[parquet]" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_one_line(tmp_path, capsys):
    assert main(["compact", str(tmp_path)]) == 2
    assert "is no run folder" in capsys.readouterr().err
