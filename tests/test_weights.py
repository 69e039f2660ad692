"""Weights are data: read whole or not at all, and nothing in a file is run."""

import argparse
import os
import pickle
import subprocess
import sys
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tokred.weights import digest, load_strictly, read_state


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pt"])
def test_a_state_dict_comes_back(suffix, tmp_path):
    path, state = tmp_path / f"model.{suffix}", model().state_dict()
    (save_file if suffix == "safetensors" else torch.save)(state, path)
    found = read_state(path)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize("entry", ["model", "module", "state_dict"])
def test_a_state_dict_is_found_in_a_training_checkpoint(entry, tmp_path):
    torch.save({entry: model().state_dict(), "epoch": 3}, tmp_path / "model.pth")
    assert read_state(tmp_path / "model.pth").keys() == model().state_dict().keys()


def test_a_path_may_start_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(model().state_dict(), tmp_path / "model.pth")
    assert read_state("~/model.pth")


class Canary:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    "save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))], ids=["torch", "pickle"]
)
def test_a_pickle_that_would_run_code_is_refused_and_not_run(save, tmp_path):
    canary = tmp_path / "canary"
    save({"weight": torch.zeros(2), "more": Canary(canary)}, tmp_path / "hostile.pth")
    with pytest.raises(ValueError, match="hostile.pth holds .* is not loaded, since unpickling can run code; save its"):
        read_state(tmp_path / "hostile.pth")
    assert not canary.exists()


def test_no_environment_variable_lets_code_run(tmp_path):
    """Torch's own switch to unpickle freely works only where weights_only is not given."""
    hostile = {"weight": torch.zeros(2), "more": Canary(tmp_path / "canary")}
    torch.save(hostile, tmp_path / "zip.pth")
    torch.save(hostile, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    code = """
import sys, torch
from tokred.weights import read_state
for path in sys.argv[1:]:
    try:
        read_state(path)
    except ValueError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "zip.pth", tmp_path / "old.pth"],
        env=os.environ | {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count("is not loaded, since unpickling can run code") == 2
    assert not (tmp_path / "canary").exists()


def test_that_environment_variable_does_let_code_run_where_weights_only_is_not_given(tmp_path):
    """So that the test above tests something."""
    torch.save(Canary(tmp_path / "canary"), tmp_path / "zip.pth")
    subprocess.run(
        [sys.executable, "-c", "import sys, torch; torch.load(sys.argv[1])", tmp_path / "zip.pth"],
        env=os.environ | {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"},
        capture_output=True,
        check=True,
    )
    assert (tmp_path / "canary").exists()


def test_of_a_state_dict_only_the_entry_is_returned_whatever_stands_beside_it(tmp_path):
    """A Namespace, as DeiT and DeepSpeed save it, is read over."""
    torch.save({"module": model().state_dict(), "args": argparse.Namespace(lr=0.1)}, tmp_path / "model.pth")
    found = read_state(tmp_path / "model.pth")
    assert all(torch.equal(found[name], value) for name, value in model().state_dict().items())


def test_an_archive_of_plain_tensors_is_read_by_torch(tmp_path, monkeypatch):
    monkeypatch.setattr("tokred.weights.read_archive", None)
    torch.save({"model": model().state_dict(), "epoch": 3}, tmp_path / "model.pth")
    assert read_state(tmp_path / "model.pth")


def test_a_legacy_file_is_read_by_torch(tmp_path):
    torch.save(model().state_dict(), tmp_path / "model.pth", _use_new_zipfile_serialization=False)
    assert read_state(tmp_path / "model.pth").keys() == model().state_dict().keys()


def test_a_compressed_archive_is_refused(tmp_path):
    """64 MiB of zeros fit into 66 KB."""
    torch.save({"w": torch.zeros(1000)}, tmp_path / "plain.pth")
    with ZipFile(tmp_path / "plain.pth") as plain, ZipFile(tmp_path / "model.pth", "w", ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(ValueError, match=r"model.pth has a compressed entry \(data.pkl\), .*: pack it again without"):
        read_state(tmp_path / "model.pth")


def test_torchscript_is_refused(tmp_path):
    """Its own reader would be torch.jit.load, which torch.load would otherwise point to."""
    torch.save({"w": torch.zeros(1)}, tmp_path / "model.pth")
    with ZipFile(tmp_path / "model.pth", "a") as archive:
        archive.writestr("model/code/__torch__.py", "class Module: ...")
    with pytest.raises(
        ValueError, match="model.pth is a TorchScript archive, which holds code; save its state dict as"
    ):
        read_state(tmp_path / "model.pth")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_tensor_of_more_elements_than_are_stored_is_refused(legacy, tmp_path):
    """1 KB can claim 10^12 elements by a stride of 0, which torch.load lets pass."""
    huge = torch.zeros(1).expand(10**6, 10**6)
    torch.save({"w": huge}, tmp_path / "model.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        ValueError,
        match="must store every element, but w claims 1000000000000, more than are stored; save it as tensor.cl",
    ):
        read_state(tmp_path / "model.pth")


def test_what_torch_raises_of_a_hostile_archive_comes_as_one_line(tmp_path):
    """Here a MemoryError, of an array of 2^62 bytes that torch.load would make."""
    torch.save({"w": torch.zeros(2)}, tmp_path / "plain.pth")
    array = b"X\x01\x00\x00\x00b" + b"c__builtin__\nbytearray\n\x8a\x08" + bytes(7) + b"\x40\x85Rs."
    with ZipFile(tmp_path / "plain.pth") as plain, ZipFile(tmp_path / "model.pth", "w") as hostile:
        for name in plain.namelist():
            hostile.writestr(name, plain.read(name)[:-1] + array if "data.pkl" in name else plain.read(name))
    with pytest.raises(ValueError, match=r"is not a readable checkpoint \(MemoryError\); .*fetch it again"):
        read_state(tmp_path / "model.pth")


@pytest.mark.parametrize("value", [torch.zeros(2, device="meta"), torch.eye(2).to_sparse()], ids=["meta", "sparse"])
@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
def test_a_tensor_without_its_values_is_refused(value, tmp_path):
    torch.save({"w": value}, tmp_path / "model.pth")
    with pytest.raises(
        ValueError, match="model.pth must hold dense tensors with their values, but w is not; save it so"
    ):
        read_state(tmp_path / "model.pth")


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"is not a readable checkpoint \(it is empty\); it may be cut short: fetch it again"),
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n",
            r"it is a Git LFS pointer\); .* git lfs pull",
        ),
        ("\n<!DOCTYPE html><title>Sign in</title>", r"it is a web page\); fetch the file itself"),
        ("weights are at the address below\n", "is not a readable checkpoint"),
    ],
    ids=["empty", "lfs", "page", "text"],
)
def test_what_often_lies_in_a_checkpoints_place_is_told_from_it(text, message, suffix, tmp_path):
    (tmp_path / f"model.{suffix}").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_state(tmp_path / f"model.{suffix}")
    assert "\n" not in str(error.value)


def test_a_safetensors_file_may_begin_with_a_less_than_sign(tmp_path):
    """As web pages do: its first byte is the header's length, here 60."""
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(60)
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert (tmp_path / "model.safetensors").read_bytes().startswith(b"<")
    assert read_state(tmp_path / "model.safetensors").keys() == {"w"}


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.99])
def test_a_file_that_is_cut_short_is_refused(suffix, share, tmp_path):
    path = tmp_path / f"model.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(model().state_dict(), path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(
        ValueError, match=r"is not a readable checkpoint \(.+\); it may be cut short: fetch it again"
    ) as error:
        read_state(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_file_that_is_no_checkpoint_is_refused(suffix, tmp_path):
    path = tmp_path / f"page.{suffix}"
    path.write_text("<html><body>404: not found</body></html>\n" * 20)
    with pytest.raises(ValueError, match="is not a readable checkpoint") as error:
        read_state(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ([1, 2], "it is of type list"),
        (torch.zeros(3), "it is of type tensor"),
        ({"weight": 3}, "weight is of type int"),
        ({7: torch.zeros(3)}, "a name is of type int"),
        ({"a\n" * 99: 3}, r"a\\na.*\.\.\. is of type int"),
    ],
)
def test_a_checkpoint_that_is_no_state_dict_is_refused(value, found, tmp_path):
    torch.save(value, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=f"other.pth is not a state dict: it must map names to tensors, but {found}"):
        read_state(tmp_path / "other.pth")


