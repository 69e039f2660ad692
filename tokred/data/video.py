"""Videos from a folder, decoded in sequence with PyAV and sampled as UMT does.

Frames equal those of decord 0.6, UMT's reader, bit for bit on 8-bit video of even size (tried: h264, vp8, vp9, mpeg2,
mpeg4, 4:2:0 and 4:4:4, rotations, colour spaces); on 10-bit and on odd-sized video they differ in how chroma is scaled.
Two differences are meant: a trimmed mp4 (edit list) gives the frames that a player shows, and a damaged or shortened
file is reported, where decord goes on with what it can read.

Dimension key: T frames, H height, W width.
"""

from collections.abc import Iterator

import av
import numpy as np

from tokred.data.files import FileSource
from tokred.data.loading import fit
from tokred.preprocess import Preprocess

# Demuxers that may open a file, whatever it is called: none of them reads other files, as playlists do.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts,mpeg,flv,asf,ogg"
MAX_SIDE = 8192  # pixels; a frame of that size takes 200 MB as RGB
MAX_FRAMES = 100_000  # over an hour at 25 frames a second


class VideoFolder(FileSource):
    """Videos in class folders, in one folder, or named by a CSV (``tokred.data.files``)."""

    name = "video_folder"
    kind = "clip"
    extensions = (
        *(".mp4", ".m4v", ".mov", ".3gp", ".webm", ".mkv", ".avi", ".gif"),
        *(".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".ogv"),
    )

    def pixels(self, path: str, sample_shape: tuple[int, ...], preprocess: Preprocess) -> np.ndarray:
        return read_clip(path, sample_shape[0], sample_shape[-2:], preprocess)


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


def read_clip(path: str, num_frames: int, size: tuple[int, ...], preprocess: Preprocess) -> np.ndarray:
    """(T, 3, H, W) uint8: the middle frames, fitted to ``size``.

    Frames are counted by decoding, since headers err or are silent; where the number expected was wrong, the video is
    decoded a second time. Raises ValueError for a video that is empty, cut short, damaged or beyond the caps, and what
    PyAV raises. What nothing in the file gives away passes: the loss of less than a tenth or half a second, the loss of
    the end where the header states no duration (gif), wrong bits that the codec decodes all the same (vp9).
    """
    num_expected = _survey(path)
    num_decoded, frames = _decode(path, middle_frames(num_expected, num_frames), size, preprocess)
    if num_decoded != num_expected:
        num_expected = num_decoded
        num_decoded, frames = _decode(path, middle_frames(num_expected, num_frames), size, preprocess)
    if num_decoded != num_expected:
        raise ValueError(f"decoding gave {num_expected} frames, then {num_decoded}")
    return np.stack([frames[i] for i in middle_frames(num_expected, num_frames)])


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
    path: str, wanted: list[int], size: tuple[int, ...], preprocess: Preprocess
) -> tuple[int, dict[int, np.ndarray]]:
    """The number of frames, and those wanted, (3, H, W) uint8; only these are converted."""
    frames, num_frames = {}, 0
    for index, frame in enumerate(_frames(path)):
        num_frames = index + 1
        if index in wanted:
            pixels_HWC = frame.to_ndarray(format="rgb24", threads=1)
            upright_HWC = np.ascontiguousarray(np.rot90(pixels_HWC, round(frame.rotation / 90)))
            frames[index] = fit(upright_HWC, size, preprocess)
    if num_frames == 0:
        raise ValueError("no frames")
    return num_frames, frames


def _frames(path: str) -> Iterator[av.VideoFrame]:
    with _open(path) as container:
        stream = _stream(container)
        stream.codec_context.thread_count = 1  # the loader's workers are the parallel part
        for index, frame in enumerate(container.decode(stream)):
            if index >= MAX_FRAMES:
                raise ValueError(f"more than {MAX_FRAMES} frames")
            if frame.is_corrupt:
                raise ValueError(f"frame {index} is damaged")
            _check_side(frame.width, frame.height)
            yield frame


def _open(path: str) -> av.container.InputContainer:
    return av.open(path, options={"format_whitelist": FORMATS, "protocol_whitelist": "file"})


def _stream(container: av.container.InputContainer) -> av.VideoStream:
    """The best video stream, by FFmpeg's rules: a cover picture is not."""
    stream = container.streams.best("video")
    if not isinstance(stream, av.VideoStream):
        raise ValueError("no video in it")
    _check_side(stream.codec_context.width, stream.codec_context.height)
    return stream


def _check_side(width: int, height: int) -> None:
    if max(width, height) > MAX_SIDE:
        raise ValueError(f"frames of {width} x {height}, more than {MAX_SIDE} on a side")
