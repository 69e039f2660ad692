"""What all sources of files share: a folder that nothing leads out of, samples in it, problems instead of crashes, and a
digest over everything that is read.
"""

import hashlib
import json
import os
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from tokred.data.loading import DataSource, Unreadable, normalize
from tokred.preprocess import Preprocess

Sample = TypeVar("Sample")


class FileSource(DataSource):
    """``samples``: (path relative to ``folder``, with ``/``; label), in the source's order."""

    def __init__(self, folder: str, samples: tuple[tuple[str, int], ...]):
        self._folder, self._samples = folder, samples
        self._digest: str | None = None

    @abstractmethod
    def pixels(self, path: str, sample_shape: tuple[int, ...], preprocess: Preprocess) -> np.ndarray:
        """uint8 of ``sample_shape``, with views in front where there are some; what it raises is a problem of this file."""

    def content(self) -> list[Any]:
        """What the digest is of besides the files, JSON-able."""
        return [self.kind, self.classes]

    def __len__(self) -> int:
        return len(self._samples)

    def path(self, index: int) -> str:
        """Relative to the folder of the files."""
        return self._samples[index][0]

    def label(self, index: int) -> int:
        return self._samples[index][1]

    def read(self, index: int, sample_shape: tuple[int, ...], preprocess: Preprocess) -> Tensor:
        with reading(self.path(index)):
            full = os.path.join(self._folder, self.path(index))
            if not os.path.isfile(full):
                raise Unreadable(self.path(index), "there is no such file")
            if full in self.open_files.refused:
                raise Unreadable(self.path(index), self.open_files.refused[full])
            with self.open_files.reading(full):
                pixels = self.pixels(full, sample_shape, preprocess)
        return normalize(pixels, preprocess)

    def digest(self) -> str:
        """Over ``content()`` and each sample's path, size, sha256 and label, in order. Reads every file once."""
        if self._digest is None:
            sha = hashlib.sha256(json.dumps(self.content()).encode())
            for (path, label), fingerprint in zip(self._samples, self._fingerprints, strict=True):
                sha.update(json.dumps([path, *fingerprint, label]).encode())
            self._digest = sha.hexdigest()
        return self._digest

    def contents(self) -> set[str]:
        return {sha for size, sha in self._fingerprints if size >= 0}

    @cached_property
    def _fingerprints(self) -> list[tuple[int, str]]:
        return [_fingerprint(os.path.join(self._folder, path)) for path, _ in self._samples]


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


def real_folder(path: str | Path, what: str) -> str:
    """The folder's real path. Raises ValueError where there is none."""
    folder = os.path.realpath(os.path.expanduser(path))
    if not os.path.isdir(folder):
        raise ValueError(f"{what} must be a folder, but there is none at {path}; give its path")
    return folder


def is_inside(folder: str, path: str) -> bool:
    """Whether ``path``, relative to the real folder or absolute, stays in it when all links are followed.

    Looked at as ``os.path.normpath`` writes it, since so it is opened: where x is a link, x/../a and a are two files.
    """
    if "\0" in path:
        return False
    full = os.path.realpath(os.path.join(folder, os.path.normpath(path)))
    return os.path.commonpath([folder, full]) == folder and full != folder


def check_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be 1 or more, or None for all files, not {limit}")


def spread(samples: tuple[Sample, ...], limit: int | None) -> tuple[Sample, ...]:
    """``limit`` of them, evenly spaced: the first ones would all be of the first class.

    >>> spread((("a", 0), ("b", 0), ("c", 1), ("d", 1)), 2)
    (('a', 0), ('c', 1))
    """
    if limit is None or limit >= len(samples):
        return samples
    return tuple(samples[i * len(samples) // limit] for i in range(limit))


def _fingerprint(path: str) -> tuple[int, str]:
    if not os.path.isfile(path):
        return -1, "not there"
    try:
        with open(path, "rb") as file:
            return os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return -1, str(error.strerror)
