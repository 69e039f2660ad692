"""Weights from files, as data: safetensors, or ``torch.load`` with ``weights_only=True``; no other way, and no fallback."""

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, by name. Raises ValueError with one line where the file is not there or not readable.

    Of a .pth file, those under "model", "module" or "state_dict" where it has such an entry.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"no weights at {path}; give the path of a .safetensors or .pth file, or weights=random")
    try:
        loaded = load_file(path) if path.suffix == ".safetensors" else _load_torch(path)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors and is not loaded, since unpickling can run code; save its state dict as "
            "safetensors first"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} is not a readable checkpoint ({reason}); it may be cut short: fetch it again"
        ) from error
    for entry in ("model", "module", "state_dict"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(entry), Mapping):
            loaded = loaded[entry]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ValueError(f"{path} is not a state dict: it must map names to tensors")
    return dict(loaded)


def _load_torch(path: Path) -> Any:
    with path.open("rb") as file:
        if not file.read(2).startswith((b"PK", b"\x80")):  # a zip archive, or a pickle as old versions wrote it
            raise ValueError("PyTorch writes no such file")
    return torch.load(path, map_location="cpu", weights_only=True)


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