@pytest.mark.parametrize("path", ["nowhere.pth", "."])
def test_a_file_that_is_not_there_is_refused(path):
    with pytest.raises(
        ValueError, match="no weights at .*; give the path of a .safetensors or .pth file, or weights=random"
    ):
        read_state(path)


def test_what_fits_is_loaded_whole():
    first, second = model(), nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    load_strictly(second, first.state_dict(), "a.pth")
    assert digest(first) == digest(second)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("0.bias"), r"a.pth does not fit this model: 1 missing \(0.bias\); give"),
        (lambda state: state.update({"extra": torch.zeros(1)}), r"1 unexpected \(extra\)"),
        (
            lambda state: state.update({"0.bias": torch.zeros(7)}),
            r"1 of another shape \(0.bias is \[7\], not \[4\]\)",
        ),
        (
            lambda state: (state.pop("1.weight"), state.update({"norm.weight": torch.ones(4)})),
            "1 missing .*; 1 unexpected",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_the_names_and_leaves_the_model_as_it_was(change, message):
    target, state = model(), {name: value + 1 for name, value in model().state_dict().items()}
    change(state)
    before = digest(target)
    with pytest.raises(ValueError, match=message):
        load_strictly(target, state, "a.pth")
    assert digest(target) == before


def test_of_many_names_that_do_not_fit_some_are_told():
    with pytest.raises(
        ValueError, match=r"4 missing \(0.weight, 0.bias, 1.weight, 1.bias\); 30 unexpected \(w0, w1, w2, w3, ...\)"
    ):
        load_strictly(model(), {f"w{i}": torch.zeros(1) for i in range(30)}, "a.pth")


def test_the_digest_follows_every_value_name_and_type():
    digests = {digest(model())}
    changed = model()
    with torch.no_grad():
        changed[0].weight[0, 0] += 1e-6
    digests |= {digest(changed), digest(model().double()), digest(nn.Sequential(*reversed(model())))}
    assert len(digests) == 4
    assert digest(model()) in digests
