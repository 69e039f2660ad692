"""What changed between two runs: cells of the one alone; of those in both the difference, paired where the samples are the same.

All differences of a report are one family, with Holm's correction. A speed-up belongs to its run's machine and moment: the two
are put side by side and not subtracted.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtr

from tokred.analysis.claims import LEVEL, holm
from tokred.analysis.compare import NUM_SIGNS, delta_auc, difference_over
from tokred.analysis.curves import Curve, identity_of
from tokred.analysis.report.content import conditions_of, finished_records, name_of
from tokred.analysis.rows import Row, aligned, rows_with_records, samples_of, shapes_told
from tokred.analysis.statistics import Z, detectable
from tokred.record import Record, Store

OWN_AXES = ("method", "options", "schedule", "backbone")  # what a cell is, in any run
Cell = tuple[Row, list[Record]]


@dataclass(frozen=True)
class Change:
    """A cell that is done in both runs; ``value`` is the later share right minus the earlier one.

    ``is_paired``: over the same samples, ``num_samples`` of them; else the two shares are taken to be independent. ``p`` is
    adjusted as one of ``num_comparisons``. ``reason``: why there is no difference. ``num_changed``: samples that the two have
    not the same, of one seed each.
    """

    before: Row
    after: Row
    value: float | None = None
    low: float = 0.0
    high: float = 0.0
    p: float = 1.0
    error: float = 0.0
    degrees: float = np.inf
    num_samples: int = 0
    num_changed: int | None = None
    is_paired: bool = True
    num_comparisons: int = 0
    reason: str = ""

    @property
    def is_detected(self) -> bool:
        return self.value is not None and self.p <= LEVEL and not self.low <= 0 <= self.high

    @property
    def smallest(self) -> float:
        """What would be detected in at least 4 of 5 repetitions, as one of so many comparisons."""
        num = self.num_samples if self.is_paired else np.inf  # the floor that samples set is one of pairs
        return detectable(self.error, num, degrees=self.degrees, num_comparisons=self.num_comparisons)


@dataclass(frozen=True)
class Between:
    """``conditions``: those that differ, each with its values before and after. ``lost``: cells done before and not after, and
    ``gained`` the other way round, each with its status there ("not in the run" where it is none of its cells)."""

    names: tuple[str, str]
    changes: Sequence[Change]
    lost: Sequence[tuple[Row, str]]
    gained: Sequence[tuple[Row, str]]
    without_result: Sequence[tuple[Row, Row]]
    conditions: Sequence[tuple[str, str, str]]

    @property
    def compared(self) -> list[Change]:
        return [change for change in self.changes if change.value is not None]


def between(before: Store, after: Store) -> Between:
    """Raises ValueError where one of the folders holds no finished cell."""
    records = [finished_records(store) for store in (before, after)]
    dropped = _alike_within(records)
    earlier, later = _without_one_shape(*(_by_name(store, dropped) for store in (before, after)))
    both = [name for name in earlier if name in later]
    done = [name for name in both if _is_done(earlier[name]) and _is_done(later[name])]
    return Between(
        (name_of(before), name_of(after)),
        _adjusted([_change(earlier[name], later[name], (before, after)) for name in done]),
        lost=_one_sided(earlier, later),
        gained=_one_sided(later, earlier),
        without_result=[
            (earlier[name][0], later[name][0])
            for name in both
            if not _is_done(earlier[name]) and not _is_done(later[name])
        ],
        conditions=_differing(*(conditions_of(some) for some in records)),
    )


def _alike_within(records: Sequence[Sequence[Record]]) -> set[str]:
    """Axes with one value in each run: they belong to the run and not to the name of a cell, and may differ between the two."""
    axes = {axis for some in records for record in some for axis in record.cell} - {*OWN_AXES, "seed"}
    values = {axis: [{_text(record.cell.get(axis)) for record in some} for some in records] for axis in axes}
    return {axis for axis, sets in values.items() if all(len(one) == 1 for one in sets)}


def _by_name(store: Store, dropped: set[str]) -> dict[str, Cell]:
    """By all that names a cell in both runs; where some seeds are done and others not, the former."""
    found: dict[str, Cell] = {}
    for row, records in rows_with_records(store):
        axes = {axis: value for axis, value in records[0].cell.items() if axis not in {*dropped, "seed"}}
        if _text(axes) not in found or row.status == "done":
            found[_text(axes)] = row, records
    return found


def _without_one_shape(*runs: dict[str, Cell]) -> list[dict[str, Cell]]:
    """The shape names a cell only where the cells of both have several."""
    told = iter(shapes_told(row for cells in runs for row, _ in cells.values()))
    return [{name: (next(told), records) for name, (_, records) in cells.items()} for cells in runs]


def _is_done(cell: Cell) -> bool:
    return cell[0].status == "done"


def _one_sided(here: dict[str, Cell], there: dict[str, Cell]) -> list[tuple[Row, str]]:
    found = []
    for name, cell in here.items():
        if _is_done(cell) and not (name in there and _is_done(there[name])):
            other = there[name][0] if name in there else None
            said = "not in the run" if other is None else f"{other.status}: {other.reason or 'no reason given'}"
            found.append((cell[0], said))
    return found


def _differing(before: dict[str, list[str]], after: dict[str, list[str]]) -> list[tuple[str, str, str]]:
    names = dict.fromkeys([*before, *after])
    missing = ["not recorded"]
    said = [(name, ", ".join(before.get(name, missing)), ", ".join(after.get(name, missing))) for name in names]
    return [one for one in said if one[1] != one[2]]


def _change(before: Cell, after: Cell, stores: tuple[Store, Store]) -> Change:
    earlier, later = before[0], after[0]
    if earlier.metric != later.metric:
        return Change(earlier, later, reason=f"one is in {earlier.metric}, the other in {later.metric}")
    if any(row.low is None or not row.num_samples for row in (earlier, later)):
        return Change(earlier, later, reason=f"of {earlier.metric} there are no intervals in one of the runs")
    curves = _paired(before, after, stores)
    return _unpaired(earlier, later) if curves is None else _of_curves(earlier, later, *curves)


def _paired(before: Cell, after: Cell, stores: tuple[Store, Store]) -> tuple[Curve, Curve] | None:
    """Each run's cell on the samples that both have, as a curve of one point; None where they have none in common."""
    if _data(before[1][0]) != _data(after[1][0]):
        return None
    metric, num = before[0].metric, len(before[1])
    pairs = [(stores[0], record) for record in before[1]] + [(stores[1], record) for record in after[1]]
    shared = aligned([samples_of(store, record, metric) for store, record in pairs])
    if shared is None:
        return None
    earlier, later = (
        Curve(name, np.ones(1), right_SN[:, None], shared.index_N, shared.cluster_N, metric=metric)
        for name, right_SN in (("before", shared.right_N[:num]), ("after", shared.right_N[num:]))
    )
    return earlier, later


