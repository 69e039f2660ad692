"""From records to rows: a row for each cell, its seeds pooled, beside the unreduced model."""

import csv
import io
import json
import os
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from tokred.analysis.statistics import (
    Estimate,
    accuracy,
    accuracy_over_seeds,
    paired_difference,
    paired_difference_over_seeds,
    seed_sd,
)
from tokred.record import NULL, Damaged, Record, Store, Timing
from tokred.terminal import plain

Item = TypeVar("Item")
Line = TypeVar("Line", bound="AtSchedule")


class Samples(NamedTuple):
    """Of some samples their indices, whether a cell has each right (or each of R cells: (R, N)), and which of them share a video
    (None: none do)."""

    index_N: np.ndarray
    right_N: np.ndarray
    cluster_N: np.ndarray | None


class OnBackbone:
    """A line about a backbone, with its weights, on some data."""

    backbone: str
    weights: str
    data: str

    @property
    def group(self) -> tuple[str, str, str]:
        """The lines that may be compared with this one have the same."""
        return self.backbone, self.weights, self.data


class OfMethod(OnBackbone):
    """A line about a method on it."""

    method: str
    options: str

    @property
    def label(self) -> str:
        """The method as it was asked for: ``tome proportional_attention=false``."""
        return f"{self.method} {self.options}".rstrip()


class AtSchedule:
    """A line about an amount of reduction."""

    schedule: str
    shape: str

    @property
    def setting(self) -> str:
        """The schedule with its shape, where it has one: ``budget 0.7, constant``."""
        return f"{self.schedule}, {self.shape}" if self.shape else self.schedule


@dataclass(frozen=True)
class Row(OfMethod, AtSchedule):
    """One method at one schedule on one backbone. What is not known is None. Shares lie in 0..1, differences in -1..1.

    ``value`` is the accuracy or whatever ``metric`` names, over ``num_samples`` for each seed, of ``num_clusters`` videos where
    several samples share one. ``difference`` is to the unreduced model, on the samples that both have. ``layers`` are those to
    which tokens were restricted, if they were; ``budget`` is the share of the MACs that was asked for, if one was.
    ``num_tokens`` leave the last layer; where that differs by sample, their mean, with standard deviation and 95th percentile
    over the samples, and ``gmacs_padded`` is what a sample costs in its batch, padded to the longest. The speed-up is that of one
    mode and batch size (``tokred.analysis.speeds`` has all); ``reduction_time_share`` is what the method itself takes of the time
    there; ``verdict`` is ok, noisy or below resolution, of an unreduced model that of the control, and ``resolution`` is how far
    the speed-up of the model over itself may lie from 1. Texts are one line without control characters.
    """

    backbone: str
    weights: str
    data: str
    method: str
    options: str
    schedule: str
    shape: str
    status: str
    reason: str = ""
    layers: str = ""
    metric: str = ""
    num_samples: int | None = None
    num_clusters: int | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    gmacs: float | None = None
    gmacs_share: float | None = None
    num_tokens: float | None = None
    num_tokens_sd: float | None = None
    num_tokens_p95: float | None = None
    gmacs_padded: float | None = None
    budget: float | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    reduction_time_share: float | None = None
    verdict: str = ""
    timing_mode: str = ""
    timing_batch_size: int | None = None
    resolution: float | None = None
    num_seeds: int = 1
    seed_sd: float | None = None
    num_broken: int = 0


def rows(store: Store, *, every_metric: bool = False) -> list[Row]:
    """The latest plan's cells, by backbone in the plan's order: the unreduced model, then by method, in the plan's order.

    Of each cell its headline metric; with ``every_metric`` a row for each that it has. Seeds that failed are a row of their
    own.
    """
    return [row for row, _ in rows_with_records(store, every_metric=every_metric)]


