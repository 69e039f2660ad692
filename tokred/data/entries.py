"""A JSON list as other people write it: read whole, with its size capped, and an error that names the entry.

The entries of annotation files are objects; an ``Entry`` knows its place, and hands out a field only of the right type.
"""

import json
import os
import re
from dataclasses import dataclass
from reprlib import repr as shortened
from typing import Any

from tokred.data.files import is_inside
from tokred.data.texts import clean

MAX_BYTES = (
    64 * 2**20
)  # parsed, JSON takes up to some twenty times its size in memory; the sets of UMT have at most 10 MiB

MAX_ENTRIES = 1_000_000  # those of the sets of UMT are at most 73,000


@dataclass(frozen=True)
class Entry:
    """``where``: FILE[NUMBER], counted from 0. Every method raises ValueError where the field is not what it says."""

    where: str
    fields: dict[str, Any]

    def field(self, name: str) -> Any:
        if name not in self.fields:
            others = ", ".join(map(repr, self.fields)) or "none"
            raise ValueError(f"{self.where} must have a field {name!r}, but it has {others}")
        value = self.fields[name]
        for one in value if isinstance(value, list) else [value]:
            _check_characters(one, f"{self.where}: {name}")
        return value

    def wrong(self, name: str, wanted: str) -> ValueError:
        return ValueError(f"{self.where}: {name} must be {wanted}, not {shortened(self.field(name))}")

    def string(self, name: str) -> str:
        value = self.field(name)
        if not isinstance(value, str):
            raise self.wrong(name, "a string")
        return value

    def strings(self, name: str) -> list[str]:
        """A list as it is, or a single string as a list of one."""
        value = self.field(name)
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(one, str) for one in values):
            raise self.wrong(name, "a string or a list of strings")
        return values

    def clean(self, name: str, text: str) -> str:
        """``text``, which is of this field, as the model reads it."""
        cleaned = clean(text)
        if not cleaned:
            raise self.wrong(name, "text of which something is left when it is cleaned")
        return cleaned

    def path(self, text: str, folder: str) -> str:
        """``text``, a video of this entry: normal, so that ./a.mp4 and a.mp4 are the same one."""
        if os.path.isabs(text) or not is_inside(folder, text):
            raise ValueError(
                f"{self.where}: {text!r} leads out of {folder}; a video's path must be relative and stay inside"
            )
        return os.path.normpath(text).replace(os.sep, "/")


def read_entries(path: str) -> list[Entry]:
    """Raises ValueError where the file is no list of one object or more."""
    entries = _read_list(path)
    for number, fields in enumerate(entries):
        if not isinstance(fields, dict):
            raise ValueError(f"{path}[{number}] must be an object with fields, not {type(fields).__name__}")
    return [Entry(f"{path}[{number}]", fields) for number, fields in enumerate(entries)]


def read_answers(path: str) -> tuple[str, ...]:
    """Raises ValueError where the file is no list of strings, each there once."""
    answers = _read_list(path)
    places: dict[str, int] = {}
    for number, answer in enumerate(answers):
        if not isinstance(answer, str):
            raise ValueError(f"{path}[{number}] must be a string, not {shortened(answer)}; an answer list is flat")
        if answer in places:
            raise ValueError(
                f"{path}[{number}]: {answer!r} is there already, at [{places[answer]}]; an answer is named once"
            )
        _check_characters(answer, f"{path}[{number}]")
        places[answer] = number
    return tuple(answers)


def _read_list(path: str) -> list[Any]:
    if not os.path.isfile(path):
        raise ValueError(f"there is no file {path}; a relative path is looked for in root")
    if os.path.getsize(path) > MAX_BYTES:
        raise ValueError(f"{path} has {os.path.getsize(path)} bytes, more than the {MAX_BYTES} that are read")
    try:
        with open(path, encoding="utf-8-sig") as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be a JSON file in UTF-8: {error}") from error
    if not isinstance(content, list) or not content:
        what = "an empty one" if content == [] else type(content).__name__
        raise ValueError(f"{path} must hold a list, as UMT's annotation files do, not {what}")
    if len(content) > MAX_ENTRIES:
        raise ValueError(f"{path} has {len(content)} entries, more than the {MAX_ENTRIES} that are read")
    return content


def _check_characters(value: Any, what: str) -> None:
    r"""JSON can spell half a character, such as "\ud83d", which neither a tokenizer nor a file system takes."""
    half = isinstance(value, str) and re.search(r"[\ud800-\udfff]", value)
    if half:
        raise ValueError(f"{what} must be whole characters, but {half[0]!r} in it is half of one")
