"""One cell of a sweep is one record: what was asked, what came out, and under what conditions.

A record is one JSON file, written whole and sealed (``tokred.sealed``) and never changed; the per-sample predictions lie beside
it. Its key is the hash of what determines the result, so that a changed method, checkpoint or data set is another record.
Timings are apart, in files of their own: they belong to a machine and a moment.

    RUN/plan.json                     the latest sweep: its words, its cells in order, and what was to be timed
    RUN/cells/KEY.json                a record
    RUN/cells/KEY.predictions.npz     sample indices, labels, predictions
    RUN/cells/KEY.trace.npz           where the tokens of a few samples went (``tokred.sweeps.tracing``)
    RUN/timings/NAME.json             one interleaved measurement
    RUN/damaged/                      files that were no longer what was written; their cells were run again
    RUN/claims/                       which process works on what (``tokred.sweeps.claims``)
    RUN/drawn.json                    what its figures and its report were made of (``tokred.sweeps.unchanged``)
"""

import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tokred.expected import PLAN, RECORD, check, check_cell, check_result, check_timing
from tokred.memo import FileMemo
from tokred.sealed import Damaged, read_archive, read_arrays, read_json, write_arrays, write_json

SCHEMA = 2
TIMING_SCHEMA = 3
NULL = "null"  # in a timing: the unreduced model, timed as if it were a cell
STATUSES = ("done", "refused", "failed", "invalid")
MOST_RUN_BYTES = 4 * 2**30  # of arrays, unpacked, that are read of a run; 50,000 samples of 3,500 cells
LOGS = ("logs", "logs/csv", "logs/tensorboard", "logs/logged", "logs/slurm")  # W&B has links of its own in logs/wandb
PARTS = ("cells", "timings", "claims", "damaged", "figures", "tables", "logs/wandb", *LOGS)
SUBMITTED = ".submission_file_"  # begins the links that submitit leaves in logs/slurm, which nobody follows
DRAWN = "drawn.json"
MOST_LAYERS = 10_000  # of a model; figures and tables take time for each
LEFTOVER_S = 3600.0  # nobody takes as long to write a file: what has a temporary name since then is left of a crash


@dataclass(frozen=True)
class Record:
    """``status``: done; refused (the method or backbone cannot run this cell; ``reason`` says why); failed (an error);
    invalid (logits that are not finite). ``result`` is empty unless done. ``kind`` of what went wrong, where it failed: error (an
    exception), timeout, crashed (its process died by itself), killed (by a signal from outside, as of a system without memory).

    ``cell`` holds method, options, backbone, weights, data, schedule, seed. ``result`` holds metric ("accuracy", or
    "agreement" with the unreduced model where there are no labels or weights), num_samples, num_correct, num_broken,
    tokens (leaving each layer, prefix included), requested_tokens, num_input_tokens, gmacs and gmacs_unreduced per sample,
    gmacs_by_part, gmacs_by_layer and gmacs_reduction (the reduction's own); identity: digests of the weights and of the data
    with its labels, the transform, and what else two results must have in common to be compared. ``made_of``: what the key is the
    hash of, beside the cell: digests, and hashes of the source of the method, of the backbone's family and of the core.
    """

    key: str
    cell: dict[str, Any]
    status: str
    reason: str | None = None
    result: dict[str, Any] = field(default_factory=dict)
    conditions: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA
    kind: str | None = None
    made_of: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Timed:
    """One model in a measurement: milliseconds a call in each round, and those of the unreduced model right beside it, as
    ``tokred.timing.Times`` has them, which says what ``place`` is.

    ``speedup`` and ``cpu_ratio``: (median, low, high) over rounds of the ratio unreduced / model, 95 % interval; of CPU times it
    means something on one thread only, and on CUDA there is none. ``verdict``: "ok"; "noisy" where the unreduced model timed
    against itself shows more than 3 %; "below resolution" where the model differs by no more than that one does from itself.
    ``peak_mib``: the most that a forward held at once, parameters and input left out; ``reserved_mib``: the most that the CUDA
    allocator kept for the process. ``compile_s``: of a compiled model the first call. ``reduction_time_share``: of an eager one
    what statistics, matching and merging take of its time (``tokred.profile``).
    """

    times_ms: list[float]
    unreduced_ms: list[float]
    cpu_ms: list[float]
    unreduced_cpu_ms: list[float]
    place: list[int]
    speedup: tuple[float, float, float]
    cpu_ratio: tuple[float, float, float] | None
    verdict: str
    peak_mib: float | None = None
    reserved_mib: float | None = None
    compile_s: float | None = None
    reduction_time_share: float | None = None


