"""What attention with statistics costs, in units of plain fused attention on the same queries, keys and values.

    python benchmarks/attention.py                                        UMT-B's 2352 tokens, one sample, on one thread
    python benchmarks/attention.py --tokens 197 --batch 8 --threads 2
    python benchmarks/attention.py --chunks 128 320 512                   and with chunks of so many queries
    python benchmarks/attention.py --device cuda --dtype bfloat16         the Triton kernels, and the chunks in their place

All runs take turns in the same rounds, in random order. Two products are the least that attention takes; the statistics need
an exponential and a few additions for each entry of the map beyond them, and on CUDA a third product. Targets for vid-TLDR's
layers (row entropy without bias, output with it) are those of ``benchmarks/vid_tldr.py``.
"""

import argparse
from collections.abc import Callable

import arguments
import torch

from tokred import attention_map
from tokred.attention import attend, plain
from tokred.attention_map import in_chunks
from tokred.timing import block_on, graphed, interleave, ratio

Runs = dict[str, Callable[[], object]]


def runs(args: argparse.Namespace) -> Runs:
    torch.manual_seed(0)
    shape = args.batch, args.tokens, 3, args.heads, args.channels
    q, k, v = torch.randn(shape, device=args.device, dtype=getattr(torch, args.dtype)).permute(2, 0, 3, 1, 4)
    bias_BN = torch.rand(args.batch, args.tokens, device=args.device) * 3
    scale = args.channels**-0.5
    entropy = {"scale": scale, "statistics": ("row_entropy",)}
    of_vid_tldr = {"bias_BN": bias_BN, "biased_statistics": False}
    chunked = {"bias_BN": bias_BN, "valid_BN": None, "biased": False}
    return {
        "plain": lambda: plain(q, k, v, scale=scale),
        "null": lambda: plain(q, k, v, scale=scale),
        "plain, log-size bias": lambda: plain(q, k, v, scale=scale, bias_BN=bias_BN),
        "cls_row": lambda: attend(q, k, v, scale=scale, statistics=("cls_row",)),
        "received": lambda: attend(q, k, v, scale=scale, statistics=("received",)),
        "row_entropy": lambda: attend(q, k, v, **entropy),
        "row_entropy, biased output": lambda: attend(q, k, v, **entropy, **of_vid_tldr),
        "the same in plain chunks": lambda: in_chunks(q, k, v, **entropy, **chunked),
        **{f"row_entropy, chunks of {size}": _with_chunks(size, q, k, v, entropy) for size in args.chunks},
    }


def _with_chunks(size: int, q, k, v, options) -> Callable[[], object]:
    def run() -> None:
        usual = attention_map._IN_PLACE_QUERIES
        attention_map._IN_PLACE_QUERIES = size
        try:
            attend(q, k, v, **options)
        finally:
            attention_map._IN_PLACE_QUERIES = usual

    return run


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"tokens": 2352, "heads": 12, "channels": 64, "batch": 1}.items():
        parser.add_argument(f"--{name}", type=arguments.positive, default=default)
    parser.add_argument("--threads", type=arguments.threads, default=1)
    parser.add_argument("--chunks", type=arguments.positive, nargs="*", default=[])
    parser.add_argument("--rounds", type=arguments.rounds, default=30)
    parser.add_argument("--device", type=arguments.device, default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument(
        "--mode", default="eager", choices=["eager", "cuda_graph"], help="a graph has no launches to wait for"
    )
    args = parser.parse_args()
    if args.mode == "cuda_graph" and args.device != "cuda":
        parser.error("--mode cuda_graph goes with --device cuda")
    torch.set_num_threads(args.threads)
    made = {name: graphed(run) for name, run in runs(args).items()} if args.mode == "cuda_graph" else runs(args)
    times = interleave(made, rounds=args.rounds, block=block_on(args.device))
    print(
        f"{args.batch} x {args.tokens} tokens, {args.heads} heads of {args.channels}, {args.dtype} on {args.device}, "
        f"{args.mode}, {args.threads} threads, torch {torch.__version__}; n = {args.rounds} rounds, 95 % intervals"
    )
    for name, of_run in times.items():
        middle, low, high = ratio(of_run, times["plain"])
        print(f"{name:32} {middle:6.3f} [{low:.3f}, {high:.3f}] of plain; fastest {min(of_run):.1f} ms")


if __name__ == "__main__":
    main()
