"""Sweeps over real files: videos made with PyAV with a UMT, pictures with a timm ViT, and weights from files."""

import csv
import shutil

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tokred import create_backbone
from tokred.record import Store
from tokred.sweeps.cli import sweep
from tokred.sweeps.watch import Orders, Watch

UMT, VIT = "umt_base_patch16_224", "timm/vit_tiny_patch16_224"
UMT_SIZES = {"embed_dim": 48, "depth": 4, "num_heads": 3, "img_size": 64, "num_frames": 4}  # 64 tokens
VIT_SIZES = {"embed_dim": 48, "depth": 3, "num_heads": 3, "img_size": 64, "patch_size": 8}  # 65 tokens
BROKEN_VIDEO, BROKEN_PICTURE = "falls/2.mp4", "cats/2.png"


def words_of(backbone, sizes, data, root):
    return [
        f"backbones={backbone}",
        *(f"sizes.{name}={n}" for name, n in sizes.items()),
        f"data={data}",
        f"data.root={root}",
    ]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Two classes with three videos each; one is cut short."""
    root = tmp_path_factory.mktemp("videos")
    for number, name in enumerate(f"{kind}/{index}.mp4" for kind in ("falls", "rises") for index in range(3)):
        path = root / name
        path.parent.mkdir(exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.pix_fmt, stream.height, stream.width = "yuv420p", 64, 96
            pixels = np.random.RandomState(number).randint(0, 256, (8, 12, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            for shift in range(20):
                frame = np.ascontiguousarray(np.roll(pixels, 2 * shift, 0))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
    broken = root / BROKEN_VIDEO
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    return root


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two classes with three pictures each; one is a text."""
    root = tmp_path_factory.mktemp("pictures")
    for number, name in enumerate(f"{kind}/{index}.png" for kind in ("cats", "dogs") for index in range(3)):
        (root / name).parent.mkdir(exist_ok=True)
        pixels = np.random.RandomState(number).randint(0, 256, (80, 100, 3), np.uint8)
        Image.fromarray(pixels).save(root / name)
    (root / BROKEN_PICTURE).write_text("not a picture")
    return root


class Sweep:
    """A sweep by its command: exit code, records, the lines of results.csv, what was printed."""

    def __init__(self, words, out, capsys, watch=None):
        self.code = sweep([*words, "timing.rounds=0", f"out={out}"], watch)
        self.said = capsys.readouterr()
        self.records = Store(out).planned()
        with open(out / "results.csv", newline="") as file:
            self.lines = list(csv.DictReader(file))


@pytest.fixture
def of_videos(videos, tmp_path, capsys):
    words = [
        *words_of(UMT, UMT_SIZES, "video_folder", videos),
        "weights=random",
        "methods=[vid_tldr,tome]",
        "budget=0.7",
    ]
    return Sweep(words, tmp_path / "run", capsys)


@pytest.fixture
def of_pictures(pictures, tmp_path, capsys):
    words = [*words_of(VIT, VIT_SIZES, "image_folder", pictures), "weights=random", "methods=[evit,tome]", "budget=0.7"]
    return Sweep([*words, "sizes.num_classes=2"], tmp_path / "run", capsys)


def test_a_sweep_over_videos_runs_every_cell(of_videos):
    assert of_videos.code == 0
    assert [(record.cell["method"], record.status) for record in of_videos.records] == [
        ("none", "done"),
        ("vid_tldr", "done"),
        ("tome", "done"),
    ]


def test_a_sweep_over_pictures_runs_every_cell(of_pictures):
    assert of_pictures.code == 0
    assert [(record.cell["method"], record.status) for record in of_pictures.records] == [
        ("none", "done"),
        ("evit", "done"),
        ("tome", "done"),
    ]


def test_a_broken_video_is_counted_and_named(of_videos):
    for record in of_videos.records:
        assert (record.result["num_samples"], record.result["num_broken"]) == (5, 1)
        ((path, reason),) = record.result["broken"]
        assert path == BROKEN_VIDEO and reason


def test_a_broken_picture_is_counted_and_named(of_pictures):
    for record in of_pictures.records:
        assert (record.result["num_samples"], record.result["num_broken"]) == (5, 1)
        ((path, reason),) = record.result["broken"]
        assert path == BROKEN_PICTURE and "not a picture" in reason


