"""One cell of a sweep is one record: what was asked, what came out, and under what conditions.

A record is one JSON file, written whole (to a temporary name, flushed, renamed) and never changed; the per-sample predictions
lie beside it. Its key is the hash of what determines the result, so that a changed method, checkpoint or data set is another
record. Timings are apart, in files of their own: they belong to a machine and a moment.

    RUN/plan.json                     the cells of the latest sweep, in order, and what was to be timed
    RUN/cells/KEY.json                a record
    RUN/cells/KEY.predictions.npz     sample indices, labels, predictions
    RUN/cells/KEY.trace.npz           where the tokens of a few samples went (``tokred.sweeps.tracing``)
    RUN/timings/NAME.json             one interleaved measurement
"""

import hashlib
import json
import math
import os
import zipfile
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

SCHEMA = 1
TIMING_SCHEMA = 2
NULL = "null"  # in a timing: the unreduced model, timed as if it were a cell
STATUSES = ("done", "refused", "failed", "invalid")


@dataclass(frozen=True)
class Record:
    """``status``: done; refused (the method or backbone cannot run this cell; ``reason`` says why); failed (an error);
    invalid (logits that are not finite). ``result`` is empty unless done.

    ``cell`` holds method, options, backbone, weights, data, schedule, seed. ``result`` holds metric ("accuracy", or
    "agreement" with the unreduced model where there are no labels or weights), num_samples, num_correct, num_broken,
    tokens (leaving each layer, prefix included), requested_tokens, num_input_tokens, gmacs and gmacs_unreduced per sample,
    gmacs_by_part, gmacs_by_layer and gmacs_reduction (the reduction's own); identity: digests of the weights and of the data
    with its labels, the transform, and what else two results must have in common to be compared.
    """

    key: str
    cell: dict[str, Any]
    status: str
    reason: str | None = None
    result: dict[str, Any] = field(default_factory=dict)
    conditions: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA


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
    """The records of one run folder."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.cells, self.timings = self.folder / "cells", self.folder / "timings"

    def create(self) -> "Store":
        try:
            self.cells.mkdir(parents=True, exist_ok=True)
            self.timings.mkdir(exist_ok=True)
        except OSError as error:
            raise ValueError(f"no run folder can be made at {self.folder}: {error.strerror}; give another") from error
        return self

    def add(self, record: Record, predictions: dict[str, np.ndarray] | None = None) -> None:
        """The predictions first, the record last: a record that is there is whole."""
        if predictions is not None:
            _write_arrays(self.predictions_path(record.key), predictions)
        write_json(self.cells / f"{record.key}.json", asdict(record))

    def get(self, key: str) -> Record | None:
        path = self.cells / f"{key}.json"
        return _read(Record, path) if path.is_file() else None

    def records(self) -> list[Record]:
        return [_read(Record, path) for path in sorted(self.cells.glob("*.json"))]

    def planned(self) -> list[Record]:
        """The records of the latest plan, in its order; those that are not there yet are left out."""
        return [record for key in self.plan()["keys"] if (record := self.get(key)) is not None]

    def plan(self) -> dict[str, Any]:
        """Of the latest sweep: ``keys``, the cells in order, and ``timings``, [mode, batch size] pairs, the headline first."""
        return read_json(self.folder / "plan.json")

    def predictions_path(self, key: str) -> Path:
        return self.cells / f"{key}.predictions.npz"

    def predictions(self, key: str) -> dict[str, np.ndarray]:
        """Raises ValueError where they cannot be read."""
        path = self.predictions_path(key)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            what = f"{path} holds no readable predictions ({error})"
            raise ValueError(f"{what}; delete its record and run the sweep again") from error

    def trace_path(self, key: str) -> Path:
        return self.cells / f"{key}.trace.npz"

    def add_trace(self, key: str, arrays: dict[str, np.ndarray]) -> None:
        """In the place of an older one; the record does not change."""
        _write_arrays(self.trace_path(key), arrays)

    def trace(self, key: str, names: Collection[str] | None = None) -> dict[str, np.ndarray] | None:
        """The arrays of these names, None: all; None where the cell has no trace. Raises ValueError where it cannot be read."""
        path = self.trace_path(key)
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files if names is None or name in names}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is not a readable trace ({error}); delete it and run the sweep again") from error

    def add_timing(self, timing: Timing) -> None:
        write_json(self.timings / f"{timing.name}.json", asdict(timing), indent=None)

    def all_timings(self) -> list[Timing]:
        return [_read(_timing, path) for path in sorted(self.timings.glob("*.json"))]


def write_json(path: Path, content: Any, *, indent: int | None = 1) -> None:
    """Written whole or not at all; without ``indent`` on one line. Raises ValueError on NaN and infinities: they are not JSON."""
    text = json.dumps(content, indent=indent, separators=None if indent else (",", ":"), allow_nan=False)
    _write_whole(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not a readable record ({error}); delete it and run the sweep again") from error


def _read(kind: Callable[..., Any], path: Path) -> Any:
    """Raises ValueError where the file holds something else, such as what another version wrote."""
    content = read_json(path)
    try:
        return kind(**content)
    except (TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"{path} is not a readable record ({error}); delete it and run the sweep again") from error


def _timing(*, schema: int, **content: Any) -> Timing:
    if schema == 1:
        return _first_timing(**content)
    content["models"] = {key: Timed(**model) for key, model in content["models"].items()}
    return Timing(**content, schema=schema)


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


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    _write_whole(path, lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]


def _write_whole(path: Path, write: Any) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
