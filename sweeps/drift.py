"""``tokred drift RUN_DIR``: what the same command would run again, and what has changed since its records were made."""

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokred.record import Record, Store, key_of
from tokred.sweeps.plan import Cell

PARTS = {
    "weights": "the weights",
    "data": "the data",
    "preprocess": "the transform of the data",
    "method": "the source of the method",
    "family": "the source of the backbone's family",
    "core": "the source of tokred's core",
    "tokens": "the tokens that leave each layer",
    "layers": "the layers that reduce",
    "budget": "the budget",
    "calibration": "the calibration samples",
}
CONDITIONS = ("tokred", "torch", "timm", "lightning", "python", "system", "device", "threads")
MOST_CELLS = 3  # that are named of each change
TAKEN = (  # words that a run folder may say: with no value do they name a file, a plugin or the hub, or make a model large
    *("task", "experiment", "methods", "options", "budget", "r", "keep_rate", "tokens", "shape", "layers", "match"),
    *("allow_clip", "seeds", "shortlist", "data", "traces", "retry", "device", "precision"),
    *(
        "batch_size",
        "cells_per_pass",
        "workers",
        "timeout",
        "timing",
        "timing.rounds",
        "timing.batch_size",
        "timing.modes",
    ),
)
TAKEN_IF = {"weights": "random", "backbones": r"[\w,\[\] ]*", "data.num_clips": r"\d{1,4}", "data.split": r"\w*"}


@dataclass(frozen=True)
class Drift:
    """``same``: planned cells whose record is there; ``changed``: with the record of what they were, and the parts that are other
    now; ``new``: never run; ``left``: records that no planned cell has or had."""

    same: list[Record]
    changed: list[tuple[Cell, list[str]]]
    new: list[Cell]
    left: list[Record]


def words_again(store: Store, now: Sequence[str]) -> list[str]:
    """The words of the run's sweep, with those ``now`` in the place of the same names.

    A run folder may have come from somebody else. So those of its words that would have a plugin run, a file be read, the hub
    asked or a large model be built count only where the user says them: raises ValueError that names them.
    """
    before = store.plan().get("words", [] if now else None)
    if before is None:
        raise ValueError(
            f"{store.folder / 'plan.json'} is of an earlier version, which did not keep the words of its sweep; add them, as "
            f"tokred drift {shlex.quote(str(store.folder))} 'methods=[tome]'"
        )
    if len(before) > 1000:
        raise ValueError(f"{store.folder / 'plan.json'} does not hold the words of a sweep; run the sweep again")
    said = {_key(word) for word in now} | {"out"}
    before = [word for word in before if _key(word) not in said]
    if own := [word for word in before if not _is_taken(word)]:
        raise ValueError(
            f"{store.folder} names what is not opened, loaded or built on the word of a run folder alone; if it is right, add: "
            f"{shlex.join(own)}"
        )
    return [*before, *now]


def _key(word: str) -> str:
    return word.lstrip("+").partition("=")[0]


def _is_taken(word: str) -> bool:
    key, value = _key(word), word.partition("=")[2]
    if key in TAKEN_IF:
        return re.fullmatch(TAKEN_IF[key], value.strip("[]"), re.ASCII) is not None
    return key in TAKEN or key.startswith("options.")


def drift(cells: Sequence[Cell], store: Store) -> Drift:
    records = {record.key: record for record in store.records()}
    planned = {cell.key for cell in cells}
    others = [record for key, record in records.items() if key not in planned]
    earlier = {key_of(r.cell): r for r in sorted(others, key=lambda r: r.conditions.get("finished", ""))}
    absent = [cell for cell in cells if cell.key not in records]
    was = {cell.key: earlier.get(key_of(cell.spec)) for cell in absent}
    changed = [(cell, _other_parts(cell, old)) for cell in absent if (old := was[cell.key]) is not None]
    known = {key_of(cell.spec) for cell, _ in changed}
    return Drift(
        [records[cell.key] for cell in cells if cell.key in records],
        changed,
        [cell for cell in absent if was[cell.key] is None],
        [record for record in others if key_of(record.cell) not in known],
    )


def other_conditions(records: Iterable[Record], now: dict[str, Any]) -> dict[str, int]:
    """What records were made with that is other now, each with how many: ``torch 2.14.0, now 2.15.0``."""
    found: dict[str, int] = {}
    for record in records:
        for name in CONDITIONS:
            if record.conditions.get(name, now[name]) != now[name]:
                what = f"{name} {record.conditions[name]}, now {now[name]}"
                found[what] = found.get(what, 0) + 1
    return found


def lines(found: Drift, now: dict[str, Any], store: Store) -> Iterator[str]:
    num = len(found.same) + len(found.changed) + len(found.new)
    yield (
        f"{store.folder}: {num} cells planned: {len(found.same)} as on disk, {len(found.changed)} changed and "
        f"{len(found.new)} new, which the sweep would run"
    )
    reasons: dict[str, list[Cell]] = {}
    for cell, parts in found.changed:
        named = [
            f"{PARTS.get(part, part)} {cell.spec['method']}" if part == "method" else PARTS.get(part, part)
            for part in parts
        ]
        reasons.setdefault(" and ".join(named) or "what it was made of was not kept", []).append(cell)
    for reason, cells in reasons.items():
        yield f"changed: {reason}: {_named(cells)}"
    if found.new:
        yield f"new: {_named(found.new)}"
    for what, n in other_conditions(found.same, now).items():
        yield f"kept: {n} were made with {what}"
    if found.left:
        yield f"on disk and not planned: {len(found.left)} records"


def _other_parts(cell: Cell, old: Record) -> list[str]:
    """Of a record that does not hold its parts, those of its result's identity."""
    before = old.made_of or old.result.get("identity", {})
    return [name for name, value in cell.made_of.items() if name in before and key_of(value) != key_of(before[name])]


def _named(cells: Sequence[Cell]) -> str:
    first = ", ".join(f"{cell.label} ({cell.spec['backbone']})" for cell in cells[:MOST_CELLS])
    return first if len(cells) <= MOST_CELLS else f"{first} and {len(cells) - MOST_CELLS} more"