def test_a_picture_that_broke_an_earlier_process_is_counted_and_named_too(pictures, tmp_path, capsys):
    words = [
        *words_of(VIT, VIT_SIZES, "image_folder", pictures),
        "sizes.num_classes=2",
        "weights=random",
        "methods=tome",
        "r=4",
    ]
    refused = {str(pictures / "dogs/1.png"): "reading it crashed its process (SIGSEGV)"}
    ran = Sweep(words, tmp_path / "run", capsys, Watch(Orders(open_files=tmp_path, refused=refused)))
    for record in ran.records:
        assert record.result["broken"][1:] == [["dogs/1.png", "reading it crashed its process (SIGSEGV)"]]


def test_broken_files_stand_below_the_table_and_in_the_csv(of_pictures):
    assert BROKEN_PICTURE in of_pictures.said.out
    assert [line["num_broken"] for line in of_pictures.lines] == ["1", "1", "1"]


def test_random_weights_are_compared_by_agreement_in_record_table_and_csv(of_videos):
    assert {record.result["metric"] for record in of_videos.records} == {"agreement"}
    assert {line["metric"] for line in of_videos.lines} == {"agreement"}
    assert "agreement" in of_videos.said.out and "accuracy" not in of_videos.said.out


def test_a_folder_without_classes_is_compared_by_agreement(pictures, tmp_path, capsys):
    words = words_of(VIT, VIT_SIZES, "image_folder", pictures / "dogs")
    ran = Sweep(
        [*words, f"weights={vit_file(tmp_path)}", "sizes.num_classes=2", "methods=tome", "r=4"],
        tmp_path / "run",
        capsys,
    )
    assert ran.code == 0 and ran.records[0].result["why_agreement"] == "the data has no labels"


def test_a_csv_says_which_files_and_what_they_show(videos, tmp_path, capsys):
    (tmp_path / "some.csv").write_text("path,label\nrises/1.mp4,up\nfalls/0.mp4,down\n")
    words = [*words_of(UMT, UMT_SIZES, "video_folder", videos), f"data.csv={tmp_path / 'some.csv'}"]
    words += [f"weights={umt_file(tmp_path)}", "sizes.num_classes=2"]
    ran = Sweep([*words, "methods=tome", "r=4"], tmp_path / "run", capsys)
    labels = Store(tmp_path / "run").predictions(ran.records[0].key)["label"]
    assert ran.records[0].result["metric"] == "accuracy" and labels.tolist() == [0, 1]


# Weights from files


def umt_file(folder, kind=".safetensors"):
    torch.manual_seed(0)
    return written(create_backbone(UMT, weights="random", **UMT_SIZES, num_classes=2), folder / f"umt{kind}")


def vit_file(folder, kind=".safetensors"):
    torch.manual_seed(0)
    return written(create_backbone(VIT, weights="random", **VIT_SIZES, num_classes=2).vit, folder / f"vit{kind}")


def written(model, path):
    if path.suffix == ".safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save({"model": model.state_dict()}, path)
    return path


@pytest.mark.parametrize("kind", [".safetensors", ".pth"])
def test_a_umt_runs_with_weights_from_a_file(kind, videos, tmp_path, capsys):
    words = [*words_of(UMT, UMT_SIZES, "video_folder", videos), "sizes.num_classes=2", "methods=vid_tldr", "r=8"]
    ran = Sweep([*words, f"weights={umt_file(tmp_path, kind)}"], tmp_path / "run", capsys)
    assert ran.code == 0 and [record.result["metric"] for record in ran.records] == ["accuracy"] * 2


@pytest.mark.parametrize("kind", [".safetensors", ".pth"])
def test_a_vit_runs_with_weights_from_a_file(kind, pictures, tmp_path, capsys):
    words = [*words_of(VIT, VIT_SIZES, "image_folder", pictures), "sizes.num_classes=2", "methods=evit", "r=8"]
    ran = Sweep([*words, f"weights={vit_file(tmp_path, kind)}"], tmp_path / "run", capsys)
    assert ran.code == 0 and [record.result["metric"] for record in ran.records] == ["accuracy"] * 2


def test_the_same_weights_in_another_format_are_the_same_cells(pictures, tmp_path, capsys):
    words = [*words_of(VIT, VIT_SIZES, "image_folder", pictures), "sizes.num_classes=2", "methods=evit", "r=8"]
    Sweep([*words, f"weights={vit_file(tmp_path, '.pth')}"], tmp_path / "run", capsys)
    again = Sweep([*words, f"weights={vit_file(tmp_path)}"], tmp_path / "run", capsys)
    assert "2 of 2 cells were there already" in again.said.out


# What cannot be run


