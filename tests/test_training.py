"""What each token is taught, the ramp, and two steps of training to a file that loads."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tokred import create_backbone, training
from tokred.data.moving_shapes import DIRECTIONS, FILLS, Clip, Scene, Thing, make_clip
from tokred.training import MOTIONS, GrowingClips, TrainConfig, ValidationClips, lesson, main, train
from tokred.weights import read_state

TINY = TrainConfig(
    steps=2, batch_size=2, warmup=1, ramp=1, num_validation=2, workers=0, precision="32-true", progress=False
)
BACKGROUND = (len(FILLS), len(MOTIONS))


def drawn_by_hand():
    """Two frames of 4 x 4 pixels, so that a grid of (1, 2, 2) has 8 pixels a token: thing 1 has 3 of them in the first, 1 in the
    second, 2 in the third (where thing 2 has 3) and 2, just a quarter, in the fourth."""
    owner_THW = np.array(
        [
            [[1, 1, 1, 0], [0, 0, 0, 0], [1, 2, 0, 1], [2, 0, 0, 0]],
            [[1, 0, 0, 0], [0, 0, 0, 0], [1, 2, 1, 0], [0, 0, 0, 0]],
        ],
        np.uint8,
    )
    things = (
        Thing("disc", "red", "rows", "left", 13, ((0, 0),) * 2),
        Thing("square", "blue", "dots", "trembling", 13, ((0, 0),) * 2),
    )
    frames_THWC = np.full((2, 4, 4, 3), 255, np.uint8)
    return Clip(frames_THWC, owner_THW, Scene(things, label=4))


def test_a_token_shows_what_covers_most_of_it():
    taught = lesson(drawn_by_hand(), (1, 2, 2))
    rows_left = (FILLS.index("rows"), MOTIONS.index("left"))
    dots_trembling = (FILLS.index("dots"), MOTIONS.index("trembling"))
    found = list(zip(taught.pattern_N.tolist(), taught.motion_N.tolist(), strict=True))
    assert found == [rows_left, BACKGROUND, dots_trembling, rows_left]


def test_tokens_come_frame_by_frame_and_row_by_row():
    taught = lesson(drawn_by_hand(), (2, 4, 4))  # a pixel a token
    shown = np.array([FILLS.index("rows"), FILLS.index("dots"), BACKGROUND[0]])
    owner = drawn_by_hand().owner_THW.flatten().astype(int)
    assert taught.pattern_N.tolist() == shown[owner - 1].tolist()  # 0 is the background, at the end


def test_a_lesson_holds_the_clip_as_the_model_takes_it_and_its_class():
    taught = lesson(drawn_by_hand(), (1, 2, 2))
    assert taught.clip.shape == (2, 3, 4, 4) and torch.all(taught.clip == 1.0) and taught.label == 4


def test_the_travellers_pattern_and_direction_make_the_class():
    for index in range(5):
        clip = make_clip("train-0", index)
        traveller = clip.scene.things[0]
        pattern, direction = divmod(lesson(clip, (4, 8, 8)).label, len(DIRECTIONS))
        assert (FILLS[pattern], DIRECTIONS[direction]) == (traveller.fill, traveller.motion)


@pytest.fixture
def asked(monkeypatch):
    """What ``make_clip`` was asked for."""
    calls = []

    def remember(split, index, *, difficulty=1.0):
        calls.append((split, index, difficulty))
        return make_clip(split, index, difficulty=difficulty)

    monkeypatch.setattr(training, "make_clip", remember)
    return calls


def test_clips_grow_as_hard_as_they_will_be_over_the_ramp(asked):
    clips = GrowingClips(0, 40, 20, 0, (4, 8, 8))
    for index in (0, 10, 20, 39):
        clips[index]
    assert [difficulty for _, _, difficulty in asked] == [0.0, 0.5, 1.0, 1.0]


def test_a_resumed_training_goes_on_with_the_clips_that_follow(asked):
    clips = GrowingClips(30, 40, 20, 0, (4, 8, 8))
    clips[0]
    assert asked == [("train-0", 30, 1.0)] and len(clips) == 10


def test_neither_training_nor_validation_sees_a_test_clip(asked):
    GrowingClips(0, 1, 0, 3, (4, 8, 8))[0]
    ValidationClips(1)[0]
    assert [split for split, _, _ in asked] == ["train-3", "validation"]


# Two steps


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The weights of a ``mini_mean`` after two steps."""
    folder = tmp_path_factory.mktemp("training")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # checkpoints and logs go to runs/
        (path,) = train(replace(TINY, model="mini_mean", out=str(folder / "new" / "mean.safetensors")))
        return path


def test_the_weights_written_are_the_models_and_nothing_else(trained):
    model = create_backbone("mini_mean", weights=str(trained))
    assert set(read_state(trained)) == set(model.state_dict())


def test_two_steps_change_every_weight_they_reach(trained):
    torch.manual_seed(TINY.seed)
    before = create_backbone("mini_mean", weights="random").state_dict()
    after = read_state(trained)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == list(before)


def test_the_same_seed_trains_the_same_weights(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    again = read_state(*train(replace(TINY, out="again.safetensors")))
    assert all(torch.equal(value, again[name]) for name, value in read_state(trained).items())


def test_a_model_with_a_class_token_starts_from_one_without(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = replace(TINY, model="mini_cls", init=str(trained), out="cls.safetensors", learning_rate=0.0)
    state = create_backbone("mini_cls", weights=str(*train(config))).state_dict()
    assert set(state) - set(read_state(trained)) == {"cls_token"}
    assert all(torch.equal(state[name], value) for name, value in read_state(trained).items())


def test_the_command_writes_where_it_is_told_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = "steps=1 batch_size=1 num_validation=1 workers=0 precision=32-true progress=false out=${model}.safetensors"
    assert main(words.split()) == 0
    assert "wrote mini_mean.safetensors" in capsys.readouterr().out and (tmp_path / "mini_mean.safetensors").is_file()


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("step=1", "step"),
        ("steps=many", "many"),
        ("model=mini_meen", "no 'mini_meen' in backbones. Did you mean 'mini_mean'"),
        ("init=nowhere.safetensors", "no weights at nowhere.safetensors"),
    ],
)
def test_a_wrong_setting_is_one_line(word, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([word]) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("error: ") and said in line and "\n" not in line
    assert list(tmp_path.iterdir()) == []


def test_help_names_the_settings(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("model: mini_mean", "steps:", "init:", "resume:"))
