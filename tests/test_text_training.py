"""Training of the embedded video-text models: what is taught, and that two steps write two models."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tokred import create_backbone
from tokred.data.moving_shapes import make_scene
from tokred.text_training import NUM_CHANGED, TextClips, TextTraining, collate, one_thing_changed
from tokred.training import TrainConfig, train
from tokred.weights import read_state

GRID = (4, 8, 8)
TINY = TrainConfig("mini_umt", steps=2, batch_size=2, num_validation=2, workers=0, precision="32-true", progress=False)


def test_a_changed_scene_differs_in_one_thing_of_one_object():
    random = np.random.RandomState(0)
    for index in range(100):
        scene = make_scene("train-0", index)
        other = one_thing_changed(scene, random)
        pairs = [(a, b) for a, b in zip(scene.things, other.things, strict=True) if a != b]
        ((a, b),) = pairs
        (name,) = [name for name in ("shape", "colour", "fill", "motion") if getattr(a, name) != getattr(b, name)]
        assert a is scene.things[0] or name in ("shape", "colour")


def test_a_lesson_has_false_captions_and_answers_with_an_end():
    lessons = collate([TextClips("train-0", 5, 8, GRID)[index] for index in range(2)])
    assert lessons.clips.shape == (2, 8, 3, 64, 64) and lessons.looks_BNA.shape == (2, 256, 4)
    assert len(lessons.captions) == 2 and len(lessons.changed) == 2 * NUM_CHANGED
    for number, changed in enumerate(lessons.changed):
        assert changed != lessons.captions[number // NUM_CHANGED]
    assert len(lessons.questions) == len(lessons.answers) == 10
    assert all(answer.endswith(" [SEP]") for answer in lessons.answers)


def test_a_resumed_training_goes_on_with_the_clips_that_follow():
    whole, rest = TextClips("train-0", 0, 8, GRID), TextClips("train-0", 5, 8, GRID)
    assert len(rest) == 3 and rest[0][2] == whole[5][2] and torch.equal(rest[0][0], whole[5][0])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # checkpoints and logs go to runs/
        return train(replace(TINY, out=str(folder / "twin.safetensors")))


def test_two_models_are_written_and_load(trained):
    assert [path.name for path in trained] == ["twin_retrieval.safetensors", "twin_qa.safetensors"]
    for path, task in zip(trained, ("retrieval", "qa"), strict=True):
        model = create_backbone("mini_umt", task=task, weights=str(path))
        assert set(read_state(path)) == set(model.state_dict())


def test_what_the_two_models_share_is_the_same_in_both(trained):
    retrieval, answering = map(read_state, trained)
    shared = [name for name in retrieval if name in answering]
    assert {name.split(".")[0] for name in shared} == {"vision_encoder", "text_encoder"}
    assert all(torch.equal(retrieval[name], answering[name]) for name in shared)


def test_every_weight_is_taught(trained):
    torch.manual_seed(0)
    models = [create_backbone("mini_umt", task=task, weights="random").train() for task in ("retrieval", "qa")]
    module = TextTraining(*models, TINY)
    module.log_dict = lambda *_, **__: None
    lessons = collate([TextClips("train-0", 0, 4, GRID)[index] for index in range(4)])
    module.training_step(lessons, 0).backward()
    silent = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in silent if not name.endswith("key.bias")] == []  # softmax does not see a key's bias
