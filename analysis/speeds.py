"""From timings to rows: every cell in every mode at every batch size, for ``timings.csv``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokred.analysis.rows import AtSchedule, names_of, place_of
from tokred.record import NULL, Record, Store, Timed, Timing
from tokred.terminal import plain


@dataclass(frozen=True)
class Speed(AtSchedule):
    """One cell in one measurement; of method none the unreduced model beside itself, the control. What is not known is None.

    ``speedup`` and ``cpu_ratio`` are to the unreduced model in the same mode; the ratio of CPU times means something where
    ``threads`` is 1. What ends in ``this_run`` is of one machine and moment: compare ratios, not these, across runs.
    ``speedup_by_macs``: what it would be if time went with the MACs. ``peak_mib``: the most that a forward held at once,
    parameters and input left out. ``reason``: why it was not timed.
    """

    backbone: str
    weights: str
    data: str
    method: str
    options: str
    schedule: str
    shape: str
    layers: str
    budget: float | None
    mode: str
    batch_size: int
    device: str
    threads: int | None
    verdict: str = ""
    reason: str = ""
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    cpu_ratio: float | None = None
    cpu_ratio_low: float | None = None
    cpu_ratio_high: float | None = None
    resolution: float | None = None
    num_rounds: int | None = None
    latency_ms_median_this_run: float | None = None
    latency_ms_min_this_run: float | None = None
    latency_ms_iqr_this_run: float | None = None
    samples_per_s_this_run: float | None = None
    peak_mib: float | None = None
    reserved_mib: float | None = None
    compile_s: float | None = None
    reduction_time_share: float | None = None
    speedup_by_macs: float | None = None

    @property
    def group(self) -> tuple[str, str, str]:
        return self.backbone, self.weights, self.data

    @property
    def label(self) -> str:
        return f"{self.method} {self.options} {self.setting}".replace("  ", " ")


def speeds(store: Store) -> list[Speed]:
    """Of the latest plan's cells, by mode and batch size in the order in which they were measured; of several measurements the
    latest."""
    records = {record.key: record for record in store.planned()}
    found: dict[tuple[str, str, int, str], Speed] = {}
    for timing in sorted(store.all_timings(), key=lambda timing: timing.conditions.get("finished", "")):
        for key in dict.fromkeys([*timing.models, *timing.left_out]):
            record = _record(key, timing, records)
            if record is not None:
                found[place_of(record), timing.mode, timing.batch_size, record.key] = _speed(record, key, timing)
    return list(found.values())


def _record(key: str, timing: Timing, records: Mapping[str, Record]) -> Record | None:
    """That of the unreduced model is the one beside the cells."""
    if key != NULL:
        return records.get(key)
    cells = [records[other] for other in [*timing.models, *timing.left_out] if other in records]
    unreduced = [record for record in records.values() if record.cell["method"] == "none"]
    return next((one for one in unreduced if cells and place_of(one) == place_of(cells[0])), None)


def _speed(record: Record, key: str, timing: Timing) -> Speed:
    about: dict[str, Any] = {
        **names_of(record.cell),
        "mode": timing.mode,
        "batch_size": timing.batch_size,
        "device": plain(str(timing.conditions.get("device", ""))),
        "threads": timing.conditions.get("threads"),
    }
    if record.status == "done":
        about["speedup_by_macs"] = record.result["gmacs_unreduced"] / record.result["gmacs"]
    if key in timing.left_out:
        return Speed(**about, reason=plain(timing.left_out[key]))
    model = timing.models[key]
    return Speed(
        **about,
        verdict=model.verdict,
        **_ends("speedup", model.speedup),
        **_ends("cpu_ratio", model.cpu_ratio),
        resolution=timing.resolution,
        **_latency(model, timing.batch_size),
        peak_mib=model.peak_mib,
        reserved_mib=model.reserved_mib,
        compile_s=model.compile_s,
        reduction_time_share=model.reduction_time_share,
    )


def _ends(name: str, interval: Sequence[float] | None) -> dict[str, Any]:
    return {} if interval is None else dict(zip((name, f"{name}_low", f"{name}_high"), interval, strict=True))


def _latency(model: Timed, batch_size: int) -> dict[str, Any]:
    if not model.times_ms:
        return {}
    first, median, third = np.percentile(model.times_ms, (25, 50, 75))
    return {
        "num_rounds": len(model.times_ms),
        "latency_ms_median_this_run": float(median),
        "latency_ms_min_this_run": min(model.times_ms),
        "latency_ms_iqr_this_run": float(third - first),
        "samples_per_s_this_run": float(1e3 * batch_size / median),
    }
