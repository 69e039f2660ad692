"""What a report may say of methods: every pair on every backbone, one family, Holm's correction.

A claim needs both the p of its interval and that of sign flips (which hold where samples are few; the first holds where seeds
matter). What is not claimed is "no detectable difference", with the difference that would have been detected beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from dataclasses import fields as dataclass_fields
from itertools import combinations

import numpy as np
from scipy.stats import false_discovery_control

from tokred.analysis.compare import (
    GOOD_OVERLAP,
    NUM_SIGNS,
    Difference,
    difference_over,
    permutation_p,
    sign_flips,
)
from tokred.analysis.curves import Curve, weights_over
from tokred.analysis.rows import grouped
from tokred.analysis.statistics import detectable

LEVEL = 0.05


@dataclass(frozen=True)
class Claim(Difference):
    """A difference that was judged as one of ``num_comparisons``. ``smallest`` is what would be claimed in at least 80 % of
    new draws if it stood alone, ``smallest_in_report`` if it had to pass the strictest step of the correction."""

    num_comparisons: int = 1
    adjusted_p: float = 1.0
    smallest_in_report: float = 0.0

    @property
    def is_claimed(self) -> bool:
        """Whether p, as one of so many, and the interval say so; near the edge the two can differ."""
        return self.adjusted_p <= LEVEL and not self.low <= 0 <= self.high

    @property
    def better(self) -> str | None:
        """The label of the better one, where there is a claim."""
        return (self.first if self.value > 0 else self.second) if self.is_claimed else None

    def sentence(self) -> str:
        """One sentence, with all that it rests on."""
        return f"{self._said()} {self._about()}"

    def _said(self) -> str:
        points, ends = 100 * self.value, f"[{signed(self.low)}, {signed(self.high)}]"
        where = f"on {self.backbone} " if self.backbone else ""
        if self.better is None:
            return (
                f"{self.first} and {self.second} {where}at equal MACs: no detectable difference "
                f"({shown_detectable(self.smallest_in_report)}); {self.metric} of {self.first} minus {self.second} "
                f"{signed(self.value)} points, 95 % {ends}"
            )
        loser = self.second if self.better == self.first else self.first
        if points < 0:
            points, ends = -points, f"[{signed(-self.high)}, {signed(-self.low)}]"
        return f"{self.better} beats {loser} {where}at equal MACs by {points:.2f} points of {self.metric}, 95 % {ends}"

    def _about(self) -> str:
        low, high = (100 * end for end in self.window)
        budgets = f"at {low:.0f} %" if low == high else f"over {low:.0f} to {high:.0f} %"
        clusters = f" of {self.num_clusters:,} videos" if self.num_clusters else ""
        seeds = f", {self.num_seeds} seeds" if self.num_seeds > 1 else ""
        alone = self.num_comparisons == 1
        of = ", the only comparison" if alone else f", Holm over {self.num_comparisons} comparisons"
        partly = f"; only {100 * self.overlap:.0f} % of their budgets are shared" if self.is_partial else ""
        return (
            f"({budgets} of the unreduced MACs; n = {self.num_samples:,}{clusters}{seeds}; "
            f"p {_p(self.adjusted_p)}{of}{partly})"
        )

    @property
    def is_partial(self) -> bool:
        """Whether the two share less of their budgets than they should."""
        return self.overlap < GOOD_OVERLAP


@dataclass(frozen=True)
class Unclaimed:
    """A pair that was not compared, and why."""

    first: str
    second: str
    backbone: str
    reason: str


def claims(
    some: Sequence[Curve],
    window: tuple[float, float] | None = None,
    *,
    num_draws: int = NUM_SIGNS,
    seed: int = 0,
) -> tuple[list[Claim], list[Unclaimed]]:
    """Every pair of the reduced curves of each backbone, over the budgets that both reach or a ``window`` that both must reach,
    and the pairs that share too few.

    At least ``num_draws`` sign flips, and so many that the smallest p there can be is small enough for the family.
    """
    judged: list[tuple[Curve, Curve, Difference]] = []
    left_out: list[Unclaimed] = []
    for first, second in _pairs(some):
        try:
            judged.append((first, second, difference_over(first, second, window)))
        except ValueError as error:
            left_out.append(Unclaimed(first.label, second.label, first.backbone, str(error)))
    num_draws = max(num_draws, 40 * len(judged))  # then the smallest p, adjusted, is 0.025
    permuted = _permuted(judged, num_draws, seed)
    adjusted = holm([max(one.p, p) for (_, _, one), p in zip(judged, permuted, strict=True)])
    found = zip((one for _, _, one in judged), permuted, adjusted, strict=True)
    return [_claim(replace(one, p_permutation=p), own, len(judged)) for one, p, own in found], left_out


def claim(difference: Difference) -> Claim:
    """A comparison that was the only one planned."""
    return _claim(difference, max(difference.p, difference.p_permutation or 0.0), 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted so that any false claim among those at or below a level has at most its probability (Holm 1979).

    >>> [round(p, 3) for p in holm([0.001, 0.01, 0.02, 0.03, 0.5])]
    [0.005, 0.04, 0.06, 0.06, 0.5]
    """
    order = np.argsort(p_values, kind="stable")
    steps = np.asarray(p_values, float)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.tolist()


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted so that of those at or below 5 % one in twenty is expected to be false: for exploring, and to be labelled so."""
    return false_discovery_control(p_values).tolist() if len(p_values) else []


def _pairs(some: Sequence[Curve]) -> list[tuple[Curve, Curve]]:
    reduced = (curve for curve in some if curve.method != "none")
    return [pair for group in grouped(reduced, _group) for pair in combinations(group, 2)]


def _group(curve: Curve) -> tuple[str, str, str]:
    return curve.backbone, curve.weights, curve.data


def _permuted(judged: Sequence[tuple[Curve, Curve, Difference]], num_draws: int, seed: int) -> list[float]:
    """The p of sign flips of each pair, in their order; the flips of a curve are drawn once for all its pairs."""
    found: list[float] = []
    for pairs in grouped(judged, lambda pair: _group(pair[0])):  # the pairs of a group follow each other
        some = list({id(curve): curve for first, second, _ in pairs for curve in (first, second)}.values())
        flips_RK = sign_flips(some, num_draws=num_draws, seed=seed)
        ends = np.cumsum([len(curve.share_K) for curve in some])
        columns = {id(curve): slice(end - len(curve.share_K), end) for curve, end in zip(some, ends, strict=True)}
        for first, second, one in pairs:
            flipped = [flips_RK[:, columns[id(c)]] @ weights_over(c, one.window) for c in (first, second)]
            found.append(permutation_p(one.value * one.num_samples, flipped[0] - flipped[1]))
    return found


def _claim(difference: Difference, adjusted_p: float, num_comparisons: int) -> Claim:
    num = difference.num_clusters or difference.num_samples
    smallest = detectable(difference.error, num, degrees=difference.degrees, num_comparisons=num_comparisons)
    fields = {name.name: getattr(difference, name.name) for name in dataclass_fields(Difference)}
    return Claim(**fields, num_comparisons=num_comparisons, adjusted_p=adjusted_p, smallest_in_report=smallest)


def signed(difference: float) -> str:
    """In points.

    >>> signed(0.0123), signed(-0.00001)
    ('+1.23', '+0.00')
    """
    return f"{round(100 * difference, 2) + 0.0:+.2f}"  # + 0.0: no "-0.00"


def shown_detectable(share: float) -> str:
    if share > 1:
        return "no difference of up to 100 points could be detected"
    return f"smallest detectable {100 * share:.2f} points"


def _p(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"= {p:.2g}"
