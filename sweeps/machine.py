"""The machine under a measurement: what it is called, and how busy and warm it was; a noisy timing has its reason there."""

import os
import platform
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

PROC = Path("/proc")  # of Linux; elsewhere there is none, and what it would say is None
# By which makers tell their processors apart: x86's, then ARM's.
NUMBERS = {"cpu family": "family", "model": "model", "CPU implementer": "implementer", "CPU part": "part"}


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
    """Its model. Virtual machines give many models one name, and ARM's have none: so the numbers follow that makers tell them by.
    The architecture where the system says nothing of this."""
    if platform.system() == "Windows":
        return platform.processor() or platform.machine()
    if platform.system() == "Darwin":
        return _of_mac() or platform.machine()
    said: dict[str, str] = {}
    for name, value in _fields(PROC / "cpuinfo", ":"):
        said.setdefault(name.strip(), value.strip())  # of the first core
    numbers = " ".join(f"{short} {said[name]}" for name, short in NUMBERS.items() if said.get(name))
    return ", ".join(filter(None, [said.get("model name") or platform.machine(), numbers]))


def moment(device: str) -> Moment:
    clock, temperature = _of_gpu() if device == "cuda" else (None, None)
    stolen, passed = _stolen_and_passed()
    return Moment(
        time.monotonic(),
        os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        _waited(),
        stolen,
        passed,
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
    share = (part_1 - part_0) / (all_1 - all_0)  # a kernel corrects such counters, at times down
    return round(min(1.0, max(0.0, share)), 4)


def _waited() -> float | None:
    """Linux counts microseconds: ``some avg10=0.00 avg60=0.00 avg300=0.00 total=12345``."""
    parts = [part for name, rest in _fields(PROC / "pressure" / "cpu", " ") if name == "some" for part in rest.split()]
    total = next((part.removeprefix("total=") for part in parts if part.startswith("total=")), "")
    return int(total) / 1e6 if total.isdecimal() else None


def _stolen_and_passed() -> tuple[float | None, float | None]:
    """Linux counts ticks of all cores: user, nice, system, idle, iowait, irq, softirq, stolen; guests' are in user's too."""
    texts = next((rest.split() for name, rest in _fields(PROC / "stat", " ") if name == "cpu"), [])[:8]
    if len(texts) < 8 or not all(map(str.isdecimal, texts)):
        return None, None
    seconds = [int(text) / os.sysconf("SC_CLK_TCK") for text in texts]
    return seconds[7], sum(seconds)


def _fields(path: Path, separator: str) -> Iterator[tuple[str, str]]:
    """Each line up to the separator and from there; of what cannot be read nothing."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        name, _, rest = line.partition(separator)
        yield name, rest


def _of_mac() -> str:
    asked = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _of_gpu() -> tuple[int | None, int | None]:
    try:
        return torch.cuda.clock_rate(), torch.cuda.temperature()
    except Exception:  # the driver's library raises its own kinds; not every machine lets one ask
        return None, None
