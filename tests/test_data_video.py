"""Videos made here with PyAV: the frames that are read, and what is said of those that cannot be."""

import os
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torchvision.transforms.functional as vision

from tests.videos import CODECS, add_sound, all_frames, write
from tokred.data import Preprocess, VideoFolder, create_data, video
from tokred.data.loading import fit
from tokred.data.video import first_frames, middle_frames, read_clip
from tokred.data.views import fit_short_side, sparse_frames, ssv2_frames

UMT = Preprocess()
SHAPE = (4, 3, 32, 48)


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


# Views of action recognition


@pytest.mark.parametrize(("sampling", "num_clips"), [("sparse", 4), ("sparse", 1), ("ssv2", 2)])
@pytest.mark.parametrize("size", [(64, 96), (96, 64)])
def test_views_are_crops_of_clips(tmp_path, sampling, num_clips, size):
    path = write(tmp_path / "a.mp4", 30, height=size[0], width=size[1])
    source = VideoFolder(tmp_path, sampling=sampling, num_clips=num_clips, num_crops=3)
    (batch,) = source.loader((4, 3, 32, 32), Preprocess(mean=(0, 0, 0), std=(1, 1, 1)), batch_size=2)
    assert source.num_views == num_clips * 3 and batch.inputs.shape == (1, num_clips * 3, 4, 3, 32, 32)
    frames = torch.from_numpy(
        np.stack([fit_short_side(frame, 32) for frame in all_frames(path).permute(0, 2, 3, 1).numpy()])
    )
    of_clips = {"sparse": sparse_frames, "ssv2": ssv2_frames}[sampling](30, 4, num_clips)
    for clip in range(num_clips):
        for crop, start in enumerate((0, 8, 16)):  # 32 x 48
            view = (batch.inputs[0, clip * 3 + crop] * 255).round().byte()
            assert torch.equal(view, frames[of_clips[clip]].narrow(2 if size[0] > size[1] else 3, start, 32))


def test_a_single_view_has_no_dimension_of_views(tmp_path):
    path = write(tmp_path / "a.mp4")
    source = VideoFolder(tmp_path, sampling="sparse")
    (batch,) = source.loader((4, 3, 32, 32), Preprocess(mean=(0, 0, 0), std=(1, 1, 1)), batch_size=2)
    assert source.num_views == 1 and batch.inputs.shape == (1, 4, 3, 32, 32)
    frame = fit_short_side(all_frames(path)[sparse_frames(30, 4, 1)[0][2]].permute(1, 2, 0).numpy(), 32)
    assert np.array_equal((batch.inputs[0, 2] * 255).round().byte(), frame[..., 8:40])


def test_all_views_come_of_one_decoding(tmp_path, monkeypatch):
    opened, decode = [], video._frames

    def count(path: str):
        opened.append(path)
        return decode(path)

    monkeypatch.setattr(video, "_frames", count)
    source = VideoFolder(write(tmp_path / "a.webm", 40).parent, sampling="sparse", num_clips=4, num_crops=3)
    (batch,) = source.loader((4, 3, 32, 32), UMT, batch_size=1)
    assert batch.problems == [] and len(opened) == 1


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_batch_of_views_with_a_broken_video_is_what_is_left(tmp_path, num_workers):
    write(tmp_path / "b.mp4")
    for name in ("a.mp4", "c.mp4"):
        (tmp_path / name).write_bytes(b"")
    source = VideoFolder(tmp_path, sampling="ssv2", num_clips=2, num_crops=3)
    batches = list(source.loader((4, 3, 32, 32), UMT, batch_size=2, num_workers=num_workers))
    assert [batch.inputs.shape for batch in batches] == [(1, 6, 4, 3, 32, 32), (0, 6, 4, 3, 32, 32)]
    assert [problem.path for batch in batches for problem in batch.problems] == ["a.mp4", "c.mp4"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": "dense"}, "sampling must be one of middle, sparse, ssv2, not 'dense'"),
        ({"num_clips": 2}, "sampling=middle has one view, so num_clips and num_crops must be 1, not 2 and 1; choose"),
        ({"num_crops": 3}, "sampling=middle has one view"),
        ({"sampling": "sparse", "num_crops": 0}, "num_clips and num_crops must be 1 or more, not 1 and 0"),
        ({"sampling": "ssv2", "num_clips": 3}, "num_clips must be 1 or 2 with sampling=ssv2, not 3"),
    ],
)
def test_views_that_there_are_not_are_refused(tmp_path, options, message):
    write(tmp_path / "a.mp4", 2)
    with pytest.raises(ValueError, match=message):
        VideoFolder(tmp_path, **options)


def test_square_crops_for_a_model_of_oblongs_are_refused(tmp_path):
    write(tmp_path / "a.mp4", 2)
    with pytest.raises(ValueError, match="sampling=sparse cuts squares, but the backbone takes"):
        VideoFolder(tmp_path, sampling="sparse").loader(SHAPE, UMT, batch_size=1)


def test_views_change_the_digest_and_are_in_the_description(tmp_path):
    write(tmp_path / "a.mp4", 2)
    source = VideoFolder(tmp_path, sampling="ssv2", num_clips=2, num_crops=3, separator=" ")
    again = create_data(**source.description())
    assert again.description() == source.description() and again.digest() == source.digest()
    assert len({VideoFolder(tmp_path, sampling=name).digest() for name in ("middle", "sparse", "ssv2")}) == 3


# The first seconds


@pytest.mark.parametrize(
    ("num_video_frames", "rate", "expected"),
    [
        (750, 25.0, 750),
        (751, 25.0, 750),
        (1000, 30000 / 1001, 899),
        (899, 30000 / 1001, 899),
        (100, 1.0, 30),
        (5, 0.1, 3),
    ],
)
def test_the_first_seconds_are_umts_for_didemo(num_video_frames, rate, expected):
    assert first_frames(num_video_frames, rate, 30) == expected


def test_the_first_seconds_hold_a_frame(tmp_path):
    assert first_frames(100, 25.0, 0.01) == 1
    clip = read_clip(str(write(tmp_path / "a.mp4", 30)), 4, (64, 96), UMT, max_seconds=0.01)
    assert np.array_equal(clip, all_frames(tmp_path / "a.mp4")[[0, 0, 0, 0]])


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


def test_the_columns_of_a_csv_can_be_separated_by_a_space(tmp_path):
    write(tmp_path / "set" / "a.mp4", 5)
    (tmp_path / "test.csv").write_text("a.mp4 17\n")
    source = VideoFolder(tmp_path / "set", csv=tmp_path / "test.csv", separator=" ")
    assert source.path(0) == "a.mp4" and source.label(0) == 17
    (tmp_path / "test.csv").write_text("a b.mp4 17\n")
    with pytest.raises(ValueError, match="line 1 of .* must hold path,label or path alone, not 3 columns"):
        VideoFolder(tmp_path / "set", csv=tmp_path / "test.csv", separator=" ")


@pytest.mark.parametrize("separator", ["", ", ", "\n", '"'])
def test_a_separator_of_another_length_is_refused(tmp_path, separator):
    write(tmp_path / "a.mp4", 2)
    (tmp_path / "test.csv").write_text("a.mp4,17\n")
    with pytest.raises(ValueError, match="separator must be one character"):
        VideoFolder(tmp_path, csv=tmp_path / "test.csv", separator=separator)


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