def _data(record: Record) -> str:
    """The digest, or of records from before digests were written what their cells name."""
    return identity_of(record).get("data") or _text(record.cell["data"])


def _of_curves(before: Row, after: Row, earlier: Curve, later: Curve) -> Change:
    same = np.array_equal(earlier.right_SKN, later.right_SKN)
    found = difference_over(later, earlier) if same else delta_auc(later, earlier, num_draws=NUM_SIGNS)
    alone = len(earlier.right_SKN) == len(later.right_SKN) == 1
    return Change(
        *(before, after, found.value, found.low, found.high),
        p=max(found.p, found.p_permutation or 0.0),
        error=found.error,
        degrees=found.degrees,
        num_samples=found.num_samples,
        num_changed=int(np.sum(earlier.right_SKN != later.right_SKN)) if alone else None,
    )


def _unpaired(before: Row, after: Row) -> Change:
    """Of two independent shares, from the interval of each (Newcombe 1998, method 10)."""
    first, second = ((row.value or 0.0, row.low or 0.0, row.high or 0.0) for row in (before, after))
    value = second[0] - first[0]
    low = value - float(np.hypot(second[0] - second[1], first[2] - first[0]))
    high = value + float(np.hypot(second[2] - second[0], first[0] - first[1]))
    error = float(np.hypot(first[2] - first[1], second[2] - second[1])) / (2 * Z)
    num = min(before.num_samples or 0, after.num_samples or 0)
    p = float(2 * ndtr(-abs(value) / error)) if error else 1.0
    return Change(before, after, value, low, high, p, error, num_samples=num, is_paired=False)


def _adjusted(changes: Sequence[Change]) -> list[Change]:
    """All that were compared are one family."""
    compared = [change.p for change in changes if change.value is not None]
    adjusted = iter(holm(compared)) if compared else iter(())
    return [
        change if change.value is None else replace(change, p=next(adjusted), num_comparisons=len(compared))
        for change in changes
    ]


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True)
