"""Files that are written whole and say by themselves whether they still are: each ends in the sha256 of what comes before.

JSON files have it as their last member. Archives of arrays have it behind the archive, where readers of ``.npz`` do not look.
Files of versions that did not seal are read as they are.
"""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

END_OF_ZIP = b"PK\x05\x06"  # begins the last record of an archive, of 22 bytes where it has no comment


class Damaged(ValueError):
    """A file that is not what was written. ``path`` is its own."""

    def __init__(self, path: Path, why: object, what: str = "record"):
        super().__init__(
            f"{path} is not a readable {what} ({why}); the same sweep again sets it aside and makes it anew, or delete it"
        )
        self.path = path


def write_json(path: Path, content: dict[str, Any], *, indent: int | None = 1) -> None:
    """Whole or not at all; without ``indent`` on one line. Raises ValueError on NaN and infinities: they are not JSON."""
    text = json.dumps(content, indent=indent, separators=None if indent else (",", ":"), allow_nan=False)
    write_whole(path, _sealed(text[:-1].rstrip()).encode())


def read_json(path: Path) -> dict[str, Any]:
    """What was written. Raises Damaged where the file is anything else."""
    try:
        text = path.read_bytes().decode()
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("no object")
    except ValueError as error:
        raise Damaged(path, error) from error
    if "sha256" in content and text != _sealed(text.rpartition(',\n"sha256"')[0]):
        raise Damaged(path, "its hash is another")
    content.pop("sha256", None)
    return content


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> str:
    """Gives the hash."""
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    content, digest = file.getvalue(), hashlib.sha256(file.getvalue()).hexdigest()
    write_whole(path, content + digest.encode())
    return digest


def read_arrays(path: Path, names: Collection[str] | None = None, *, what: str = "record") -> dict[str, np.ndarray]:
    """Those of these names, None: all. Raises Damaged where the file is not what was written."""
    try:
        content = path.read_bytes()
        check_archive(path, content, what=what)
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files if names is None or name in names}
    except Damaged:
        raise
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise Damaged(path, error, what) from error


def check_archive(path: Path, content: bytes, *, what: str = "record") -> str | None:
    """The hash that it ends in, None of a file that has none. Raises Damaged where that is not its own."""
    if content[-22:].startswith(END_OF_ZIP):
        return None
    digest = hashlib.sha256(content[:-64]).hexdigest()
    if content[-64:] != digest.encode():
        raise Damaged(path, "its hash is another", what)
    return digest


def write_whole(path: Path, content: bytes) -> None:
    """To a temporary name beside it, flushed, renamed, and the folder flushed: after a crash all of it is there, or nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sealed(start: str) -> str:
    """An object without its last brace, closed by its hash."""
    return f'{start},\n"sha256":"{hashlib.sha256(start.encode()).hexdigest()}"}}\n'
