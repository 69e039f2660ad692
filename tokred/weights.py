"""Weights from files, as data: of safetensors, and of .pth files as ``torch.save`` writes them. No file is ever unpickled.

``torch.load`` is not used: what ``weights_only=True`` refuses or lets pass changes with its version (see ``tokred.unpickle``).
"""

import hashlib
import sys
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import IO, Any, BinaryIO
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tokred.unpickle import ADVICE, Refused, Storage, Stored, shown, unpickle

MOST_PICKLE_BYTES = 4 * 2**20  # a tensor takes some 90 bytes: room for 45 000; the worst such pickle takes 0.5 GiB
LEGACY_MAGIC, LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001  # of torch.save before PyTorch 1.6
_LFS, _PAGE = b"version https://git-lfs", (b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, by name. Raises ValueError with one line where the file is not there or not readable.

    Of a .pth file, those under "model", "module" or "state_dict" where it has such an entry; only their numbers are read, and
    they share storages as they did when saved.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        what = f"{path}, a folder" if path.is_dir() else path
        raise ValueError(f"no weights at {what}; give the path of a .safetensors or .pth file, or weights=random")
    try:
        _check_begin(path)
        return load_file(path) if path.suffix == ".safetensors" else _read_torch(path)
    except Refused as error:
        raise ValueError(f"{path} {error}") from error
    except Exception as error:  # of many kinds where a file is damaged: OSError, BadZipFile, SafetensorError, ...
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} is not a readable checkpoint ({reason}); it may be cut short: fetch it again"
        ) from error


def _check_begin(path: Path) -> None:
    """Raises Refused where a file is what often lies in a checkpoint's place."""
    with path.open("rb") as file:
        begin = file.read(64)
    text = begin.lstrip().lower()
    if not text:
        raise EOFError("it is empty")
    if text.startswith(_LFS):
        raise Refused("is not a readable checkpoint (it is a Git LFS pointer); fetch the file itself: git lfs pull")
    if text.startswith(_PAGE):
        raise Refused("is not a readable checkpoint (it is a web page); fetch the file itself: see what the page says")
    is_safetensors = begin[8:9] == b"{"  # after the header's length
    if is_safetensors and path.suffix != ".safetensors":
        raise Refused("is a safetensors file by its content; give it that ending")
    if begin.startswith((b"PK", b"\x80")) and not is_safetensors and path.suffix == ".safetensors":
        raise Refused("is a file of torch.save by its content; give it the ending .pth")


