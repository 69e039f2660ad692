"""How long the bootstrap of the Pareto front takes: 200 configurations on 50,000 samples, 2,000 draws.

python benchmarks/bootstrap.py
python benchmarks/bootstrap.py --configs 50 --samples 10000 --draws 500
"""

import argparse
import resource
import time

import arguments
import numpy as np

from tokred.analysis.curves import Curve
from tokred.analysis.front import members

PER_CURVE = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", type=arguments.positive, default=200)
    parser.add_argument("--samples", type=arguments.positive, default=50_000)
    parser.add_argument("--draws", type=arguments.positive, default=2_000)
    args = parser.parse_args()
    draw, shares = np.random.default_rng(0), np.linspace(0.4, 0.9, PER_CURVE)
    ease_N, index_N = draw.random(args.samples), np.arange(args.samples)
    curves = []
    for number in range(args.configs // PER_CURVE):
        edge_K = 0.7 + 0.1 * shares + 0.001 * (number % 7)
        noise_KN = 0.05 * draw.standard_normal((PER_CURVE, args.samples))
        curves.append(Curve(f"method {number}", shares, (ease_N + noise_KN < edge_K[:, None])[None], index_N))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    found = members(curves, num_draws=args.draws)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{len(found)} configurations x {args.samples:,} samples x {args.draws:,} draws: {seconds:.1f} s")
    print(f"at most {(after - before) / 1024:.0f} MiB more than before (Linux)")
    print(f"on the front: {sum(one.on_front for one in found)}, surely: {sum(one.is_sure for one in found)}")


if __name__ == "__main__":
    main()
