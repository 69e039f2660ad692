"""Figures and report of a run are drawn once: again where anything that they show, or they themselves, became another."""

from dataclasses import replace

import pytest

from tests.records import Run
from tokred.record import DRAWN, Store
from tokred.sweeps import unchanged
from tokred.sweeps.unchanged import drawn_from, note_drawn, num_drawn


@pytest.fixture
def store(tmp_path):
    """Two cells, of which one was timed, and a figure and a report that stand for what was drawn of them."""
    run = Run(Store(tmp_path).create())
    run.add("none")
    run.time({run.add("tome", share=0.5): 1.5})
    for name in ("figures/pareto.svg", "tables/results.md", "report.html"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    store = run.finish()
    note_drawn(store, drawn_from(store), 1)
    return store


def of(store):
    return num_drawn(store, drawn_from(store))


def other_record(store):
    store.add(replace(store.records()[0], reason="another"), store.predictions(store.records()[0].key))


CHANGES = {
    "a record": other_record,
    "a trace": lambda store: store.add_trace(store.records()[0].key, {}),
    "a timing": lambda store: store.add_timing(replace(store.all_timings()[0], seed=1)),
    "a plan": lambda store: store.keep_to({"keys": store.plan()["keys"][:1]}),
    "a figure": lambda store: (store.folder / "figures" / "pareto.svg").write_text("mine"),
    "a table gone": lambda store: (store.folder / "tables" / "results.md").unlink(),
    "the note": lambda store: (store.folder / DRAWN).write_text("{"),
}


def test_what_is_the_same_is_as_drawn(store):
    assert of(store) == of(Store(store.folder)) == 1


@pytest.mark.parametrize("what", CHANGES)
def test_what_became_another_is_drawn_again(what, store):
    CHANGES[what](store)
    assert of(store) is None


def test_other_code_draws_again(store, monkeypatch):
    monkeypatch.setattr(unchanged, "version", lambda name: "99")
    assert of(store) is None
