"""How often the intervals of tokred.analysis hold the truth, and how often a report claims what is not so, in simulations.

    python benchmarks/coverage.py                          1,000 simulations at 500 and 2,000 samples
    python benchmarks/coverage.py --samples 500 --no-bootstrap

A sample is right where its ease, which all configurations share, and a part of the configuration's own lie below what gives the
configuration its true accuracy. Neighbours agree on most samples, as methods do.
"""

import argparse
import time
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from tokred.analysis.across import across
from tokred.analysis.best import best_at
from tokred.analysis.claims import claims
from tokred.analysis.compare import NUM_SIGNS, band, difference_at, difference_over, not_worse
from tokred.analysis.curves import Curve, accuracy_at
from tokred.analysis.front import DEPTH, hypervolume, hypervolume_difference
from tokred.analysis.statistics import accuracy, accuracy_over_seeds, paired_difference
from tokred.analysis.variance import decompose

SHARES = np.array([0.3, 0.45, 0.6, 0.75, 0.9])
FIRST = np.array([0.700, 0.752, 0.775, 0.790, 0.800])  # true accuracies
SECOND = np.array([0.660, 0.730, 0.770, 0.792, 0.801])
DENSE, BUDGET = 0.80, 0.55
OWN, OF_SEED = 0.35, 0.05  # standard deviations beside an ease of 1; at these 6 to 9 % of the samples are discordant
METHODS = np.array([0.0, 0.02, 0.03, 0.05])  # losses of a design of 4 methods x 3 shapes, and of some in combination
SHAPES = np.array([0.0, 0.01, 0.03])
TOGETHER = np.array([[0, 0, 0], [0, 0, 0.01], [0, 0.01, 0], [0, 0, -0.01]])


@dataclass(frozen=True)
class World:
    """One draw of samples: their ease, and which of them share a video."""

    draw: np.random.Generator
    ease_N: np.ndarray
    cluster_N: np.ndarray | None = None

    def curve(self, label: str, accuracy_K: np.ndarray, *, num_seeds: int = 1, **more) -> Curve:
        """Several seeds also move all samples of a seed together."""
        common = OF_SEED if num_seeds > 1 else 0.0
        own_SKN = OWN * self.draw.standard_normal((num_seeds, len(accuracy_K), len(self.ease_N)))
        shift_S11 = common * self.draw.standard_normal((num_seeds, 1, 1))
        edge_K = ndtri(accuracy_K) * np.sqrt(1 + OWN**2 + common**2)
        right_SKN = self.ease_N + own_SKN + shift_S11 < edge_K[:, None]
        shares = SHARES if len(accuracy_K) == len(SHARES) else np.linspace(BUDGET, 1.0, len(accuracy_K))
        index_N = np.arange(len(self.ease_N))
        return Curve(label, shares, right_SKN, index_N, self.cluster_N, method=more.pop("method", label), **more)


