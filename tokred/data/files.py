"""Which files a data set holds and what their labels are: from a folder, or from a CSV beside it.

    ROOT/CLASS/FILE     a folder a class; the labels count the class names in sorted order, empty folders included
    ROOT/FILE           no labels
    CSV                 path,label or path alone, a header optional; paths relative to ROOT. The label is an integer
                        from 0, taken as it is, or a class name; names are numbered in sorted order

The order is that of the relative paths, by code point. Nothing outside ROOT is read: a path or a symbolic link that
leads out of it is an error, and so is a linked folder. Names that begin with a dot are passed over.
"""

import csv as csv_format
import hashlib
import json
import os
import re
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from tokred.data.loading import DataSource, Unreadable, normalize
from tokred.preprocess import Preprocess


@dataclass(frozen=True)
class Listing:
    """``samples``: (path relative to the root with ``/``, label). ``classes``: names by label, if labels have names."""

    samples: tuple[tuple[str, int], ...]
    classes: tuple[str, ...]
    has_labels: bool


class FileSource(DataSource):
    """Files of one kind below ``root``. ``limit``: at most so many of them, spread evenly over the order."""

    extensions: ClassVar[tuple[str, ...]]

    def __init__(self, root: str | Path, csv: str | Path | None = None, limit: int | None = None):
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be 1 or more, or None for all files, not {limit}")
        self.root, self.csv, self.limit = root, csv, limit
        self._root = os.path.realpath(os.path.expanduser(root))
        if not os.path.isdir(self._root):
            raise ValueError(f"root of {self.name} must be a folder, but there is none at {root}; give its path")
        listing = list_folder(self._root, self.extensions) if csv is None else list_csv(self._root, csv)
        self.classes, self.has_labels = listing.classes, listing.has_labels
        self._samples = spread(listing.samples, limit)
        self._digest: str | None = None

    @abstractmethod
    def pixels(self, path: str, sample_shape: tuple[int, ...], preprocess: Preprocess) -> np.ndarray:
        """uint8 of ``sample_shape``; whatever it raises is a problem of this file (see ``reading``)."""

    def __len__(self) -> int:
        return len(self._samples)

    def path(self, index: int) -> str:
        """Relative to the root."""
        return self._samples[index][0]

    def label(self, index: int) -> int:
        return self._samples[index][1]

    def read(self, index: int, sample_shape: tuple[int, ...], preprocess: Preprocess) -> Tensor:
        with reading(self.path(index)):
            full = os.path.join(self._root, self.path(index))
            if not os.path.isfile(full):
                raise Unreadable(self.path(index), "there is no such file")
            pixels = self.pixels(full, sample_shape, preprocess)
        return normalize(pixels, preprocess)

    def digest(self) -> str:
        """Over the class names and each sample's path, size, sha256 and label, in order. Reads every file once."""
        if self._digest is None:
            sha = hashlib.sha256(json.dumps([self.kind, self.classes]).encode())
            for path, label in self._samples:
                sha.update(json.dumps([path, *_fingerprint(os.path.join(self._root, path)), label]).encode())
            self._digest = sha.hexdigest()
        return self._digest

    def description(self) -> dict[str, Any]:
        csv = None if self.csv is None else str(self.csv)
        return {"name": self.name, "root": str(self.root), "csv": csv, "limit": self.limit}


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Whatever a decoder raises on a file becomes ``Unreadable``: other people's files raise every type there is.

    Only a lack of memory passes, since it says nothing about the file.
    """
    try:
        yield
    except (Unreadable, MemoryError):
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Unreadable(path, f"{type(error).__name__}: {reason}") from error


def list_folder(root: str, extensions: tuple[str, ...]) -> Listing:
    """Raises ValueError where there are no such files, or it is not clear what the classes are."""
    files, folders = _scan(root, root, extensions)
    samples: list[tuple[str, int]] = []
    for label, folder in enumerate(folders):
        inside, deeper = _scan(root, os.path.join(root, folder), extensions)
        if deeper and not files:
            raise ValueError(
                f"{root} must hold files, or one folder a class, but its folder {folder!r} holds a folder "
                f"{deeper[0]!r}; give the folder that has the classes, or a csv"
            )
        samples += [(f"{folder}/{file}", label) for file in inside]
    if files and samples:
        raise ValueError(
            f"{root} must hold files, or one folder a class, but it holds both ({files[0]} and {samples[0][0]}); "
            f"move one of the two, or give a csv"
        )
    if not files and not samples:
        raise ValueError(f"no files to read in {root}; their names must end in {', '.join(extensions)}")
    if files:
        return Listing(tuple((file, -1) for file in files), (), has_labels=False)
    return Listing(tuple(sorted(samples)), tuple(folders), has_labels=True)


def list_csv(root: str, csv: str | Path) -> Listing:
    """Raises ValueError, with the line's number, where the CSV cannot be understood or a path leaves the root."""
    rows = _read_rows(csv)
    for line, path, _ in rows:
        if not _is_inside(root, path):
            raise ValueError(f"line {line} of {csv}: {path!r} leads out of {root}; paths must stay inside root")
    if not any(os.path.isfile(os.path.join(root, path)) for _, path, _ in rows):
        raise ValueError(f"none of the {len(rows)} files that {csv} names is there; is {root} the right root?")
    labels, classes = _number_labels(csv, rows)
    # normalised, so that ./a.mp4 and a.mp4 have one name and one place in the order
    samples = [(os.path.normpath(path).replace(os.sep, "/"), label) for (_, path, _), label in zip(rows, labels)]
    return Listing(tuple(sorted(samples)), classes, has_labels=rows[0][2] is not None)


