"""Merging and pruning on an image transformer against the limit, a slice to the same tokens, and against the official ToMe.

    python benchmarks/vit.py                                      ViT-B/16, batch 8: tome r=13; evit, top_k, random_drop 0.7
    python benchmarks/vit.py --official PATH/TO/ToMe              the official patch too, with the same weights
    python benchmarks/vit.py --methods evit top_k                 some of them

PATH is a clone of github.com/facebookresearch/ToMe. Random weights: speed does not hang on them. Pictures are drawn anew for each
call. A method, its limit (twice, as a control), the unreduced model and the official code take turns in the same rounds, in
random order.
"""

import argparse
import copy
import sys
from pathlib import Path
from typing import Any

import arguments
import timm
import torch
from torch import Tensor, nn

import tokred
from tokred.timing import interleave, ratio

AMOUNTS: dict[str, dict[str, Any]] = {
    "tome": {"r": 13},
    "evit": {"keep_rate": 0.7, "layers": [3, 6, 9]},
    "top_k": {"keep_rate": 0.7, "layers": [3, 6, 9]},
    "random_drop": {"keep_rate": 0.7, "layers": [3, 6, 9]},
}


def official(path: Path, vit: nn.Module, r: int) -> nn.Module:
    """A copy of the model with the official patch; its proportional attention is on, as it is in ours."""
    sys.path.insert(0, str(path))
    import tome.patch  # type: ignore[import-not-found]

    model = copy.deepcopy(vit)
    tome.patch.timm(model, prop_attn=True)
    model.r = r
    return model


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_base_patch16_224")
    parser.add_argument("--methods", nargs="+", default=list(AMOUNTS), choices=list(AMOUNTS))
    parser.add_argument("--batch", type=arguments.positive, default=8)
    parser.add_argument("--threads", type=arguments.threads, default=1)
    parser.add_argument("--rounds", type=arguments.rounds, default=20)
    parser.add_argument("--official", type=arguments.clone_with("tome/patch/timm.py"))
    args = parser.parse_args()
    if not timm.is_model(args.backbone):
        parser.error(f"timm has no model {args.backbone}; timm.list_models() names them")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    vit = timm.create_model(args.backbone, pretrained=False).eval()
    print(f"{args.backbone}, batch {args.batch}, {args.threads} threads, torch {torch.__version__}")
    print(f"n = {args.rounds} rounds, 95 % intervals")
    with arguments.refused(parser):
        reduced = {name: tokred.reduce(vit, name, **AMOUNTS[name]).eval() for name in args.methods}
    for name, ours in reduced.items():
        compare(name, vit, ours, args)


def compare(name: str, vit: nn.Module, ours: tokred.ReducedModel, args: argparse.Namespace) -> None:
    """One method in rounds of its own."""
    limit = tokred.reduce(vit, "oracle_slice", tokens=list(ours.schedule.tokens)).eval()
    models: dict[str, nn.Module] = {"ours": ours, "limit": limit, "null": limit}
    models["unreduced"] = tokred.reduce(vit, "none").eval()  # the same model, run in the same pieces
    if args.official and name == "tome":
        models["official"] = official(args.official, vit, AMOUNTS[name]["r"]).eval()
    size = ours.backbone.sample_shape

    def pictures() -> Tensor:
        return torch.randn(args.batch, *size)

    print(f"\n{name} {AMOUNTS[name]}: tokens {ours.schedule.tokens}")
    if "official" in models:
        given = pictures()
        off = float((ours(given) - models["official"](given)).abs().max() / ours(given).abs().max())
        print(f"outputs differ from the official ones by {off:.1e} of their largest value")
    times = interleave({key: lambda m=model: m(pictures()) for key, model in models.items()}, rounds=args.rounds)

    def of(a: str, b: str) -> str:
        return "{:.3f} [{:.3f}, {:.3f}]".format(*ratio(times[a], times[b]))

    print(f"ours / limit      {of('ours', 'limit')}   (at most 1.03 wanted)")
    print(f"null / limit      {of('null', 'limit')}")
    if "official" in models:
        print(f"ours / official   {of('ours', 'official')}   (at most 0.95 wanted)")
        print(f"limit / official  {of('limit', 'official')}   (what no merging at all would leave to win)")
    predicted = ours.unreduced_cost().macs / ours.cost().macs
    print(
        f"unreduced / ours  {of('unreduced', 'ours')}   ({predicted:.3f} by multiply-adds; at least 0.95 of it wanted)"
    )
    print("fastest ms        " + ", ".join(f"{key} {min(of_model):.0f}" for key, of_model in times.items()))


if __name__ == "__main__":
    main()
