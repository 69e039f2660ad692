"""Where tokens went, read back: the traces of a run, and what became of each input token at each layer.

Dimension key: S samples, R reducing layers, P input tokens without the prefix, C channels, D drawn samples, F frames.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations

import numpy as np
from scipy.stats import t

from tokred.analysis.rows import Row, grouped, rows_with_records
from tokred.analysis.statistics import Estimate, standard_error
from tokred.record import MOST_LAYERS, Damaged, Record, Store

WHOLE = ("index_S", "num_spread", "grid", "depth", "layer_R", "first_RSP")  # arrays of a trace of whole numbers


@dataclass(frozen=True)
class Trace:
    """Of one cell. ``first_RSP``: which group an input token is in when it leaves a layer that reduces, by the place of the
    group's first member; -1 where it was dropped. ``object_SP``: the share of its pixels that show an object, if known."""

    index_S: np.ndarray
    grid: tuple[int, int, int]
    depth: int
    layers: tuple[int, ...]
    first_RSP: np.ndarray
    size_RSP: np.ndarray
    feature_SC: np.ndarray
    object_SP: np.ndarray | None = None

    @property
    def num_tokens(self) -> int:
        return self.first_RSP.shape[2]

    def first_SP(self, layer: int) -> np.ndarray:
        """The groups in which input tokens leave ``layer``; before any reduction each is its own."""
        before = [row for row, own in enumerate(self.layers) if own <= layer]
        if before:
            return self.first_RSP[before[-1]].astype(int)
        return np.tile(np.arange(self.num_tokens), (len(self.index_S), 1))

    def cut(self, index_S: np.ndarray) -> "Trace":
        """Of these samples alone, in this order."""
        own = self.index_S.tolist()
        places = [own.index(index) for index in index_S.tolist()]
        return Trace(
            index_S,
            self.grid,
            self.depth,
            self.layers,
            self.first_RSP[:, places],
            self.size_RSP[:, places],
            self.feature_SC[places],
            None if self.object_SP is None else self.object_SP[places],
        )


@dataclass(frozen=True)
class Traced:
    """A row with its traces, one for each seed. ``setting``: what is the same in rows that are compared."""

    row: Row
    setting: str
    traces: tuple[Trace, ...]


def settings(rows: Sequence[Row]) -> list[str]:
    """Of each row the amount, and the shape of its schedule where the shapes of its backbone's rows differ: ``budget 0.5 front``.

    A method whose counts differ by sample has no shape; it is compared with those of one shape at the same amount.
    """
    shapes: dict[tuple, set[str]] = {}
    for row in rows:
        shapes.setdefault(row.group, set()).update([row.shape] if row.shape else [])
    return [f"{row.schedule} {row.shape if len(shapes[row.group]) > 1 else ''}".rstrip() for row in rows]


def read_traces(store: Store, *, telling: bool = False) -> list[Traced]:
    """The rows of the latest plan that were traced, on the samples that all of their group have, in the order of ``rows``.

    Those spread evenly over the data; with ``telling`` also those that were picked for being lost or gained, of which nothing
    can be said but what they show.
    """
    both = rows_with_records(store)
    found = [
        Traced(row, named, tuple(traces))
        for (row, records), named in zip(both, settings([row for row, _ in both]), strict=True)
        if (traces := [trace for record in records if (trace := _read(record, store, telling)) is not None])
    ]
    return [one for group in grouped(found, lambda one: one.row.group) for one in _of_same_samples(group)]


def group_size_SP(first_SP: np.ndarray) -> np.ndarray:
    """Of each input token how many are in its group, itself included; 0 where it was dropped."""
    S, P = first_SP.shape
    bins = np.arange(S)[:, None] * (P + 1) + first_SP + 1  # the first bin of a sample: the dropped
    counts = np.bincount(bins.ravel(), minlength=S * (P + 1))
    return np.where(first_SP >= 0, counts[bins], 0)


def alone_SP(first_SP: np.ndarray) -> np.ndarray:
    """Which input tokens were neither dropped nor merged."""
    return group_size_SP(first_SP) == 1


def over_samples(value_N: np.ndarray) -> Estimate | None:
    """The mean of the samples that have a value (not NaN) with its 95 % interval by Student's t; None of fewer than two."""
    known = value_N[~np.isnan(value_N)]
    if len(known) < 2:
        return None
    half = float(t.ppf(0.975, len(known) - 1)) * standard_error(known[None])
    mean = float(known.mean())
    return Estimate(mean, mean - half, mean + half)