def world(draw: np.random.Generator, num_samples: int, *, per_video: int = 1) -> World:
    """Half of the variance of the ease is the video's."""
    if per_video == 1:
        return World(draw, draw.standard_normal(num_samples))
    cluster_N = np.repeat(np.arange(num_samples // per_video), per_video)
    of_video = draw.standard_normal(num_samples // per_video)[cluster_N]
    return World(draw, np.sqrt(0.5) * (of_video + draw.standard_normal(num_samples)), cluster_N)


def at(accuracy_K: np.ndarray, budget: np.ndarray | float) -> np.ndarray:
    return np.interp(np.log(budget), np.log(SHARES), accuracy_K)


def on_average(accuracy_K: np.ndarray) -> float:
    """Over ln MACs, by many small steps."""
    x = np.linspace(*np.log(SHARES[[0, -1]]), 20_001)
    return float(np.trapezoid(np.interp(x, np.log(SHARES), accuracy_K), x) / (x[-1] - x[0]))


GAP_AT, GAP = float(at(FIRST - SECOND, BUDGET)), on_average(FIRST - SECOND)


def held(draw: np.random.Generator, num_samples: int) -> dict[str, bool]:
    """Of one draw of everything, which intervals hold the truth."""
    here = world(draw, num_samples)
    first, second = here.curve("first", FIRST), here.curve("second", SECOND)
    random = here.curve("random", SECOND, num_seeds=5)
    found = {
        "accuracy, Wilson": _in(accuracy(int(first.right_SKN[0, 0].sum()), num_samples), FIRST[0]),
        "difference, Agresti-Min": _in(
            paired_difference(first.right_SKN[0, 1], second.right_SKN[0, 1]), FIRST[1] - SECOND[1]
        ),
        "accuracy over 5 seeds": _in(accuracy_over_seeds(random.right_SKN[:, 2]), SECOND[2]),
        "accuracy at a budget": _in(accuracy_at(first, BUDGET), at(FIRST, BUDGET)),
        "difference at a budget": _in(difference_at(first, second, BUDGET), GAP_AT),
        "delta-AUC": _in(difference_over(first, second), GAP),
        "delta-AUC, one of 5 seeds": _in(difference_over(first, random), GAP),
        "not worse by the true difference, refused": not not_worse(second, first, by=GAP),
        "band, at all budgets at once": _band_holds(first, second),
        "chosen on the other half": _best_holds(here, draw),
        "mean of 3 backbones, same samples": _across_holds(here),
    }
    return found | _with_videos(draw, num_samples)


def held_by_bootstrap(draw: np.random.Generator, num_samples: int, num_draws: int) -> dict[str, bool]:
    here = world(draw, num_samples)
    first, second = here.curve("first", FIRST), here.curve("second", SECOND)
    dense_KN = here.curve("dense", np.array([DENSE, DENSE])).right_SKN[:, :1]
    dense = Curve("dense", np.ones(1), dense_KN, first.index_N, method="none")
    least = float(dense_KN.mean()) - DEPTH
    true = [_staircase(FIRST, least), _staircase(SECOND, least)]
    seed = int(draw.integers(1 << 30))
    found = {
        "hypervolume": _in(hypervolume(first, dense, num_draws=num_draws, seed=seed), true[0]),
        "hypervolumes' difference": _in(
            hypervolume_difference(first, second, dense, num_draws=num_draws, seed=seed), true[0] - true[1]
        ),
    }
    return found | _variance_holds(here, dense, num_draws, seed)


def coverage(num_simulations: int, num_samples: int, *, seed: int = 0) -> dict[str, float]:
    draw = np.random.default_rng(seed)
    return _rates([held(draw, num_samples) for _ in range(num_simulations)])


def bootstrap_coverage(
    num_simulations: int, num_samples: int, *, num_draws: int = 1000, seed: int = 0
) -> dict[str, float]:
    draw = np.random.default_rng(seed)
    return _rates([held_by_bootstrap(draw, num_samples, num_draws) for _ in range(num_simulations)])


def false_claims(num_simulations: int, num_samples: int, *, num_draws: int = NUM_SIGNS, seed: int = 0) -> float:
    """How often a report of 10 methods on 5 backbones, all equally good, claims anything: 225 comparisons."""
    draw, num_false = np.random.default_rng(seed), 0
    for number in range(num_simulations):
        some = []
        for backbone in range(5):
            here = world(draw, num_samples)
            some += [here.curve(f"m{one}", FIRST, backbone=f"b{backbone}") for one in range(10)]
        found, left_out = claims(some, num_draws=num_draws, seed=number)
        assert len(found) == 225 and not left_out
        num_false += any(one.is_claimed for one in found)
    return num_false / num_simulations


def _with_videos(draw: np.random.Generator, num_samples: int) -> dict[str, bool]:
    here = world(draw, num_samples, per_video=5)
    first, second = here.curve("first", FIRST), here.curve("second", SECOND)
    return {
        "accuracy at a budget, 5 samples a video": _in(accuracy_at(first, BUDGET), at(FIRST, BUDGET)),
        "delta-AUC, 5 samples a video": _in(difference_over(first, second), GAP),
        "band, 5 samples a video": _band_holds(first, second),
    }


def _in(interval, truth) -> bool:
    return bool(interval.low <= truth <= interval.high)


def _band_holds(first: Curve, second: Curve) -> bool:
    found = band(first, second, num_draws=500)
    truth_F = at(FIRST, found.budget_F) - at(SECOND, found.budget_F)
    return bool(np.all((found.low_F <= truth_F) & (truth_F <= found.high_F)))


def _best_holds(here: World, draw: np.random.Generator) -> bool:
    """Twelve candidates, six of which are 0.5 points better: the truth is what the two choices are worth."""
    true = {f"c{one}": 0.75 + 0.005 * (one % 2) for one in range(12)}
    some = [here.curve(label, np.array([worth, 0.8])) for label, worth in true.items()]
    found = best_at(some, BUDGET)
    return _in(found.estimate, np.mean([true[label] for label in found.chosen]))


def _across_holds(here: World) -> bool:
    pairs = [(here.curve("first", FIRST, backbone=name), here.curve("second", SECOND, backbone=name)) for name in "abc"]
    return _in(across(pairs), GAP)


def _staircase(accuracy_K: np.ndarray, least: float) -> float:
    """The area of rectangles."""
    ends = [*SHARES[1:], 1.0]
    return (
        sum(
            (end - start) * max(0.0, height - least)
            for start, end, height in zip(SHARES, ends, accuracy_K, strict=True)
        )
        / DEPTH
    )


def _variance_holds(here: World, dense: Curve, num_draws: int, seed: int) -> dict[str, bool]:
    loss_MS = METHODS[:, None] + SHAPES + TOGETHER
    some = [
        here.curve(f"m{m} s{s}", np.array([0.8 - loss_MS[m, s], 0.8]), method=f"m{m}", shape=f"s{s}")
        for m in range(len(METHODS))
        for s in range(len(SHAPES))
    ]
    of_method_M, of_shape_S = loss_MS.mean(1) - loss_MS.mean(), loss_MS.mean(0) - loss_MS.mean()
    total = np.sum((loss_MS - loss_MS.mean()) ** 2)
    true = {"method": 3 * np.sum(of_method_M**2) / total, "shape": 4 * np.sum(of_shape_S**2) / total}
    true["interplay"] = 1 - true["method"] - true["shape"]
    found = decompose([dense, *some], BUDGET, num_draws=num_draws, seed=seed)
    return {f"share of variance: {part.factor}": _in(part, true[part.factor]) for part in found}


def _rates(found: list[dict[str, bool]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def main() -> None:
    from arguments import positive  # lies beside this file, which the tests load without its folder

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=positive, default=1000)
    parser.add_argument("--reports", type=positive, default=300, help="simulated ones, of 225 comparisons each")
    parser.add_argument("--samples", type=positive, nargs="+", default=[500, 2000])
    parser.add_argument("--no-bootstrap", action="store_true")
    args = parser.parse_args()
    for num in args.samples:
        start = time.perf_counter()
        found = coverage(args.simulations, num)
        if not args.no_bootstrap:
            found |= bootstrap_coverage(args.simulations, num)
        print(f"n = {num:,}, {args.simulations:,} simulations: of 100 intervals of 95 % so many hold the truth")
        for name, rate in found.items():
            print(f"  {name:45} {100 * rate:5.1f}")
        rate = false_claims(args.reports, num)
        print(f"  {'a false claim in a report of 225 comparisons':45} {100 * rate:5.1f}   ({args.reports} reports)")
        print(f"  ({time.perf_counter() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
