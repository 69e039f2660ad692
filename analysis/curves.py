"""A method's configurations as one curve over MACs, with what each has right of the same samples.

``curves`` reads them from the records of a sweep. Between two configurations a curve is interpolated for each sample, in ln MACs,
so that whatever is said of a point on it has the interval of its samples; beyond its ends there is no curve. Budgets are shares
of the unreduced model's MACs.

Dimension key: K configurations, S seeds, N samples, G points of a grid.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

import numpy as np

from tokred.analysis.rows import aligned, grouped, names_of, of_metric, place_of, samples_of
from tokred.analysis.statistics import Estimate, accuracy_over_seeds
from tokred.record import Record, Store, key_of

SAME_COST = 0.005  # how near to a budget a schedule comes: costs as near are the same


@dataclass(frozen=True, eq=False)
class Curve:
    """One method, with one kind of schedule, on one backbone; its configurations by rising ``share_K`` of the unreduced MACs.

    ``label`` is the method with its options, and the shape or layers where these tell curves apart. ``right_SKN``: whether each
    seed of each configuration has each sample right. ``index_N`` names the samples, and those of equal ``cluster_N`` share a
    video. ``identity``: digests of the data with its labels, of the transform, and of what else must be the same before two
    curves are compared.
    """

    label: str
    share_K: np.ndarray
    right_SKN: np.ndarray
    index_N: np.ndarray
    cluster_N: np.ndarray | None = None
    backbone: str = ""
    weights: str = ""
    data: str = ""
    metric: str = "accuracy"
    method: str = ""  # with its options
    shape: str = ""
    layers: str = ""
    gmacs_unreduced: float = 1.0
    identity: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.right_SKN.shape[1:] != (len(self.share_K), len(self.index_N)) or not self.right_SKN.size:
            given = f"{self.right_SKN.shape}, {len(self.share_K)} shares and {len(self.index_N)} samples"
            raise ValueError(f"right_SKN is (seeds, shares, samples), none of them 0; got {given}")
        if not (np.all(self.share_K > 0) and np.all(np.diff(self.share_K) > 0)):
            raise ValueError(
                f"the configurations of {self.label} must rise in MACs; got shares {self.share_K.tolist()}"
            )

    @property
    def group(self) -> tuple[str, str, str]:
        """The curves that may be compared with this one have the same."""
        return self.backbone, self.weights, self.data

    @property
    def num_samples(self) -> int:
        return len(self.index_N)

    @property
    def num_clusters(self) -> int | None:
        return None if self.cluster_N is None else len(np.unique(self.cluster_N))

    @property
    def num_seeds(self) -> int:
        return len(self.right_SKN)

    @property
    def gmacs_K(self) -> np.ndarray:
        return self.share_K * self.gmacs_unreduced

    def score(self, weight_K: np.ndarray) -> np.ndarray:
        """(S, N): the weighted sum of the configurations."""
        used = np.flatnonzero(weight_K)
        return weight_K[used] @ self.right_SKN[:, used].astype(float)


def curves(store: Store, metric: str | None = None) -> list[Curve]:
    """Of the latest plan's cells that are done a curve for each backbone, method, shape and choice of layers; the unreduced model
    is a curve of one point, whose method is ``none``.

    All curves of a backbone are over the samples that all of its cells have. Of a random method the seeds that all its
    configurations have. ``metric``: the headline, where None.
    """
    done = [record for record in store.planned() if record.status == "done"]
    return [curve for group in grouped(done, place_of) for curve in _of_group(group, store, metric)]


def readable_curves(store: Store) -> tuple[list[Curve], list[str]]:
    """Those of the backbones whose records allow it, and of the others why they do not. Of the headline metric; where that is a
    mean of others, of the first that has samples."""
    done = [record for record in store.planned() if record.status == "done"]
    found: list[Curve] = []
    problems = []
    for group in grouped(done, place_of):
        try:
            found += _of_group(group, store, _with_samples(group[0]))
        except ValueError as error:
            problems.append(f"{names_of(group[0].cell)['backbone']}: {error}")
    return found, problems


def on_shared_samples(some: Sequence[Curve]) -> list[Curve]:
    """The curves cut to the samples that all of them have: for curves of several run folders."""
    shared = reduce(np.intersect1d, [curve.index_N for curve in some])
    return [_cut(curve, np.searchsorted(curve.index_N, shared)) for curve in some]


def identity_of(record: Record) -> dict[str, str]:
    """What must be the same before two results are compared, by name. Records from before digests were written are told apart by
    their cell: what they name and not what was in it."""
    digests = record.result.get("identity") or {"what their cells name": place_of(record)}
    return {name: str(value) for name, value in digests.items() if name != "weights"}


def reaches(curve: Curve, budget: float) -> bool:
    """Whether the budget lies between two of its configurations, or within 0.5 % of one."""
    return curve.share_K[0] * (1 - SAME_COST) <= budget <= curve.share_K[-1] * (1 + SAME_COST)


def weights_at(curve: Curve, budget: float) -> np.ndarray:
    """(K,): of the two neighbours in ln MACs."""
    _check_reaches(curve, budget)
    return hats(np.log(curve.share_K), np.log([budget]))[0]


def weights_over(curve: Curve, window: tuple[float, float]) -> np.ndarray:
    """(K,), with a sum of 1: the mean over a window in ln MACs, by the trapezoid rule, which is exact for lines."""
    for end in window:
        _check_reaches(curve, end)
    if window[0] == window[1]:
        return weights_at(curve, window[0])
    x_K, (low, high) = np.log(curve.share_K), np.log(window)
    x_G = np.unique([low, high, *x_K[(low < x_K) & (x_K < high)]])
    gap = np.diff(x_G)
    weight_G = (np.append(gap, 0) + np.append(0, gap)) / 2 / (high - low)
    return weight_G @ hats(x_K, x_G)


def hats(x_K: np.ndarray, x_G: np.ndarray) -> np.ndarray:
    """(G, K): how much each point of a grid takes of each node, linearly between two; of the nearest beyond the ends."""
    return np.stack([np.interp(x_G, x_K, one_K) for one_K in np.eye(len(x_K))], axis=1)


def accuracy_at(curve: Curve, budget: float) -> Estimate | None:
    """The share right at a share of the unreduced MACs, interpolated by sample; None where the curve does not reach it."""
    if not reaches(curve, budget):
        return None
    return accuracy_over_seeds(curve.score(weights_at(curve, budget)), curve.cluster_N)


def shared_budgets(some: Sequence[Curve]) -> list[float]:
    """The budgets, in whole percent, near which a configuration lies and that all curves reach."""
    near = {round(float(share), 2) for curve in some for share in curve.share_K}
    return sorted(budget for budget in near if all(reaches(curve, budget) for curve in some))


def check_comparable(first: Curve, second: Curve) -> None:
    """Raises ValueError where two curves are not of the same metric, data, labels, transform, unreduced MACs and samples."""
    pair = f"{first.label} and {second.label} cannot be compared"
    parts = [
        name
        for name in sorted({*first.identity, *second.identity})
        if first.identity.get(name) != second.identity.get(name)
    ]
    if first.metric != second.metric:
        raise ValueError(f"{pair}: one is in {first.metric}, the other in {second.metric}")
    if parts:
        raise ValueError(f"{pair}: they differ in {', '.join(parts)}; run both in one sweep")
    if not np.isclose(first.gmacs_unreduced, second.gmacs_unreduced, rtol=SAME_COST):
        macs = f"{first.gmacs_unreduced:.4g} and {second.gmacs_unreduced:.4g}"
        raise ValueError(f"{pair}: equal shares are not equal MACs, as the unreduced models cost {macs} GMACs")
    if not np.array_equal(first.index_N, second.index_N):
        raise ValueError(f"{pair}: they are over other samples; cut them to those they share (on_shared_samples)")


def _check_reaches(curve: Curve, budget: float) -> None:
    if not reaches(curve, budget):
        ends = f"{100 * curve.share_K[0]:.1f} to {100 * curve.share_K[-1]:.1f}"
        raise ValueError(f"{curve.label} was run at {ends} % of the MACs, which does not reach {100 * budget:.1f} %")


def _of_group(group: list[Record], store: Store, metric: str | None) -> list[Curve]:
    name = metric or group[0].result["metric"]
    for record in group:
        _check_metric(record, name)
    shared = aligned([samples_of(store, record, name) for record in group])
    if shared is None:
        raise ValueError(
            f"the cells of {names_of(group[0].cell)['backbone']} share no samples, or predictions of some are missing in "
            f"{store.cells}; run the sweep again"
        )
    place = {record.key: number for number, record in enumerate(group)}
    made = []
    for records in grouped(group, _kind):
        about = names_of(records[0].cell)
        share_K, right_SKN = _configurations(records, shared.right_N, place)
        made.append(
            Curve(
                _method(about),  # completed below
                share_K,
                right_SKN,
                shared.index_N,
                shared.cluster_N,
                **{part: about[part] for part in ("backbone", "weights", "data", "shape", "layers")},
                method=_method(about),
                metric=name,
                gmacs_unreduced=records[0].result["gmacs_unreduced"],
                identity=identity_of(records[0]),
            )
        )
    return _told_apart(made, [_kind(records[0]) for records in grouped(group, _kind)])


def _with_samples(record: Record) -> str:
    """The first metric that has samples of its own."""
    metrics = record.result.get("metrics") or {}
    return next((name for name, how in metrics.items() if "num_samples" in how), record.result["metric"])


def _check_metric(record: Record, name: str) -> None:
    known = record.result.get("metrics") or {record.result["metric"]: {}}
    if name not in known:
        raise ValueError(f"no metric {name!r} in these records; they have {', '.join(known)}")
    if "num_samples" not in of_metric(record, name):
        raise ValueError(f"{name} is a mean of other metrics, without samples of its own; name one of them")


def _kind(record: Record) -> str:
    """The records with the same make one curve: all but the amount and the seed."""
    cell = record.cell
    schedule = {part: value for part, value in cell["schedule"].items() if part != "amount"}
    return json.dumps([cell["method"], cell["options"], schedule], sort_keys=True)


def _method(about: Mapping[str, str]) -> str:
    return f"{about['method']} {about['options']}".rstrip()


def _configurations(
    records: list[Record], right_RN: np.ndarray, place: Mapping[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Shares (K,) and (S, K, N). Two configurations of equal MACs and results are one: a budget that asked for no more."""
    by_share: dict[float, dict[int | None, int]] = {}
    for same in grouped(records, lambda record: key_of({**record.cell, "seed": None})):
        share = float(np.mean([record.result["gmacs"] / record.result["gmacs_unreduced"] for record in same]))
        rows = {record.cell["seed"]: place[record.key] for record in same}
        if share in by_share and not all(
            seed in rows and np.array_equal(right_RN[rows[seed]], right_RN[row])
            for seed, row in by_share[share].items()
        ):
            about = names_of(same[0].cell)
            raise ValueError(
                f"{_method(about)} has two configurations of {100 * share:.2f} % of the MACs; run them apart"
            )
        by_share.setdefault(share, rows)
    shares = sorted(by_share)
    seeds = [seed for seed in by_share[shares[0]] if all(seed in rows for rows in by_share.values())]
    if not seeds:
        raise ValueError(f"no seed of {records[0].cell['method']} was run at all of its budgets; run the sweep again")
    return np.array(shares), np.stack([right_RN[[by_share[share][seed] for share in shares]] for seed in seeds])


