"""Folders and CSVs, what a loader gives, and how data are made by name. The files are small PNGs."""

import os
import pickle
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities import move_data_to_device
from PIL import Image

from tokred.data import DATA, Batch, ImageFolder, MovingShapes, Preprocess, Problem, create_data
from tokred.data.files import reading
from tokred.data.loading import Unreadable

SHAPE = (3, 8, 8)
PLAIN = Preprocess(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def picture(path: Path, grey: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), grey, np.uint8)).save(path)


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Five readable files in two classes; the grey value is the index in the data set's order."""
    names = ["cat/a.png", "cat/b.png", "cat/c.png", "dog/a.png", "dog/b.PNG"]
    for grey, name in enumerate(names):
        picture(tmp_path / "set" / name, grey)
    return tmp_path / "set"


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    for grey, name in enumerate(["a.png", "b.png", "c.png"]):
        picture(tmp_path / "set" / name, grey)
    return tmp_path / "set"


def listed(root: Path, text: str | bytes, **options) -> ImageFolder:
    csv = root.parent / "list.csv"
    csv.write_bytes(text.encode() if isinstance(text, str) else text)
    return ImageFolder(root, csv=csv, **options)


def paths(source: ImageFolder) -> list[str]:
    return [source.path(index) for index in range(len(source))]


def labels(source: ImageFolder) -> list[int]:
    return [source.label(index) for index in range(len(source))]


@contextmanager
def refused(text: str):
    """A ValueError whose message is one line and holds the text."""
    with pytest.raises(ValueError) as caught:
        yield
    assert text in str(caught.value) and "\n" not in str(caught.value)


# Folders


def test_class_folders_are_numbered_by_sorted_name(classes):
    source = ImageFolder(classes)
    assert source.classes == ("cat", "dog") and source.has_labels
    assert paths(source) == ["cat/a.png", "cat/b.png", "cat/c.png", "dog/a.png", "dog/b.PNG"]
    assert labels(source) == [0, 0, 0, 1, 1]


def test_an_empty_class_folder_keeps_its_number(classes):
    (classes / "cow").mkdir()
    source = ImageFolder(classes)
    assert source.classes == ("cat", "cow", "dog") and set(labels(source)) == {0, 2}


def test_hidden_names_and_other_extensions_are_passed_over(classes):
    picture(classes / ".cache" / "x.png")
    picture(classes / "cat" / "._a.png")
    (classes / "README.txt").write_text("no picture")
    (classes / "cat" / "Thumbs.db").write_text("no picture")
    assert len(ImageFolder(classes)) == 5 and ImageFolder(classes).classes == ("cat", "dog")


def test_a_flat_folder_has_no_labels(flat):
    source = ImageFolder(flat)
    assert not source.has_labels and source.classes == () and labels(source) == [-1, -1, -1]


def test_a_flat_folder_may_have_folders_without_files(flat):
    (flat / "notes").mkdir()
    assert len(ImageFolder(flat)) == 3


def test_files_beside_class_folders_are_refused(classes):
    picture(classes / "x.png")
    with refused("it holds both (x.png and cat/a.png)"):
        ImageFolder(classes)


def test_folders_inside_class_folders_are_refused(classes):
    with refused("its folder 'set' holds a folder 'cat'"):
        ImageFolder(classes.parent)


@pytest.mark.parametrize("inside", [(), ("cat",)])
def test_a_folder_without_such_files_is_refused(tmp_path, inside):
    for name in inside:
        (tmp_path / name).mkdir()
    with refused(f"no files to read in {tmp_path}; their names must end in .jpg"):
        ImageFolder(tmp_path)


def test_a_missing_root_is_refused(tmp_path, flat):
    with refused(f"root of image_folder must be a folder, but there is none at {tmp_path / 'no'}"):
        ImageFolder(tmp_path / "no")
    with refused("must be a folder"):
        ImageFolder(flat / "a.png")


# Links


def test_a_link_that_leaves_the_root_is_refused(classes, tmp_path):
    picture(tmp_path / "outside.png")
    (classes / "cat" / "z.png").symlink_to(tmp_path / "outside.png")
    with refused(
        f"z.png is a link to {tmp_path / 'outside.png'}; folders must be real and links must stay inside root"
    ):
        ImageFolder(classes)


