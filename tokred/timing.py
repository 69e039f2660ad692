"""Speed, as ratios that hold on a busy machine: models in turn, round by round, in random order.

Times drift by tens of percent from minute to minute; the ratio of two times taken one right after the other does not. So
``beside`` times each model next to the unreduced one, in every round, and the speed-up is the median over rounds of unreduced
time / its time, with an interval from order statistics. The unreduced model is also timed as if it were one of the others:
what it seems to gain on itself, the null control, is what cannot be resolved.

``interleave`` is for a handful of runs of which any two may be compared: one time of each in a round. The more runs, the
further apart two of them stand, and the less of the drift they share: in noise as of a busy machine the intervals of 20 runs in
turn are twice as wide as those of ``beside``, of 72 three times (tests/test_timing.py has that noise).
"""

import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

Run = Callable[[], object]
Interval = tuple[float, float, float]  # median, low, high

MIN_BLOCK_MS = 20.0  # shorter blocks are repeated: below it, timer and scheduler show
WARM_UP_S, WARM_UP_CALLS, MOST_WARM_UP_CALLS = 0.5, 3, 100_000
RESOLUTION = 0.03  # half the width of the null control's interval on a machine that is quiet enough
DIGITS = 5  # of the times that are kept; timers and machines give no more


class Block(NamedTuple):
    """Milliseconds a call. ``cpu_ms``: of all the process's threads; None where a GPU does the work."""

    wall_ms: float
    cpu_ms: float | None


def cpu_block(run: Run, repeats: int) -> Block:
    """Wall and CPU time. The ratio of two CPU times leaves out what other processes took; it means something on one thread only,
    since threads that wait for each other spin."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        run()
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    return Block(wall_s * 1e3 / repeats, cpu_s * 1e3 / repeats)


def cuda_block(run: Run, repeats: int) -> Block:
    """From events on the current stream, waited for once, at the end of the block."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return Block(start.elapsed_time(end) / repeats, None)


def block_on(device: str) -> Callable[[Run, int], Block]:
    return cuda_block if device == "cuda" else cpu_block


@dataclass(frozen=True)
class Times:
    """A run's milliseconds a call in each round, and those of the unreduced model right beside it.

    The CPU times are empty where none were measured. ``place`` counts the round's blocks from 0; of each three, as far as they
    go, the one in the middle is the unreduced model's, of a last two the other one.
    """

    times_ms: list[float]
    unreduced_ms: list[float]
    cpu_ms: list[float]
    unreduced_cpu_ms: list[float]
    place: list[int]

    def speedup(self) -> Interval:
        """Of the ratio unreduced / run over rounds, with a 95 % interval."""
        return ratio(self.unreduced_ms, self.times_ms)

    def cpu_ratio(self) -> Interval | None:
        """The same of CPU times; None without them, and where a time is too short for the clock."""
        return ratio(self.unreduced_cpu_ms, self.cpu_ms) if self.cpu_ms and min(self.cpu_ms) > 0 else None


def beside(
    unreduced: Run,
    runs: Mapping[str, Run],
    *,
    rounds: int = 30,
    seed: int = 0,
    block: Callable[[Run, int], Block] = cpu_block,
    on_round: Callable[[], None] = lambda: None,
) -> dict[str, Times]:
    """Each run's times in each of ``rounds`` rounds, next to ``unreduced``: in seeded random order, two runs with one block of
    ``unreduced`` between them. ``rounds`` is fixed in advance, at least 20.

    Give ``unreduced`` among the runs too, as the null control. ``block`` is the clock.
    """
    _check(rounds)
    repeats = {run: _warm_up(run, block) for run in dict.fromkeys([unreduced, *runs.values()])}
    draw, found = random.Random(seed), {name: _Rounds() for name in runs}

    def timed(name: str | None) -> Block:
        run = unreduced if name is None else runs[name]
        return block(run, repeats[run])

    for _ in range(rounds):
        place = 0
        for turn in _turns(list(runs), draw):
            blocks = {name: timed(name) for name in turn}
            for name in turn:
                if name is not None:
                    found[name].append((blocks[name], blocks[None], place))
                place += 1
        on_round()
    return {name: _times(of_run) for name, of_run in found.items()}


