"""STA against the official code, against slow loops of its formulas, and by hand.

Mark12Ding/STA @faf10be was run unchanged (timm 0.5.4, torch 2.15, CPU, float32) with the weights of a small VideoMAE of transformers;
``golden/sta.json`` has its logits and, of each of its three stages, the places kept, in its order. ``functions``: its ``merge`` alone.
Its frames all have as many tokens; where they have not, it is checked against ``slow``.
"""

import functools
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import tokred
from tests.golden.weights import fill_, inputs
from tokred import Assignment, Attention, Tokens
from tokred.methods.sta import STA, num_groups, shares

GOLDEN = json.loads((Path(__file__).parent / "golden" / "sta.json").read_text())
CASES = [name for name in GOLDEN["cases"] if name != "r0"]


def attention_of(key_BND: Tensor) -> Attention:
    nothing = torch.empty(0)
    return Attention(nothing, key_BND[:, None], nothing, 1.0)


def kept(x_BNC: Tensor, key_BND: Tensor, keep: int, *, frames: int, layer: int = 0, depth: int = 3, prefix: int = 0):
    """The places that are kept, in order, as lists."""
    grid = (frames, 1, x_BNC.shape[1] // frames)
    tokens = Tokens(x_BNC, prefix=prefix, grid=grid, layer=layer, depth=depth)
    return STA().assign(tokens, attention_of(key_BND), keep).index_BK.tolist()


# The official code


@functools.cache
def model() -> torch.nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.VideoMAEConfig(**GOLDEN["config"])
    return fill_(transformers.VideoMAEForVideoClassification(config).eval(), GOLDEN["seed"])


@functools.cache
def run(name: str) -> tuple[Tensor, list[Assignment], tuple[int, ...]]:
    r = GOLDEN["cases"][name]["r"]
    reduced = tokred.reduce(model(), "sta", r=[8 * r, 0, 4 * r, 0, 2 * r])
    made, assign = [], reduced.method.assign

    def recorded(*given):
        made.append(assign(*given))
        return made[-1]

    reduced.method.assign = recorded
    with torch.no_grad():
        return reduced(inputs(GOLDEN["input_shape"], GOLDEN["seed"])), made, reduced.schedule.tokens


@pytest.mark.parametrize("name", CASES)
def test_sta_gives_the_official_logits(name):
    logits, official = run(name)[0], torch.tensor(GOLDEN["cases"][name]["logits"])
    # float32 against float32; each is within 1e-6 of float64
    assert (logits - official).abs().max() < 1e-5 * official.abs().max()


@pytest.mark.parametrize("name", CASES)
def test_sta_keeps_the_official_tokens_in_the_official_order(name):
    assert [plan.index_BK.tolist() for plan in run(name)[1]] == GOLDEN["cases"][name]["kept"]


@pytest.mark.parametrize("name", CASES)
def test_the_list_r_is_the_published_schedule(name):
    tokens = run(name)[2]
    assert [tokens[layer] for layer in GOLDEN["cases"][name]["layers"]] == GOLDEN["cases"][name]["tokens"]


@pytest.mark.parametrize("entry", GOLDEN["functions"], ids=lambda e: f"{e['groups']}x{e['n']}-{e['r']}")
def test_sta_keeps_of_single_tensors_what_the_official_merge_keeps(entry):
    num, r, index = entry["groups"] * entry["n"], entry["r"], entry["index"]
    x_BNC, key_BND = inputs((2, num, 5), r + index), inputs((2, num, 4), 100 + r + index)
    tokens = Tokens(x_BNC, grid=(8, 1, 1), layer=index, depth=entry["depth"])
    plan = STA().assign(tokens, attention_of(key_BND), num - r * entry["groups"])
    assert plan.index_BK.tolist() == entry["kept"]


# Slow loops, for any number of tokens


def slow(x_NC: Tensor, key_ND: Tensor, before: list[int], after: list[int], *, reverse: bool) -> list[int]:
    """Section 3.2, one frame and one token at a time."""
    frames, start = [], 0
    for num in before:
        frames.append(range(start, start + num))
        start += num
    unit = [key / key.norm() for key in key_ND.double()]
    order = list(range(len(frames)))[:: -1 if reverse else 1]
    chosen: dict[int, list[int]] = {}
    for step, t in enumerate(order):
        here = frames[t]
        if step == 0:
            odd, even = list(here)[1::2], list(here)[::2]
            even.sort(key=lambda n: max((float(unit[n] @ unit[m]) for m in odd), default=0.0))
            chosen[t] = (odd + even)[: after[t]]
            flow = dict.fromkeys(here, 1.0)
            continue
        amount = dict.fromkeys(here, 0.0)
        for m, weight in flow.items():
            powers = {n: float((unit[n] @ unit[m]).exp()) for n in here}
            for n in here:
                amount[n] += weight * powers[n] / sum(powers.values())
        norm = {n: float(x_NC[n].double().abs().sum()) for n in here}
        low, high = min(norm.values()), max(norm.values())
        meaning = {n: (norm[n] - low) / (high - low) if high > low else 0.0 for n in here}
        chosen[t] = sorted(here, key=lambda n: amount[n] * (1 - meaning[n]))[: after[t]]
        total = sum(amount[n] for n in chosen[t])
        flow = {n: amount[n] / total for n in chosen[t]}
    return [n for t in range(len(frames)) for n in chosen[t]]


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize(("frames", "num", "keep"), [(8, 48, 37), (8, 41, 30), (4, 30, 29), (6, 30, 13), (5, 25, 12)])
def test_any_number_is_kept_as_slow_loops_of_the_formulas_say(frames, num, keep, layer):
    x_BNC, key_BND = inputs((2, num, 5), num + layer), inputs((2, num, 4), keep + layer)
    groups = num_groups(frames, keep, layer, 3)
    tokens = Tokens(x_BNC, grid=(frames, 1, 1), layer=layer, depth=3)
    found = STA().assign(tokens, attention_of(key_BND), keep).index_BK.tolist()
    counts = shares(num, groups), shares(keep, groups)
    assert found == [slow(x, key, *counts, reverse=layer == 1) for x, key in zip(x_BNC, key_BND, strict=True)]


def test_a_prefix_has_no_part_in_it():
    x_BNC, key_BND = inputs((2, 24, 5), 1), inputs((2, 24, 4), 2)
    more_x, more_key = torch.cat([inputs((2, 2, 5), 3), x_BNC], 1), torch.cat([inputs((2, 2, 4), 4), key_BND], 1)
    alone = kept(x_BNC, key_BND, 15, frames=4)
    with_prefix = Tokens(more_x, prefix=2, grid=(4, 1, 6), depth=3)
    found = STA().assign(with_prefix, attention_of(more_key), 17).index_BK.tolist()
    assert found == [[0, 1, *(place + 2 for place in places)] for places in alone]


# By hand

E3 = torch.eye(3)


def test_a_token_goes_that_was_there_a_frame_before():
    keys = torch.stack([E3[0], E3[1], E3[0], E3[2]])[None]  # the third looks like the first, the fourth is new
    (places,) = kept(torch.ones(1, 4, 3), keys, 2, frames=2)
    assert places[1] == 3


def test_of_tokens_equally_new_the_one_that_means_most_stays():
    keys = E3[[0, 1, 1, 2, 2, 2]][None]
    (places,) = kept(torch.tensor([1.0, 1, 1, 2, 9, 3])[None, :, None], keys, 2, frames=2)
    assert places[1] == 4


def test_the_first_frame_keeps_odd_tokens_then_even_ones_least_like_an_odd_one():
    keys = torch.stack([E3[0], E3[0], E3[2], E3[1], E3[0] + E3[2], E3[0]])[None]
    assert kept(torch.ones(1, 6, 3), keys, 5, frames=1) == [[1, 3, 5, 2, 4]]


def test_where_all_tokens_mean_the_same_only_time_decides():
    keys = inputs((1, 8, 3), 5)
    same = kept(torch.ones(1, 8, 2), keys, 4, frames=2)  # the official score is 0 / 0 here
    assert same[0][2:] == slow(torch.ones(8, 2), keys[0], [4, 4], [2, 2], reverse=False)[2:]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_clip_without_any_contrast_keeps_different_tokens_of_every_frame(value):
    (places,) = kept(torch.full((1, 24, 5), value), torch.full((1, 24, 4), value), 12, frames=4)
    assert len(set(places)) == 12 and [sum(place // 6 == t for place in places) for t in range(4)] == [3, 3, 3, 3]


# How a number that frames do not divide is shared


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 6, 8, 12, 16])
def test_shares_are_even_nested_and_add_up_in_pairs(groups):
    for num in range(groups, 5 * groups):
        now, more = shares(num, groups), shares(num + 1, groups)
        assert sum(now) == num and max(now) - min(now) <= 1
        assert all(a <= b for a, b in zip(now, more, strict=True))
        if groups % 2 == 0:
            assert shares(num, groups // 2) == [a + b for a, b in zip(now[::2], now[1::2], strict=True)]


def test_frames_are_pairs_from_a_third_of_the_depth_and_fours_from_two_thirds():
    assert [num_groups(8, 100, layer, 24) for layer in (0, 7, 8, 15, 16, 23)] == [8, 8, 4, 4, 2, 2]


def test_with_fewer_tokens_than_frames_neighbours_are_taken_as_one():
    assert [num_groups(8, keep, 0, 12) for keep in (8, 7, 4, 3, 2, 1)] == [8, 4, 4, 2, 2, 1]
    (places,) = kept(inputs((1, 8, 3), 0), inputs((1, 8, 3), 1), 3, frames=8)
    assert len(set(places)) == 3 and [place // 4 for place in places] == [0, 0, 1]


# What it costs

SIZES = {
    "L": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "B": {},
}


@functools.cache
def videomae(size: str):
    pytest.importorskip("transformers")
    with torch.device("meta"):
        return tokred.create_backbone("hf/videomae_base", num_classes=400, **SIZES[size])


def scheduled(size: str, r: int):
    backbone = videomae(size)
    third = backbone.depth // 3
    removed = [0] * backbone.depth
    removed[0], removed[third], removed[2 * third] = 8 * r, 4 * r, 2 * r
    return tokred.reduce(backbone, "sta", r=removed)


# of 16 frames of 224 x 224, by r; the products of attention included, the method's own work not
GMACS = {
    "L": {0: 596.8, 16: 520.0, 32: 446.3, 48: 375.8, 64: 308.5, 80: 244.4, 96: 183.4},
    "B": {0: 180.3, 16: 157.7, 32: 136.1, 48: 115.7, 64: 96.4, 80: 78.2, 96: 61.1},
}


@pytest.mark.parametrize(("size", "r"), [(size, r) for size, found in GMACS.items() for r in found])
def test_videomae_costs_what_the_official_schedule_comes_to(size, r):
    cost = scheduled(size, r).cost()
    assert round(cost.gmacs - cost.gmacs_reduction, 1) == GMACS[size][r]


def test_sta_l_at_r_64_leaves_672_of_1568_tokens():
    assert scheduled("L", 64).schedule.tokens[-1] == 672


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize(("num", "keep", "prefix"), [(48, 37, 0), (42, 31, 1), (48, 5, 0)])
def test_its_own_macs_are_those_torch_counts(num, keep, prefix, layer):
    tokens = Tokens(inputs((1, num, 8), 0), prefix=prefix, grid=(8, 1, 1), layer=layer, depth=3)
    with FlopCounterMode(display=False) as counter:
        STA().assign(tokens, attention_of(inputs((1, num, 4), 1)), keep)
    assert counter.get_total_flops() == 2 * STA().macs(num, keep, tokred.Place(prefix, 8, 2, layer, 3, 8))


def test_it_is_refused_on_images():
    with pytest.raises(ValueError, match="sta compares frames"):
        tokred.reduce(tokred.create_backbone("timm/vit_tiny_patch16_224", weights="random", depth=1), "sta", r=1)


def test_it_also_works_between_attention_and_mlp():
    reduced = tokred.reduce(model(), "sta", r=[24, 0, 12], site="after_attention")
    assert reduced.trace(inputs(GOLDEN["input_shape"], 0)).tokens == (104, 104, 92, 92, 92, 92)
    assert reduced.cost().gmacs < tokred.reduce(model(), "sta", r=[24, 0, 12]).cost().gmacs