def spread(name: str, estimate: Estimate | None) -> dict[str, float]:
    """``name``, ``name_low`` and ``name_high`` of a number that is 1 at most; nothing of None."""
    if estimate is None:
        return {}
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": min(1.0, estimate.high)}


def few_settings(some: Sequence[Traced], most: int = 3) -> list[str]:
    """The settings to draw of one backbone: of many the one that spends least, the one that spends most, and between them."""
    costs = {
        one[0].setting: float(np.mean([traced.row.gmacs or 0.0 for traced in one]))
        for one in grouped((one for one in some if one.row.method != "none"), lambda one: one.setting)
    }
    order = sorted(costs, key=lambda name: -costs[name])
    return [
        order[place] for place in np.unique(np.linspace(0, len(order) - 1, min(most, len(order))).round().astype(int))
    ]


def few_of(num_drawn: int, num_settings: int) -> str:
    """What a figure says that does not draw all of them.

    >>> few_of(3, 12), few_of(3, 3)
    ('; drawn: 3 of 12 settings', '')
    """
    return f"; drawn: {num_drawn} of {num_settings} settings" if num_drawn < num_settings else ""


def seed_pairs(a: Traced, b: Traced) -> list[tuple[Trace, Trace]]:
    """Which traces to compare: each seed of one with another of the other's, since seeds of one number draw alike in two
    methods; of a row with itself all its pairs of seeds."""
    if a is b:
        return list(combinations(a.traces, 2))
    num_a, num_b = len(a.traces), len(b.traces)
    return [(a.traces[one % num_a], b.traces[(one + 1) % num_b]) for one in range(max(num_a, num_b))]


def _read(record: Record, store: Store, telling: bool) -> Trace | None:
    if record.status != "done" or (arrays := store.trace(record.key)) is None:
        return None
    try:
        _check(arrays)
    except ValueError as error:
        raise Damaged(store.trace_path(record.key), error, "trace") from error
    trace = Trace(
        arrays["index_S"],
        (int(arrays["grid"][0]), int(arrays["grid"][1]), int(arrays["grid"][2])),
        int(arrays["depth"]),
        tuple(arrays["layer_R"].tolist()),
        arrays["first_RSP"],
        arrays["size_RSP"],
        arrays["feature_SC"],
        arrays.get("object_SP"),
    )
    return trace if telling else trace.cut(trace.index_S[: int(arrays["num_spread"])])


def _check(arrays: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError where an array is missing or of another kind, or where the lengths that names end in differ."""
    lengths: dict[str, int] = {}
    for name in (*WHOLE, "size_RSP", "feature_SC", *(["object_SP"] if "object_SP" in arrays else [])):
        if name not in arrays or arrays[name].dtype.kind not in ("iu" if name in WHOLE else "iuf"):
            raise ValueError(f"{name} must be there, of {'whole ' if name in WHOLE else ''}numbers")
        axes = {"grid": "G", "depth": "", "num_spread": ""}.get(name, name.rpartition("_")[2])
        shape = arrays[name].shape
        if len(shape) != len(axes) or any(
            lengths.setdefault(*pair) != pair[1] for pair in zip(axes, shape, strict=True)
        ):
            raise ValueError(f"{name} has the shape {shape}, which does not fit the others")
    first_RSP, grid = arrays["first_RSP"], arrays["grid"].tolist()
    if lengths["G"] != 3 or min(grid) < 1 or math.prod(grid) != lengths["P"]:
        raise ValueError(f"a grid of {grid} does not have {lengths['P']} tokens")
    if np.any((first_RSP < -1) | (first_RSP >= lengths["P"])) or not 0 <= arrays["depth"] <= MOST_LAYERS:
        raise ValueError("groups must be places of tokens, and layers be countable")


def _of_same_samples(group: list[Traced]) -> list[Traced]:
    """Two at least; else nothing can be compared."""
    shared = reduce(np.intersect1d, [trace.index_S for one in group for trace in one.traces])
    if len(shared) < 2:
        return []
    return [Traced(one.row, one.setting, tuple(trace.cut(shared) for trace in one.traces)) for one in group]
