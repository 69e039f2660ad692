"""Videos made here with PyAV: the frames that are read, and what is said of those that cannot be."""

import os
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torchvision.transforms.functional as vision

from tokred.data import Preprocess, VideoFolder, create_data, video
from tokred.data.loading import fit
from tokred.data.video import middle_frames, read_clip

UMT = Preprocess()
SHAPE = (4, 3, 32, 48)
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


def as_umt(frames: torch.Tensor, shape=SHAPE) -> torch.Tensor:
    """UMT's input from all frames of a video, its steps spelled out with torchvision."""
    chosen = frames[middle_frames(len(frames), shape[0])]
    resized = vision.resize(chosen, list(shape[-2:]), vision.InterpolationMode.BICUBIC, antialias=False)
    return vision.normalize(resized / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def only_batch(root: Path, *, shape=SHAPE, num_workers: int = 0, preprocess: Preprocess = UMT):
    (batch,) = VideoFolder(root).loader(shape, preprocess, batch_size=16, num_workers=num_workers)
    return batch


def reason(path: Path) -> str:
    """Why this one file could not be read."""
    batch = only_batch(path.parent)
    assert len(batch.inputs) == 0
    ((name, why),) = batch.problems
    assert name == path.name
    return why


# Sampling


@pytest.mark.parametrize(
    ("num_video_frames", "num_frames", "expected"),
    [
        (301, 12, [12, 37, 62, 87, 112, 137, 162, 187, 212, 237, 262, 287]),
        (100, 12, [3, 11, 20, 28, 36, 45, 53, 61, 70, 78, 86, 95]),
        (5, 12, [0, 1, 2, 3, 4, 4, 4, 4, 4, 4, 4, 4]),
        (12, 12, list(range(12))),
        (1, 4, [0, 0, 0, 0]),
        (1000, 1, [499]),
    ],
)
def test_frames_are_umts_middle_frames(num_video_frames, num_frames, expected):
    """The first three are vectors of UMT's own code; the others follow by hand."""
    assert middle_frames(num_video_frames, num_frames) == expected


@pytest.mark.parametrize("num_frames", [1, 4, 8, 12, 16])
def test_middle_frames_are_in_order_and_in_range(num_frames):
    for num_video_frames in range(1, 400):
        chosen = middle_frames(num_video_frames, num_frames)
        assert (
            len(chosen) == num_frames and chosen == sorted(chosen) and chosen[0] >= 0 and chosen[-1] < num_video_frames
        )


# Decoding


@pytest.mark.parametrize("name", CODECS)
def test_inputs_equal_those_of_a_full_decode(tmp_path, name):
    path = write(tmp_path / name)
    batch = only_batch(tmp_path)
    assert batch.problems == [] and batch.inputs.shape == (1, *SHAPE)
    assert torch.equal(batch.inputs[0], as_umt(all_frames(path)))


@pytest.mark.parametrize("name", CODECS)
def test_the_frames_are_those_that_were_written(tmp_path, name):
    """The bar says which frame it is, in steps of 8 grey values; codecs are off by less than half a step, gif by more."""
    pixels = torch.from_numpy(read_clip(str(write(tmp_path / name)), 4, (64, 96), UMT))
    bars = pixels[:, :, 1:7, 8:88].float().mean((1, 2, 3))
    tolerance = 20 if name == "a.gif" else 4
    assert (bars - torch.tensor([8.0 * number for number in (3, 10, 18, 25)])).abs().max() < tolerance


def test_a_short_video_repeats_its_last_frame(tmp_path):
    path = write(tmp_path / "a.mp4", 2)
    frames = torch.from_numpy(read_clip(str(path), 4, (64, 96), UMT))
    assert torch.equal(frames, all_frames(path)[[0, 1, 1, 1]])


def test_a_video_of_one_frame_is_read(tmp_path):
    for name in ("a.mp4", "a.webm", "a.gif"):
        write(tmp_path / name, 1)
    assert only_batch(tmp_path).problems == []


def test_frames_are_counted_by_decoding(tmp_path):
    """A trimmed mp4 holds 60 packets, of which its edit list shows 35."""
    whole = write(tmp_path / "whole" / "a.mp4", 60)
    path = tmp_path / "trimmed" / "a.mp4"
    path.parent.mkdir()
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        assert stream.time_base is not None
        one_second = round(1 / stream.time_base)
        for packet in source.demux(stream):
            if packet.pts is not None and packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - one_second, packet.dts - one_second, copy
                target.mux(packet)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 60
    frames = all_frames(path)
    assert len(frames) == 35
    assert torch.equal(only_batch(path.parent).inputs[0], as_umt(frames))


def test_only_the_wanted_frames_are_converted(tmp_path, monkeypatch):
    fitted = []

    def count(pixels_HWC: np.ndarray, *rest) -> np.ndarray:
        fitted.append(pixels_HWC)
        return fit(pixels_HWC, *rest)

    monkeypatch.setattr(video, "fit", count)
    assert only_batch(write(tmp_path / "a.webm", 60).parent).problems == []
    assert len(fitted) == SHAPE[0]


@pytest.mark.parametrize(("rotation", "quarters"), [(90, 1), (-90, 3), (180, 2)])
def test_a_rotated_video_is_turned_upright(tmp_path, rotation, quarters):
    """The angle in the file is how far a player turns it, counter-clockwise."""
    path = write(tmp_path / "a.mp4", rotation=rotation)
    expected = all_frames(path)[middle_frames(30, 4)].rot90(quarters, (2, 3))
    assert np.array_equal(read_clip(str(path), 4, tuple(expected.shape[-2:]), UMT), expected)


def test_sound_that_lasts_longer_is_no_problem(tmp_path):
    path = write(tmp_path / "a.mkv", 25, sound_s=4)
    assert torch.equal(only_batch(tmp_path).inputs[0], as_umt(all_frames(path)))


def test_crop_and_antialias_are_those_of_pictures(tmp_path):
    path = write(tmp_path / "a.mp4")
    preprocess = Preprocess(crop_pct=0.9, antialias=True)
    frames = all_frames(path)[middle_frames(30, 4)]
    resized = [vision.resize(vision.to_pil_image(frame), 35, vision.InterpolationMode.BICUBIC) for frame in frames]
    crops = torch.stack([vision.to_tensor(vision.center_crop(picture, [32, 32])) for picture in resized])
    expected = vision.normalize(crops, preprocess.mean, preprocess.std)
    assert torch.equal(only_batch(tmp_path, shape=(4, 3, 32, 32), preprocess=preprocess).inputs[0], expected)


# The source


@pytest.mark.parametrize("num_workers", [0, 1])
def test_labels_are_the_class_folders(tmp_path, num_workers):
    for name in ("run/b.mp4", "run/a.webm", "jump/c.avi"):
        write(tmp_path / name)
    source = VideoFolder(tmp_path)
    assert source.classes == ("jump", "run")
    assert [source.path(index) for index in range(3)] == ["jump/c.avi", "run/a.webm", "run/b.mp4"]
    batch = only_batch(tmp_path, num_workers=num_workers)
    assert batch.label_B.tolist() == [0, 1, 1] and batch.inputs.shape == (3, *SHAPE)
    for index, inputs in enumerate(batch.inputs):
        assert torch.equal(inputs, as_umt(all_frames(tmp_path / source.path(index))))


def test_a_csv_gives_paths_and_labels(tmp_path):
    write(tmp_path / "set" / "a.mp4", 5)
    (tmp_path / "test.csv").write_text("path,label\na.mp4,17\n")
    source = create_data("video_folder", root=str(tmp_path / "set"), csv=str(tmp_path / "test.csv"))
    assert len(source) == 1 and source.label(0) == 17 and source.has_labels


def test_videos_on_a_picture_backbone_are_refused(tmp_path):
    write(tmp_path / "a.gif", 1)
    with pytest.raises(
        ValueError, match=r"video_folder holds clips, but the backbone takes images of shape \(3, 32, 32\)"
    ):
        VideoFolder(tmp_path).loader((3, 32, 32), UMT, batch_size=1)


# What cannot be read


@pytest.mark.parametrize("num_workers", [0, 1])
def test_broken_videos_are_problems_and_the_rest_is_read(tmp_path, num_workers):
    path = write(tmp_path / "good.mp4")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.webm").write_text("no video")
    batch = only_batch(tmp_path, num_workers=num_workers)
    assert batch.index_B.tolist() == [1] and torch.equal(batch.inputs[0], as_umt(all_frames(path)))
    assert [(path, why.split(":")[0]) for path, why in batch.problems] == [
        ("empty.mp4", "InvalidDataError"),
        ("text.webm", "InvalidDataError"),
    ]


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.webm", "a.avi"])
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_a_video_cut_short_is_a_problem(tmp_path, name, share):
    path = write(tmp_path / name, 60)
    os.truncate(path, int(path.stat().st_size * share))
    assert reason(path)


def test_an_mp4_cut_short_behind_its_header_is_a_problem(tmp_path):
    path = write(tmp_path / "a.mp4", 60, movflags="faststart")
    os.truncate(path, int(path.stat().st_size * 0.6))
    assert "cut short: 2.4 s by its header" in reason(path)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_a_damaged_video_is_a_problem(tmp_path, name):
    """Not so for webm: vp9 decodes wrong bits without a word."""
    path = write(tmp_path / name, 60)
    content = bytearray(path.read_bytes())
    third = len(content) // 3
    content[third : third + 2000] = bytes(2000)
    path.write_bytes(content)
    assert reason(path)


def test_a_file_with_sound_alone_is_a_problem(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        add_sound(container, container.add_stream("aac", rate=8000), 1)
    assert reason(tmp_path / "a.mp4") == "ValueError: no video in it"


def test_a_video_without_frames_is_a_problem(tmp_path):
    assert reason(write(tmp_path / "a.mkv", 0))


@pytest.mark.parametrize("text", ["ffconcat version 1.0\nfile b.ts\n", "#EXTM3U\n#EXTINF:1,\nb.ts\n#EXT-X-ENDLIST\n"])
@pytest.mark.parametrize("name", ["a.mp4", "a.ts"])
def test_a_playlist_called_a_video_is_not_followed(tmp_path, name, text):
    write(tmp_path / "b.ts", codec=("mpeg2video", "yuv420p"))
    (tmp_path / name).write_text(text)
    batch = only_batch(tmp_path)
    assert [problem.path for problem in batch.problems] == [name] and len(batch.inputs) == 1


def test_frames_beyond_8192_on_a_side_are_a_problem(tmp_path):
    path = write(tmp_path / "a.mkv", 1, codec=("ffv1", "yuv420p"), height=16, width=8208)
    assert reason(path) == "ValueError: frames of 8208 x 16, more than 8192 on a side"


def test_too_many_frames_are_a_problem(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "MAX_FRAMES", 10)
    assert reason(write(tmp_path / "a.mp4", 11)) == "ValueError: more than 10 frames"
    write(tmp_path / "a.mp4", 10)
    assert only_batch(tmp_path).problems == []