def rows_with_records(
    store: Store, *, every_metric: bool = False, keys: Collection[str] | None = None
) -> list[tuple[Row, list[Record]]]:
    """The same, each row with the records it was made of: one for each seed. With ``keys`` of these cells alone."""
    records = [record for record in store.planned() if keys is None or record.key in keys]
    unreduced = {place_of(r): r for r in reversed(records) if r.cell["method"] == "none" and r.status == "done"}
    timings = _timings(store, records)
    cells = grouped(records, lambda record: (json.dumps({**record.cell, "seed": None}, sort_keys=True), record.status))
    made = [
        (_row(cell, metric, store, unreduced.get(place_of(cell[0])), timings), cell)
        for cell in cells
        for metric in _metrics(cell[0], every_metric)
    ]
    made = _told_apart(made)
    groups = list(dict.fromkeys(row.group for row, _ in made))
    return sorted(made, key=lambda pair: (groups.index(pair[0].group), pair[0].method != "none", pair[0].label))


def write_csv(items: Sequence[Any], path: str | Path) -> Path:
    """A line for each of ``items``, frozen dataclasses of one kind. Rates are in 0..1. Written whole."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if items:
        writer.writerow(field.name for field in fields(items[0]))
    writer.writerows([_harmless(value) for value in asdict(item).values()] for item in items)
    return write_whole(path, text.getvalue().encode())


def write_whole(path: str | Path, content: bytes) -> Path:
    """To a temporary name beside it, then renamed: nobody finds half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def spanned(counts: Iterable[int]) -> str:
    """The smallest and the largest.

    >>> spanned([1000, 400, 1000]), spanned([400])
    ('400 to 1,000', '400')
    """
    ends = sorted(counts)
    return " to ".join(dict.fromkeys(f"{end:,}" for end in (ends[0], ends[-1])))


def shapes_told(lines: Iterable[Line]) -> list[Line]:
    """The same lines, without their shape where all that have one have the same: it tells nothing apart."""
    lines = list(lines)
    if len({line.shape for line in lines if line.shape}) > 1:
        return lines
    return [replace(line, shape="") for line in lines]  # type: ignore[type-var]  # lines are dataclasses


def _told_apart(made: Sequence[tuple[Row, list[Record]]]) -> list[tuple[Row, list[Record]]]:
    """Options that differ and look alike, without their control characters, get a number."""
    known: dict[tuple, list[str]] = {}
    found = []
    for row, cell in made:
        alike = known.setdefault((row.group, row.label), [])
        own = json.dumps([cell[0].cell["method"], cell[0].cell["options"]], sort_keys=True)
        if own not in alike:
            alike.append(own)
        number = alike.index(own) + 1
        found.append((row if number == 1 else replace(row, options=f"{row.options} ({number})".lstrip()), cell))
    return found


def _metrics(record: Record, every_metric: bool) -> list[str]:
    """The names of its metrics, the headline first."""
    headline = record.result.get("metric", "")
    return [*dict.fromkeys([headline, *(record.result.get("metrics", {}) if every_metric else ())])]


def _row(cell: list[Record], metric: str, store: Store, unreduced: Record | None, timings: dict[str, Timing]) -> Row:
    """``cell``: the records that differ in their seed only."""
    first = cell[0]
    reasons = dict.fromkeys(plain(record.reason) for record in cell if record.reason)
    row = Row(**names_of(first.cell), status=first.status, reason="; ".join(reasons), num_seeds=len(cell))
    if first.status != "done":
        return row
    row = replace(row, **_cost(first.result), **_accuracy(cell, metric, store), **_speed(cell, timings))
    return row if row.method == "none" else replace(row, **_difference(cell, metric, store, unreduced))


def names_of(cell: dict[str, Any]) -> dict[str, Any]:
    """What names a cell in a table."""
    return {name: plain(text) if isinstance(text, str) else text for name, text in _names(cell).items()}


def _names(cell: dict[str, Any]) -> dict[str, Any]:
    schedule = cell["schedule"]
    kind, layers = schedule["kind"], schedule.get("layers")
    matched = f"{schedule.get('match')} {_options(schedule.get('match_options', {}))}".rstrip()
    matched = f", MACs of {matched}" if "match" in schedule else ""
    at = "" if layers is None else ",".join(map(str, layers))
    where = f" at {at}" if at else ""
    return {
        "backbone": _label(cell["backbone"]),
        "weights": "random" if cell["weights"] is None else _label(cell["weights"]),
        "data": _label(cell["data"]),
        "method": cell["method"],
        "options": _options(cell["options"]),
        "schedule": {"none": "unreduced", "own": f"as its options say{where}"}.get(
            kind, f"{'at most ' if schedule.get('at_most') else ''}{kind} {_label(schedule['amount'])}{where}{matched}"
        ),
        "shape": (schedule.get("shape") or "") if kind == "budget" else "",
        "layers": at,
        "budget": schedule["amount"] if kind == "budget" else None,
    }


