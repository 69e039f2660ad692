"""Videos from a folder, decoded in sequence with PyAV and sampled as UMT does.

Frames equal those of decord 0.6, UMT's reader, bit for bit on 8-bit video of even size (tried: h264, vp8, vp9, mpeg2,
mpeg4, 4:2:0 and 4:4:4, rotations, colour spaces); on 10-bit and on odd-sized video they differ in how chroma is scaled.
Two differences are meant: a trimmed mp4 (edit list) gives the frames that a player shows, and a damaged or shortened
file is reported, where decord goes on with what it can read.

Dimension key: V views, T frames, H height, W width.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np

from tokred.data.listing import FolderSource
from tokred.data.loading import fit
from tokred.data.views import SAMPLINGS, check_views, cut, fit_short_side
from tokred.preprocess import Preprocess

# Demuxers that may open a file, whatever it is called: none of them reads other files, as playlists do.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts,mpeg,flv,asf,ogg"
MAX_SIDE = 8192  # pixels
MAX_PIXELS = 2**25  # of a frame: 8K; a decoder may hold some twenty of them
DECODING = {
    "max_pixels": str(MAX_PIXELS)
}  # of FFmpeg itself, which decodes a little before it says how large frames are
MAX_FRAMES = 100_000  # over an hour at 25 frames a second
MAX_PIXELS_IN_ALL = 2**39  # an hour of 1080p at 60 frames a second; a few KB can hold as many empty ones


EXTENSIONS = (
    *(".mp4", ".m4v", ".mov", ".3gp", ".webm", ".mkv", ".avi", ".gif"),
    *(".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".ogv"),
)


class VideoFolder(FolderSource):
    """Videos in class folders, in one folder, or named by a CSV (``tokred.data.listing``).

    ``sampling`` "middle": one clip of the middle frames, fitted as the model's ``Preprocess`` says. "sparse" (Kinetics)
    and "ssv2": UMT's ``num_clips`` x ``num_crops`` views for action recognition, all from one decoding; the short side
    goes to the model's size, bilinear whatever the model's ``Preprocess`` says, and square crops are cut along the other
    (``tokred.data.views``, which says how far from UMT's own resize that is). View ``clip * num_crops + crop``.

    ``separator``: between the columns of the CSV; with a space, as in UMT's lists of SSv2, no path can hold one.
    """

    name = "video_folder"
    kind = "clip"
    extensions = EXTENSIONS

    def __init__(
        self,
        root: str | Path,
        csv: str | Path | None = None,
        limit: int | None = None,
        num_clips: int = 1,
        num_crops: int = 1,
        sampling: str = "middle",
        separator: str = ",",
    ):
        check_views(sampling, num_clips, num_crops)
        super().__init__(root, csv, limit, separator=separator)
        self.num_clips, self.num_crops, self.sampling = num_clips, num_crops, sampling
        self.num_views = num_clips * num_crops

    def pixels(self, path: str, sample_shape: tuple[int, ...], preprocess: Preprocess) -> np.ndarray:
        num_frames, size = sample_shape[0], sample_shape[-2:]
        if self.sampling == "middle":
            return read_clip(path, num_frames, size, preprocess)
        views = read_views(path, num_frames, size[0], **self._views())
        return views if self.num_views > 1 else views[0]

    def check_shape(self, sample_shape: tuple[int, ...]) -> None:
        super().check_shape(sample_shape)
        if self.sampling != "middle" and sample_shape[-1] != sample_shape[-2]:
            raise ValueError(
                f"sampling={self.sampling} cuts squares, but the backbone takes {tuple(sample_shape)}; choose a square one"
            )

    def content(self) -> list[Any]:
        return [*super().content(), self._views()]

    def description(self) -> dict[str, Any]:
        return {**super().description(), **self._views(), "separator": self.separator}

    def _views(self) -> dict[str, Any]:
        return {"num_clips": self.num_clips, "num_crops": self.num_crops, "sampling": self.sampling}


def middle_frames(num_video_frames: int, num_frames: int) -> list[int]:
    """The middle frame of each of ``num_frames`` equal parts; the last one repeated where the video is shorter.

    >>> middle_frames(100, 4), middle_frames(2, 4)
    ([12, 37, 62, 87], [0, 1, 1, 1])
    """
    num_parts = min(num_frames, num_video_frames)
    # not i * n // num_parts: linspace in float64, truncated, is what UMT computes
    cuts = np.linspace(0, num_video_frames, num_parts + 1).astype(int).tolist()
    middles = [(cuts[i] + cuts[i + 1] - 1) // 2 for i in range(num_parts)]
    return middles + middles[-1:] * (num_frames - num_parts)


def read_clip(
    path: str, num_frames: int, size: tuple[int, ...], preprocess: Preprocess, *, max_seconds: float | None = None
) -> np.ndarray:
    """(T, 3, H, W) uint8: the middle frames, of the first ``max_seconds`` if given, fitted to ``size``.

    Raises as ``read_frames`` does.
    """
    rate = None if max_seconds is None else _frame_rate(path)

    def choose(num_video_frames: int) -> list[int]:
        if max_seconds is not None and rate is not None:
            num_video_frames = first_frames(num_video_frames, rate, max_seconds)
        return middle_frames(num_video_frames, num_frames)

    return np.stack(read_frames(path, choose, lambda pixels_HWC: fit(pixels_HWC, size, preprocess)))


def read_views(path: str, num_frames: int, side: int, *, sampling: str, num_clips: int, num_crops: int) -> np.ndarray:
    """(V, T, 3, side, side) uint8; view ``clip * num_crops + crop``. Raises as ``read_frames`` does."""

    def choose(num_video_frames: int) -> list[int]:
        return [frame for clip in SAMPLINGS[sampling](num_video_frames, num_frames, num_clips) for frame in clip]

    frames = np.stack(read_frames(path, choose, lambda pixels_HWC: fit_short_side(pixels_HWC, side)))
    clips = [frames[clip * num_frames :][:num_frames] for clip in range(num_clips)]
    return np.stack([crop for clip in clips for crop in cut(clip, side, num_crops)])


def first_frames(num_video_frames: int, rate: float, max_seconds: float) -> int:
    """How many frames are of the first ``max_seconds``, at ``rate`` frames a second: UMT's rule for DiDeMo.

    >>> first_frames(1000, 30000 / 1001, 30), first_frames(899, 30000 / 1001, 30)
    (899, 899)
    """
    return max(1, int(max_seconds * rate)) if num_video_frames / rate > max_seconds else num_video_frames


def read_frames(
    path: str, choose: Callable[[int], list[int]], prepare: Callable[[np.ndarray], np.ndarray]
) -> list[np.ndarray]:
    """The frames that ``choose`` names once it knows how many there are, each as ``prepare`` makes it of (H, W, 3) uint8.

    Frames are counted by decoding, since headers err or are silent; where the number expected was wrong, the video is
    decoded a second time. Raises ValueError for a video that is empty, cut short, damaged or beyond the caps, and what
    PyAV raises. What nothing in the file gives away passes: the loss of less than a tenth or half a second, the loss of
    the end where the header states no duration (gif), wrong bits that the codec decodes all the same (vp9).
    """
    num_expected = _survey(path)
    num_decoded, frames = _decode(path, choose(num_expected), prepare)
    if num_decoded != num_expected:
        num_expected = num_decoded
        num_decoded, frames = _decode(path, choose(num_expected), prepare)
    if num_decoded != num_expected:
        raise ValueError(f"decoding gave {num_expected} frames, then {num_decoded}")
    return [frames[i] for i in choose(num_expected)]


def _frame_rate(path: str) -> float:
    """The average that the header states, as decord tells it."""
    with _open(path) as container:
        rate = _stream(container).average_rate
    if not rate:
        raise ValueError("its header states no frame rate, so how many frames max_seconds are is not known")
    return float(rate)


def _survey(path: str) -> int:
    """The number of video packets (most often that of the frames), from one pass without decoding."""
    num_packets, held_s = 0, 0.0
    with _open(path) as container:
        stream = _stream(container)
        start_s = (container.start_time or 0) / av.time_base
        for packet in container.demux():
            time = packet.dts if packet.pts is None else packet.pts
            if packet.size and time is not None:
                held_s = max(held_s, float((time + (packet.duration or 0)) * packet.time_base) - start_s)
            num_packets += packet.size > 0 and packet.stream.index == stream.index
            if num_packets > MAX_FRAMES:
                raise ValueError(f"more than {MAX_FRAMES} frames")
        promised_s = (container.duration or 0) / av.time_base
    if num_packets == 0:
        raise ValueError("no frames")
    if promised_s - held_s > max(0.5, 0.1 * promised_s):
        raise ValueError(f"cut short: {promised_s:.1f} s by its header, {held_s:.1f} s in the file")
    return num_packets


def _decode(
    path: str, wanted: list[int], prepare: Callable[[np.ndarray], np.ndarray]
) -> tuple[int, dict[int, np.ndarray]]:
    """The number of frames, and those wanted, prepared; only these are converted."""
    frames, num_frames, chosen = {}, 0, set(wanted)
    for index, frame in enumerate(_frames(path)):
        num_frames = index + 1
        if index in chosen:
            pixels_HWC = frame.to_ndarray(format="rgb24", threads=1)
            frames[index] = prepare(np.ascontiguousarray(np.rot90(pixels_HWC, round(frame.rotation / 90))))
    if num_frames == 0:
        raise ValueError("no frames")
    return num_frames, frames


def _frames(path: str) -> Iterator[av.VideoFrame]:
    with _open(path) as container:
        stream = _stream(container)
        stream.codec_context.thread_count = 1  # the loader's workers are the parallel part
        stream.codec_context.options = DECODING
        num_pixels = 0
        for index, frame in enumerate(container.decode(stream)):
            if index >= MAX_FRAMES:
                raise ValueError(f"more than {MAX_FRAMES} frames")
            if frame.is_corrupt:
                raise ValueError(f"frame {index} is damaged")
            _check_size(frame.width, frame.height)
            num_pixels += frame.width * frame.height
            if num_pixels > MAX_PIXELS_IN_ALL:
                raise ValueError(f"more than {MAX_PIXELS_IN_ALL} pixels in all its frames")
            yield frame


def _open(path: str) -> av.container.InputContainer:
    return av.open(path, options={"format_whitelist": FORMATS, "protocol_whitelist": "file", **DECODING})


def _stream(container: av.container.InputContainer) -> av.VideoStream:
    """The best video stream, by FFmpeg's rules: a cover picture is not."""
    stream = container.streams.best("video")
    if not isinstance(stream, av.VideoStream):
        raise ValueError("no video in it")
    _check_size(stream.codec_context.width, stream.codec_context.height)
    return stream


def _check_size(width: int, height: int) -> None:
    if not width * height:  # as FFmpeg has it where there are more
        raise ValueError(f"frames of more than {MAX_PIXELS} pixels, or of no known size")
    if max(width, height) > MAX_SIDE:
        raise ValueError(f"frames of {width} x {height}, more than {MAX_SIDE} on a side")
    if width * height > MAX_PIXELS:
        raise ValueError(f"frames of {width} x {height}, more than {MAX_PIXELS} pixels")
