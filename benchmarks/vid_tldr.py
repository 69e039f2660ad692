"""vid-TLDR on UMT's video encoder against the limit, a slice to the same tokens, and against the official code.

    python benchmarks/vid_tldr.py                                         UMT-B, 12 frames, [600, 200, 100]
    python benchmarks/vid_tldr.py --official PATH/TO/vid-TLDR             the official code too, with the same weights
    python benchmarks/vid_tldr.py --unreduced                             and the speed-up against that of the multiply-adds
    python benchmarks/vid_tldr.py --device cuda --dtype bfloat16 --batch 8 --mode cuda_graph

PATH is a clone of github.com/mlvlab/vid-TLDR, which needs einops. Random weights: speed does not hang on them. Clips are random,
other ones from call to call (not in a CUDA graph, which reads the same memory each time). All models take turns in the same
rounds, in random order; the limit is timed twice, as a control. Memory is the most that the allocator held at once in a forward,
parameters and input left out. The official code runs in eager mode, whatever the mode of the others.
"""

import argparse
import itertools
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import arguments
import torch
from torch import Tensor, nn

import tokred
from tokred.memory import peak_memory
from tokred.timing import block_on, graphed, interleave, ratio

SIZES = {"umt_base_patch16_224": (768, 12, 12), "umt_large_patch16_224": (1024, 24, 16)}
FRAMES = 12


class Official(nn.Module):
    """The official video encoder, with our weights and our order of frames and channels."""

    def __init__(self, path: Path, name: str, r: list[int], weights: dict[str, Tensor]):
        super().__init__()
        sys.path.insert(0, str(path / "multi_modality"))
        from models.backbones.vit.vit import PretrainVisionTransformer  # type: ignore[import-not-found]

        width, depth, heads = SIZES[name]
        self.model = PretrainVisionTransformer(
            encoder_embed_dim=width,
            encoder_depth=depth,
            encoder_num_heads=heads,
            num_frames=FRAMES,
            clip_return_layer=0,
            vidTLDR_use=True,
            vidTLDR_r=r + [0] * (depth - len(r)),
        )
        self.model.load_state_dict(weights)

    def forward(self, clips_BTCHW: Tensor) -> Tensor:
        return self.model(clips_BTCHW.transpose(1, 2))[1].squeeze(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="umt_base_patch16_224", choices=SIZES)
    parser.add_argument("--r", type=int, nargs="+", default=[600, 200, 100])
    parser.add_argument("--batch", type=arguments.positive, default=1)
    parser.add_argument("--threads", type=arguments.threads, default=1)
    parser.add_argument("--rounds", type=arguments.rounds, default=20)
    parser.add_argument("--device", type=arguments.device, default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--mode", default="eager", choices=["eager", "compiled", "cuda_graph"])
    parser.add_argument("--official", type=arguments.clone_with("multi_modality/models/backbones/vit/vit.py"))
    parser.add_argument("--unreduced", action="store_true")
    args = parser.parse_args()
    if args.mode == "cuda_graph" and args.device != "cuda":
        parser.error("--mode cuda_graph goes with --device cuda")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    video = tokred.create_backbone(args.backbone, num_frames=FRAMES).eval().to(args.device, getattr(torch, args.dtype))
    with arguments.refused(parser):
        ours, limit = (tokred.reduce(video, method, r=args.r).eval() for method in ("vid_tldr", "oracle_slice"))
    compare(video, ours, limit, args)


@torch.inference_mode()
def compare(video: nn.Module, ours: tokred.ReducedModel, limit: tokred.ReducedModel, args: argparse.Namespace) -> None:
    dtype = getattr(torch, args.dtype)
    models: dict[str, nn.Module] = {"ours": ours, "limit": limit, "null": limit}
    if args.official:
        official = Official(args.official, args.backbone, args.r, video.state_dict())
        models["official"] = official.eval().to(args.device, dtype)
    if args.unreduced:
        models["unreduced"] = video
    shape = args.batch, *ours.backbone.sample_shape
    drawn = [torch.randn(shape, device=args.device, dtype=dtype) for _ in range(4)]
    print(f"{args.backbone}, {args.batch} x {FRAMES} frames, r = {args.r}: tokens {ours.schedule.tokens}")
    print(f"{args.dtype} on {args.device}, {args.mode}, {args.threads} threads, torch {torch.__version__}; ", end="")
    print(f"n = {args.rounds} rounds, 95 % intervals")
    if args.official:
        theirs = models["official"](drawn[0]).float()
        off = float((ours(drawn[0]).float() - theirs).abs().max() / theirs.abs().max())
        print(f"outputs differ from the official ones by {off:.1e} of their largest value")
    for name, model in models.items():
        if name != "null":
            call = partial(model, drawn[0])
            call()
            print(f"{name:10} holds at most {peak_memory(call, args.device).held_mib:.0f} MiB")
    runs = {name: run_of(model, drawn, "eager" if name == "official" else args.mode) for name, model in models.items()}
    show(interleave(runs, rounds=args.rounds, block=block_on(args.device)), ours)


def run_of(model: nn.Module, drawn: list[Tensor], mode: str) -> Callable[[], object]:
    if mode == "cuda_graph":
        return graphed(partial(model, drawn[0]))
    if mode == "compiled":
        model = torch.compile(model, fullgraph=True)  # type: ignore[assignment]
    following = itertools.cycle(drawn)
    return lambda: model(next(following))


def show(times: dict[str, list[float]], ours: tokred.ReducedModel) -> None:
    """The ratios of the models that were timed."""

    def of(a: str, b: str) -> str:
        return "{:.3f} [{:.3f}, {:.3f}]".format(*ratio(times[a], times[b]))

    print(f"ours / limit      {of('ours', 'limit')}   (at most 1.07 wanted, on CUDA 1.05)")
    print(f"null / limit      {of('null', 'limit')}")
    if "official" in times:
        print(f"ours / official   {of('ours', 'official')}   (at most 0.55 wanted on a CPU)")
    if "unreduced" in times:
        predicted = ours.unreduced_cost().macs / ours.cost().macs
        print(f"unreduced / ours  {of('unreduced', 'ours')}   ({predicted:.3f} by multiply-adds)")
    for name, of_model in times.items():
        print(f"{name:10} fastest {min(of_model):.4g} ms")


if __name__ == "__main__":
    main()
