"""The embedded clips: the same on every machine, and what they say about themselves is what they show."""

import hashlib
import re

import numpy as np
import pytest
import torch

from tokred.data import MovingShapes, Preprocess, create_data, moving
from tokred.data.moving_shapes import (
    ANSWERS,
    CLASSES,
    COLOURS,
    DIRECTIONS,
    FILLS,
    IMAGE_SIZE,
    NUM_FRAMES,
    SHAPES,
    VELOCITY,
    Clip,
    caption,
    clip_tensor,
    make_clip,
    make_scene,
    questions,
)

SHAPE = (8, 3, 64, 64)
HALF = Preprocess(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
CLIPS = [make_clip("test", index) for index in range(24)]


def each_clip(test):
    return pytest.mark.parametrize("clip", CLIPS, ids=range(len(CLIPS)))(test)


# The clips


@pytest.mark.parametrize(
    ("split", "index", "difficulty", "sha256"),
    [
        ("test", 0, 1.0, "04253803b013cc96ddac41ccf5cae9131e47c87501fb99a0fc3feff881434deb"),
        ("test", 1, 1.0, "19ea3ab633217971e1f4c80061d765770f9814e14eea11280a1e94c755b9a978"),
        ("test", 999, 1.0, "81c5fb7d8eaac7101b8a7410e212658a48f1b38d7deeb06c58b6951bf6125ac4"),
        ("validation", 0, 1.0, "833e4e2705ed593f16280e0efd60ce19671d85d5891a1ee85223eb5ed47991c6"),
        ("train-0", 7, 1.0, "25d2dcbe666a5cdb60f62d76ad31f8152f4c97ce5cb4beadccd79bef0251a554"),
        ("test", 0, 0.0, "de094607763fbede2ea9661de17734a1ab2fa60618af0935d08377f36fccb306"),
    ],
)
def test_clips_never_change(split, index, difficulty, sha256):
    """Trained weights and published numbers hang on these bytes: a change of them is a new data set with a new name."""
    clip = make_clip(split, index, difficulty=difficulty)
    assert hashlib.sha256(clip.frames_THWC.tobytes() + clip.owner_THW.tobytes()).hexdigest() == sha256


@each_clip
def test_pixels_and_owners_are_bytes_of_the_documented_shape(clip: Clip):
    assert clip.frames_THWC.shape == (NUM_FRAMES, IMAGE_SIZE, IMAGE_SIZE, 3) and clip.frames_THWC.dtype == np.uint8
    assert clip.owner_THW.shape == (NUM_FRAMES, IMAGE_SIZE, IMAGE_SIZE) and clip.owner_THW.dtype == np.uint8
    assert clip.owner_THW.max() <= len(clip.scene.things)


@each_clip
def test_the_label_agrees_with_the_caption(clip: Clip):
    first = clip.scene.things[0]
    fill, direction = CLASSES[clip.scene.label].split()
    words = re.match(r"a (plain )?(\w+) (\w+)(?: filled with (\w+))? moves (\w+)", caption(clip.scene))
    assert words is not None and words.groups()[1:3] == (first.colour, first.shape)
    assert (words[4] or words[1].strip(), words[5]) == (fill, direction) == (first.fill, first.motion)


def test_the_caption_names_what_rests():
    clip = CLIPS[1]
    assert caption(clip.scene) == (
        "a cyan cross filled with diagonals moves left past a blue square and a magenta cross and a red diamond"
    )


@each_clip
def test_where_a_thing_owns_a_pixel_its_colour_is_seen(clip: Clip):
    for number, thing in enumerate(clip.scene.things, start=1):
        colour = np.array(COLOURS[thing.colour])
        shown = clip.frames_THWC[clip.owner_THW == number]
        assert ((shown == colour).all(-1) | (shown == colour // 5).all(-1)).all()


@each_clip
def test_the_traveller_is_never_hidden(clip: Clip):
    areas = (clip.owner_THW == 1).sum((1, 2))
    assert areas.min() > 0 and (areas == areas[0]).all()


@each_clip
def test_the_masks_centroid_travels_in_the_labels_direction(clip: Clip):
    places = [np.argwhere(owner_HW == 1).mean(0) for owner_HW in clip.owner_THW]
    steps = np.diff(places, axis=0)
    direction = np.array(VELOCITY[CLASSES[clip.scene.label].split()[1]])
    along, across = steps @ direction, steps @ direction[::-1]
    # 1 to 1.5 pixels a frame, in whole pixels
    assert along.min() >= 1 and 7 <= along.sum() <= 11 and np.abs(across).max() < 1e-9


@each_clip
def test_only_one_thing_travels(clip: Clip):
    for thing in clip.scene.things[1:]:
        assert thing.motion in ("still", "trembling") and np.ptp(thing.path, axis=0).max() <= 2
        assert thing.fill != clip.scene.things[0].fill


@each_clip
def test_answers_follow_from_the_scene(clip: Clip):
    answers = dict(questions(clip.scene))
    first = clip.scene.things[0]
    assert answers["which way does the moving object go?"] == CLASSES[clip.scene.label].split()[1] in DIRECTIONS
    assert answers["what pattern does the moving object have?"] == CLASSES[clip.scene.label].split()[0] in FILLS
    assert answers["what shape is the moving object?"] == first.shape in SHAPES
    assert answers["what colour is the moving object?"] == first.colour in COLOURS
    assert int(answers["how many objects are there?"]) == len(set(np.unique(clip.owner_THW)) - {0})


@pytest.mark.parametrize("difficulty", [0.0, 0.5, 1.0])
def test_a_scene_is_that_of_the_clip(difficulty):
    for index in range(5):
        clip = make_clip("validation", index, difficulty=difficulty)
        assert make_scene("validation", index, difficulty=difficulty) == clip.scene


def test_the_answers_are_all_that_are_given_and_each_is_there_once():
    """Twelve hundred questions at three difficulties: the rarest answer is one in a hundred of them or more."""
    given = {
        answer
        for difficulty in (0.0, 0.5, 1.0)
        for index in range(80)
        for _, answer in questions(make_scene("train-0", index, difficulty=difficulty))
    }
    assert given == set(ANSWERS) and len(set(ANSWERS)) == len(ANSWERS) == 26


def test_splits_and_indices_are_different_clips():
    clips = [make_clip(split, index) for split in ("test", "validation", "train-0", "train-1") for index in range(3)]
    assert len({clip.frames_THWC.tobytes() for clip in clips}) == len(clips)


def test_all_classes_are_drawn_about_equally_often():
    counts = np.bincount([make_clip("test", index).scene.label for index in range(240)], minlength=len(CLASSES))
    # 10 expected of each; 5 standard deviations of a count are 16
    assert len(counts) == 24 and counts.min() > 0 and counts.max() < 26


# The data source


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_loader_gives_the_clips_of_the_split(num_workers):
    batches = list(MovingShapes(num_clips=5).loader(SHAPE, HALF, batch_size=2, num_workers=num_workers))
    assert [batch.index_B.tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    inputs, labels = torch.cat([batch.inputs for batch in batches]), torch.cat([batch.label_B for batch in batches])
    # (x / 255 - 0.5) / 0.5 and x / 127.5 - 1 round apart in float32
    torch.testing.assert_close(inputs, torch.stack([clip_tensor(clip) for clip in CLIPS[:5]]), rtol=0, atol=1e-6)
    assert labels.tolist() == [clip.scene.label for clip in CLIPS[:5]]
    assert all(batch.problems == [] for batch in batches)


def test_clips_are_drawn_once(monkeypatch):
    drawn = []

    def count(split: str, index: int) -> Clip:
        drawn.append(index)
        return make_clip(split, index)

    monkeypatch.setattr(moving, "make_clip", count)
    monkeypatch.setattr(moving, "KEPT_CLIPS", 3)
    moving._draw_one.cache_clear()
    source = MovingShapes(num_clips=4, split="validation")
    passes = [list(source.loader(SHAPE, HALF, batch_size=4)) for _ in range(3)]
    moving._draw_one.cache_clear()
    # clip 3 is not kept, but it is one of the latest two
    assert drawn == [0, 1, 2, 3]
    assert torch.equal(passes[0][0].inputs, passes[2][0].inputs)
    assert passes[0][0].label_B.tolist() == [make_clip("validation", index).scene.label for index in range(4)]


def test_normalization_is_the_preprocess_given():
    source = MovingShapes(num_clips=1)
    plain = next(iter(source.loader(SHAPE, Preprocess(mean=(0, 0, 0), std=(1, 1, 1)), batch_size=1)))
    assert torch.equal(
        (plain.inputs[0] * 255).round().byte().permute(0, 2, 3, 1), torch.from_numpy(CLIPS[0].frames_THWC)
    )


def test_the_digest_is_of_the_split_and_the_number():
    digests = {MovingShapes(*options).digest() for options in ((8,), (9,), (8, "validation"))}
    assert len(digests) == 3 and MovingShapes(8).digest() in digests


def test_the_digest_changes_with_the_generator(monkeypatch):
    first = MovingShapes(4).digest()
    moving._draw_one.cache_clear()
    monkeypatch.setattr(moving, "make_clip", lambda split, index: make_clip(split, index, difficulty=0.5))
    assert MovingShapes(4).digest() != first
    moving._draw_one.cache_clear()


def test_the_description_makes_the_source_again():
    source = MovingShapes(num_clips=7, split="train-3")
    assert source.description() == {"name": "moving_shapes", "num_clips": 7, "split": "train-3"}
    assert create_data(**source.description()).digest() == source.digest()


def test_classes_are_the_generators():
    assert MovingShapes(1).classes == CLASSES and MovingShapes(1).has_labels


@pytest.mark.parametrize("shape", [(16, 3, 64, 64), (8, 3, 224, 224)])
def test_another_sample_shape_is_refused(shape):
    with pytest.raises(
        ValueError, match=r"moving_shapes holds clips of shape \(8, 3, 64, 64\), but the backbone takes"
    ):
        MovingShapes(1).loader(shape, HALF, batch_size=1)


def test_clips_on_a_picture_backbone_are_refused():
    with pytest.raises(
        ValueError, match=r"moving_shapes holds clips, but the backbone takes images of shape \(3, 64, 64\)"
    ):
        MovingShapes(1).loader(SHAPE[1:], HALF, batch_size=1)


def test_less_than_one_clip_is_refused():
    with pytest.raises(ValueError, match="num_clips must be 1 or more, not 0"):
        MovingShapes(0)


@pytest.mark.parametrize("split", ["tset", "train", "train-", ""])
def test_an_unknown_split_is_refused(split):
    with pytest.raises(ValueError, match="split must be test, validation or train-SEED"):
        MovingShapes(1, split)


# Captions and questions


def test_captions_are_those_of_the_clips():
    said = MovingShapes(num_clips=6).captions()
    assert said.texts == tuple(caption(clip.scene) for clip in CLIPS[:6])
    assert said.videos_of_text == said.texts_of_video == ((0,), (1,), (2,), (3,), (4,), (5,))


def test_a_caption_that_two_clips_have_is_right_for_both():
    said = MovingShapes().captions()
    shared = {text: videos for text, videos in zip(said.texts, said.videos_of_text, strict=True) if len(videos) > 1}
    ((text, videos),) = shared.items()
    assert [said.texts[video] for video in videos] == [text, text] and len(set(said.texts)) == 999


def test_fewer_candidates_are_looked_at_closely_than_in_umt():
    said = MovingShapes(num_clips=2).captions()
    assert (said.shortlist, said.max_length) == (32, 48)


def test_questions_are_those_of_the_clips_in_their_order():
    asked = MovingShapes(num_clips=3).questions()
    pairs = [pair for clip in CLIPS[:3] for pair in questions(clip.scene)]
    assert asked.texts == tuple(question.removesuffix("?") for question, _ in pairs)
    assert asked.answer == tuple(answer for _, answer in pairs) and asked.answers == ANSWERS
    assert asked.video == (0,) * 5 + (1,) * 5 + (2,) * 5
    assert asked.ids[:6] == ("0-0", "0-1", "0-2", "0-3", "0-4", "1-0") and len(set(asked.ids)) == 15


def test_texts_are_had_without_drawing(monkeypatch):
    monkeypatch.setattr(moving, "make_clip", None)
    source = MovingShapes(num_clips=2, split="validation")
    assert len(source.captions().texts) == 2 and len(source.questions().texts) == 10


def test_no_text_is_cut():
    """A word of these is one or two word pieces, and one piece starts the text."""
    source = MovingShapes(num_clips=200)
    for said in (source.captions(), source.questions()):
        assert max(len(text.split()) for text in said.texts) * 2 - 1 < said.max_length