def _cost(result: dict[str, Any]) -> dict[str, Any]:
    varies = "tokens_sd" in result
    return {
        "gmacs": result["gmacs"],
        "gmacs_share": result["gmacs"] / result["gmacs_unreduced"],
        "num_tokens": result["tokens"][-1],
        "num_tokens_sd": result["tokens_sd"][-1] if varies else None,
        "num_tokens_p95": result["tokens_p95"][-1] if varies else None,
        "gmacs_padded": result.get("gmacs_padded"),
    }


def _accuracy(cell: list[Record], metric: str, store: Store) -> dict[str, Any]:
    results = [of_metric(record, metric) for record in cell]
    if "num_samples" not in results[0]:  # a mean of shares, without samples of its own
        return {"metric": metric, "value": float(np.mean([result["value"] for result in results]))}
    num_samples = min(result["num_samples"] for result in results)
    about = {
        "metric": metric,
        "num_samples": num_samples,
        "num_broken": max(record.result["num_broken"] for record in cell),
    }
    if num_samples == 0:
        return about
    if cell[0].cell["method"] == "none" and about["metric"] == "agreement":
        return about | {"value": 1.0}  # with itself, by definition
    shared = aligned([samples_of(store, record, metric) for record in cell])
    cluster_N = None if shared is None else shared.cluster_N
    if cluster_N is not None:
        about["num_clusters"] = len(np.unique(cluster_N))
    if len(cell) == 1 and cluster_N is None:
        return about | _spread(accuracy(results[0]["num_correct"], num_samples))
    if shared is None:
        return about | {"value": float(np.mean([result["num_correct"] / result["num_samples"] for result in results]))}
    found = about | _spread(accuracy_over_seeds(shared.right_N, cluster_N))
    return found | {"seed_sd": seed_sd(shared.right_N)} if len(cell) > 1 else found


def of_metric(record: Record, metric: str) -> dict[str, Any]:
    """Records of older versions have one metric, spread over the result."""
    return record.result.get("metrics", {}).get(metric, record.result)


def _difference(cell: list[Record], metric: str, store: Store, unreduced: Record | None) -> dict[str, Any]:
    if "num_samples" not in of_metric(cell[0], metric):
        return {}
    reference = None if unreduced is None else samples_of(store, unreduced, metric)
    both = aligned([*(samples_of(store, record, metric) for record in cell), reference])
    if both is None:
        return {}
    correct_SN, unreduced_N, cluster_N = both.right_N[:-1], both.right_N[-1], both.cluster_N
    if len(correct_SN) == 1 and cluster_N is None:
        return _spread(paired_difference(correct_SN[0], unreduced_N), "difference", "difference_")
    return _spread(paired_difference_over_seeds(correct_SN, unreduced_N, cluster_N), "difference", "difference_")


def _speed(cell: list[Record], timings: dict[str, Timing]) -> dict[str, Any]:
    """Seeds do the same work, so the first that was timed stands for all. The unreduced model is 1 by definition."""
    timed = [record for record in cell if record.key in timings]
    if not timed:
        return {}
    record, timing = timed[0], timings[timed[0].key]
    about = {"timing_mode": timing.mode, "timing_batch_size": timing.batch_size, "resolution": timing.resolution}
    if record.cell["method"] == "none":
        return about | {"speedup": 1.0, "verdict": timing.models[NULL].verdict if NULL in timing.models else ""}
    model = timing.models[record.key]
    about |= {"verdict": model.verdict, "reduction_time_share": model.reduction_time_share}
    return about | _spread(Estimate(*model.speedup), "speedup", "speedup_")


