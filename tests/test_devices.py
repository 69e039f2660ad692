"""A pass on several devices, here processes of the CPU, comes to what it comes to on one: no sample twice, none left out."""

import os

import numpy as np
import pytest
import torch

from tokred import METHODS, Assignment, Method, ReducedModel, create_backbone, list_methods
from tokred.data import DataSource
from tokred.data.loading import Unreadable
from tokred.lit import EvaluationData, evaluate
from tokred.open_files import Died
from tokred.reduction import create_method, plan_schedule
from tokred.registry import load_file
from tokred.sweeps.conditions import device_of
from tokred.sweeps.config import read_config
from tokred.tasks.classification import Classifying

BATCH_SIZE, NUM = 3, 13  # five batches, of which the second device has two, and the first of these has two samples


class Clips(DataSource):
    """Noise; one cannot be read."""

    name, kind, has_labels = "clips", "clip", True

    def __len__(self):
        return NUM + 1

    def label(self, index):
        return index % 4

    def read(self, index, sample_shape, preprocess):
        if index == 4:
            raise Unreadable("4.mp4", "cut short")
        return torch.randn(sample_shape, generator=torch.Generator().manual_seed(index))

    def digest(self):
        return ""

    def description(self):
        return {"name": self.name}


ALONE = '''
"""A method of a loose file, which cannot do batches of two samples."""

import torch

from tokred import METHODS, Assignment, Method


@METHODS.register("alone")
class Alone(Method):
    def assign(self, tokens, attention, keep):
        if len(tokens.x_BNC) == 2:
            raise RuntimeError("out of luck")
        return Assignment.select(torch.arange(keep).expand(len(tokens.x_BNC), keep), tokens.num)
'''


class Dies(Method):
    """With its process, where that is no leader's."""

    def assign(self, tokens, attention, keep):
        if torch.distributed.is_initialized() and torch.distributed.get_rank():
            os._exit(7)
        return Assignment.select(torch.arange(keep).expand(len(tokens.x_BNC), keep), tokens.num)


def found(*methods, devices):
    """The evaluations of a pass, and how many batches it said."""
    torch.manual_seed(0)
    backbone = create_backbone("mini_mean", weights="random", depth=2, embed_dim=24, patch_size=16)
    evaluations = [
        Classifying(ReducedModel(backbone, method, plan_schedule(backbone, method, r=8)).eval()) for method in methods
    ]
    batches = []
    data = EvaluationData(Clips(), backbone, batch_size=BATCH_SIZE)
    evaluate(evaluations, data, on_batch=lambda: batches.append(1), devices=devices)
    return evaluations, len(batches)


@pytest.fixture(scope="module")
def passes(tmp_path_factory):
    path = tmp_path_factory.mktemp("plugin") / "alone.py"
    path.write_text(ALONE)
    list_methods()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(METHODS, "_classes", dict(METHODS._classes))
        load_file(path)
        methods = [create_method(name) for name in ("tome", "random_drop", "alone")]
        return [found(*methods, devices=devices) for devices in (1, 2)]


def test_on_two_devices_each_sample_is_predicted_once_and_as_on_one(passes):
    for alone, shared in zip(*(evaluations[:2] for evaluations, _ in passes), strict=True):
        for name, array in alone.outcome().arrays.items():
            assert np.array_equal(array, shared.outcome().arrays[name]), name
    assert sorted(shared.outcome().arrays["index"]) == [index for index in range(NUM + 1) if index != 4]


def test_files_that_cannot_be_read_and_batches_are_counted_once(passes):
    assert [num for _, num in passes] == [5, 5]
    assert [[problem.path for problem in evaluations[0].problems] for evaluations, _ in passes] == [["4.mp4"]] * 2


def test_what_fails_on_another_device_fails_alone_and_with_its_reason(passes):
    assert [evaluations[2].failed for evaluations, _ in passes] == ["RuntimeError: out of luck"] * 2


@pytest.mark.slow
def test_where_another_process_dies_so_does_the_pass_and_no_cell_is_blamed():
    with pytest.raises(Died, match="ended its process, with exit code 7"):
        found(create_method("tome"), Dies(), devices=2)


def test_more_devices_than_there_are_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="devices=2 was asked for, but torch sees 1 of them; take devices=1"):
        device_of(read_config(["devices=2", "device=cuda"]))