def test_a_link_inside_the_root_is_read(classes):
    (classes / "dog" / "z.png").symlink_to(classes / "cat" / "a.png")
    assert paths(ImageFolder(classes))[-1] == "dog/z.png"


def test_a_linked_folder_is_refused(classes):
    (classes / "elk").symlink_to(classes / "cat")
    with refused("elk is a link to"):
        ImageFolder(classes)


def test_a_linked_root_is_followed(classes, tmp_path):
    (tmp_path / "link").symlink_to(classes)
    assert len(ImageFolder(tmp_path / "link")) == 5


# CSV


@pytest.mark.parametrize(
    "text",
    [
        "c.png,2\na.png,0\nb.png,7\n",
        "path,label\nc.png,2\na.png,0\nb.png,7\n",
        "Label, Path\r\n2,c.png\r\n0, a.png\r\n\r\n7,./b.png\r\n",
        b"\xef\xbb\xbfpath,label\nc.png,2\na.png,0\nb.png,7",
    ],
    ids=["plain", "header", "columns_swapped", "byte_order_mark"],
)
def test_integer_labels_are_taken_as_they_are_in_path_order(flat, text):
    source = listed(flat, text)
    assert paths(source) == ["a.png", "b.png", "c.png"] and labels(source) == [0, 7, 2]
    assert source.has_labels and source.classes == ()


def test_class_names_in_a_csv_are_numbered_by_sorted_name(flat):
    source = listed(flat, 'a.png,dog\nb.png,cat\nc.png,"dog, large"\n')
    assert source.classes == ("cat", "dog", "dog, large") and labels(source) == [1, 0, 2]


def test_a_csv_of_paths_alone_has_no_labels(flat):
    source = listed(flat, "b.png\na.png\n")
    assert labels(source) == [-1, -1] and not source.has_labels


def test_a_file_that_is_not_there_is_a_problem(flat):
    (flat / "folder.png").mkdir()
    source = listed(flat, "a.png\nzz.png\nfolder.png\n")
    (batch,) = source.loader(SHAPE, PLAIN, batch_size=4)
    assert batch.problems == [("folder.png", "there is no such file"), ("zz.png", "there is no such file")]
    assert batch.index_B.tolist() == [0]


def test_a_csv_of_which_no_file_is_there_is_refused(flat):
    with refused(f"none of the 2 files that {flat.parent / 'list.csv'} names is there; is {flat} the right root?"):
        listed(flat, "x.png,0\ny.png,1\n")
    with refused("the right root? The first is 'a.png 0'"):  # which shows that the separator is another one
        listed(flat, "a.png 0\nb.png 1\n")


@pytest.mark.parametrize("path", ["../outside.png", "/etc/passwd", "link.png", ".", "a.png\0"])
def test_a_path_that_leaves_the_root_is_refused(flat, path):
    picture(flat.parent / "outside.png")
    (flat / "link.png").symlink_to(flat.parent / "outside.png")
    with refused(f"line 3 of {flat.parent / 'list.csv'}: {path!r} leads out of {flat}"):
        listed(flat, f"path,label\na.png,0\n{path},1\n")


def test_the_path_that_is_checked_is_the_one_that_is_opened(flat):
    """By its links, x/../z.png is far/z.png, which is inside; without its dots, which are taken out, it is z.png."""
    (flat / "far" / "away").mkdir(parents=True)
    (flat / "x").symlink_to(flat / "far" / "away")
    (flat / "z.png").symlink_to(flat.parent / "outside.png")
    with refused("'x/../z.png' leads out of"):
        listed(flat, "a.png,0\nx/../z.png,1\n")


def test_an_absolute_path_inside_the_root_is_read(flat):
    assert len(listed(flat, f"{flat / 'a.png'},0\n")) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,class\na.png,0\n", "must be path and label, once each, not path,class; rename them"),
        ("video,label\na.png,0\n", "must be path and label, once each, not video,label"),
        ("path,path\na.png,b.png\n", "must be path and label, once each, not path,path"),
        ("label\n0\n", "must have a column path, but its header is label; add it"),
        ("a.png,0,1\n", "line 1 of"),
        ("a.png,0\nb.png\n", "must hold path,label, not 'b.png'"),
        ("a.png,0\nb.png,\n", "must hold path,label, not 'b.png,'"),
        ("a.png,0\nb.png,dog\n", "label 'dog' must be an integer from 0, as '0' in line 1 is"),
        ("a.png,dog\nb.png,0\n", "label '0' must be a class name, as 'dog' in line 1 is"),
        ("a.png,-1\n", "label '-1' must be a class name"),
        ("a.png,1.0\n", "label '1.0' must be a class name"),
        ("", "names no files"),
        ("path,label\n", "names no files"),
        (b"a.png,\xff\n", "must be a readable CSV file in UTF-8"),
    ],
)
def test_a_csv_that_cannot_be_understood_is_refused(flat, text, message):
    with refused(message):
        listed(flat, text)


