"""Weights from files, as data. No file is ever unpickled freely, and there is no fallback that does.

Safetensors by its own reader; .pth by ``torch.load`` with ``weights_only=True``, or, where that refuses an archive for
what lies beside the tensors, by ``tokred.unpickle``, which calls nothing.
"""

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tokred.unpickle import Refused, check_archive, read_archive, shown

_LFS, _PAGE = b"version https://git-lfs", (b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, by name. Raises ValueError with one line where the file is not there or not readable.

    Of a .pth file, those under "model", "module" or "state_dict" where it has such an entry.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        what = f"{path}, a folder" if path.is_dir() else path
        raise ValueError(f"no weights at {what}; give the path of a .safetensors or .pth file, or weights=random")
    try:
        _check_begin(path)
        state = load_file(path) if path.suffix == ".safetensors" else _load_torch(path)
    except Refused as error:
        raise ValueError(f"{path} {error}") from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors and is not loaded, since unpickling can run code; save its state dict as "
            "safetensors first"
        ) from error
    except Exception as error:  # of many kinds where a file is damaged: KeyError, struct.error, BadZipFile, ...
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} is not a readable checkpoint ({reason}); it may be cut short: fetch it again"
        ) from error
    return _checked(state, path)


def _check_begin(path: Path) -> None:
    """Raises Refused where a file is what often lies in a checkpoint's place."""
    with path.open("rb") as file:
        begin = file.read(64).lstrip().lower()
    if not begin:
        raise EOFError("it is empty")
    if begin.startswith(_LFS):
        raise Refused("is not a readable checkpoint (it is a Git LFS pointer); fetch the file itself: git lfs pull")
    if begin.startswith(_PAGE):
        raise Refused("is not a readable checkpoint (it is a web page); fetch the file itself: see what the page says")


def _load_torch(path: Path) -> Any:
    with path.open("rb") as file:
        begin = file.read(2)
    if not begin.startswith((b"PK", b"\x80")):  # a zip archive, or a pickle as old versions wrote it
        raise ValueError("PyTorch writes no such file")
    if begin == b"PK":
        check_archive(path)
        if not _torch_knows_all_of(path):
            return read_archive(path, _state_part)
    return _state_part(torch.load(path, map_location="cpu", weights_only=True))


def _torch_knows_all_of(path: Path) -> bool:
    """Asked before, not tried: ``torch.load`` would read gigabytes until it comes to what it refuses."""
    try:
        return not torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except pickle.UnpicklingError:  # opcodes it does not know
        return False


def _state_part(loaded: Any) -> Any:
    for entry in ("model", "module", "state_dict"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(entry), Mapping):
            loaded = loaded[entry]
    return loaded


def _checked(state: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} is not a state dict: it must map names to tensors, but it is of type {_kind(state)}")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            found = (
                f"{shown(name)} is of type {_kind(value)}"
                if isinstance(name, str)
                else f"a name is of type {_kind(name)}"
            )
            raise ValueError(f"{path} is not a state dict: it must map names to tensors, but {found}")
        if value.layout is not torch.strided or value.device.type != "cpu":
            raise ValueError(f"{path} must hold dense tensors with their values, but {shown(name)} is not; save it so")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(
                f"{path} must store every element, but {shown(name)} claims {value.numel()}, more than are stored; "
                "save it as tensor.clone()"
            )
    return dict(state)


def _kind(value: Any) -> str:
    return type(value).__name__.strip("_").lower()


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Loads all or nothing. Raises ValueError that names what is missing, unexpected or of another shape."""
    own = model.state_dict()
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} is {list(state[name].shape)}, not {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    wrong = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    found = "; ".join(f"{len(names)} {what} ({_some(names)})" for what, names in wrong.items() if names)
    if found:
        raise ValueError(f"{path} does not fit this model: {found}; give the model's own sizes or another checkpoint")
    model.load_state_dict(state)


def digest(model: nn.Module) -> str:
    """sha256 over names, types, shapes and bytes of all parameters and buffers."""
    sha = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _some(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
