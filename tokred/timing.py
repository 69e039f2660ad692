"""Speed, as ratios that hold on a busy machine: all models in turn, round by round, in random order.

Times drift by tens of percent from minute to minute; the ratio of two times of the same round does not. So the speed-up of a
model is the median, over rounds, of unreduced time / its time, with an interval from order statistics; and the unreduced
model is timed twice, as a control: what it seems to gain on itself is what cannot be resolved.
"""

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping

import torch

UNREDUCED, NULL = "unreduced", "null"
MIN_BLOCK_MS = 20.0  # shorter blocks are repeated: below it, timer and scheduler show
WARM_UP_S, WARM_UP_CALLS = 0.5, 3
RESOLUTION = 0.03


def interleave(
    runs: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 30,
    seed: int = 0,
    on_round: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Milliseconds of each run in each of ``rounds`` rounds; every round calls all of them, in seeded random order.

    A run must return when it is done (on CUDA: synchronise). ``rounds`` is fixed in advance, at least 20.
    """
    if rounds < 20:
        raise ValueError(f"timing needs at least 20 rounds for an interval; got {rounds}")
    repeats = {name: _warm_up(run) for name, run in runs.items()}
    order, shuffle = list(runs), random.Random(seed).shuffle
    times_ms: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            times_ms[name].append(_block_ms(runs[name], repeats[name]))
        on_round()
    return times_ms


def speedups(
    times_ms: Mapping[str, list[float]], *, unreduced: str = UNREDUCED
) -> dict[str, tuple[float, float, float]]:
    """(median, low, high) of the ratio unreduced / run over rounds, with a 95 % interval."""
    base = times_ms[unreduced]
    return {
        name: median_interval([b / t for b, t in zip(base, times, strict=True)])
        for name, times in times_ms.items()
        if name != unreduced
    }


def median_interval(values: list[float]) -> tuple[float, float, float]:
    """The median and the order statistics that hold it with at least 95 %: ranks (6, 15) of 20, (10, 21) of 30."""
    ordered, n = sorted(values), len(values)
    rank = _lower_rank(n)
    return statistics.median(ordered), ordered[rank - 1], ordered[n - rank]


def verdict(null: tuple[float, float, float]) -> str:
    """Whether the unreduced model against itself comes out as 1, within 3 %: "ok" or "noisy"."""
    _, low, high = null
    return "ok" if low <= 1 <= high and (high - low) / 2 <= RESOLUTION else "noisy"


def synchronised(call: Callable[[], object], device: str) -> Callable[[], object]:
    """``call``, returning only when the device is done."""
    if device != "cuda":
        return call

    def run() -> None:
        call()
        torch.cuda.synchronize()

    return run


def _lower_rank(n: int) -> int:
    """The largest rank k with P(Binomial(n, 1/2) < k) <= 2.5 %: the k-th smallest lies below the median that surely."""
    below, rank = 0.0, 0
    for k in range(n):
        below += math.comb(n, k) / 2**n
        if below > 0.025:
            break
        rank = k + 1
    return max(rank, 1)


def _warm_up(run: Callable[[], object]) -> int:
    """Calls until warm; returns how many calls make a block."""
    start, calls, last = time.perf_counter(), 0, math.inf
    while calls < WARM_UP_CALLS or time.perf_counter() - start < WARM_UP_S:
        last = min(last, _block_ms(run, 1))
        calls += 1
    return max(1, math.ceil(MIN_BLOCK_MS / last))


def _block_ms(run: Callable[[], object], repeats: int) -> float:
    """Milliseconds per call."""
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) * 1e3 / repeats
