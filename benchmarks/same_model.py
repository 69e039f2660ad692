"""Does the timing call a model different from itself? Real windows on the real clock, on this machine with all that runs on it.

    python benchmarks/same_model.py                   200 windows of 20 rounds, about five minutes on an idle machine
    python benchmarks/same_model.py --windows 50 --rounds 30 --threads 2

Timed as a sweep does it (tokred.timing.beside), beside five calls of one small model: the same five, twice, as the null control
and as a model to be judged; and four calls, whose speed-up is 1.25 by construction. Then the rounds are cut into windows, each a
measurement of its own. Wanted: the same model called different in at most 8 % of the windows, the planted ratio in its interval
in at least 92 %.
"""

import argparse
import os
import statistics
from dataclasses import astuple

import arguments
import torch

import tokred
from tokred.record import wilson
from tokred.timing import Interval, Times, beside, verdict

SIZES = {"depth": 2, "embed_dim": 48, "patch_size": 16}
CALLS, FEWER = 5, 4
PLANTED = CALLS / FEWER


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=arguments.positive, default=200)
    parser.add_argument("--rounds", type=arguments.rounds, default=20)
    parser.add_argument("--threads", type=arguments.threads, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = tokred.create_backbone("mini_mean", weights="random", **SIZES).eval()
    clips = torch.randn(1, *model.sample_shape)

    def calls(number: int):
        return lambda: [model(clips) for _ in range(number)]

    base = calls(CALLS)
    runs = {"null": base, "same": base, "planted": calls(FEWER)}
    loads = [os.getloadavg()[0]]
    times = beside(base, runs, rounds=args.windows * args.rounds)
    loads.append(os.getloadavg()[0])
    found = {name: [window.speedup() for window in cut(times[name], args.rounds)] for name in runs}
    cpu = [window.cpu_ratio() or (0.0, 0.0, 0.0) for window in cut(times["planted"], args.rounds)]

    spread = statistics.quantiles(times["null"].times_ms, n=4)
    print(
        f"torch {torch.__version__}, {args.threads} threads, load {loads[0]:.1f} to {loads[1]:.1f} on {os.cpu_count()} cores"
    )
    print(f"{args.windows} windows of {args.rounds} rounds; quartiles of a time {spread[0]:.2f} to {spread[2]:.2f} ms")
    judged = list(zip(found["same"], found["null"], strict=True))
    share("the null control's interval leaves out 1", [not holds(null, 1) for _, null in judged], "at most 8 %")
    share("the same model's interval leaves out 1", [not holds(same, 1) for same, _ in judged], "at most 8 %")
    different = [not holds(same, 1) and verdict(same, null) != "below resolution" for same, null in judged]
    share("called different: that, and above resolution", different, "at most 8 %")
    share(
        f"the interval holds the planted {PLANTED}", [holds(one, PLANTED) for one in found["planted"]], "at least 92 %"
    )
    share("the interval of CPU times holds it", [holds(one, PLANTED) for one in cpu], "one thread only")
    for name, intervals in found.items():
        print(f"half the width of the interval of {name}: median {statistics.median(map(half, intervals)):.3f}")
    print(f"half the width of that of CPU times: median {statistics.median(map(half, cpu)):.3f}")


def cut(times: Times, rounds: int) -> list[Times]:
    starts = range(0, len(times.times_ms), rounds)
    return [Times(*(values[start : start + rounds] for values in astuple(times))) for start in starts]


def holds(interval: Interval, value: float) -> bool:
    return interval[1] <= value <= interval[2]


def half(interval: Interval) -> float:
    return (interval[2] - interval[1]) / 2


def share(what: str, hits: list[bool], wanted: str) -> None:
    low, high = wilson(sum(hits), len(hits))
    print(
        f"{what}: {sum(hits)} of {len(hits)}, {100 * sum(hits) / len(hits):.1f} % [{100 * low:.1f}, {100 * high:.1f}] ({wanted})"
    )


if __name__ == "__main__":
    main()