def _timings(store: Store, records: list[Record]) -> dict[str, Timing]:
    """Of each record the timing that its row shows: in the mode and at the batch size that the latest sweep names first, of
    several such ones the latest. For an unreduced model that of the cells beside it."""
    order = [tuple(pair) for pair in store.plan().get("timings", [])]

    def rank(timing: Timing) -> tuple[int, str]:
        pair = (timing.mode, timing.batch_size)
        return -(order.index(pair) if pair in order else len(order)), timing.conditions.get("finished", "")

    timings = {key: timing for timing in sorted(store.all_timings(), key=rank) for key in timing.models}
    beside = {place_of(record): timings[record.key] for record in records if record.key in timings}
    unreduced = [record for record in records if record.cell["method"] == "none" and place_of(record) in beside]
    return timings | {record.key: beside[place_of(record)] for record in unreduced}


def samples_of(store: Store, record: Record, metric: str) -> Samples | None:
    """None where the record has no predictions beside it."""
    if not store.predictions_path(record.key).is_file():
        return None
    arrays, how = store.predictions(record.key), of_metric(record, metric)
    index, truth = how.get("index", "index"), "reference" if metric == "agreement" else "label"
    used = [index, *(["cluster"] if index == "index" and "cluster" in arrays else [])]
    used += [truth, "prediction"] if how.get("ranks") is None else [how["ranks"]]
    _check_arrays(arrays, used, store.predictions_path(record.key))
    index_N, cluster_N = arrays[index], arrays["cluster"] if "cluster" in used else None
    if how.get("ranks") is not None:
        return Samples(index_N, arrays[how["ranks"]] < how["at"], cluster_N)
    known_N = arrays[truth] >= 0
    right_N = (arrays["prediction"] == arrays[truth])[known_N]
    return Samples(index_N[known_N], right_N, None if cluster_N is None else cluster_N[known_N])


def _check_arrays(arrays: Mapping[str, np.ndarray], names: Sequence[str], path: Path) -> None:
    found = [arrays[name] for name in names if name in arrays]
    whole = all(array.ndim == 1 and array.dtype.kind in "iu" for array in found)
    if len(found) < len(names) or not whole or len({len(array) for array in found}) > 1:
        raise Damaged(path, f"{', '.join(names)} must be there, a whole number for each sample")


def aligned(samples: Sequence[Samples | None]) -> Samples | None:
    """What each of R results says (R, N) on the samples that all have, in the order of their indices; None without any."""
    known = [one for one in samples if one is not None]
    shared = reduce(np.intersect1d, [one.index_N for one in known]) if known else np.empty(0)
    if len(known) < len(samples) or len(shared) == 0:
        return None
    places = [np.argsort(one.index_N)[np.searchsorted(np.sort(one.index_N), shared)] for one in known]
    cluster_N = known[0].cluster_N
    if cluster_N is not None:
        cluster_N = cluster_N[places[0]]
        cluster_N = cluster_N if len(np.unique(cluster_N)) < len(cluster_N) else None
    right_RN = np.stack([one.right_N[place] for one, place in zip(known, places, strict=True)])
    return Samples(shared, right_RN, cluster_N)


def place_of(record: Record) -> str:
    """What cells have in common that are compared with each other."""
    own = ("method", "options", "schedule", "seed", "calibration")
    return json.dumps({axis: value for axis, value in record.cell.items() if axis not in own}, sort_keys=True)


def _spread(estimate: Estimate, value: str = "value", prefix: str = "") -> dict[str, float]:
    return {value: estimate.value, f"{prefix}low": estimate.low, f"{prefix}high": estimate.high}


def _label(value: Any) -> str:
    """A name, or a number, or ``name option=value`` of a mapping with a name; long hashes are cut."""
    if isinstance(value, dict):
        rest = {key: part for key, part in value.items() if key != "name" and part is not None}
        return f"{value.get('name', '')} {_options(rest)}".strip()
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:8] if len(text) >= 32 and set(text) <= set("0123456789abcdef") else text


def _options(options: dict[str, Any]) -> str:
    return " ".join(f"{name}={_label(value)}" for name, value in options.items())


def grouped(items: Iterable[Item], key: Callable[[Item], Hashable]) -> list[list[Item]]:
    """Items of one key together, in the order in which their keys first appear."""
    groups: dict[Hashable, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def _harmless(value: Any) -> Any:
    """A spreadsheet runs a text that begins with one of these as a formula; some take their wide forms for them."""
    begins = (*"=+-@\t\r\n", *"\uff1d\uff0b\uff0d\uff20")
    return f"'{value}" if isinstance(value, str) and value.startswith(begins) else value
