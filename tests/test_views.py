"""Clips and crops of action recognition, by hand from UMT's rules, and its resize against a slow loop."""

import numpy as np
import pytest

from tokred.data.views import crop_starts, cut, fit_short_side, sparse_frames, ssv2_frames


def test_sparse_frames_are_those_of_umt():
    """The first and the start of the last are of its own code, the others by hand from its rule."""
    clips = sparse_frames(300, 8, 4)
    assert len(clips) == 4 and clips[0] == [7, 44, 82, 119, 157, 194, 231, 269] and clips[3][:3] == [29, 66, 104]
    assert sparse_frames(300, 8, 1) == [[18, 55, 93, 130, 168, 205, 242, 280]]
    assert sparse_frames(3, 8, 2) == [[0, 0, 0, 1, 1, 1, 2, 2]] * 2
    assert sparse_frames(1, 4, 2) == [[0] * 4] * 2


def test_a_half_is_rounded_to_even():
    """Parts of 2.5 frames start at 0, 2.5, 5 and 7.5."""
    assert sparse_frames(11, 4, 1) == [[1, 3, 6, 9]]


def test_ssv2_frames_are_those_of_umt():
    """The first two are of its own code; with 3 frames, parts of 3 / 4 start at 0, 0, 1, 2 and have the middles 0, 1, 1, 2."""
    assert ssv2_frames(45, 8, 2) == [[0, 5, 11, 16, 22, 28, 33, 39], [2, 8, 14, 19, 25, 30, 36, 42]]
    assert ssv2_frames(3, 4, 2) == [[0, 0, 1, 2], [0, 1, 1, 2]]
    assert ssv2_frames(45, 8, 1) == ssv2_frames(45, 8, 2)[:1]


@pytest.mark.parametrize("frames_of", [sparse_frames, ssv2_frames])
@pytest.mark.parametrize("num_frames", [1, 8, 16])
def test_clips_are_in_order_and_in_range(frames_of, num_frames):
    for num_video_frames in range(1, 300):
        for clip in frames_of(num_video_frames, num_frames, 2):
            assert len(clip) == num_frames and clip == sorted(clip) and clip[0] >= 0 and clip[-1] < num_video_frames


@pytest.mark.parametrize(
    ("long", "num_crops", "expected"),
    [(398, 3, [0, 87, 174]), (398, 1, [87]), (299, 3, [0, 37, 75]), (224, 3, [0, 0, 0]), (399, 2, [0, 175])],
)
def test_crops_go_from_end_to_end(long, num_crops, expected):
    assert crop_starts(long, 224, num_crops) == expected


@pytest.mark.parametrize("num_crops", [1, 2, 3])
@pytest.mark.parametrize(("height", "width"), [(4, 9), (9, 4), (4, 4)])
def test_crops_are_square_and_move_along_the_longer_side(height, width, num_crops):
    """Every pixel tells its own row and column."""
    pixels = np.stack([*np.indices((height, width)), np.zeros((height, width))]).astype(np.uint8)
    frames = np.stack([pixels, pixels])
    crops = cut(frames, 4, num_crops)
    starts = {1: [2], 2: [0, 5], 3: [0, 2, 5]}[num_crops] if max(height, width) == 9 else [0] * num_crops
    assert [crop.shape for crop in crops] == [(2, 3, 4, 4)] * num_crops
    corners = [crop[1, :2, 0, 0].tolist() for crop in crops]
    assert corners == [[start, 0] if height > width else [0, start] for start in starts]


def bilinear(pixels_HWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width, 3) float64: pixel by pixel, from the four whose centres are around."""
    resized = np.empty((height, width, 3))
    limits = pixels_HWC.shape[0] - 1, pixels_HWC.shape[1] - 1
    for row in range(height):
        for column in range(width):
            y = min(max((row + 0.5) * pixels_HWC.shape[0] / height - 0.5, 0), limits[0])
            x = min(max((column + 0.5) * pixels_HWC.shape[1] / width - 0.5, 0), limits[1])
            top, left = int(y), int(x)
            bottom, right = min(top + 1, limits[0]), min(left + 1, limits[1])
            above = pixels_HWC[top, left] * (1 - x + left) + pixels_HWC[top, right] * (x - left)
            below = pixels_HWC[bottom, left] * (1 - x + left) + pixels_HWC[bottom, right] * (x - left)
            resized[row, column] = above * (1 - y + top) + below * (y - top)
    return resized


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(36, 64, (20, 35)), (64, 36, (35, 20)), (50, 50, (20, 20)), (15, 16, (20, 21))]
)
def test_the_short_side_is_the_models_and_the_resize_bilinear(height, width, expected):
    pixels_HWC = np.random.RandomState(0).randint(0, 256, (height, width, 3), np.uint8)
    fitted = fit_short_side(pixels_HWC, 20)
    assert fitted.shape == (3, *expected) and fitted.dtype == np.uint8
    # half a grey level of rounding, and what float32 adds
    assert np.abs(fitted.transpose(1, 2, 0) - bilinear(pixels_HWC, *expected)).max() < 0.5 + 1e-3


def test_a_frame_of_the_right_short_side_stays_as_it_is():
    pixels_HWC = np.random.RandomState(0).randint(0, 256, (20, 37, 3), np.uint8)
    assert np.array_equal(fit_short_side(pixels_HWC, 20).transpose(1, 2, 0), pixels_HWC)
