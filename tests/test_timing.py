"""Order statistics, and interleaved timing on a clock of our own. No test here reads the real one."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import binom

from tokred import timing


class Clock:
    """Seconds that pass when a run says so; ``speed`` of the machine follows from the time."""

    def __init__(self, speed: Callable[[float], float] = lambda now_s: 1.0):
        self.now_s, self.speed, self.calls = 0.0, speed, []

    def run(self, name: str, work_ms: float) -> Callable[[], None]:
        def call() -> None:
            self.calls.append(name)
            self.now_s += work_ms / 1e3 / self.speed(self.now_s)

        return call

    def runs(self, **work_ms: float) -> dict[str, Callable[[], None]]:
        return {name: self.run(name, work) for name, work in work_ms.items()}


@pytest.fixture
def new_clock(monkeypatch):
    def make(*arguments) -> Clock:
        clock = Clock(*arguments)
        monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock.now_s))
        return clock

    return make


@pytest.mark.parametrize(("n", "ranks"), [(20, (6, 15)), (30, (10, 21)), (40, (14, 27))])
def test_the_interval_of_a_median_has_the_known_ranks(n, ranks):
    _, low, high = timing.median_interval([float(n - rank) for rank in range(n)])  # 1 to n, falling
    assert (low, high) == ranks


def test_the_interval_is_the_narrowest_that_holds_the_median_with_95_percent():
    """P(k-th smallest <= median <= k-th largest) = P(k <= Binomial(n, 1/2) <= n - k)."""

    def holds(n: int, k: int) -> float:
        return binom.cdf(n - k, n, 0.5) - binom.cdf(k - 1, n, 0.5)

    for n in range(20, 201):
        k = int(timing.median_interval([float(rank) for rank in range(1, n + 1)])[1])
        assert holds(n, k) >= 0.95 > holds(n, k + 1), n


def test_the_median_of_an_even_number_lies_between_the_middle_two():
    assert timing.median_interval([float(value) for value in range(20)])[0] == 9.5


def test_ratios_hold_while_the_machine_slows_down_threefold(new_clock):
    clock = new_clock(lambda now_s: 1 / (1 + now_s / 4))
    times_ms = timing.interleave(clock.runs(unreduced=40, null=40, half=20, slower=50), rounds=30)
    assert times_ms["half"][-1] > 2.5 * times_ms["half"][0]
    found = timing.speedups(times_ms)
    for name, ratio in {"null": 1.0, "half": 2.0, "slower": 0.8}.items():
        # a round takes 0.15 s of work, in which the machine's speed changes by up to 4 %; the order is random
        assert found[name][0] == pytest.approx(ratio, rel=0.02)


def test_the_interval_holds_the_ratio_in_95_percent_of_measurements(new_clock):
    """Of 400, with times that scatter by a tenth; 93 % is two standard deviations below."""
    draw, held = np.random.RandomState(0), 0
    for seed in range(400):
        clock = new_clock(lambda _: np.exp(0.1 * draw.randn()))
        runs = clock.runs(unreduced=40, cell=25)
        _, low, high = timing.speedups(timing.interleave(runs, rounds=20, seed=seed))["cell"]
        held += low <= 40 / 25 <= high
    assert held >= 0.93 * 400


def test_a_burst_of_load_does_not_move_the_median(new_clock):
    clock = new_clock(lambda now_s: 0.1 if 3 < now_s < 5 else 1.0)
    found = timing.speedups(timing.interleave(clock.runs(unreduced=40, half=20), rounds=30))
    assert found["half"][0] == pytest.approx(2.0, rel=1e-6)


def test_speedups_are_of_the_same_round():
    times_ms = {"unreduced": [10.0, 100.0] * 10, "cell": [5.0, 50.0] * 10}
    assert timing.speedups(times_ms) == {"cell": (2.0, 2.0, 2.0)}


def test_every_round_calls_every_run_once(new_clock):
    clock = new_clock()
    times_ms = timing.interleave(clock.runs(a=30, b=30, c=30), rounds=20)
    assert {name: len(times) for name, times in times_ms.items()} == {"a": 20, "b": 20, "c": 20}
    rounds = [clock.calls[-3 * 20 :][start : start + 3] for start in range(0, 60, 3)]
    assert all(sorted(calls) == ["a", "b", "c"] for calls in rounds)


def test_the_order_differs_between_rounds(new_clock):
    clock = new_clock()
    timing.interleave(clock.runs(a=30, b=30, c=30), rounds=20)
    assert len({tuple(clock.calls[-60:][start : start + 3]) for start in range(0, 60, 3)}) > 1


def test_the_order_follows_from_the_seed(new_clock):
    orders = []
    for seed in (0, 0, 1):
        clock = new_clock()
        timing.interleave(clock.runs(a=30, b=30, c=30), rounds=20, seed=seed)
        orders.append(clock.calls)
    assert orders[0] == orders[1] != orders[2]


def test_a_short_run_is_repeated_until_it_can_be_measured(new_clock):
    clock = new_clock()
    times_ms = timing.interleave(clock.runs(short=0.5), rounds=20)
    assert clock.calls.count("short") >= 20 * timing.MIN_BLOCK_MS / 0.5
    assert times_ms["short"] == pytest.approx([0.5] * 20)


def test_what_happens_before_the_rounds_is_not_counted(new_clock):
    clock = new_clock(lambda now_s: 0.01 if now_s < timing.WARM_UP_S else 1.0)  # a first call is slow
    assert timing.interleave(clock.runs(a=30), rounds=20)["a"] == pytest.approx([30.0] * 20)


def test_progress_is_told_of_every_round(new_clock):
    told = []
    timing.interleave(new_clock().runs(a=30), rounds=20, on_round=lambda: told.append(1))
    assert len(told) == 20


def test_too_few_rounds_are_refused():
    with pytest.raises(ValueError, match="at least 20 rounds for an interval; got 19"):
        timing.interleave({}, rounds=19)


@pytest.mark.parametrize(
    ("null", "verdict"),
    [
        ((1.0, 0.98, 1.02), "ok"),
        ((1.0, 0.95, 1.05), "noisy"),  # wider than 3 % to either side
        ((1.02, 1.01, 1.03), "noisy"),  # the model seems faster than itself
        ((0.98, 0.97, 0.99), "noisy"),
    ],
)
def test_the_verdict_is_that_of_the_model_against_itself(null, verdict):
    assert timing.verdict(null) == verdict


def test_a_call_on_the_cpu_needs_no_synchronising():
    assert timing.synchronised(print, "cpu") is print
