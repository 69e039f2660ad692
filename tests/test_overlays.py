"""Overlays: which clips, and what a picture shows of single, merged and dropped tokens."""

import numpy as np
import pytest

from tests.records import new_run
from tests.traces import made_trace, stored
from tokred.analysis.overlays import PATCH_PIXELS, clips, overlay, save_overlays

GRID, SIDE = (1, 2, 2), 4
FRAMES = np.random.RandomState(0).randint(0, 256, (1, 2 * SIDE, 2 * SIDE, 3)).astype(np.uint8)


def block(picture, row, column):
    """The inside of a token's part of the picture, borders left out."""
    size = picture.shape[0] // 2
    return picture[row * size + 3 : (row + 1) * size, column * size + 3 : (column + 1) * size]


def patch(row, column):
    return FRAMES[0, row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE]


def painted(first_P):
    return overlay(FRAMES, np.array(first_P), GRID, [0])


def test_tokens_that_stand_alone_show_their_pixels():
    size = PATCH_PIXELS // SIDE
    assert np.array_equal(painted([0, 1, 2, 3]), FRAMES[0].repeat(size, 0).repeat(size, 1))


def test_a_group_shows_the_mean_colour_of_its_patches():
    picture = painted([0, 1, 0, 3])
    mean = np.concatenate([patch(0, 0).reshape(-1, 3), patch(1, 0).reshape(-1, 3)]).mean(0)
    for row in (0, 1):
        assert (np.abs(block(picture, row, 0) - mean) < 1).all()


def test_a_group_has_no_border_inside_and_one_to_others():
    picture = painted([0, 1, 0, 3])
    size = picture.shape[0] // 2
    assert not (picture[size, :size] == 255).all() and (picture[3:, size] == 255).all()


def test_a_dropped_token_is_hatched():
    colours = np.unique(block(painted([0, 1, 2, -1]), 1, 1))
    assert colours.tolist() == [38, 150]


def test_frames_stand_side_by_side():
    frames = np.concatenate([FRAMES, FRAMES])
    picture = overlay(frames, np.arange(12), (3, 2, 2), [0, 2])
    assert picture.shape[1] > 2 * picture.shape[0] and np.array_equal(picture[:, :48], picture[:, -48:])


def test_groups_reach_over_frames():
    frames = np.concatenate([FRAMES, 255 - FRAMES])
    picture = overlay(frames, np.array([0, 1, 2, 3, 0, 5, 6, 7]), (2, 2, 2), [0, 1])
    # the mean of pixels and their negatives
    assert (np.abs(block(picture[:, :48], 0, 0) - 127.5) < 1).all()


def test_clips_are_the_most_lost_the_most_gained_and_a_typical_one():
    fates = {
        "tome": {1: "lost", 2: "right", 3: "gained", 4: "right", 5: "lost"},
        "evit": {1: "right", 2: "right", 3: "gained", 4: "right", 5: "lost"},
    }
    assert clips(fates, [1, 2, 3, 4, 5]) == [5, 3, 2]


def test_without_results_the_first_clips_are_drawn():
    assert clips({"tome": {}}, [7, 8, 9, 10]) == [7, 8, 9]


@pytest.fixture
def run(tmp_path):
    run = new_run(tmp_path)
    run.add("none", num_samples=3)
    run.add("tome", share=0.5, accuracy=0.3, num_samples=3)
    frames = {"frame_index_D": np.arange(3), "frame_time_F": np.array([0]), "frames_DFHWC": np.stack([FRAMES] * 3)}
    none = made_trace([[0, 1, 2, 3]] * 3, depth=1, grid=GRID)
    run.store.add_trace(run.keys[0], stored(none) | frames)
    run.store.add_trace(run.keys[1], stored(made_trace([[0, 1, 0, -1]] * 3, grid=GRID)))
    return run


def told(path):
    rows = path.read_text().splitlines()
    return [dict(zip(rows[0].split(","), row.split(","), strict=True)) for row in rows[1:]]


def test_the_csv_tells_what_became_of_each_sample(run, tmp_path):
    store = run.finish()
    right = [
        dict(zip(arrays["index"].tolist(), arrays["prediction"] == arrays["label"], strict=True))
        for arrays in map(store.predictions, run.keys)
    ]
    paths = save_overlays(store, tmp_path / "out")
    assert [path.name for path in paths] == ["overlays-mini_cls.png", "overlays-mini_cls.svg", "overlays-mini_cls.csv"]
    for row in told(paths[2]):
        before, after = (one[int(row["sample"])] for one in right)
        assert (
            row["fate"] == {(1, 0): "lost", (0, 1): "gained", (1, 1): "right", (0, 0): "wrong"}[int(before), int(after)]
        )
        assert (row["kept"], row["merged"], row["dropped"]) == ("0.25", "0.5", "0.25")


def test_without_frames_there_is_no_overlay(run, tmp_path):
    run.store.add_trace(run.keys[0], stored(made_trace([[0, 1, 2, 3]] * 3, depth=1)))
    assert save_overlays(run.finish(), tmp_path / "out") == []
