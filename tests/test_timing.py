"""Order statistics, and timing on a clock of our own. But for the last ones no test here reads the real one."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import binom

from tokred import timing


class Clock:
    """Seconds that pass when a run says so; ``speed`` of the machine follows from the time. Of the work half is CPU time."""

    def __init__(self, speed: Callable[[float], float] = lambda now_s: 1.0):
        self.now_s, self.cpu_s, self.speed, self.calls = 0.0, 0.0, speed, []

    def run(self, name: str, work_ms: float) -> Callable[[], None]:
        def call() -> None:
            self.calls.append(name)
            self.now_s += work_ms / 1e3 / self.speed(self.now_s)
            self.cpu_s += work_ms / 2e3

        return call

    def runs(self, **work_ms: float) -> dict[str, Callable[[], None]]:
        return {name: self.run(name, work) for name, work in work_ms.items()}


@pytest.fixture
def new_clock(monkeypatch):
    def make(*arguments) -> Clock:
        clock = Clock(*arguments)
        fake = SimpleNamespace(perf_counter=lambda: clock.now_s, process_time=lambda: clock.cpu_s)
        monkeypatch.setattr(timing, "time", fake)
        return clock

    return make


def beside(clock, base_ms, *, rounds=30, **work_ms):
    """With ``null``, the unreduced model itself, among the runs."""
    base = clock.run("base", base_ms)
    return timing.beside(base, {"null": base, **clock.runs(**work_ms)}, rounds=rounds)


# The interval of a median


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


# Beside the unreduced model


def test_ratios_hold_while_the_machine_slows_down_threefold(new_clock):
    found = beside(new_clock(lambda now_s: 1 / (1 + now_s / 4)), 40, half=20, slower=50)
    assert found["half"].times_ms[-1] > 2.5 * found["half"].times_ms[0]
    for name, ratio in {"null": 1.0, "half": 2.0, "slower": 0.8}.items():
        # in two blocks, 0.1 s of work at most, the machine's speed changes by up to 3 %; the order is random
        assert found[name].speedup()[0] == pytest.approx(ratio, rel=0.02)


def test_a_burst_of_load_does_not_move_the_median(new_clock):
    found = beside(new_clock(lambda now_s: 0.1 if 3 < now_s < 5 else 1.0), 40, half=20)
    assert found["half"].speedup()[0] == pytest.approx(2.0, rel=1e-6)


def test_a_speedup_is_of_the_same_round():
    times = timing.Times([5.0, 50.0] * 10, [10.0, 100.0] * 10, [], [], [])
    assert times.speedup() == (2.0, 2.0, 2.0)


@pytest.mark.parametrize("num_runs", [1, 2, 5, 8])
def test_each_run_is_called_once_a_round_right_beside_the_unreduced_model(num_runs, new_clock):
    clock = new_clock()
    timing.beside(clock.run("base", 30), clock.runs(**{f"run{number}": 30 for number in range(num_runs)}), rounds=20)
    length = num_runs + -(-num_runs // 2)
    for start in range(len(clock.calls) - 20 * length, len(clock.calls), length):
        calls = clock.calls[start : start + length]
        assert sorted(set(calls) - {"base"}) == [f"run{number}" for number in range(num_runs)]
        assert calls.count("base") == length - num_runs
        assert all("base" in calls[max(0, at - 1) : at + 2] for at in range(length))


def test_the_unreduced_time_of_a_round_is_that_of_the_block_next_to_it(new_clock):
    """Seconds that have passed stand in for the times, so that each block is known by its own."""
    clock = new_clock()

    def block(run, repeats):
        run()
        return timing.Block(clock.now_s, None)

    runs = clock.runs(a=1000, b=1000, c=1000)
    found = timing.beside(clock.run("base", 1000), runs, rounds=20, block=block)
    assert all(abs(a - b) == 1 for times in found.values() for a, b in zip(times.times_ms, times.unreduced_ms))


def test_the_places_tell_the_order_of_every_round(new_clock):
    clock, runs = new_clock(), ("a", "b", "c", "d", "e")
    found = timing.beside(clock.run("base", 30), clock.runs(**dict.fromkeys(runs, 30)), rounds=20)
    orders = [["base"] * 8 for _ in range(20)]
    for name, times in found.items():
        for order, place in zip(orders, times.place, strict=True):
            order[place] = name
    assert [name for order in orders for name in order] == clock.calls[-8 * 20 :]


def test_a_run_stands_as_often_before_the_unreduced_model_as_after_it(new_clock):
    found = beside(new_clock(), 30, rounds=1000)
    before = sum(place == 0 for place in found["null"].place)
    assert abs(before - 500) < 3 * np.sqrt(1000) / 2


def test_the_order_beside_follows_from_the_seed(new_clock):
    places = []
    for seed in (0, 0, 1):
        clock = new_clock()
        found = timing.beside(clock.run("base", 30), clock.runs(a=30, b=30, c=30), rounds=20, seed=seed)
        places.append([times.place for times in found.values()])
    assert places[0] == places[1] != places[2]


def test_cpu_time_is_measured_beside_wall_time(new_clock):
    """On a machine at half speed the wall shows twice the work, the CPU time half of it, as the clock has it."""
    found = beside(new_clock(lambda _: 0.5), 40, cell=25)["cell"]
    assert (found.times_ms, found.cpu_ms) == (pytest.approx([50.0] * 30), pytest.approx([12.5] * 30))
    assert found.cpu_ratio() == pytest.approx((1.6, 1.6, 1.6))


def test_where_no_cpu_time_was_measured_there_is_no_ratio_of_it():
    assert timing.Times([1.0], [1.0], [], [], [0]).cpu_ratio() is None


def test_a_cpu_time_below_the_clock_has_no_ratio():
    assert timing.Times([1.0] * 2, [1.0] * 2, [0.0, 1.0], [1.0] * 2, [0, 1]).cpu_ratio() is None


# Noise as on a busy machine: log times are an AR(1) process


class Noise:
    """A clock for runs that return their work in ms. What it shows has a standard deviation of 60 % of its mean, and the same
    place in the next round of five blocks correlates with 0.84: as measured on a shared machine."""

    def __init__(self, num_blocks, seed=0):
        draw, sigma = np.random.RandomState(seed), np.sqrt(np.log(1 + 0.6**2))
        rho, steps = 0.84 ** (1 / 5), draw.randn(num_blocks)
        logs = [sigma * steps[0]]
        for step in steps[1:]:
            logs.append(rho * logs[-1] + np.sqrt(1 - rho**2) * sigma * step)
        self.factors = iter(np.exp(logs))

    def __call__(self, run, repeats):
        return timing.Block(run() * next(self.factors), None)


WINDOWS = 400


@pytest.fixture(scope="module")
def windows():
    """(the null control, the same model, one 1.25 times as fast) in each of 400 windows of 20 rounds."""
    noise, found = Noise(WINDOWS * (20 * 5 + 100)), []

    def model():
        return 50.0

    runs = {"null": model, "same": lambda: 50.0, "faster": lambda: 40.0}
    for seed in range(WINDOWS):
        times = timing.beside(model, runs, rounds=20, seed=seed, block=noise)
        found.append([times[name].speedup() for name in runs])
    return found


def test_the_noise_is_what_it_is_said_to_be():
    noise = Noise(50_000)
    logs = np.log([noise(lambda: 1.0, 1).wall_ms for _ in range(50_000)])
    assert np.corrcoef(logs[:-5], logs[5:])[0, 1] == pytest.approx(0.84, abs=0.02)
    assert np.exp(logs).std() / np.exp(logs).mean() == pytest.approx(0.6, abs=0.06)


@pytest.mark.parametrize("which", [0, 1])
def test_the_same_model_seems_another_in_8_percent_of_windows_at_most(which, windows):
    different = sum(not found[which][1] <= 1 <= found[which][2] for found in windows)
    assert different <= 0.08 * WINDOWS


def test_a_planted_ratio_lies_in_its_interval_in_92_percent_of_windows_at_least(windows):
    assert sum(low <= 1.25 <= high for _, _, (_, low, high) in windows) >= 0.92 * WINDOWS


def test_an_interval_is_no_wider_among_many_models():
    """The unreduced model stands beside each of them. In turn with 20 others it would be twice as wide, with 72 three times."""

    def width(num_runs):
        runs, noise = {str(number): lambda: 50.0 for number in range(num_runs)}, Noise(60 * num_runs * 40)
        found = [timing.beside(lambda: 50.0, runs, rounds=20, seed=seed, block=noise)["0"] for seed in range(30)]
        return np.median([high - low for _, low, high in (times.speedup() for times in found)])

    assert width(20) < 1.3 * width(2)  # of 30 windows: a median width scatters by a tenth


# In turn


def test_the_interval_holds_the_ratio_in_95_percent_of_measurements(new_clock):
    """Of 400, with times that scatter by a tenth; 93 % is two standard deviations below."""
    draw, held = np.random.RandomState(0), 0
    for seed in range(400):
        clock = new_clock(lambda _: np.exp(0.1 * draw.randn()))
        times_ms = timing.interleave(clock.runs(unreduced=40, cell=25), rounds=20, seed=seed)
        _, low, high = timing.ratio(times_ms["unreduced"], times_ms["cell"])
        held += low <= 40 / 25 <= high
    assert held >= 0.93 * 400


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


@pytest.mark.parametrize("measure", [timing.interleave, lambda runs, **options: timing.beside(print, runs, **options)])
def test_too_few_rounds_are_refused(measure):
    with pytest.raises(ValueError, match="at least 20 rounds for an interval; got 19"):
        measure({}, rounds=19)


# Verdicts


@pytest.mark.parametrize(
    ("null", "said"),
    [
        ((1.0, 0.98, 1.02), "ok"),
        ((1.0, 0.95, 1.05), "noisy"),  # wider than 3 % to either side
        ((1.02, 1.01, 1.03), "noisy"),  # the model seems faster than itself
        ((0.98, 0.97, 0.99), "noisy"),
    ],
)
def test_the_control_is_the_model_against_itself(null, said):
    assert timing.control(null) == said


@pytest.mark.parametrize(
    ("speedup", "null", "said"),
    [
        (1.5, (1.0, 0.98, 1.01), "ok"),
        (1.5, (1.0, 0.95, 1.01), "noisy"),
        (1.04, (1.0, 0.95, 1.01), "below resolution"),
        (0.96, (1.0, 0.95, 1.01), "below resolution"),
        (1.01, (1.0, 0.98, 1.01), "below resolution"),
        (0.9, (1.0, 0.95, 1.01), "noisy"),
        (0.56, (1.0, 0.7, 1.5), "noisy"),  # half as fast is as far from 1 as twice as fast
        (0.7, (1.0, 0.7, 1.5), "below resolution"),
    ],
)
def test_a_difference_that_the_control_shows_too_is_below_resolution(speedup, null, said):
    assert timing.verdict((speedup, 0.5, 2.0), null) == said


# The real clocks


def test_a_block_on_the_cpu_is_all_its_calls_and_the_time_of_one():
    calls = []
    block = timing.cpu_block(lambda: calls.append(1), 7)
    assert len(calls) == 7 and block.wall_ms > 0 and block.cpu_ms is not None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_block_on_cuda_waits_for_the_device():
    """A product of 8192 x 8192 matrices, 1.1e12 operations, takes more than a millisecond on any device."""
    a = torch.randn(8192, 8192, device="cuda")
    block = timing.block_on("cuda")(lambda: a @ a, 3)
    assert block.wall_ms > 1 and block.cpu_ms is None
