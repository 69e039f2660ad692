"""Which files a folder holds and what their labels are: from its folders, or from a CSV beside it.

    ROOT/CLASS/FILE     a folder a class; the labels count the class names in sorted order, empty folders included
    ROOT/FILE           no labels
    CSV                 path,label or path alone, a header optional; paths relative to ROOT. The label is an integer
                        from 0, taken as it is, or a class name; names are numbered in sorted order

The order is that of the relative paths, by code point. Nothing outside ROOT is read: a path or a symbolic link that
leads out of it is an error, and so is a linked folder. Names that begin with a dot are passed over.
"""

import csv as csv_format
import os
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from tokred.data.files import FileSource, check_limit, is_inside, real_folder, spread

MAX_BYTES = 64 * 2**20  # of a CSV; that of ImageNet's 1.28 million training pictures has 45 MB
MAX_COLUMNS = 100  # of which two are read; more than these are not counted
MAX_ROWS = 2_000_000  # a row takes up to some 500 bytes in memory


@dataclass(frozen=True)
class Listing:
    """``samples``: (path relative to the root with ``/``, label). ``classes``: names by label, if labels have names."""

    samples: tuple[tuple[str, int], ...]
    classes: tuple[str, ...]
    has_labels: bool


class FolderSource(FileSource):
    """Files of one kind below ``root``. ``limit``: at most so many of them, spread evenly over the order.

    ``separator``: the one character between the columns of the CSV.
    """

    extensions: ClassVar[tuple[str, ...]]

    def __init__(self, root: str | Path, csv: str | Path | None, limit: int | None, *, separator: str):
        check_limit(limit)
        self.root, self.csv, self.limit, self.separator = root, csv, limit, separator
        folder = real_folder(root, f"root of {self.name}")
        listing = list_folder(folder, self.extensions) if csv is None else list_csv(folder, csv, separator)
        super().__init__(folder, spread(listing.samples, limit))
        self.classes, self.has_labels = listing.classes, listing.has_labels

    def description(self) -> dict[str, Any]:
        csv = None if self.csv is None else str(self.csv)
        return {"name": self.name, "root": str(self.root), "csv": csv, "limit": self.limit}


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


def list_csv(root: str, csv: str | Path, separator: str) -> Listing:
    """Raises ValueError, with the line's number, where the CSV cannot be understood or a path leaves the root."""
    rows = _read_rows(csv, separator)
    for line, path, _ in rows:
        if not is_inside(root, path):
            raise ValueError(f"line {line} of {csv}: {path!r} leads out of {root}; paths must stay inside root")
    if not any(os.path.isfile(os.path.join(root, path)) for _, path, _ in rows):
        raise ValueError(
            f"none of the {len(rows)} files that {csv} names is there; is {root} the right root? The first is {rows[0][1]!r}"
        )
    labels, classes = _number_labels(csv, rows)
    # normalised, so that ./a.mp4 and a.mp4 have one name and one place in the order
    samples = [(os.path.normpath(path).replace(os.sep, "/"), label) for (_, path, _), label in zip(rows, labels)]
    return Listing(tuple(sorted(samples)), classes, has_labels=rows[0][2] is not None)


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
        if entry.is_symlink() and (entry.is_dir() or not is_inside(root, entry.path)):
            raise ValueError(
                f"{entry.path} is a link to {os.path.realpath(entry.path)}; folders must be real and links must stay "
                f"inside root: put the files there, or give their own folder and a csv"
            )
    return sorted(files), sorted(folders)


def _read_rows(csv: str | Path, separator: str) -> list[tuple[int, str, str | None]]:
    """(line, path, label or None) of each row."""
    if len(separator) != 1 or separator in '\r\n"':
        raise ValueError(f"separator must be one character, such as a comma or a space, not {separator!r}")
    try:
        with open(os.path.expanduser(csv), newline="", encoding="utf-8-sig") as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                raise ValueError(f"{csv} has more than the {MAX_BYTES} bytes that are read; take fewer files")
            reader = csv_format.reader(file, delimiter=separator)
            rows = islice((row for row in reader if any(map(str.strip, row))), MAX_ROWS + 1)
            cells = [(reader.line_num, [cell.strip() for cell in row[:MAX_COLUMNS]]) for row in rows]
    except (OSError, UnicodeDecodeError, csv_format.Error) as error:
        raise ValueError(f"csv must be a readable CSV file in UTF-8, but {csv} is not: {error}") from error
    if len(cells) > MAX_ROWS:
        raise ValueError(f"{csv} has more than the {MAX_ROWS} rows that are read; take fewer files")
    columns, cells = _columns(csv, cells)
    found = []
    for line, row in cells:
        if len(row) != len(columns) or not all(row):
            raise ValueError(f"line {line} of {csv} must hold {','.join(columns)}, not {','.join(row)!r}")
        values = dict(zip(columns, row, strict=True))
        found.append((line, values["path"], values.get("label")))
    if not found:
        raise ValueError(f"{csv} names no files; its lines must hold path,label or path alone")
    return found


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
