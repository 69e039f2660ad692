"""What a report says, apart from how it looks: rows, comparisons, conditions, and sentences on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokred.analysis.claims import Claim, Unclaimed, claims
from tokred.analysis.curves import Curve, readable_curves
from tokred.analysis.notes import failures
from tokred.analysis.rows import Row, grouped, names_of, rows, spanned
from tokred.analysis.speeds import Speed, speeds
from tokred.record import Record, Store
from tokred.terminal import plain

FEW_SEEDS = 5  # below, intervals over seeds may hold the truth less often than they say
DIGESTS = ("weights", "data", "vocabulary")  # parts of a result's identity that are known by their content
CALLED = {"agreement": "agreement, not accuracy"}
MOST_SENTENCES = 12  # of differences that are told at the head of a report; the table has all


@dataclass(frozen=True)
class Content:
    """Of one run. ``problems``: why the curves of a backbone could not be compared at all; ``conditions``: each with its values
    over the records; ``broken``: the files that could not be read, with why."""

    name: str
    rows: Sequence[Row]
    every_metric: Sequence[Row]
    speeds: Sequence[Speed]
    claims: Sequence[Claim]
    unclaimed: Sequence[Unclaimed]
    problems: Sequence[str]
    warnings: Sequence[str]
    conditions: dict[str, list[str]]
    broken: Sequence[tuple[str, str]]

    @property
    def done(self) -> list[Row]:
        return [row for row in self.rows if row.status == "done"]

    @property
    def differing(self) -> list[Claim]:
        return [claim for claim in self.claims if claim.is_claimed]

    @property
    def alike(self) -> list[Claim]:
        return [claim for claim in self.claims if not claim.is_claimed]


def content_of(store: Store) -> Content:
    """Raises ValueError where the folder holds no run, or one of which no cell is done."""
    records = finished_records(store)
    some, problems = readable_curves(store)
    found, left_out = claims(some)
    return Content(
        name_of(store),
        *(rows(store), rows(store, every_metric=True), speeds(store)),
        found,
        left_out,
        problems,
        _warnings(some),
        conditions_of(records),
        _broken(records),
    )


def finished_records(store: Store) -> list[Record]:
    """Those of the latest plan; raises ValueError where none of them is done."""
    if not store.folder.is_dir():
        raise ValueError(f"a report needs the folder of a run; there is no folder {store.folder}")
    if not (store.folder / "plan.json").is_file():
        raise ValueError(f"{store.folder} is not the folder of a run: it holds no plan.json; give what a sweep wrote")
    records = store.planned()
    if not any(record.status == "done" for record in records):
        planned = f"of {len(store.plan()['keys'])} cells {len(records)} have a record"
        reasons = "; ".join(dict.fromkeys(plain(record.reason) for record in records if record.reason))
        why = f": {reasons}" if reasons else ""
        raise ValueError(f"no cell of {store.folder} is done ({planned}){why}; run its sweep again")
    return records


def name_of(store: Store) -> str:
    return plain(store.folder.resolve().name)


def opening(content: Content) -> list[str]:
    """What was run, in sentences."""
    methods = list(dict.fromkeys(row.label for row in content.rows if row.method != "none"))
    backbones = list(dict.fromkeys(row.backbone for row in content.rows))
    data = list(dict.fromkeys(row.data for row in content.rows))
    compared = f"{counted(len(methods), 'method')} on {counted(len(backbones), 'backbone')} ({', '.join(backbones)})"
    return [
        f"{compared}, on {', '.join(data)}; {_samples(content.done)}.",
        _cells(content.rows),
    ]


def verdict(content: Content) -> str:
    """One sentence on all comparisons."""
    if not content.claims:
        return "No two methods were compared."
    num, all_of_them = len(content.differing), counted(len(content.claims), "comparison")
    differ = "no detectable difference" if not num else f"a detectable difference in {num}"
    correction = ", Holm's correction over all of them" if len(content.claims) > 1 else ""
    return f"{all_of_them} of two methods at equal MACs{correction}: {differ}."


def not_compared(content: Content) -> list[str]:
    """Each pair with its reason; and what was not compared at all."""
    pairs = [f"{one.backbone}: {one.reason}" for one in content.unclaimed]
    return [plain(line) for line in [*content.problems, *pairs, *_uncompared(content)]]


def without_result(content: Content) -> list[str]:
    """Each failed or refused cell with its reason."""
    return [line.strip() for line in failures(content.rows)[1:]]


def conditions_of(records: Sequence[Record]) -> dict[str, list[str]]:
    """What was asked for, of what data and weights, where and when."""
    said: dict[str, dict[str, None]] = {}
    for record in records:
        names = names_of(record.cell)
        about: dict[str, Any] = {part: names[part] for part in ("backbone", "weights", "data")}
        about |= {"precision": record.cell.get("precision"), "seeds": record.cell.get("seed")}
        for name, value in (record.result.get("identity") or {}).items():
            about[f"digest of {name}" if name in DIGESTS else CALLED.get(name, name)] = value
        about |= {name: value for name, value in record.conditions.items() if name not in ("finished", "precision")}
        for name, value in about.items():
            if value is not None:
                said.setdefault(plain(name), {})[plain(str(value))] = None
    conditions = {name: list(values) for name, values in said.items()}
    finished = sorted(
        plain(str(record.conditions["finished"])) for record in records if "finished" in record.conditions
    )
    if finished:
        conditions["finished"] = [f"{finished[0]} to {finished[-1]}" if finished[0] != finished[-1] else finished[0]]
    return conditions


def counted(number: int, noun: str) -> str:
    """
    >>> counted(1, "cell"), counted(2, "cell")
    ('1 cell', '2 cells')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _cells(found: Sequence[Row]) -> str:
    """How many there are of each status; seeds are cells."""
    total = sum(row.num_seeds for row in found)
    by_status = grouped(found, lambda row: row.status)
    parts = [f"{sum(row.num_seeds for row in same)} {plain(same[0].status)}" for same in by_status]
    return f"{counted(total, 'cell')}: {', '.join(parts)}."


def _samples(done: Sequence[Row]) -> str:
    counts = {row.num_samples for row in done if row.num_samples is not None}
    return f"n = {spanned(counts)} samples a cell" if counts else "without samples"


def _uncompared(content: Content) -> list[str]:
    """Where cells have several metrics: those of which no two methods are compared."""
    compared = {claim.metric for claim in content.claims}
    done = [row.metric for row in content.every_metric if row.status == "done"]
    others = dict.fromkeys(metric for metric in done if metric not in compared)
    if not compared or not others:
        return []
    return [
        f"Methods are compared by {', '.join(sorted(compared))} alone; the tables have the values of {', '.join(others)}"
    ]


def _warnings(some: Sequence[Curve]) -> list[str]:
    few = dict.fromkeys((curve.label, curve.num_seeds) for curve in some if 1 < curve.num_seeds < FEW_SEEDS)
    return [
        f"{label} has {seeds} seeds; with fewer than {FEW_SEEDS} its intervals may hold the truth less often than in 95 %."
        for label, seeds in few
    ]


def _broken(records: Sequence[Record]) -> list[tuple[str, str]]:
    problems = (problem for record in records for problem in record.result.get("broken", []))
    return list(dict.fromkeys((plain(str(path)), plain(str(reason))) for path, reason in problems))
