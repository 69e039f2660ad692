"""Weights are data: read whole or not at all, and nothing in a file is run."""

import argparse
import os
import pickle
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
    with pytest.raises(ValueError, match=r"hostile.pth holds (posix.mkdir|the pickle opcode FRAME), .*; save its"):
        read_state(tmp_path / "hostile.pth")
    assert not canary.exists()
    pickle.loads(pickle.dumps(Canary(canary)))
    assert canary.exists(), "else this tests nothing"


@pytest.mark.parametrize("legacy", [False, True])
def test_no_unpickler_is_ever_used(legacy, tmp_path, monkeypatch):
    beside = {"args": argparse.Namespace(lr=0.1)}
    torch.save(
        {"model": model().state_dict()} | beside, tmp_path / "model.pth", _use_new_zipfile_serialization=not legacy
    )
    for owner, name in [(torch, "load"), (pickle, "Unpickler"), (pickle, "loads"), (pickle, "load")]:
        monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail("it was unpickled"))
    assert read_state(tmp_path / "model.pth").keys() == model().state_dict().keys()


def test_of_a_state_dict_only_the_entry_is_returned_whatever_stands_beside_it(tmp_path):
    """A Namespace, as DeiT and DeepSpeed save it, is read over."""
    torch.save({"module": model().state_dict(), "args": argparse.Namespace(lr=0.1)}, tmp_path / "model.pth")
    found = read_state(tmp_path / "model.pth")
    assert all(torch.equal(found[name], value) for name, value in model().state_dict().items())


@pytest.mark.parametrize("entry", [None, "model"])
def test_a_file_as_torch_wrote_it_before_1_6_is_read(entry, tmp_path):
    state = model().state_dict()
    saved = {entry: state, "args": argparse.Namespace(lr=0.1)} if entry else state
    torch.save(saved, tmp_path / "model.pth", _use_new_zipfile_serialization=False)
    found = read_state(tmp_path / "model.pth")
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


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
        match=r"has a tensor of 1000000000000 elements up to place 1 in a storage of 1 .*\(tensor.clone\(\)\)",
    ):
        read_state(tmp_path / "model.pth")


@pytest.mark.parametrize("value", [torch.zeros(2, device="meta"), torch.eye(2).to_sparse()], ids=["meta", "sparse"])
@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
def test_a_tensor_without_its_values_is_refused(value, tmp_path):
    torch.save({"w": value}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"model.pth holds torch._utils._rebuild_(meta|sparse)_tensor.*; save its"):
        read_state(tmp_path / "model.pth")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_with_the_ending_of_the_other_kind_is_told_from_it(legacy, tmp_path):
    save_file(model().state_dict(), tmp_path / "model.pth")
    with pytest.raises(ValueError, match="model.pth is a safetensors file by its content; give it that ending"):
        read_state(tmp_path / "model.pth")
    torch.save(model().state_dict(), tmp_path / "model.safetensors", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match="is a file of torch.save by its content; give it the ending .pth"):
        read_state(tmp_path / "model.safetensors")


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


WRITERS = {
    "safetensors": lambda path: save_file(model().state_dict(), path.with_suffix(".safetensors")),
    "zip": lambda path: torch.save(model().state_dict(), path),
    "legacy": lambda path: torch.save(model().state_dict(), path, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.99])
def test_a_file_that_is_cut_short_is_refused(kind, share, tmp_path):
    WRITERS[kind](tmp_path / "model.pth")
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"model\.\w+ (is not a readable checkpoint|has ).*fetch it again$") as error:
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
            lambda state: state.update({"0.bias": torch.ones(4, dtype=torch.int8)}),
            r"1 of another kind \(0.bias is torch.int8, not torch.float32\)",
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


def test_numbers_of_another_width_are_taken():
    target = model()
    load_strictly(target, {name: value.half() for name, value in model().state_dict().items()}, "a.pth")
    assert torch.equal(target[0].weight, model()[0].weight.half().float())


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
