"""``tokred status RUN_DIR``: how a sweep stands, from its run folder alone, while it runs or after."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from tokred.record import Record, Store
from tokred.sealed import Damaged
from tokred.sweeps.claims import SWEEP, claimed

MOST_REASONS = 10  # it is to fit a screen


@dataclass(frozen=True)
class Status:
    """Of the latest plan. ``counts``: cells by status, damaged and running too; ``busy``: whether a process works on anything;
    ``begun``: whether a sweep is there that may be about to. ``left_s``: an estimate from what it took so far, None without
    anything to go by. ``reasons``: of what failed, and how often.
    """

    num_cells: int
    counts: Counter[str]
    reasons: Counter[str]
    busy: bool
    begun: bool
    left_s: float | None

    @property
    def num_open(self) -> int:
        """Without a record, those that run included."""
        return self.num_cells - sum(n for name, n in self.counts.items() if name not in ("running", "damaged"))


def read_status(store: Store) -> Status:
    plan = store.plan()
    names, found = claimed(store.folder), {key: _read(key, store) for key in plan["keys"]}
    records = [one for one in found.values() if isinstance(one, Record)]
    counts = Counter(record.status for record in records)
    counts["damaged"] = sum(one == "damaged" for one in found.values())
    counts["running"] = sum(one is None and key in names for key, one in found.items())
    reasons = Counter(f"{r.cell['method']}: {r.reason}" for r in records if r.status in ("failed", "invalid"))
    new = len(records) - plan.get("kept", 0)
    each_s = (time.time() - plan["started"]) / new if new > 0 and "started" in plan else None
    left_s = None if each_s is None or not counts["running"] else each_s * (len(found) - len(records))
    begun = {name for name in names if name.startswith(f"{SWEEP}-")}
    return Status(len(found), counts, reasons, bool(names - begun), bool(begun), left_s)


def lines(status: Status, store: Store) -> Iterator[str]:
    counts = status.counts
    waiting = status.num_open - counts["running"]
    shown = {name: counts[name] for name in ("done", "refused", "failed", "invalid", "damaged", "running")}
    shown["waiting"] = waiting - counts["damaged"]
    said = ", ".join(f"{n} {name}" for name, n in shown.items() if n or name == "done")
    yield f"{store.folder}: {status.num_cells} cells: {said}"
    if status.left_s is not None:
        yield f"about {_duration(status.left_s)} left for the accuracies"
    elif status.busy:
        yield "no cell of it is finished yet" if status.num_open else "traces or timings are being made"
    elif status.begun:
        yield "a sweep has begun: its processes start, or wait for their turn"
    elif status.num_open:
        yield "nothing runs; the same command goes on from here"
    for reason, n in status.reasons.most_common(MOST_REASONS):
        yield f"  {n} x {_one_line(reason)}"
    if len(status.reasons) > MOST_REASONS:
        yield f"  and {len(status.reasons) - MOST_REASONS} other reasons, in {store.cells}"


def _read(key: str, store: Store) -> Record | str | None:
    try:
        return store.get(key)
    except Damaged:
        return "damaged"


def _one_line(text: str) -> str:
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= 150 else f"{text[:147]}..."


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
