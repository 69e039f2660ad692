"""The run that is shipped: whole, small, and of the form that the present code writes."""

import numpy as np
import pytest

from tokred.analysis.curves import curves
from tokred.analysis.example import FOLDER, example_run
from tokred.analysis.speeds import speeds
from tokred.analysis.traces import read_traces
from tokred.record import SCHEMA, TIMING_SCHEMA, Store
from tokred.sweeps.cli import sweep


@pytest.fixture(scope="module")
def example():
    return example_run()


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A tiny sweep with the same methods, schedules and backbone."""
    out = tmp_path_factory.mktemp("run")
    words = [
        "methods=[tome,vid_tldr,random_drop]",
        "backbones=[mini_cls]",
        "weights=random",
        "budget=[0.9]",
        "layers=[[0,2]]",
    ]
    small = ["sizes.depth=3", "sizes.embed_dim=24", "sizes.patch_size=16", "data.num_clips=6", "timing.batch_size=2"]
    assert sweep([*words, *small, "seeds=1", "traces=4", f"out={out}"]) == 0
    return Store(out)


def form(value):
    """The names in a record, at all depths, and the kinds of what stands there; an object with free keys counts once."""
    if isinstance(value, dict):
        return {name: form(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [form(value[0])] if value else []
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def record_of(store, method):
    return next(record for record in store.planned() if record.cell["method"] == method)


def arrays_form(arrays):
    return {name: (array.dtype, array.ndim) for name, array in arrays.items()}


def test_every_planned_cell_is_there_and_done(example):
    assert len(example.planned()) == len(example.plan()["keys"]) == 61
    assert {record.status for record in example.planned()} == {"done"}


def test_it_holds_nothing_but_its_plan(example):
    keys = set(example.plan()["keys"])
    kinds = {".json", ".predictions.npz", ".trace.npz"}
    names = {path.name for path in example.cells.iterdir()}
    assert names == {f"{key}{kind}" for key in keys for kind in kinds}


def test_it_is_small():
    held = ["plan.json", *FOLDER.glob("cells/*"), *FOLDER.glob("timings/*")]
    assert sum((FOLDER / path).stat().st_size for path in held) < 1_500_000


def test_it_is_of_the_present_schema(example):
    assert {record.schema for record in example.planned()} == {SCHEMA}
    assert {timing.schema for timing in example.all_timings()} == {TIMING_SCHEMA}


@pytest.mark.parametrize("method", ["none", "tome", "random_drop"])
def test_its_records_have_the_form_of_new_ones(example, fresh, method):
    """But for what says that weights were random, or labels without meaning."""
    own, new = (record_of(store, method) for store in (example, fresh))
    for part in ("cell", "conditions"):
        assert form(getattr(own, part)).keys() == form(getattr(new, part)).keys()
    assert own.result.keys() == new.result.keys()
    for name in ("identity", "gmacs_by_part"):
        assert form(own.result[name]) == form(new.result[name])
    own_metric, new_metric = (next(iter(record.result["metrics"].values())) for record in (own, new))
    assert form(own_metric) == form(new_metric)


@pytest.mark.parametrize("method", ["none", "tome"])
def test_its_predictions_and_traces_have_the_form_of_new_ones(example, fresh, method):
    own, new = (record_of(store, method).key for store in (example, fresh))
    assert arrays_form(example.trace(own)) == arrays_form(fresh.trace(new))
    assert arrays_form(example.predictions(own)).items() <= arrays_form(fresh.predictions(new)).items()


def test_its_timing_has_the_form_of_a_new_one(example, fresh):
    """But for what only a GPU says."""
    (own,), (new,) = example.all_timings(), fresh.all_timings()
    assert own.conditions.keys() == new.conditions.keys() - {"clock_mhz", "temperature_c"}


def test_it_can_be_analysed(example):
    assert len(curves(example)) == 1 + 3 * 2 * 2  # methods, shapes, layers
    assert len(read_traces(example)) == 1 + 3 * 2 * 2 * 3  # and budgets
    assert all(np.isfinite(speed.speedup) for speed in speeds(example))
