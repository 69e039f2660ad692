"""The page on what changed between two runs."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tokred.analysis.claims import shown_detectable
from tokred.analysis.columns import percent, ratio
from tokred.analysis.report.between import Between, Change, between
from tokred.analysis.report.content import counted
from tokred.analysis.report.how import OF_TWO_RUNS
from tokred.analysis.report.page import render
from tokred.analysis.report.tables import Column, Table, interval, smallest_points, table
from tokred.analysis.rows import Row, spanned, write_whole
from tokred.record import Store

INDEPENDENT = "no samples of the two runs could be matched, so they are taken as independent"


def write_comparison(before: Store, after: Store, path: str | Path | None = None) -> Path:
    """By default in the folder of the second. Raises ValueError where one of the folders holds no finished cell."""
    found = between(before, after)
    path = path or after.folder / f"report-against-{_file_name(found.names[0])}.html"
    tables = [make(found) for make in (_changes, _speeds, _lost, _gained, _without_result, _conditions)]
    content = {
        "names": found.names,
        "sentences": _sentences(found),
        "detected": [sentence(change) for change in found.compared if change.is_detected],
        "tables": {one.name: one for one in tables if one.lines},
        "how": OF_TWO_RUNS,
    }
    return write_whole(path, render("comparison.html", content).encode())


def _file_name(text: str) -> str:
    """As much of it as a file's name may hold: a folder's name can be as long as that."""
    return re.sub(r"[^\w.-]+", "-", text)[:100]


def sentence(change: Change) -> str:
    """One sentence, with all that it rests on; of a change that could be compared."""
    row = change.after
    paired = "paired" if change.is_paired else f"unpaired: {INDEPENDENT}"
    counts = f"n = {change.num_samples:,}" if change.is_paired else _counts([change])
    alone = change.num_comparisons == 1
    family = "the only comparison" if alone else f"Holm over {change.num_comparisons} comparisons"
    return (
        f"{_named(row)} on {row.backbone}: {row.metric} {percent(change.before.value or 0)} before and "
        f"{percent(row.value or 0)} after, {interval(change)} points ({paired}; {counts}; "
        f"p {'< 0.0001' if change.p < 1e-4 else f'= {change.p:.2g}'}, {family})."
    )


def _num(change: Change) -> str:
    """Of unpaired samples those before and those after."""
    if not change.num_samples:
        return ""
    if change.is_paired:
        return f"{change.num_samples:,}"
    return f"{change.before.num_samples:,} and {change.after.num_samples:,}"


def _counts(unpaired: Sequence[Change]) -> str:
    before, after = (
        spanned(getattr(change, end).num_samples or 0 for change in unpaired) for end in ("before", "after")
    )
    return f"n = {before} before and {after} after"


def _sentences(found: Between) -> list[str]:
    compared, detected = found.compared, sum(change.is_detected for change in found.compared)
    both = f"{counted(len(found.changes), 'cell')} done in both runs, {len(compared)} compared"
    unpaired = [change for change in compared if not change.is_paired]
    same = sum(change.num_changed == 0 for change in compared)
    others = [change for change in compared if not change.is_detected and change.num_changed != 0]
    smallest = max((change.smallest for change in others), default=None)
    said = [f"{both}{f', {len(unpaired)} of them unpaired: {INDEPENDENT}, {_counts(unpaired)}' if unpaired else ''}."]
    if compared:
        said.append(
            f"Detectable difference, after Holm's correction over all that were compared: {detected} of {len(compared)}."
        )
    else:
        said.append("No cell could be compared.")
    if same:
        said.append(f"Not one sample changed in {counted(same, 'cell')}.")
    if smallest is not None:
        though = "" if unpaired else " though samples changed"
        said.append(
            f"Where none was detected{though}: {shown_detectable(smallest)} at the cell where that is largest; the table has all."
        )
    return [*said, f"Done before and not after: {len(found.lost)}. Done after and not before: {len(found.gained)}."]


def _changes(found: Between) -> Table:
    metrics = {row.metric for change in found.changes for row in (change.before, change.after)}
    columns = [
        *_names(),
        *([Column("metric", lambda one: one.after.metric)] if len(metrics) > 1 else []),
        Column("before, %", lambda one: _percent(one.before), lambda one: one.before.value),
        Column("after, %", lambda one: _percent(one.after), lambda one: one.after.value),
        Column(
            "difference, points [95 %]", lambda one: "" if one.value is None else interval(one), lambda one: one.value
        ),
        Column("finding", _finding),
        Column("smallest detectable, points", _smallest, lambda one: None if one.value is None else one.smallest),
        Column("compared", lambda one: "" if one.value is None else "paired" if one.is_paired else "unpaired"),
        Column("n", _num, lambda one: one.num_samples),
        Column(
            "changed", lambda one: "" if one.num_changed is None else str(one.num_changed), lambda one: one.num_changed
        ),
        Column("p", lambda one: "" if one.value is None else f"{one.p:.2g}", lambda one: one.p),
        Column("comparisons", lambda one: str(one.num_comparisons or ""), lambda one: one.num_comparisons),
        *_shares(found),
    ]
    changed = any(change.num_changed is not None for change in found.changes)
    metric = f", {min(metrics)}" if len(metrics) == 1 else ""
    samples = "; changed: how many samples one run has right and the other wrong" if changed else ""
    caption = (
        f"Cells of both runs{metric}: after minus before. p is adjusted by Holm's correction for the number of comparisons"
        f"{samples}. Intervals are each alone: one can leave out 0 where p, so adjusted, is above 0.05."
    )
    return table("changes", caption, columns, found.changes)


def _shares(found: Between) -> list[Column]:
    """One column, where no cell has other MACs than it had."""
    before = Column("MACs before, %", lambda one: _share(one.before), lambda one: one.before.gmacs_share)
    after = Column("MACs after, %", lambda one: _share(one.after), lambda one: one.after.gmacs_share)
    same = all(_share(one.before) == _share(one.after) for one in found.changes)
    return [replace(after, title="MACs, %")] if same else [before, after]


def _speeds(found: Between) -> Table:
    timed = [one for one in found.changes if one.before.speedup is not None or one.after.speedup is not None]
    columns = [
        *_names(),
        Column("speed-up before, x [95 %]", lambda one: _speed(one.before), lambda one: one.before.speedup),
        Column("speed-up after, x [95 %]", lambda one: _speed(one.after), lambda one: one.after.speedup),
        Column("measured before", lambda one: _measured(one.before)),
        Column("measured after", lambda one: _measured(one.after)),
    ]
    caption = (
        "Speed-ups side by side, each to the unreduced model of its own run. They are of two measurements, in the conditions "
        "that are listed below where they differ, and are not subtracted."
    )
    return table("speeds", caption, columns, timed)


def _lost(found: Between) -> Table:
    return _one_sided("lost", "Done before and not after.", found.lost)


def _gained(found: Between) -> Table:
    return _one_sided("gained", "Done after and not before.", found.gained)


def _one_sided(name: str, caption: str, some) -> Table:
    columns = [
        Column("cell", lambda pair: _named(pair[0]), names=True),
        Column("backbone", lambda pair: pair[0].backbone),
        Column("in the other run", lambda pair: pair[1]),
    ]
    return table(name, caption, columns, some)


def _without_result(found: Between) -> Table:
    columns = [
        Column("cell", lambda pair: _named(pair[0]), names=True),
        Column("backbone", lambda pair: pair[0].backbone),
        Column("before", lambda pair: f"{pair[0].status}: {pair[0].reason or 'no reason given'}"),
        Column("after", lambda pair: f"{pair[1].status}: {pair[1].reason or 'no reason given'}"),
    ]
    return table("without-result", "Without a result in either run.", columns, found.without_result)


def _conditions(found: Between) -> Table:
    columns = [
        Column("condition", lambda one: one[0], names=True),
        Column("before", lambda one: one[1]),
        Column("after", lambda one: one[2]),
    ]
    return table("conditions", "Conditions that differ between the two.", columns, found.conditions)


def _names() -> list[Column]:
    return [
        Column("cell", lambda one: _named(one.after), names=True),
        Column("backbone", lambda one: one.after.backbone),
    ]


def _named(row: Row) -> str:
    return "the unreduced model" if row.method == "none" else f"{row.label} {row.setting}"


def _finding(change: Change) -> str:
    if change.value is None:
        return f"not compared: {change.reason}"
    if change.num_changed == 0:
        return "the same on every sample"
    if change.is_detected:
        return "higher" if change.value > 0 else "lower"
    return "no detectable difference"


def _smallest(change: Change) -> str:
    return "" if change.value is None or change.num_changed == 0 else smallest_points(change.smallest)


def _percent(row: Row) -> str:
    return "" if row.value is None else percent(row.value)


def _share(row: Row) -> str:
    return "" if row.gmacs_share is None else percent(row.gmacs_share)


def _speed(row: Row) -> str:
    if row.speedup is None:
        return "not timed"
    ends = (
        ""
        if row.speedup_low is None or row.speedup_high is None
        else f" [{ratio(row.speedup_low)}, {ratio(row.speedup_high)}]"
    )
    return f"{ratio(row.speedup)}{ends}"


def _measured(row: Row) -> str:
    if row.speedup is None:
        return ""
    resolution = "" if row.resolution is None else f", resolution {percent(row.resolution)} %"
    return f"{row.timing_mode}, batch {row.timing_batch_size}: {row.verdict or 'ok'}{resolution}"