def interleave(
    runs: Mapping[str, Run],
    *,
    rounds: int = 30,
    seed: int = 0,
    block: Callable[[Run, int], Block] = cpu_block,
    on_round: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Milliseconds of each run in each of ``rounds`` rounds; every round calls all of them, in seeded random order.

    On CUDA give ``cuda_block``. ``rounds`` is fixed in advance, at least 20.
    """
    _check(rounds)
    repeats = {name: _warm_up(run, block) for name, run in runs.items()}
    order, shuffle = list(runs), random.Random(seed).shuffle
    times_ms: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            times_ms[name].append(block(runs[name], repeats[name]).wall_ms)
        on_round()
    return times_ms


def ratio(one: list[float], other: list[float]) -> Interval:
    """(median, low, high) of one / other of the same round, with a 95 % interval."""
    return median_interval([a / b for a, b in zip(one, other, strict=True)])


def median_interval(values: list[float]) -> Interval:
    """The median and the order statistics that hold it with at least 95 %: ranks (6, 15) of 20, (10, 21) of 30."""
    ordered, n = sorted(values), len(values)
    rank = _lower_rank(n)
    return statistics.median(ordered), ordered[rank - 1], ordered[n - rank]


def resolution(null: Interval) -> float:
    """How far from 1 the speed-up of the unreduced model over itself may lie, as a factor up or down, less 1."""
    return max(max(end, 1 / end) for end in null) - 1


def control(null: Interval) -> str:
    """Whether the unreduced model against itself comes out as 1, within 3 %: "ok" or "noisy"."""
    _, low, high = null
    return "ok" if low <= 1 <= high and (high - low) / 2 <= RESOLUTION else "noisy"


def verdict(speedup: Interval, null: Interval) -> str:
    """ "below resolution" for a difference no larger than the null control shows, else whether that is "ok" or "noisy"."""
    factor = max(speedup[0], 1 / speedup[0])
    return "below resolution" if factor - 1 <= resolution(null) else control(null)


def graphed(call: Run) -> Run:
    """A replay of the kernels of one call, which costs no time on the CPU. Captured after calls on a stream of its own, as
    torch.cuda.graph asks for."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP_CALLS):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()

    def replay(call: Run = call) -> None:  # the graph reads what the call holds
        graph.replay()

    return replay


_Rounds = list[tuple[Block, Block, int]]  # own, the unreduced model's, place


def _check(rounds: int) -> None:
    if rounds < 20:
        raise ValueError(f"timing needs at least 20 rounds for an interval; got {rounds}")


def _turns(names: list[str], draw: random.Random) -> list[list[str | None]]:
    """A round: two names with the unreduced model, None, between them, then the next two; each run comes first or last by
    chance, one that is left over too."""
    draw.shuffle(names)
    turns: list[list[str | None]] = [[first, None, *second] for first, *second in _couples(names)]
    for turn in turns:
        if draw.random() < 0.5:
            turn.reverse()
    return turns


def _couples(names: list[str]) -> list[list[str]]:
    return [names[start : start + 2] for start in range(0, len(names), 2)]


def _times(rounds: _Rounds) -> Times:
    own, unreduced, place = zip(*rounds, strict=True)
    return Times(
        _rounded(block.wall_ms for block in own),
        _rounded(block.wall_ms for block in unreduced),
        _rounded(block.cpu_ms for block in own if block.cpu_ms is not None),
        _rounded(block.cpu_ms for block in unreduced if block.cpu_ms is not None),
        list(place),
    )


def _rounded(values: Iterable[float]) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values]


def _lower_rank(n: int) -> int:
    """The largest rank k with P(Binomial(n, 1/2) < k) <= 2.5 %: the k-th smallest lies below the median that surely."""
    below, rank = 0.0, 0
    for k in range(n):
        below += math.comb(n, k) / 2**n
        if below > 0.025:
            break
        rank = k + 1
    return max(rank, 1)


def _warm_up(run: Run, block: Callable[[Run, int], Block]) -> int:
    """Calls until warm; returns how many calls make a block."""
    spent_ms, calls, last = 0.0, 0, math.inf
    while calls < WARM_UP_CALLS or (spent_ms < WARM_UP_S * 1e3 and calls < MOST_WARM_UP_CALLS):
        wall_ms = block(run, 1).wall_ms
        spent_ms, calls, last = spent_ms + wall_ms, calls + 1, min(last, wall_ms)
    return max(1, math.ceil(MIN_BLOCK_MS / max(last, 1e-3)))  # a coarse clock reads 0