def spread(samples: tuple[tuple[str, int], ...], limit: int | None) -> tuple[tuple[str, int], ...]:
    """``limit`` of them, evenly spaced: the first ones would all be of the first class.

    >>> spread((("a", 0), ("b", 0), ("c", 1), ("d", 1)), 2)
    (('a', 0), ('c', 1))
    """
    if limit is None or limit >= len(samples):
        return samples
    return tuple(samples[i * len(samples) // limit] for i in range(limit))


def _scan(root: str, folder: str, extensions: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Names of the files with these extensions, and of the folders; sorted."""
    files, folders = [], []
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            folders.append(entry.name)
        elif entry.name.lower().endswith(extensions):
            files.append(entry.name)
        else:
            continue
        if entry.is_symlink() and (entry.is_dir() or not _is_inside(root, entry.path)):
            raise ValueError(
                f"{entry.path} is a link to {os.path.realpath(entry.path)}; folders must be real and links must stay "
                f"inside root: put the files there, or give their own folder and a csv"
            )
    return sorted(files), sorted(folders)


def _is_inside(root: str, path: str) -> bool:
    if "\0" in path:
        return False
    full = os.path.realpath(os.path.join(root, path))
    return os.path.commonpath([root, full]) == root and full != root


def _read_rows(csv: str | Path) -> list[tuple[int, str, str | None]]:
    """(line, path, label or None) of each row."""
    try:
        with open(csv, newline="", encoding="utf-8-sig") as file:
            reader = csv_format.reader(file)
            cells = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except (OSError, UnicodeDecodeError, csv_format.Error) as error:
        raise ValueError(f"csv must be a readable CSV file in UTF-8, but {csv} is not: {error}") from error
    columns, cells = _columns(csv, cells)
    rows = []
    for line, row in cells:
        if len(row) != len(columns) or not all(row):
            raise ValueError(f"line {line} of {csv} must hold {','.join(columns)}, not {','.join(row)!r}")
        values = dict(zip(columns, row, strict=True))
        rows.append((line, values["path"], values.get("label")))
    if not rows:
        raise ValueError(f"{csv} names no files; its lines must hold path,label or path alone")
    return rows


def _columns(csv: str | Path, cells: list[tuple[int, list[str]]]) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names of the columns, and the rows without the header. A first row that says path or label is a header."""
    first = [cell.lower() for cell in cells[0][1]] if cells else ["path"]
    if not {"path", "label"} & set(first):
        if len(first) > 2:
            raise ValueError(f"line 1 of {csv} must hold path,label or path alone, not {len(first)} columns")
        return ["path", "label"][: len(first)], cells
    for column in first:
        if column not in ("path", "label") or first.count(column) > 1:
            raise ValueError(f"columns of {csv} must be path and label, once each, not {','.join(first)}; rename them")
    if "path" not in first:
        raise ValueError(f"{csv} must have a column path, but its header is {','.join(first)}; add it")
    return first, cells[1:]


def _number_labels(csv: str | Path, rows: list[tuple[int, str, str | None]]) -> tuple[list[int], tuple[str, ...]]:
    """Labels, and their names if they have any. What the first row has, all must have: an integer or a name."""
    if rows[0][2] is None:
        return [-1] * len(rows), ()
    integers = _is_integer(rows[0][2])
    for line, _, label in rows:
        assert label is not None  # _read_rows: a row has all columns
        if _is_integer(label) != integers or (not integers and _is_number(label)):
            raise ValueError(
                f"line {line} of {csv}: label {label!r} must be {'an integer from 0' if integers else 'a class name'}, "
                f"as {rows[0][2]!r} in line {rows[0][0]} is; labels are all integers from 0 or all names"
            )
    if integers:
        return [int(label) for _, _, label in rows if label is not None], ()
    numbers = {name: number for number, name in enumerate(sorted({label for _, _, label in rows if label is not None}))}
    return [numbers[label] for _, _, label in rows if label is not None], tuple(numbers)


def _is_integer(label: str) -> bool:
    return re.fullmatch(r"[0-9]{1,9}", label) is not None


def _is_number(label: str) -> bool:
    """-1 and 3.0 are no class names: numbered as names, their order would be that of the alphabet."""
    return re.fullmatch(r"[+-]?[0-9]*\.?[0-9]+([eE][+-]?[0-9]+)?", label) is not None


def _fingerprint(path: str) -> tuple[int, str]:
    if not os.path.isfile(path):
        return -1, "not there"
    try:
        with open(path, "rb") as file:
            return os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return -1, str(error.strerror)