@dataclass(frozen=True)
class Timing:
    """One measurement of several cells of one backbone: one mode (eager, compiled, cuda_graph), one batch size, the same for all.

    ``models``: key -> the model; ``NULL`` is the unreduced model itself, whose verdict is "ok" or "noisy". ``left_out``:
    key -> why it was not timed; out of memory in one model leaves all out, and ``models`` is empty. The order of each round
    was drawn from ``seed``. ``resolution``: how far from 1 the unreduced model's speed-up over itself may lie, up or down.
    """

    name: str
    backbone: str
    batch_size: int
    mode: str
    seed: int
    models: dict[str, Timed]
    resolution: float | None
    left_out: dict[str, str] = field(default_factory=dict)
    conditions: dict[str, Any] = field(default_factory=dict)
    schema: int = TIMING_SCHEMA


def key_of(content: Any) -> str:
    """The sha256 of the canonical JSON of ``content``; raises ValueError on NaN and infinities."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Store:
    """The records of one run folder, which may have come from somebody else: it is data, and nothing outside of it is read or
    written. Raises ValueError where a link in it would have that done."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.cells, self.timings = self.folder / "cells", self.folder / "timings"
        self._plan: dict[str, Any] | None = None
        self._memo = FileMemo()
        self._taken: dict[Path, int] = {}  # bytes of arrays, by file
        _check_plain(self.folder)

    def create(self) -> "Store":
        try:
            self.cells.mkdir(parents=True, exist_ok=True)
            self.timings.mkdir(exist_ok=True)
        except OSError as error:
            raise ValueError(f"no run folder can be made at {self.folder}: {error.strerror}; give another") from error
        return self

    def add(self, record: Record, predictions: dict[str, np.ndarray] | None = None) -> None:
        """The predictions first, the record, which holds their hash, last: a record that is there is whole."""
        content = asdict(record)
        if predictions is not None:
            content["predictions"] = write_arrays(self.predictions_path(record.key), predictions)
        write_json(self._path(record.key), content)

    def has(self, key: str) -> bool:
        return self._path(key).is_file()

    def get(self, key: str) -> Record | None:
        """The same object each time, which nobody may change."""
        try:
            return self._record(self._path(key))
        except FileNotFoundError:  # not there yet, or another process has just forgotten it
            return None

    def forget(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def records(self) -> list[Record]:
        return [self._record(path) for path in sorted(self.cells.glob("*.json"))]

    def planned(self) -> list[Record]:
        """The records of the latest plan, in its order; those that are not there yet are left out."""
        return [record for key in self.plan()["keys"] if (record := self.get(key)) is not None]

    def keep_to(self, plan: dict[str, Any]) -> None:
        """From here on this is the plan, whatever another sweep writes in the folder's."""
        self._plan = plan

    def plan(self) -> dict[str, Any]:
        """Of the latest sweep: ``keys``, the cells in order; ``timings``, [mode, batch size] pairs, the headline first; ``words``
        of its command; ``started``, in seconds since 1970, and ``kept``, how many records were there then. Raises ValueError
        where the folder is none of a run."""
        if self._plan is not None:
            return self._plan
        path = self.folder / "plan.json"
        if not path.is_file():
            raise ValueError(
                f"{self.folder} is no run folder: it has no plan.json; sweeps name theirs in their first line"
            )
        plan = read_json(path)
        try:
            check(plan, PLAN, "plan")
        except ValueError as error:
            raise Damaged(path, error, "plan") from error
        return plan

    def predictions_path(self, key: str) -> Path:
        return self.cells / f"{_plain_name(key)}.predictions.npz"

    def predictions(self, key: str) -> dict[str, np.ndarray]:
        """Raises ValueError where they cannot be read."""
        path = self.predictions_path(key)
        return dict(self._memo.read(path, lambda: self._arrays(path)))

    def trace_path(self, key: str) -> Path:
        return self.cells / f"{_plain_name(key)}.trace.npz"

    def add_trace(self, key: str, arrays: dict[str, np.ndarray]) -> None:
        """In the place of an older one; the record does not change."""
        write_arrays(self.trace_path(key), arrays)

    def trace(self, key: str, names: Collection[str] | None = None) -> dict[str, np.ndarray] | None:
        """The arrays of these names, None: all; None where the cell has no trace. Raises Damaged where it cannot be read."""
        path = self.trace_path(key)
        if not path.is_file():
            return None
        what = None if names is None else frozenset(names)
        return dict(self._memo.read(path, lambda: self._arrays(path, names, what="trace"), what=what))

    def add_timing(self, timing: Timing) -> None:
        write_json(self.timings / f"{_plain_name(timing.name)}.json", asdict(timing), indent=None)

    def all_timings(self) -> list[Timing]:
        return [_read(_timing, path) for path in sorted(self.timings.glob("*.json"))]

    def heal(self, keys: Collection[str]) -> list[Path]:
        """Sets aside what is no longer what was written, of these cells and of all timings, and gives what that was: nothing of
        it counts any more. Removes what a crash left half written."""
        for path in (path for part in ("", *PARTS) for path in (self.folder / part).glob(".*.tmp")):
            if time.time() - path.stat().st_mtime > LEFTOVER_S:
                path.unlink(missing_ok=True)
        damaged = [path for key in keys for path in self._damaged(key)]
        damaged += [path for path in self.timings.glob("*.json") if _fails(_read, _timing, path)]
        for path in damaged:
            self._set_aside(path)
            if path.name.endswith(".predictions.npz"):
                self.forget(path.name.removesuffix(".predictions.npz"))
        return damaged

    def _record(self, path: Path) -> Record:
        return self._memo.read(path, lambda: _read(_record, path))

    def _damaged(self, key: str) -> Iterator[Path]:
        path, trace = self._path(key), self.trace_path(key)
        if trace.is_file() and _fails(_checked, trace):
            yield trace
        if not path.is_file():
            return
        try:
            digest, status = (read_json(path).get(name) for name in ("predictions", "status"))
            _read(_record, path)
        except Damaged:
            yield path
            return
        predictions = self.predictions_path(key)
        if status == "done" and (not predictions.is_file() or _fails(_checked, predictions, digest)):
            yield predictions if predictions.is_file() else path

    def _set_aside(self, path: Path) -> None:
        """Under its name, and a number where that was damaged before."""
        folder = self.folder / "damaged"
        folder.mkdir(exist_ok=True)
        number = sum(1 for _ in folder.glob(f"{path.name}*"))
        path.rename(folder / (f"{path.name}.{number}" if number else path.name))

    def _arrays(
        self, path: Path, names: Collection[str] | None = None, *, what: str = "record"
    ) -> dict[str, np.ndarray]:
        arrays = read_arrays(path, names, what=what)
        self._taken[path] = max(self._taken.get(path, 0), sum(array.nbytes for array in arrays.values()))
        if sum(self._taken.values()) > MOST_RUN_BYTES:
            raise ValueError(
                f"the arrays of {self.folder} have more than {MOST_RUN_BYTES} bytes; read fewer cells at once"
            )
        return arrays

    def _path(self, key: str) -> Path:
        return self.cells / f"{_plain_name(key)}.json"


def _check_plain(folder: Path) -> None:
    """Links, and pipes that would be waited for for ever, are refused where the store reads or writes. The folder itself and what
    is above it may be links."""
    for place in (folder / part for part in ("plan.json", DRAWN, *PARTS)):
        if place.is_symlink():
            raise ValueError(
                f"{place} is a link, and none in a run folder is followed; put what it leads to in its place"
            )
    if (folder / DRAWN).is_dir():
        raise ValueError(f"{folder / DRAWN} is a folder, where a file is to be; remove it")
    for part in (part for part in ("cells", "timings", "claims", *LOGS) if (folder / part).is_dir()):
        for entry in os.scandir(folder / part):
            is_folder = part in LOGS and entry.is_dir(follow_symlinks=False)
            is_submitits = part == "logs/slurm" and entry.name.startswith(SUBMITTED)
            if not (is_folder or is_submitits or entry.is_file(follow_symlinks=False)):
                raise ValueError(f"{entry.path} is a link or no file, and a run folder holds files alone; remove it")


def _plain_name(name: Any) -> str:
    """A key or a name, which becomes that of a file."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]{0,199}", name, re.ASCII):
        raise ValueError(f"a key must be a file's plain name, not {str(name)[:100]!r}")
    return name


def _read(kind: Callable[..., Any], path: Path) -> Any:
    """Raises Damaged where the file holds something else, such as what another version wrote."""
    content = read_json(path)
    try:
        made = kind(**content)
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise Damaged(path, error) from error
    if path.stem != (made.name if isinstance(made, Timing) else made.key):
        raise Damaged(path, "it is that of another file")
    return made


def _fails(check: Callable[..., Any], *arguments: Any) -> bool:
    try:
        check(*arguments)
        return False
    except Damaged:
        return True


def _checked(path: Path, digest: str | None = None) -> None:
    """Raises Damaged where the arrays are not those with this hash. Of an older version's, which has none, all are read."""
    own = read_archive(path)[1]
    if own is None:
        read_arrays(path)
    if digest is not None and own != digest:
        raise Damaged(path, "these are not the predictions of its record")


def _record(*, predictions: str | None = None, **content: Any) -> Record:
    """``predictions``: the hash of theirs; since schema 2."""
    record = Record(**content)
    check(vars(record), RECORD, "record")
    check_cell(record.cell)
    if record.status == "done":
        check_result(record.result)
    by_layer = [record.result.get(name) for name in ("tokens", "requested_tokens", "gmacs_by_layer")]
    for values in (*by_layer, record.cell.get("schedule", {}).get("layers")):
        if isinstance(values, list | dict) and len(values) > MOST_LAYERS:
            raise ValueError(f"it has more than {MOST_LAYERS} layers")
    return record


def _timing(*, schema: int, **content: Any) -> Timing:
    if schema == 1:
        timing = _first_timing(**content)
    else:
        content["models"] = {key: Timed(**model) for key, model in content["models"].items()}
        timing = Timing(**content, schema=schema)
    check_timing(asdict(timing))
    return timing


def _first_timing(times_ms: dict, speedup: dict, verdict: str, unreduced: str, null: str, **content: Any) -> Timing:
    """Of schema 1: eager, all models in turn, their ratio to the one time of the unreduced model in the round, the order and all
    else that is missing here not kept."""
    base = times_ms.get(unreduced, [])
    models = {
        (NULL if key == null else key): Timed(times_ms.get(key, []), base, [], [], [], ratio, None, verdict)
        for key, ratio in speedup.items()
    }
    resolution = max(max(end, 1 / end) for end in speedup[null]) - 1 if null in speedup else None
    return Timing(**content, mode="eager", seed=0, models=models, resolution=resolution, schema=1)


def wilson(num_correct: float, num_samples: float, *, z: float = 1.959963984540054) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927). An effective number of samples need not be whole.

    >>> [round(end, 4) for end in wilson(90, 100)]
    [0.8256, 0.9448]
    """
    if num_samples == 0:
        return 0.0, 1.0
    p, n = num_correct / num_samples, num_samples
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
    return max(0.0, low), min(1.0, high)  # at 0 and 1 rounding leads out
