"""Records: whole or not at all, keys that follow from the content, Wilson's interval."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from tokred.analysis.rows import rows, write_csv
from tokred.record import NULL, Record, Store, Timed, Timing, key_of, wilson, write_json

GOLDEN = Path(__file__).parent / "golden"
ARRAYS = {"index": np.arange(3), "label": np.array([1, 0, 2]), "prediction": np.array([1, 1, 2])}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "run").create()


CELL = {"method": "tome", "options": {}, "backbone": "mini_cls", "weights": None, "data": "a", "seed": None}
COUNTS = {"metric": "accuracy", "num_samples": 3, "num_correct": 2, "num_broken": 0}
COSTS = {"num_input_tokens": 9, "tokens": [5], "gmacs": 0.5, "gmacs_unreduced": 1.0}


def record(key="a" * 8, **changed):
    cell = CELL | {"schedule": {"kind": "budget", "amount": 0.5}}
    return Record(key, cell, "done", None, COUNTS | COSTS, {"torch": "2"}, **changed)


def test_a_record_comes_back_as_it_was(store):
    store.add(record(), ARRAYS)
    assert store.get(record().key) == record()


def test_predictions_come_back_as_they_were(store):
    store.add(record(), ARRAYS)
    found = store.predictions(record().key)
    assert found.keys() == ARRAYS.keys() and all(np.array_equal(found[name], ARRAYS[name]) for name in ARRAYS)


def test_a_timing_comes_back_as_it_was(store):
    model = Timed([1.5, 2.0], [3.0, 4.0], [], [], [0, 1], [2.0, 1.9, 2.1], None, "ok", peak_mib=1.25)
    timed = Timing("mini", "mini_cls", 8, "compiled", 0, {NULL: model}, 0.1, {"a": "no graph"}, {"threads": 1})
    store.add_timing(timed)
    assert store.all_timings() == [timed]


FIRST = """{"name": "mini", "backbone": "mini_cls", "batch_size": 8, "times_ms": {"unreduced": [4.0, 6.0], "null": [4.0, 5.0],
"a": [2.0, 3.0]}, "speedup": {"null": [1.1, 1.0, 1.2], "a": [2.0, 1.9, 2.1]}, "verdict": "noisy", "conditions": {"threads": 2},
"unreduced": "unreduced", "null": "null", "schema": 1}"""


def test_a_timing_of_the_first_schema_is_still_read(store):
    (store.timings / "mini.json").write_text(FIRST)
    (found,) = store.all_timings()
    assert (found.mode, found.batch_size, found.conditions, found.left_out) == ("eager", 8, {"threads": 2}, {})
    assert found.models["a"].times_ms == [2.0, 3.0] and found.models["a"].unreduced_ms == [4.0, 6.0]
    assert found.models["a"].speedup == [2.0, 1.9, 2.1] and found.resolution == pytest.approx(0.2)
    assert {model.verdict for model in found.models.values()} == {"noisy"} and found.models.keys() == {NULL, "a"}


SHORT = FIRST.replace("[2.0, 1.9, 2.1]", "[2.0, 1.9]")


@pytest.mark.parametrize(
    "content", ["{}", "[]", '{"schema": 1}', '{"schema": 9}', '{"schema": 2, "models": {"a": 1}}', SHORT]
)
def test_a_file_that_is_no_timing_is_one_line_that_names_it(content, store):
    path = store.timings / "a.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="is not a readable record") as error:
        store.all_timings()
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_key_that_is_not_there_is_none(store):
    assert store.get("b" * 8) is None


def test_planned_records_come_in_the_order_of_the_plan_without_those_missing(store):
    for key in ("a", "b", "c"):
        store.add(record(key))
    write_json(store.folder / "plan.json", {"keys": ["c", "missing", "a"]})
    assert [found.key for found in store.planned()] == ["c", "a"]


# Written whole


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_no_file(step, store, monkeypatch):
    def crash(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, step, crash)
    with pytest.raises(OSError):
        store.add(record())
    assert list(store.cells.iterdir()) == []


def test_a_crash_while_writing_leaves_the_older_file_whole(store, monkeypatch):
    store.add(record())
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.add(record(schema=2))
    assert store.get(record().key) == record()


def test_predictions_without_their_record_are_no_finished_cell(store, monkeypatch):
    calls = []

    def crash_at_the_second(old, new):
        calls.append(new)
        if len(calls) == 2:
            raise OSError("no space left on device")
        os.rename(old, new)

    monkeypatch.setattr(os, "replace", crash_at_the_second)
    with pytest.raises(OSError):
        store.add(record(), ARRAYS)
    assert store.predictions_path(record().key).is_file() and store.get(record().key) is None


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_none_is_refused_and_nothing_written(number, store):
    with pytest.raises(ValueError):
        store.add(Record("a", {}, "done", None, {"value": number}))
    assert list(store.cells.iterdir()) == []


# What cannot be read


@pytest.mark.parametrize(
    "content", [b"", b'{"key": "a', b"\xff\xfe", b"[]", b"{}", b'"text"', b'{"key": "a", "colour": 1}']
)
def test_a_file_that_is_no_record_is_one_line_that_names_it(content, store):
    path = store.cells / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a readable record") as error:
        store.get("a")
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def deep(levels):
    return "[" * levels + "]" * levels


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("result.gmacs", "NaN", "NaN is no finite number"),
        ("result.gmacs", "1e999", "1e999 is no finite number"),
        ("result.gmacs", '"many"', "result.gmacs must be int or float, not 'many'"),
        ("result.gmacs_unreduced", "0", "MACs must be above 0"),
        ("result.num_samples", "1", "result has 2 right of 1 samples"),
        ("result.num_samples", "9" * 400, "a whole number has 400 digits"),
        ("result.tokens", "[5, null]", "result.tokens[1] must be int or float, not None"),
        ("result.metrics", '{"accuracy": {}}', "metrics 'accuracy' has no value"),
        ("result.broken", '[["a"]]', "result.broken must hold pairs"),
        ("cell.schedule.amount", "[]", "cell.schedule.amount must be int or float, not []"),
        ("cell.seed", "true", "cell.seed must be int or nothing, not True"),
        ("cell.options", deep(50), "cell.options must be dict"),
        ("cell.weights", deep(200), "nested in more than 100 levels"),
        ("cell.weights", deep(10**5), "recursion"),
        ("status", "3", "record.status must be str, not 3"),
    ],
)
def test_a_record_with_a_part_of_another_kind_is_one_line_that_names_it(field, value, said, store):
    store.add(record())
    path = store.cells / f"{record().key}.json"
    content = json.loads(path.read_text())
    *way, name = field.split(".")
    place = content
    for part in way:
        place = place[part]
    place[name] = "here"
    del content["sha256"]
    path.write_text(json.dumps(content).replace('"here"', value))
    with pytest.raises(ValueError, match="is not a readable record") as error:
        store.get(record().key)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", ['{"keys": 3}', '{"keys": [3]}', '{"keys": [], "timings": 3}', '{"keys": [NaN]}'])
def test_a_plan_of_another_kind_is_one_line_that_names_it(content, store):
    (store.folder / "plan.json").write_text(content)
    with pytest.raises(ValueError, match="plan.json is not a readable"):
        store.plan()


def test_a_run_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(ValueError, match="no run folder can be made at"):
        Store(tmp_path / "run").create()


def test_predictions_are_never_unpickled(store):
    np.savez(store.predictions_path("a"), index=np.array([print], dtype=object))
    with pytest.raises(ValueError, match="never unpickled"):
        store.predictions("a")


# What is damaged


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize("damage", [flip, cut])
@pytest.mark.parametrize("kind", ["json", "predictions.npz"])
def test_a_cell_with_a_damaged_file_is_no_longer_there(kind, damage, store):
    for key in ("a", "b"):
        store.add(record(key), ARRAYS)
    path = store.cells / f"a.{kind}"
    damage(path)
    assert store.heal(["a", "b"]) == [path]
    assert store.get("a") is None and store.get("b") is not None
    assert (store.folder / "damaged" / path.name).is_file() and not path.exists()


def test_a_damaged_trace_is_set_aside_and_the_cell_stays(store):
    store.add(record("a"), ARRAYS)
    store.add_trace("a", ARRAYS)
    flip(store.trace_path("a"))
    assert store.heal(["a"]) == [store.trace_path("a")]
    assert store.trace("a") is None and store.get("a") is not None


def test_a_damaged_timing_is_set_aside(store):
    store.add_timing(Timing("mini", "mini_cls", 8, "eager", 0, {}, None))
    flip(store.timings / "mini.json")
    assert store.heal([]) == [store.timings / "mini.json"] and store.all_timings() == []


@pytest.mark.parametrize("change", ["missing", "others"])
def test_a_record_without_its_own_predictions_is_no_longer_there(change, store):
    store.add(record("a"), ARRAYS)
    store.predictions_path("a").unlink()
    if change == "others":
        store.add(record("b"), ARRAYS | {"prediction": np.zeros(3, int)})
        store.predictions_path("b").rename(store.predictions_path("a"))
    assert len(store.heal(["a"])) == 1 and store.get("a") is None


def test_what_is_damaged_twice_is_kept_twice(store):
    for _ in range(2):
        store.add(record("a"), ARRAYS)
        flip(store.cells / "a.json")
        store.heal(["a"])
    assert sorted(path.name for path in (store.folder / "damaged").iterdir()) == ["a.json", "a.json.1"]


def test_what_a_crash_left_half_written_goes_and_what_is_being_written_stays(store):
    old, new = store.cells / ".a.json.1.tmp", store.cells / ".b.json.2.tmp"
    for path in (old, new):
        path.write_text("{")
    os.utime(old, (0, 0))
    assert store.heal([]) == [] and not old.exists() and new.exists()


# Older versions


@pytest.fixture
def first(tmp_path):
    """A run that version 0.1 wrote, with records of schema 1: done with predictions and traces, done, refused, and a timing."""
    folder = tmp_path / "first"
    shutil.copytree(GOLDEN / "run_schema_1", folder)
    return Store(folder)


def test_records_of_the_first_schema_are_still_read(first):
    assert [(found.schema, found.status) for found in first.planned()] == [(1, "done"), (1, "done"), (1, "refused")]
    assert first.planned()[0].kind is None and first.planned()[0].made_of == {}


def test_a_run_of_the_first_schema_makes_the_table_that_it_made(first, tmp_path):
    before = (first.folder / "results.csv").read_text()
    assert write_csv(rows(first), tmp_path / "results.csv").read_text() == before


def test_a_trace_of_the_first_schema_is_still_read(first):
    assert first.trace(first.planned()[0].key).keys() > {"index_S", "first_RSP", "size_RSP"}


def test_nothing_of_the_first_schema_is_taken_for_damaged(first):
    assert first.heal(first.plan()["keys"]) == []


@pytest.mark.parametrize("kind", ["json", "predictions.npz", "trace.npz"])
def test_what_is_cut_short_of_the_first_schema_is_found(kind, first):
    path = first.cells / f"{first.plan()['keys'][1]}.{kind}"
    cut(path)
    assert first.heal(first.plan()["keys"]) == [path]


# Keys


def test_a_key_is_the_sha256_of_canonical_json():
    assert key_of({"b": [1, None], "a": "é"}) == hashlib.sha256(b'{"a":"\\u00e9","b":[1,null]}').hexdigest()


def test_the_order_of_a_mapping_does_not_change_the_key():
    assert key_of({"a": 1, "b": {"c": 2, "d": 3}}) == key_of({"b": {"d": 3, "c": 2}, "a": 1})


@pytest.mark.parametrize("other", [{"a": 2}, {"a": "1"}, {"a": 1.0}, {"a": [1]}, {"b": 1}, {"a": 1, "b": None}])
def test_other_content_has_another_key(other):
    assert key_of(other) != key_of({"a": 1})


def test_a_key_of_what_is_no_number_is_refused():
    with pytest.raises(ValueError):
        key_of({"r": float("nan")})


def test_a_record_is_json_that_others_can_read(store):
    store.add(record())
    assert json.loads((store.cells / f"{record().key}.json").read_text())["result"] == COUNTS | COSTS


# Wilson's interval


@pytest.mark.parametrize("n", [1, 2, 10, 97, 1000, 50_000])
@pytest.mark.parametrize("share", [0, 0.03, 0.5, 0.9, 1])
def test_wilsons_interval_is_scipys(n, share):
    num_correct = round(share * n)
    theirs = binomtest(num_correct, n).proportion_ci(0.95, method="wilson")
    assert wilson(num_correct, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilsons_interval_lies_in_0_to_1():
    assert all(wilson(0, n)[0] >= 0 and wilson(n, n)[1] <= 1 for n in range(1, 2000))


def test_without_samples_nothing_is_known():
    assert wilson(0, 0) == (0, 1)


def test_of_links_in_a_run_folder_only_those_that_submitit_leaves_are_let_be(tmp_path):
    jobs = tmp_path / "logs" / "slurm"
    jobs.mkdir(parents=True)
    (jobs / ".submission_file_1.sh").symlink_to(jobs / "1_submission.sh")
    Store(tmp_path)
    (jobs / "2_0_log.out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="2_0_log.out is a link or no file"):
        Store(tmp_path)