def test_a_csv_error_names_the_line(flat):
    with refused("line 4 of"):
        listed(flat, "path,label\na.png,0\n\nb.png,dog\n")


def test_a_missing_csv_is_refused(flat):
    with refused("must be a readable CSV file"):
        ImageFolder(flat, csv=flat / "no.csv")


# limit


def test_limit_spreads_over_the_classes(classes):
    source = ImageFolder(classes, limit=2)
    assert paths(source) == ["cat/a.png", "cat/c.png"] and source.classes == ("cat", "dog")
    assert labels(ImageFolder(classes, limit=3)) == [0, 0, 1]


def test_a_limit_above_the_number_of_files_takes_all(classes):
    assert len(ImageFolder(classes, limit=99)) == 5


def test_a_limit_below_one_is_refused(classes):
    with refused("limit must be 1 or more, or None for all files, not 0"):
        ImageFolder(classes, limit=0)


# digest and description


def test_the_digest_is_of_the_content_not_of_the_place(classes, tmp_path):
    first = ImageFolder(classes).digest()
    classes.rename(tmp_path / "elsewhere")
    assert ImageFolder(tmp_path / "elsewhere").digest() == first


@pytest.mark.parametrize("change", ["content", "name", "label", "class", "one_less"])
def test_the_digest_changes_with_the_data(classes, change):
    first = ImageFolder(classes).digest()
    if change == "content":
        picture(classes / "cat" / "a.png", grey=200)
    elif change == "name":
        (classes / "cat" / "a.png").rename(classes / "cat" / "aa.png")
    elif change == "label":
        (classes / "beaver").mkdir()
    elif change == "class":
        (classes / "dog").rename(classes / "doge")
    else:
        (classes / "dog" / "a.png").unlink()
    assert ImageFolder(classes).digest() != first


def test_the_digest_does_not_depend_on_the_order_of_lines(flat):
    assert listed(flat, "a.png,0\nb.png,1\n").digest() == listed(flat, "b.png,1\na.png,0\n").digest()
    assert listed(flat, "a.png,0\nb.png,1\n").digest() != listed(flat, "b.png,0\na.png,1\n").digest()


def test_a_missing_file_has_a_digest(flat):
    without = listed(flat, "a.png\nzz.png\n").digest()
    picture(flat / "zz.png")
    assert listed(flat, "a.png\nzz.png\n").digest() != without


def test_a_description_makes_the_source_again(classes):
    source = ImageFolder(classes, limit=3)
    again = create_data(**source.description() | {"root": str(source.root)})
    assert source.description() == {"name": "image_folder", "root": str(classes), "csv": None, "limit": 3}
    assert again.description() == source.description() and again.digest() == source.digest()


# The loader


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_come_in_order_and_name_what_could_not_be_read(classes, num_workers):
    (classes / "cat" / "b.png").write_bytes(b"broken")
    batches = list(ImageFolder(classes).loader(SHAPE, PLAIN, batch_size=2, num_workers=num_workers))
    assert [batch.index_B.tolist() for batch in batches] == [[0], [2, 3], [4]]
    assert [batch.label_B.tolist() for batch in batches] == [[0], [0, 1], [1]]
    assert [[problem.path for problem in batch.problems] for batch in batches] == [["cat/b.png"], [], []]
    for batch in batches:
        assert isinstance(batch, Batch) and batch.inputs.dtype == torch.float32 and batch.label_B.dtype == torch.long
        greys = (batch.inputs * 255).round().long()
        assert torch.equal(greys, batch.index_B[:, None, None, None].expand_as(greys))


def test_a_batch_of_broken_files_is_empty(classes):
    for name in ("a.png", "b.PNG"):
        (classes / "dog" / name).write_bytes(b"")
    *_, last = ImageFolder(classes).loader(SHAPE, PLAIN, batch_size=3)
    assert last.inputs.shape == (0, *SHAPE) and last.label_B.shape == last.index_B.shape == (0,)
    assert last.inputs.dtype == torch.float32 and last.index_B.dtype == torch.long
    assert [problem.path for problem in last.problems] == ["dog/a.png", "dog/b.PNG"]