class Unpickled:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def wrong_weights(folder, kind):
    path = folder / f"{kind}.pth"
    if kind == "other":
        torch.save(create_backbone("mini_mean", weights="random").state_dict(), path)
    elif kind == "other sizes":
        torch.save(
            create_backbone(UMT, weights="random", **(UMT_SIZES | {"depth": 5}), num_classes=2).state_dict(), path
        )
    elif kind == "cut short":
        path.write_bytes(umt_file(folder, ".pth").read_bytes()[:5000])
    elif kind == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1")
    elif kind == "code":
        torch.save({"model": Unpickled(folder / "ran")}, path)
    elif kind == "no classifier":
        torch.save(create_backbone(UMT, weights="random", **UMT_SIZES).state_dict(), path)
    return path


def refused(words, tmp_path, capsys):
    """The one line that is said; nothing was written."""
    out = tmp_path / "run"
    assert sweep([*words, f"out={out}"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1
    assert not out.exists()
    return said.err


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "no weights at"),
        ("other", "does not fit this model"),
        ("other sizes", "does not fit this model"),
        ("cut short", "is not a readable checkpoint"),
        ("text", "readable"),
        ("code", "which is not tensors; it is not loaded"),
        ("no classifier", "classifier"),
    ],
)
def test_weights_that_cannot_be_used_are_one_line_that_names_the_file(kind, said, videos, tmp_path, capsys):
    path = wrong_weights(tmp_path, kind)
    words = [*words_of(UMT, UMT_SIZES, "video_folder", videos), "sizes.num_classes=2", "methods=tome", "r=4"]
    line = refused([*words, f"weights={path}".replace(" ", r"\ ")], tmp_path, capsys)
    assert said in line and str(path) in line
    assert not (tmp_path / "ran").exists()


def test_a_vit_refuses_weights_of_other_sizes(pictures, tmp_path, capsys):
    words = [
        *words_of(VIT, VIT_SIZES | {"depth": 2}, "image_folder", pictures),
        "sizes.num_classes=2",
        "methods=tome",
        "r=4",
    ]
    assert "does not fit this model" in refused([*words, f"weights={vit_file(tmp_path)}"], tmp_path, capsys)


def test_a_model_without_a_classifier_is_told_how_to_get_one(videos, tmp_path, capsys):
    words = [*words_of(UMT, UMT_SIZES, "video_folder", videos), "methods=tome", "r=4"]
    line = refused(
        [*words, f"weights={wrong_weights(tmp_path, 'no classifier')}".replace(" ", r"\ ")], tmp_path, capsys
    )
    assert "add sizes.num_classes=K" in line


@pytest.mark.parametrize(("backbone", "sizes"), [(UMT, UMT_SIZES), (VIT, VIT_SIZES)])
def test_data_of_the_other_kind_is_refused(backbone, sizes, videos, pictures, tmp_path, capsys):
    data, root = ("image_folder", pictures) if backbone == UMT else ("video_folder", videos)
    words = [*words_of(backbone, sizes, data, root), "weights=random", "methods=tome", "r=4"]
    assert "but the backbone takes" in refused(words, tmp_path, capsys)


def test_an_empty_folder_is_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    words = [*words_of(VIT, VIT_SIZES, "image_folder", tmp_path / "empty"), "weights=random", "methods=tome", "r=4"]
    assert "no files to read in" in refused(words, tmp_path, capsys)


def test_pretrained_weights_without_a_network_are_refused(pictures, tmp_path, capsys):
    words = [*words_of(VIT, VIT_SIZES, "image_folder", pictures), "weights=pretrained", "methods=tome", "r=4"]
    assert "give weights=PATH" in refused(words, tmp_path, capsys)


def test_where_no_file_can_be_read_the_cells_fail_and_say_why(pictures, tmp_path, capsys):
    (tmp_path / "all_broken").mkdir()
    shutil.copy(pictures / BROKEN_PICTURE, tmp_path / "all_broken" / "a.png")
    words = [
        *words_of(VIT, VIT_SIZES, "image_folder", tmp_path / "all_broken"),
        "weights=random",
        "methods=tome",
        "r=4",
    ]
    ran = Sweep([*words, "sizes.num_classes=2"], tmp_path / "run", capsys)
    assert ran.code == 4
    assert {record.reason for record in ran.records} == {
        "not one of the 1 files could be read; the first: a.png: ValueError: "
        "not a picture in JPEG, PNG, WEBP, BMP, TIFF, PPM format"
    }
