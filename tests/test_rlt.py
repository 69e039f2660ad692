"""RLT against the official code and by hand.

``golden/rlt.json``: ``batched_find_idxs_to_keep`` of rccchoudhury/rlt @69ec8b4, run unchanged but for its import of ipdb, on CPU. Its
model packs what is kept of all clips in one sequence with a block-diagonal mask, which is what ``one_by_one`` does without one.
"""

import functools
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tokred
from tests.golden.weights import inputs
from tokred import Assignment, Tokens
from tokred.cost import count
from tokred.reduction import create_method
from tokred.testing import spread_

GOLDEN = json.loads((Path(__file__).parent / "golden" / "rlt.json").read_text())["functions"]


def walk(frames: int, size: int, seed: int) -> Tensor:
    """Clips in which every patch of 8 x 8 drifts at its own pace."""
    step = inputs((2, frames, 3, size, size), seed)
    pace = inputs((2, frames, 1, size // 8, size // 8), seed + 100).abs()
    return (0.1 * pace.repeat_interleave(8, -1).repeat_interleave(8, -2) * step).cumsum(1)


def assign(pixels: Tensor, *, tubelet: int, patch: int, keep: int | None = None, prefix: int = 0, tau: float = 0.1):
    B, T, _, height, width = pixels.shape
    grid = (T // tubelet, height // patch, width // patch)
    num = prefix + grid[0] * grid[1] * grid[2]
    tokens = Tokens(torch.zeros(B, num, 1), prefix=prefix, grid=grid, pixels=pixels)
    return create_method("rlt", tau=tau).assign(tokens, None, num if keep is None else keep)


def kept(plan: Assignment) -> list[list[int]]:
    return [index_K[valid_K].tolist() for index_K, valid_K in zip(plan.index_BK, plan.valid_BK, strict=True)]


# The official code


@pytest.mark.parametrize("entry", GOLDEN, ids=lambda e: f"tubelet{e['tubelet']}-patch{e['patch']}-{e['tau']}")
def test_rlt_keeps_the_official_tokens(entry):
    pixels = walk(entry["frames"], entry["size"], entry["seed"])
    plan = assign(pixels, tubelet=entry["tubelet"], patch=entry["patch"], tau=entry["tau"])
    assert kept(plan) == entry["kept"]


@functools.cache
def videomae():
    pytest.importorskip("transformers")
    sizes = {"image_size": 32, "num_frames": 8, "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 3, "intermediate_size": 48, "num_classes": 5}
    return spread_(tokred.create_backbone("hf/videomae_base", weights="random", **sizes)).eval()


def one_by_one(backbone, clips: Tensor, places: list[list[int]]) -> Tensor:
    """Each clip alone, its tokens picked by these places behind the embedding, without padding."""
    logits = []
    for clip, place in zip(clips.split(1), places, strict=True):
        embedded = backbone.embed(clip)
        tokens = embedded.with_x(embedded.x_BNC[:, place])
        for layer in range(backbone.depth):
            tokens = backbone.feedforward(layer, backbone.attend(layer, tokens)[0])
        logits.append(backbone.head(tokens))
    return torch.cat(logits)


@pytest.mark.parametrize("entry", GOLDEN[:2], ids=lambda e: str(e["tau"]))
def test_a_batch_gives_what_each_clip_gives_alone_on_the_official_tokens(entry):
    clips = walk(entry["frames"], entry["size"], entry["seed"])
    with torch.no_grad():
        found = tokred.reduce(videomae(), "rlt", tau=entry["tau"])(clips)
        expected = one_by_one(videomae(), clips, entry["kept"])
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()  # float32 sums in another order


def test_the_trace_counts_what_is_kept_of_each_clip():
    entry = GOLDEN[0]
    with torch.no_grad():
        trace = tokred.reduce(videomae(), "rlt").trace(walk(entry["frames"], entry["size"], entry["seed"]))
    assert trace.num_B[0].tolist() == [len(places) for places in entry["kept"]]


# By hand: a clip of one patch, 8 frames of 4 x 4 pixels


def of_frames(*values: float) -> Tensor:
    return torch.tensor(values)[None, :, None, None, None].expand(1, -1, 3, 4, 4)


def test_a_still_clip_keeps_its_first_tubelet_alone():
    assert kept(assign(of_frames(*[0.7] * 8), tubelet=2, patch=4)) == [[0]]
    assert kept(assign(torch.ones(1, 8, 3, 8, 8), tubelet=2, patch=4)) == [[0, 1, 2, 3]]


def test_a_flash_in_the_second_frame_of_a_tubelet_is_noticed_there():
    assert kept(assign(of_frames(0, 0, 0, 1, 0, 0, 0, 0), tubelet=2, patch=4)) == [[0, 1]]


def test_a_flash_in_the_first_frame_of_a_tubelet_is_noticed_one_tubelet_late():
    assert kept(assign(of_frames(0, 0, 1, 0, 0, 0, 0, 0), tubelet=2, patch=4)) == [[0, 2]]


def test_single_frames_are_compared_with_the_one_before():
    assert kept(assign(of_frames(0, 0, 1, 1, 1, 0, 0, 0), tubelet=1, patch=4)) == [[0, 2, 5]]


def test_slow_drift_is_never_noticed():
    assert kept(assign(of_frames(*(0.03 * t for t in range(8))), tubelet=2, patch=4)) == [[0]]  # 0.09 over 3 frames


def test_a_change_of_tau_itself_is_dropped_and_a_larger_one_kept():
    assert kept(assign(of_frames(0, 0, 0.25, 0.25), tubelet=2, patch=4, tau=0.25)) == [[0]]
    assert kept(assign(of_frames(0, 0, 0.26, 0.26), tubelet=2, patch=4, tau=0.25)) == [[0, 1]]


# The cap, padding, prefix


def test_keep_caps_what_is_kept_at_the_largest_changes_in_order():
    steps = of_frames(0, 0, 2, 2, 3, 3, 8, 8)  # changes: infinite, 2, 1, 5
    assert [kept(assign(steps, tubelet=2, patch=4, keep=keep)) for keep in (4, 3, 2, 1)] == [
        [[0, 1, 2, 3]],
        [[0, 1, 3]],
        [[0, 3]],
        [[0]],
    ]


def test_padding_comes_behind_what_is_kept():
    pixels = torch.cat([of_frames(0, 0, 0, 0, 0, 0, 9, 9), of_frames(0, 0, 5, 5, 9, 9, 20, 20)])
    plan = assign(pixels, tubelet=2, patch=4)
    assert plan.valid_BK.tolist() == [[True, True, False, False], [True] * 4]
    assert plan.group_BN.tolist() == [[0, -1, -1, 1], [0, 1, 2, 3]]


def test_a_prefix_is_kept_whatever_the_cap():
    assert kept(assign(of_frames(*[0.0] * 8), tubelet=2, patch=4, prefix=2)) == [[0, 1, 2]]
    assert kept(assign(of_frames(0, 0, 5, 5), tubelet=2, patch=4, prefix=2, keep=3)) == [[0, 1, 2]]


# Its option


def test_a_larger_tau_keeps_fewer():
    clips, counts = walk(8, 32, 1), []
    for tau in (0.0, 0.1, 0.15, 0.3):
        counts.append(sum(map(len, kept(assign(clips, tubelet=2, patch=8, tau=tau)))))
    assert counts == sorted(counts, reverse=True) and len(set(counts)) == 4


def test_the_ends_of_the_knob_keep_all_that_changes_and_the_first_tubelet_alone():
    name, most, least = create_method("rlt").knob(64)
    clips = walk(8, 32, 1)
    assert kept(assign(clips, tubelet=2, patch=8, **{name: least})) == [list(range(64))] * 2
    assert kept(assign(clips, tubelet=2, patch=8, **{name: most})) == [list(range(16))] * 2


def test_a_budget_is_met_by_tau():
    clips = torch.cat([walk(8, 32, seed) for seed in range(4)])
    reduced = tokred.reduce(videomae(), "rlt", budget=0.7, calibrate_on=clips)
    assert 0 < reduced.method.tau < 1
    counts: list[Tensor] = []
    with torch.no_grad():
        reduced.run(clips, counts=counts)
    costs = [cost.macs for cost in reduced.costs(torch.stack(counts, 1))]
    assert sum(costs) / len(costs) / reduced.unreduced_cost().macs == pytest.approx(0.7, rel=0.02)


def test_it_is_refused_on_images():
    with pytest.raises(ValueError, match="rlt compares frames"):
        tokred.reduce(tokred.create_backbone("timm/vit_tiny_patch16_224", weights="random", depth=1), "rlt")


# What it costs: VideoMAE on 16 frames of 224 x 224 with a share of the tokens; embedding only those, as the official code does

LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
GMACS = {
    "B": {1: 180.3, 0.9: 158.2, 0.8: 137.0, 0.7: 116.6, 0.6: 97.2, 0.5: 78.8},
    "L": {1: 596.8, 0.9: 526.2, 0.8: 458.0, 0.7: 392.2, 0.6: 328.8, 0.5: 268.2},
}


@functools.cache
def full_size(size: str):
    pytest.importorskip("transformers")
    with torch.device("meta"):
        return tokred.create_backbone("hf/videomae_base", num_classes=400, **(LARGE if size == "L" else {}))


def gmacs(size: str, share: float) -> tuple[float, float]:
    """In all, and of the embedding."""
    backbone = full_size(size)
    tokens = [int(share * 1568)] * backbone.depth
    cost = count(backbone.widths(), create_method("rlt"), tokens, num_tokens=1568, prefix=0, layers=[0])
    return cost.gmacs, cost.by_part["embed"]


@pytest.mark.parametrize(("size", "share"), [(size, share) for size, found in GMACS.items() for share in found])
def test_videomae_costs_what_the_share_kept_comes_to_where_only_that_is_embedded(size, share):
    total, embed = gmacs(size, share)
    assert round(total - (1 - int(share * 1568) / 1568) * embed, 1) == GMACS[size][share]


@pytest.mark.parametrize(("size", "in_all", "more"), [("B", 79.8, 0.9), ("L", 269.4, 1.2)])
def test_embedding_all_patches_costs_at_half_the_tokens_what_the_docstring_says(size, in_all, more):
    total, embed = gmacs(size, 0.5)
    assert (round(total, 1), round(embed / 2, 1)) == (in_all, more)
