"""Small videos, made with PyAV, and all that is in one."""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import torch

CODECS = {
    "a.mp4": ("libx264", "yuv420p"),
    "a.mov": ("libx264", "yuv420p"),
    "a.mkv": ("libx264", "yuv420p"),
    "a.webm": ("libvpx-vp9", "yuv420p"),
    "a.avi": ("mpeg4", "yuv420p"),
    "a.mpg": ("mpeg2video", "yuv420p"),
    "a.gif": ("gif", "rgb8"),
}


def pictures(num_frames: int, height: int = 64, width: int = 96) -> Iterator[np.ndarray]:
    """Coloured blocks that move, and a bar that says which frame it is."""
    blocks = np.random.RandomState(0).randint(0, 256, (-(-height // 8), -(-width // 8), 3), np.uint8)
    pixels = blocks.repeat(8, 0).repeat(8, 1)[:height, :width]
    for number in range(num_frames):
        frame = np.roll(pixels, 2 * number, 1)
        frame[:8] = number * 8 % 256
        yield frame


def write(path: Path, num_frames: int = 30, *, rotation: int = 0, sound_s: float = 0, codec=None, **options) -> Path:
    path.parent.mkdir(exist_ok=True)
    codec, pixel_format = codec or CODECS["a" + path.suffix]
    size = {name: options.pop(name) for name in ("height", "width") if name in options}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.pix_fmt, stream.height, stream.width = pixel_format, size.get("height", 64), size.get("width", 96)
        stream.bit_rate = 4_000_000  # else some codecs repeat a frame to save bits
        sound = container.add_stream("aac", rate=8000) if sound_s else None
        if rotation:
            stream.set_display_rotation(rotation)
        container.start_encoding()
        for pixels in pictures(num_frames, **size):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        container.mux(stream.encode())
        if sound is not None:
            add_sound(container, sound, sound_s)
    return path


def add_sound(container, sound, sound_s: float) -> None:
    for start in range(0, int(8000 * sound_s), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts = 8000, start
        container.mux(sound.encode(frame))
    container.mux(sound.encode())


def all_frames(path: Path) -> torch.Tensor:
    """(number of frames, 3, H, W) uint8, by way of PyAV's pictures."""
    with av.open(str(path)) as container:
        frames = [np.array(frame.to_image()) for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