def _told_apart(made: list[Curve], kinds: list[str]) -> list[Curve]:
    """The shape, layers and kind of amount go into the label where a method has several; a number where labels still agree."""
    schedules = [json.loads(kind)[2] for kind in kinds]
    labelled = []
    for curve, schedule in zip(made, schedules, strict=True):
        own = [one for one, other in zip(schedules, made, strict=True) if other.method == curve.method]
        parts = [
            f"{word}{curve.layers if part == 'layers' else schedule[part]}"
            for part, word in (("kind", ""), ("shape", ""), ("layers", "at "), ("match", "MACs of "))
            if schedule.get(part) is not None and len({json.dumps(one.get(part)) for one in own}) > 1
        ]
        name = "the unreduced model" if curve.method == "none" else curve.method
        labelled.append(" ".join([name, *parts]))
    return [
        replace(curve, label=f"{label} ({labelled[: place + 1].count(label)})" if label in labelled[:place] else label)
        for place, (curve, label) in enumerate(zip(made, labelled, strict=True))
    ]


def _cut(curve: Curve, place_N: np.ndarray) -> Curve:
    cluster_N = None if curve.cluster_N is None else curve.cluster_N[place_N]
    return replace(curve, right_SKN=curve.right_SKN[..., place_N], index_N=curve.index_N[place_N], cluster_N=cluster_N)
