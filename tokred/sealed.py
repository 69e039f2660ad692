"""Files that are written whole and say by themselves whether they still are: each ends in the sha256 of what comes before.

JSON files have it as their last member. Archives of arrays have it behind the archive, where readers of ``.npz`` do not look.
Files of versions that did not seal are read as they are.

A run folder may come from somebody else. So both are read as data, and no file takes more memory than is said here.
"""

import hashlib
import io
import json
import math
import os
import re
import zipfile
from collections.abc import Collection
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

import numpy as np

MOST_DEPTH = 100  # of JSON: a setting is a list of lists at most, and what reads it may take four calls for each
MOST_DIGITS = 20  # of a whole number: a seed has 64 bits, and nothing that is counted has more
MOST_JSON_BYTES = 64 * 2**20  # parsed, JSON takes up to some twenty times its size
MOST_ARRAY_BYTES = 2**30  # of an archive, unpacked; 32 traced clips of 12 frames of 224 x 224 are 58 MB
SEAL_BYTES = 67  # of either kind of file, at its end
END_OF_ZIP = b"PK\x05\x06"  # begins the last record of an archive, of 22 bytes where it has no comment


class Damaged(ValueError):
    """A file that is not what was written. ``path`` is its own."""

    def __init__(self, path: Path, why: object, what: str = "record"):
        why = shorten(str(why) or type(why).__name__, 200, placeholder="...")
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
        text = _read(path, MOST_JSON_BYTES).decode()
        content = json.loads(text, parse_int=_whole, parse_float=_finite, parse_constant=_finite)
        if not isinstance(content, dict):
            raise ValueError("no object")
        _check_depth(content)
    except (ValueError, RecursionError) as error:
        raise Damaged(path, error) from error
    if "sha256" in content and text != _sealed(text.rpartition(',\n"sha256"')[0]):
        raise Damaged(path, "its hash is another")
    content.pop("sha256", None)
    return content


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a whole number has {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):  # 1e999, NaN, Infinity
        raise ValueError(f"{shorten(text, 20, placeholder='...')} is no finite number")
    return number


def _check_depth(content: Any) -> None:
    level = [content]
    for _ in range(MOST_DEPTH):
        level = [
            part
            for one in level
            if isinstance(one, dict | list)
            for part in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return
    raise ValueError(f"it is nested in more than {MOST_DEPTH} levels")


def seal_of(path: Path) -> str:
    """The hash that a file ends in, as it says; of one that has none, that of its content."""
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - SEAL_BYTES))
        found = re.search(rb'([0-9a-f]{64})("}\n)?$', file.read())
    return found[1].decode() if found else hashlib.sha256(path.read_bytes()).hexdigest()


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> str:
    """Gives the hash. Raises ValueError where they are more than are read again."""
    if (num_bytes := sum(array.nbytes for array in arrays.values())) >= MOST_ARRAY_BYTES:
        raise ValueError(f"{path} would hold {num_bytes} bytes of arrays, and {MOST_ARRAY_BYTES} are the most")
    file = io.BytesIO()
    try:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    except ValueError as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # zipfile does not like to be left open by Ctrl+C
            raise KeyboardInterrupt from error
        raise
    content, digest = file.getvalue(), hashlib.sha256(file.getvalue()).hexdigest()
    write_whole(path, content + digest.encode())
    return digest


def read_arrays(path: Path, names: Collection[str] | None = None, *, what: str = "record") -> dict[str, np.ndarray]:
    """Those of these names, None: all. Raises Damaged where the file is not what was written."""
    content = read_archive(path, what=what)[0]
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            _check_entries(archive)
            found = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            return {name: _array(archive.read(found[name])) for name in found if names is None or name in names}
    except (
        Exception
    ) as error:  # of many kinds where a file is damaged: BadZipFile, zlib.error, EOFError, RecursionError, ...
        raise Damaged(path, error, what) from error


def read_archive(path: Path, *, what: str = "record") -> tuple[bytes, str | None]:
    """Its bytes, and the hash that they end in, None of a file that has none. Raises Damaged where that is not its own."""
    try:
        content = _read(path, MOST_ARRAY_BYTES)
    except ValueError as error:
        raise Damaged(path, error, what) from error
    if content[-22:].startswith(END_OF_ZIP):
        return content, None
    digest = hashlib.sha256(content[:-64]).hexdigest()
    if content[-64:] != digest.encode():
        raise Damaged(path, "its hash is another", what)
    return content, digest


def _read(path: Path, most: int) -> bytes:
    with open(path, "rb") as file:
        if (num_bytes := os.fstat(file.fileno()).st_size) > most:
            raise ValueError(f"it has {num_bytes} bytes, more than {most}")
        return file.read()


def _check_entries(archive: zipfile.ZipFile) -> None:
    """Before anything is unpacked: a megabyte can hold a gigabyte."""
    infos = archive.infolist()
    if any(info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for info in infos):
        raise ValueError("it is packed in another way than it was written")
    if sum(info.file_size for info in infos) > MOST_ARRAY_BYTES:
        raise ValueError(f"unpacked it has more than {MOST_ARRAY_BYTES} bytes")


def _array(entry: bytes) -> np.ndarray:
    """Of an ``.npy``. Not by ``np.load``, which makes room for what the header says, not for what is there."""
    file = io.BytesIO(entry)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("an array is of another version than is written")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject:
        raise ValueError("an array holds objects, which are never unpickled")
    if len(entry) - file.tell() != math.prod(shape) * dtype.itemsize:
        raise ValueError("an array is not what its header says")
    order: Literal["F", "C"] = "F" if is_fortran else "C"
    return np.ndarray(shape, dtype, bytearray(entry), file.tell(), order=order)


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
