"""Traces of a sweep: which samples, what is kept of them, and when they are made."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

import tokred
from tokred import METHODS, create_backbone, list_methods
from tokred.data import MovingShapes, create_data
from tokred.data.loading import Unreadable
from tokred.data.moving_shapes import clip_tensor, make_clip
from tokred.record import Store, read_json
from tokred.sweeps import accuracy, tracing
from tokred.sweeps.config import read_config
from tokred.sweeps.plan import build_backbone, build_method, make_plan
from tokred.sweeps.run import run_plan

SMALL = {"depth": 3, "embed_dim": 24, "patch_size": 16}  # 64 tokens a clip
NUM_CLIPS, TRACES = 10, 4
TINY = [
    *(f"sizes.{name}={n}" for name, n in SMALL.items()),
    *("backbones=mini_mean", f"data.num_clips={NUM_CLIPS}", "batch_size=3", "timing.rounds=0", "tokens=[[50,50,30]]"),
    *("weights=random", "seeds=2", f"traces={TRACES}"),
]
LOSES_TRACK = '''
"""A method that forgets where its tokens go."""

from dataclasses import replace

from tokred import METHODS, Method


@METHODS.register("forgets")
class Forgets(Method):
    def assign(self, tokens, attention, keep):
        raise AssertionError

    def reduce(self, tokens, attention, keep):
        return replace(tokens, x_BNC=tokens.x_BNC[:, :keep], source_BM=None)
'''


class Run:
    def __init__(self, folder, *words):
        self.config = read_config([*TINY, *words])
        for path in self.config.plugins:
            tokred.registry.load_file(path)
        data = create_data(**self.config.data)
        self.plan = make_plan(self.config, data)
        self.cells = [cell for group in self.plan for cell in group.cells]
        self.backbone = build_backbone(self.config, data, "mini_mean", "random").eval()
        self.store, self.said = Store(folder).create(), io.StringIO()
        run_plan(self.plan, self.config, data, self.store, Console(file=self.said, width=200))

    def cell(self, method, seed=None):
        (found,) = [cell for cell in self.cells if cell.spec["method"] == method and cell.spec["seed"] == seed]
        return found

    def trace(self, method, seed=None):
        return self.store.trace(self.cell(method, seed).key)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("run"), "methods=[tome,random_drop]")


@pytest.fixture
def own_registry(monkeypatch):
    list_methods()
    monkeypatch.setattr(METHODS, "_classes", dict(METHODS._classes))


def inputs(index):
    return torch.stack([clip_tensor(make_clip("test", int(one))) for one in index])


# What is kept


def test_samples_are_spread_over_the_data(ran):
    arrays = ran.trace("tome")
    assert arrays["index_S"][: int(arrays["num_spread"])].tolist() == [0, 3, 6, 9]


def test_groups_are_those_of_the_models_own_trace(ran):
    arrays, cell = ran.trace("tome"), ran.cell("tome")
    model = tokred.ReducedModel(ran.backbone, build_method(cell), cell.schedule).eval()
    with torch.no_grad():
        own = model.trace(inputs(arrays["index_S"]))
    assert arrays["layer_R"].tolist() == [0, 2]
    for row, layer in enumerate(arrays["layer_R"]):
        for first_P, source_M in zip(arrays["first_RSP"][row].tolist(), own.source_BM[layer].tolist(), strict=True):
            assert first_P == [source_M.index(group) if group >= 0 else -1 for group in source_M]


def test_sizes_stand_at_the_first_member_of_each_group(ran):
    arrays = ran.trace("tome")
    for first_P, size_P in zip(arrays["first_RSP"][-1].tolist(), arrays["size_RSP"][-1].tolist(), strict=True):
        assert size_P == [first_P.count(place) for place in range(64)]


def test_the_feature_is_what_the_head_reads(ran):
    arrays = ran.trace("none")
    with torch.no_grad():
        expected = ran.backbone.forward_features(inputs(arrays["index_S"])).mean(1)
    # kept in float16, of 11 bits
    assert np.allclose(arrays["feature_SC"], expected, rtol=1e-3, atol=1e-3)


def test_where_there_is_a_class_token_it_is_the_feature():
    backbone = create_backbone("mini_cls", weights="random", **SMALL).eval()
    model = tokred.reduce(backbone, "tome", r=8)
    with torch.no_grad():
        first_RSP, _, feature_SC = tracing._part(model, inputs([0, 1]))
        expected = model.forward_features(inputs([0, 1]))[:, 0]
    assert np.allclose(feature_SC, expected, rtol=1e-3, atol=1e-3) and first_RSP.shape == (3, 2, 64)


def test_objects_are_the_share_of_each_tokens_pixels(ran):
    arrays = ran.trace("tome")
    owner_THW = make_clip("test", 3).owner_THW
    grid_TYX = arrays["object_SP"][1].reshape(4, 4, 4)
    for t, y, x in np.ndindex(4, 4, 4):
        pixels = owner_THW[2 * t : 2 * t + 2, 16 * y : 16 * y + 16, 16 * x : 16 * x + 16]
        assert grid_TYX[t, y, x] == pytest.approx((pixels > 0).mean(), abs=1e-3)


def test_seeds_have_their_own_traces(ran):
    seeds = [ran.trace("random_drop", seed)["first_RSP"] for seed in (0, 1)]
    assert not np.array_equal(*seeds)


def test_what_is_drawn_at_random_does_not_hang_on_the_batch(ran, tmp_path):
    other = Run(tmp_path, "methods=[random_drop]", "batch_size=7", "traces=7")
    arrays, alike = ran.trace("random_drop", 1), other.trace("random_drop", 1)
    shared = [index for index in arrays["index_S"].tolist() if index in alike["index_S"].tolist()]
    assert len(shared) > 1
    for index in shared:
        rows = [one["first_RSP"][:, one["index_S"].tolist().index(index)] for one in (arrays, alike)]
        assert np.array_equal(*rows)


def test_pictures_are_the_clips_pixels(ran):
    arrays = ran.trace("none")
    for index, frames in zip(arrays["frame_index_D"], arrays["frames_DFHWC"], strict=True):
        assert np.array_equal(frames, make_clip("test", int(index)).frames_THWC[::2])


def test_pictures_lie_beside_the_unreduced_model_alone(ran):
    assert "frames_DFHWC" not in ran.trace("tome")


def test_first_members_do_not_hang_on_the_order_of_groups():
    source_SM = torch.tensor([[0, 3, 1, 3, -1], [0, 1, 2, 1, -1]])
    assert tracing.first_members(source_SM, 1).tolist() == [[0, 1, 0, -1]] * 2


def test_tokens_in_the_prefix_are_refused():
    with pytest.raises(ValueError, match="joined the prefix"):
        tracing.first_members(torch.tensor([[0, 0, 1]]), 1)


# When they are made


def without_accuracy(monkeypatch):
    def fail(*_args, **_named):
        raise AssertionError("accuracy was run again")

    monkeypatch.setattr(accuracy, "evaluate", fail)


def test_a_cell_is_the_same_with_and_without_traces(ran, tmp_path):
    other = Run(tmp_path, "methods=[tome,random_drop]", "traces=0")
    assert [cell.key for cell in other.cells] == [cell.key for cell in ran.cells]
    assert not list(other.store.cells.glob("*.trace.npz"))


@pytest.fixture
def once(tmp_path):
    return Run(tmp_path, "methods=tome")


def again(once, *words):
    return Run(once.store.folder, "methods=tome", *words)


def test_a_missing_trace_is_made_without_running_the_cell_again(once, monkeypatch):
    path, record = once.store.trace_path(once.cell("tome").key), once.store.cells / f"{once.cell('tome').key}.json"
    before, record_before = path.read_bytes(), read_json(record)
    path.unlink()
    without_accuracy(monkeypatch)
    again(once)
    assert path.read_bytes() == before and read_json(record) == record_before


def test_a_broken_trace_is_made_again(once, monkeypatch):
    path = once.store.trace_path(once.cell("tome").key)
    path.write_bytes(path.read_bytes()[:200])
    without_accuracy(monkeypatch)
    assert again(once).trace("tome")["asked"].tolist()[:TRACES] == [0, 3, 6, 9]


def test_other_samples_are_traced_where_others_are_asked_for(once, monkeypatch):
    without_accuracy(monkeypatch)
    assert int(again(once, "traces=6").trace("tome")["num_spread"]) == 6


def test_what_is_traced_is_not_traced_again(once, monkeypatch):
    monkeypatch.setattr(tracing, "read", lambda *_: pytest.fail("traced again"))
    again(once)


def test_a_sample_that_cannot_be_read_is_left_out(tmp_path, monkeypatch):
    real = MovingShapes.read

    def read(self, index, *rest):
        if index == 3:
            raise Unreadable("clip 3", "out of luck")
        return real(self, index, *rest)

    monkeypatch.setattr(MovingShapes, "read", read)
    ran = Run(tmp_path, "methods=tome")
    assert ran.trace("tome")["index_S"].tolist()[:3] == [0, 6, 9] and int(ran.trace("tome")["num_spread"]) == 3
    monkeypatch.setattr(tracing, "arrays", lambda *_: pytest.fail("traced again"))
    again(ran)


def test_a_method_that_loses_track_is_named_and_the_others_are_traced(tmp_path, own_registry):
    (tmp_path / "forgets.py").write_text(LOSES_TRACK)
    ran = Run(tmp_path / "run", "methods=[forgets,tome]", f"plugins={tmp_path / 'forgets.py'}")
    assert ran.trace("forgets") is None and ran.trace("tome") is not None
    assert "forgets tokens [50, 50, 30]: not traced: forgets does not say where its tokens go" in ran.said.getvalue()


# Telling samples


def test_telling_samples_are_those_most_often_lost_then_gained(once, monkeypatch):
    right = np.ones((4, 9), bool)
    right[0, 8] = False  # the unreduced model has it wrong
    right[1:, 2] = right[1, 5] = right[1:, 8] = False
    right[3, 8] = True
    results = iter(dict(enumerate(row.tolist())) for row in right)
    monkeypatch.setattr(tracing, "_right", lambda *_: next(results))
    group = once.plan[0]
    four = replace(group, cells=(*group.cells, *group.cells))
    assert tracing._telling(four, once.store) == [2, 5, 8]


def test_telling_samples_come_after_the_spread_ones_and_are_drawn_first(once, monkeypatch):
    monkeypatch.setattr(tracing, "_telling", lambda *_: [7, 3])
    arrays = again(once).trace("none")
    assert arrays["index_S"].tolist() == [0, 3, 6, 9, 7] and int(arrays["num_spread"]) == 4
    assert arrays["frame_index_D"].tolist() == [7, 0, 3, 6, 9]


def test_of_a_task_about_texts_no_sample_tells(tmp_path):
    words = [f"sizes.{name}={n}" for name, n in SMALL.items()]
    ran_words = [
        "task=retrieval",
        "backbones=mini_umt",
        "weights=random",
        "methods=tome",
        "tokens=[[50,50,30]]",
        "shortlist=4",
    ]
    config = read_config([*words, *ran_words, "data.num_clips=6", "timing.rounds=0", "traces=3"])
    data = create_data(**config.data)
    plan, store = make_plan(config, data), Store(tmp_path).create()
    run_plan(plan, config, data, store, Console(file=io.StringIO()))
    arrays = store.trace(plan[0].cells[1].key)
    assert arrays["index_S"].tolist() == arrays["asked"].tolist() == [0, 2, 5]