def test_a_loader_can_be_sent_to_a_spawned_worker(classes):
    loader = ImageFolder(classes).loader(SHAPE, PLAIN, batch_size=2)
    samples, collate = pickle.loads(pickle.dumps((loader.dataset, loader.collate_fn)))
    assert collate([samples[1], samples[4]]).index_B.tolist() == [1, 4]


def test_lightning_moves_a_batch_to_a_device():
    batch = Batch(torch.zeros(1, 3, 2, 2), torch.tensor([1]), torch.tensor([0]), [Problem("a.png", "broken")])
    moved = move_data_to_device(batch, torch.device("meta"))
    assert isinstance(moved, Batch) and isinstance(moved.problems[0], Problem)
    assert moved.inputs.device.type == moved.label_B.device.type == "meta" and moved.problems == batch.problems


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="only CUDA pins memory")
def test_a_batch_is_pinned(classes):
    (classes / "cat" / "a.png").write_bytes(b"broken")
    batch = next(iter(ImageFolder(classes).loader(SHAPE, PLAIN, batch_size=2)))
    assert batch.inputs.is_pinned() and isinstance(batch.problems[0], Problem)


def test_pictures_on_a_clip_backbone_are_refused(classes):
    with refused("image_folder holds images, but the backbone takes clips of shape (4, 3, 8, 8)"):
        ImageFolder(classes).loader((4, *SHAPE), PLAIN, batch_size=2)


@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8), (3, 0, 8)])
def test_a_malformed_sample_shape_is_refused(classes, shape):
    with refused("sample_shape must be (3, H, W) or (T, 3, H, W)"):
        ImageFolder(classes).loader(shape, PLAIN, batch_size=2)


def test_a_preprocess_that_we_do_not_have_is_refused(classes):
    with refused("interpolation must be bicubic or bilinear, not 'lanczos'"):
        ImageFolder(classes).loader(SHAPE, Preprocess(interpolation="lanczos"), batch_size=2)
    with refused("crop_pct must be above 0 and at most 1, or None for no crop, not 1.5"):
        ImageFolder(classes).loader(SHAPE, Preprocess(crop_pct=1.5), batch_size=2)


def test_running_out_of_memory_is_no_problem_of_the_file():
    with pytest.raises(MemoryError), reading("a.png"):
        raise MemoryError
    with pytest.raises(Unreadable) as caught, reading("a.png"):
        raise KeyError("tag")
    assert caught.value.problem == ("a.png", "KeyError: 'tag'")


def test_a_pipe_does_not_hang_the_run(flat):
    os.mkfifo(flat / "pipe.png")
    source = listed(flat, "a.png\npipe.png\n")
    (batch,) = source.loader(SHAPE, PLAIN, batch_size=2)
    assert len(source.digest()) == 64 and [problem.path for problem in batch.problems] == ["pipe.png"]


# By name


def test_each_source_has_the_name_it_is_known_by():
    assert {name: source.name for name, source in DATA.items()} == {name: name for name in DATA}


def test_create_data_makes_the_source(classes):
    source = create_data("image_folder", root=classes, limit=2)
    assert isinstance(source, ImageFolder) and len(source) == 2
    assert isinstance(create_data("moving_shapes"), MovingShapes)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("moving_shape", {}, "no 'moving_shape' in data. Did you mean 'moving_shapes'? There are: image_folder"),
        ("image_folder", {"rot": "x"}, "no 'rot' in the options of image_folder. Did you mean 'root'?"),
        ("image_folder", {}, "image_folder needs root, and none came; add root=..."),
        ("image_folder", {"root": 3}, "root of image_folder must be str | pathlib.Path, not 3"),
        ("image_folder", {"root": ".", "limit": "3"}, "limit of image_folder must be int | None, not '3'"),
        ("moving_shapes", {"num_clips": 8.0}, "num_clips of moving_shapes must be int, not 8.0"),
        ("moving_shapes", {"num_clips": True}, "num_clips of moving_shapes must be int, not True"),
    ],
)
def test_an_unknown_name_or_option_is_refused(name, options, message):
    with refused(message):
        create_data(name, **options)
