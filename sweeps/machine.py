"""The machine under a measurement: what it is called, and how busy and warm it was; a noisy timing has its reason there."""

import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

PROC = Path("/proc")  # of Linux; elsewhere there is none, and what it would say is None


@dataclass(frozen=True)
class Moment:
    """What counters stood at, seconds but for the load; None where the system has none of the kind, or denies it.

    ``load``: processes that wanted a core in the last minute; ``waited``: in which some process waited for a core; ``stolen`` and
    ``passed``: of all cores together, given to other virtual machines by the one below, and in all. ``clock_mhz`` and
    ``temperature_c`` are a GPU's, from nvidia-ml-py where that is installed.
    """

    at: float
    load: float | None
    waited: float | None
    stolen: float | None
    passed: float | None
    clock_mhz: int | None
    temperature_c: int | None


@cache
def processor() -> str:
    """The model, or the architecture where the system does not name it."""
    names = (value.strip() for name, value in _fields(PROC / "cpuinfo", ":") if name.strip() == "model name")
    return next(names, "") or platform.processor() or platform.machine()


def moment(device: str) -> Moment:
    clock, temperature = _of_gpu() if device == "cuda" else (None, None)
    waited = [part for name, rest in _fields(PROC / "pressure" / "cpu", " ") if name == "some" for part in rest.split()]
    total = next((int(part.removeprefix("total=")) for part in waited if part.startswith("total=")), None)
    ticks = next(
        ([int(part) for part in rest.split()] for name, rest in _fields(PROC / "stat", " ") if name == "cpu"), []
    )
    per_s = os.sysconf("SC_CLK_TCK") if ticks else 1
    return Moment(
        time.monotonic(),
        os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        None if total is None else total / 1e6,
        ticks[7] / per_s if len(ticks) > 7 else None,
        sum(ticks[:8]) / per_s if len(ticks) > 7 else None,  # time of guests, behind it, is in the user's already
        clock,
        temperature,
    )


def between(start: Moment, end: Moment) -> dict[str, Any]:
    """``cores``: that this process may use. ``load``: at the start and at the end. ``cpu_pressure``: the share of the time in
    which some process of the machine waited for a core. ``cpu_stolen``: the share of the cores' time that other virtual machines
    had. Of a GPU ``clock_mhz`` and ``temperature_c``, at the start and at the end."""
    found: dict[str, Any] = {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": [None if one.load is None else round(one.load, 2) for one in (start, end)],
        "cpu_pressure": _share(start.waited, end.waited, start.at, end.at),
        "cpu_stolen": _share(start.stolen, end.stolen, start.passed, end.passed),
    }
    for name in ("clock_mhz", "temperature_c"):
        values = [getattr(start, name), getattr(end, name)]
        found |= {} if None in values else {name: values}
    return found


def _share(part_0: float | None, part_1: float | None, all_0: float | None, all_1: float | None) -> float | None:
    if part_0 is None or part_1 is None or all_0 is None or all_1 is None or all_1 <= all_0:
        return None
    return round(min(1.0, (part_1 - part_0) / (all_1 - all_0)), 4)


def _fields(path: Path, separator: str) -> Iterator[tuple[str, str]]:
    """Each line up to the separator and from there; of what cannot be read nothing."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        name, _, rest = line.partition(separator)
        yield name, rest


def _of_gpu() -> tuple[int | None, int | None]:
    try:
        return torch.cuda.clock_rate(), torch.cuda.temperature()
    except Exception:  # the driver's library raises its own kinds; not every machine lets one ask
        return None, None
