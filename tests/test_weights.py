"""Weights are data: read whole or not at all, and nothing in a file is run."""

import os
import pickle

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
    with pytest.raises(
        ValueError, match="hostile.pth holds more than tensors and is not loaded, since unpickling can run code"
    ):
        read_state(tmp_path / "hostile.pth")
    assert not canary.exists()


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


@pytest.mark.parametrize("value", [[1, 2], {"weight": 3}, torch.zeros(3)])
def test_a_checkpoint_that_is_no_state_dict_is_refused(value, tmp_path):
    torch.save(value, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth is not a state dict: it must map names to tensors"):
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