def _read_torch(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        begin = file.read(2)
        file.seek(0)
        if begin == b"PK":
            with ZipFile(file) as archive:
                return _of_archive(archive)
        if begin.startswith(b"\x80"):
            return _of_legacy(file)
        raise ValueError("PyTorch writes no such file")


def _of_archive(archive: ZipFile) -> dict[str, Tensor]:
    """The zip archive of PyTorch 1.6 and later: FOLDER/data.pkl, and FOLDER/data/KEY for each storage."""
    members = _members(archive)
    tree, storages = unpickle(BytesIO(archive.read(members["data.pkl"])))
    for storage in storages.values():
        info = members.get(f"data/{storage.key}")
        _check_size(storage, info.file_size if info else None)

    def read(storage: Storage) -> Tensor:
        with archive.open(members[f"data/{storage.key}"]) as entry:
            return _bytes(entry, storage.num_bytes)

    return _filled(tree, read)


def _members(archive: ZipFile) -> dict[str, ZipInfo]:
    """An archive's entries by their names below its one folder. Raises Refused where torch.save writes no such archive."""
    infos = archive.infolist()
    roots = [info.filename[: -len("data.pkl")] for info in infos if info.filename.endswith("/data.pkl")]
    if len(roots) != 1 or roots[0].count("/") != 1:
        raise Refused(f"is not an archive of torch.save: that has one FOLDER/data.pkl, this {len(roots)}; {ADVICE}")
    members = {info.filename.removeprefix(roots[0]): info for info in infos}
    if len(members) != len(infos):
        raise Refused(f"has two entries of one name, so that it is unclear what it holds; {ADVICE}")
    if "constants.pkl" in members or any(name.startswith("code/") for name in members):
        raise Refused(f"is a TorchScript archive, which holds code; {ADVICE}")
    _check_entries(archive, members)
    order = archive.read(members["byteorder"]) if "byteorder" in members else b"little"
    _check_byte_order(order == b"little", shown(order))
    return members


def _check_entries(archive: ZipFile, members: Mapping[str, ZipInfo]) -> None:
    for name, info in members.items():
        if info.compress_type != ZIP_STORED:
            raise Refused(
                f"has a compressed entry ({shown(name)}), which may be far larger than the file; torch.save stores "
                "entries as they are: pack it again without compression (zip -0)"
            )
    assert archive.fp is not None
    file_bytes = archive.fp.seek(0, 2)
    if sum(info.file_size for info in members.values()) > file_bytes:
        raise Refused(f"has entries of more bytes than the file's own {file_bytes}; fetch it again")
    if members["data.pkl"].file_size > MOST_PICKLE_BYTES:
        raise Refused(
            f"has a data.pkl of {members['data.pkl'].file_size} bytes, where {MOST_PICKLE_BYTES} are the most; {ADVICE}"
        )


def _of_legacy(file: BinaryIO) -> dict[str, Tensor]:
    """What torch.save wrote before: five pickles (a magic number, a version, the machine, the tree, the storages' keys), then for
    each key the count of numbers in 8 bytes, and the numbers."""
    pickles, file_bytes = BytesIO(file.read(MOST_PICKLE_BYTES)), file.seek(0, 2)
    if unpickle(pickles)[0] != LEGACY_MAGIC or unpickle(pickles)[0] != LEGACY_VERSION:
        raise Refused(f"is a pickle that torch.save did not write; {ADVICE}")
    _check_byte_order(unpickle(pickles)[0]["little_endian"] is True, "big")
    (tree, storages), keys, places = unpickle(pickles), unpickle(pickles)[0], {}
    place = pickles.tell()
    for key in keys:
        file.seek(place)
        numel, storage = int.from_bytes(file.read(8), "little"), storages[key]
        _check_size(storage, numel * storage.dtype.itemsize)
        places[key] = place + 8
        place += 8 + storage.num_bytes
    if place > file_bytes:
        raise EOFError("it ends early")
    for storage in storages.values():
        if storage.key not in places:
            _check_size(storage, None)

    def read(storage: Storage) -> Tensor:
        file.seek(places[storage.key])
        return _bytes(file, storage.num_bytes)

    return _filled(tree, read)


def _check_size(storage: Storage, num_bytes: int | None) -> None:
    if num_bytes != storage.num_bytes:
        raise Refused(
            f"has {'no' if num_bytes is None else num_bytes} bytes for a storage of {storage.numel} numbers of "
            f"{storage.dtype} (data/{shown(storage.key)}); fetch it again"
        )


def _check_byte_order(is_little: bool, found: str) -> None:
    if not is_little or sys.byteorder != "little":
        raise Refused(f"has numbers of byte order {found} and this machine is {sys.byteorder}-endian; {ADVICE}")


def _filled(tree: Any, read: Callable[[Storage], Tensor]) -> dict[str, Tensor]:
    """The state dict of a saved tree; ``read`` gives the bytes of a storage, once for each."""
    state = _state_part(tree)
    storages = {stored.storage.key: stored.storage for stored in state.values()}
    data = {key: read(storage) for key, storage in storages.items()}
    return {name: stored.view(data[stored.storage.key]) for name, stored in state.items()}


def _state_part(tree: Any) -> dict[str, Stored]:
    for entry in ("model", "module", "state_dict"):
        if isinstance(tree, dict) and isinstance(tree.get(entry), dict):
            tree = tree[entry]
    if not isinstance(tree, dict):
        raise Refused(f"is not a state dict: it must map names to tensors, but it is of type {_kind(tree)}")
    for name, value in tree.items():
        if not isinstance(name, str) or not isinstance(value, Stored):
            of_name, of_kind = (shown(name), _kind(value)) if isinstance(name, str) else ("a name", _kind(name))
            raise Refused(f"is not a state dict: it must map names to tensors, but {of_name} is of type {of_kind}")
    return tree


def _kind(value: Any) -> str:
    return "tensor" if isinstance(value, Stored) else type(value).__name__.strip("_").lower()


def _bytes(file: IO[bytes], num_bytes: int) -> Tensor:
    data = torch.empty(num_bytes, dtype=torch.uint8)
    if file.readinto(data.numpy().data) != num_bytes:  # type: ignore[attr-defined]
        raise EOFError("it ends early")
    return data


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Loads all or nothing. Raises ValueError that names what is missing, unexpected, or of another shape or kind."""
    own = model.state_dict()
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} is {list(state[name].shape)}, not {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    kinds = [  # a quantised model's int8 would be copied as it is
        f"{name} is {state[name].dtype}, not {own[name].dtype}"
        for name in own
        if name in state and state[name].is_floating_point() != own[name].is_floating_point()
    ]
    wrong = {"missing": missing, "unexpected": unexpected, "of another shape": shapes, "of another kind": kinds}
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
