"""The views of a video in action recognition: clips along time, crops along the longer side (UMT, single_modality/datasets).

A view is a clip and a crop of it. A model's answer for a video is the mean over its views.

Dimension key: N frames of all clips, H height, W width.
"""

from collections.abc import Callable

import numpy as np

from tokred.data.loading import fit
from tokred.preprocess import Preprocess

BILINEAR = Preprocess(interpolation="bilinear", antialias=False, crop_pct=None)


def sparse_frames(num_video_frames: int, num_frames: int, num_clips: int) -> list[list[int]]:
    """By clip, as for Kinetics: the start of each of ``num_frames`` parts, and clip by clip a little later.

    >>> sparse_frames(300, 8, 4)[0]
    [7, 44, 82, 119, 157, 194, 231, 269]
    """
    part = (num_video_frames - 1) / num_frames
    starts = [round(part * i) for i in range(num_frames)]  # half to even, as NumPy's round, which UMT uses
    shifts = [int(part / (num_clips + 1) * (clip + 1)) for clip in range(num_clips)]
    return [[min(start + shift, num_video_frames - 1) for start in starts] for shift in shifts]


def ssv2_frames(num_video_frames: int, num_frames: int, num_clips: int) -> list[list[int]]:
    """By clip, as for Something-Something V2: of the starts and middles of all parts, the even or the odd ones.

    >>> ssv2_frames(45, 8, 2)
    [[0, 5, 11, 16, 22, 28, 33, 39], [2, 8, 14, 19, 25, 30, 36, 42]]
    """
    part = num_video_frames / num_frames
    starts = [int(part * i) for i in range(num_frames)]
    middles = [int(part / 2 + part * i) for i in range(num_frames)]
    return [sorted(starts + middles)[clip::2] for clip in range(num_clips)]


SAMPLINGS: dict[str, Callable[[int, int, int], list[list[int]]]] = {"sparse": sparse_frames, "ssv2": ssv2_frames}


def check_views(sampling: str, num_clips: int, num_crops: int) -> None:
    """Raises ValueError where there are no such views."""
    if sampling not in ("middle", *SAMPLINGS):
        raise ValueError(f"sampling must be one of middle, {', '.join(SAMPLINGS)}, not {sampling!r}")
    if min(num_clips, num_crops) < 1:
        raise ValueError(f"num_clips and num_crops must be 1 or more, not {num_clips} and {num_crops}")
    if sampling == "middle" and num_clips * num_crops > 1:
        raise ValueError(
            f"sampling=middle has one view, so num_clips and num_crops must be 1, not {num_clips} and {num_crops}; "
            f"choose sampling={' or '.join(SAMPLINGS)}"
        )
    if sampling == "ssv2" and num_clips > 2:
        raise ValueError(
            f"num_clips must be 1 or 2 with sampling=ssv2, not {num_clips}: even and odd frames are all it has"
        )


def fit_short_side(pixels_HWC: np.ndarray, side: int) -> np.ndarray:
    """(3, H, W) uint8, the shorter of the two ``side`` long and the other one in proportion, rounded down.

    Bilinear in float32, rounded to whole numbers; UMT's cv2 takes weights of 1/2048 and cuts off on the way. Against OpenCV
    4.9 and 4.10 no value is more than one grey level apart: on noise of five sizes from 100 x 177 to 1080 x 1920, 12 to
    13 % are one higher here, on other pictures as many lower.
    """
    height, width = pixels_HWC.shape[:2]
    long = int(side * max(height, width) / min(height, width))
    return fit(pixels_HWC, (side, long) if height <= width else (long, side), BILINEAR)


def crop_starts(long: int, side: int, num_crops: int) -> list[int]:
    """Where the crops begin along the longer side, from end to end; a single one is in the middle.

    >>> crop_starts(398, 224, 3), crop_starts(398, 224, 1)
    ([0, 87, 174], [87])
    """
    if num_crops == 1:
        return [int((long - side) / 2)]
    step = (long - side) / (num_crops - 1)
    return [int(crop * step) for crop in range(num_crops)]


def cut(frames_N3HW: np.ndarray, side: int, num_crops: int) -> list[np.ndarray]:
    """(N, 3, side, side) for each crop, of frames whose shorter side is ``side``."""
    height, width = frames_N3HW.shape[-2:]
    starts = crop_starts(max(height, width), side, num_crops)
    if height >= width:
        return [frames_N3HW[..., start : start + side, :] for start in starts]
    return [frames_N3HW[..., start : start + side] for start in starts]
