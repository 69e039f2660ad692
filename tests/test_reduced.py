"""Reductions inside attention, and counts that differ by sample: against written-out maps, samples alone and torch's counter."""

import weakref
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from timm.layers.attention import Attention as TimmAttention
from timm.models import vision_transformer as timm_vits
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import tokred
from tokred import METHODS, Assignment, Backbone, Method, Schedule
from tokred.reduced import ReducedModel, num_frames, reduce_inside
from tokred.reduction import as_backbone, plan_schedule
from tokred.testing import Case, spread_, tiny_models

MODELS = tiny_models()
VIT = MODELS["class_token"]  # 17 tokens, 3 layers, 3 heads of 8 channels
X = torch.randn(4, *VIT.sample_shape, generator=torch.Generator().manual_seed(0))
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
OTHER_VITS: dict[str, dict[str, Any]] = {
    "qk-norm and no bias": {"qk_norm": True, "qkv_bias": False},
    "norm after attention": {"block_fn": timm_vits.ResPostBlock, "class_token": False, "global_pool": "avg"},
    "gated": {},
}
HF: dict[str, dict[str, Any]] = {"videomae": {"patch_size": 16}, "vivit": {"tubelet_size": [2, 16, 16]}}
HF_SIZES = {"num_frames": 4, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32}


def other_vit(kind: str) -> Backbone:
    vit = timm.create_model("vit_tiny_patch16_224", **SIZES, **OTHER_VITS[kind]).eval()
    if kind == "gated":
        for block in vit.blocks:
            block.attn = TimmAttention(24, 3, qkv_bias=True, gated=True)
    return spread_(as_backbone(vit))


@pytest.mark.parametrize("name", tokred.list_methods())
def test_an_empty_batch_comes_out_empty(name):
    kind = "umt" if METHODS[name].needs_frames else "class_token"
    case = Case(name, MODELS[kind], {}, kind)
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            assert case.reduced()(case.inputs[:0]).shape == (0, *MODELS[kind](case.inputs).shape[1:])


def hf(kind: str) -> Backbone:
    pytest.importorskip("transformers")
    sizes = HF_SIZES | {"intermediate_size": 48} | HF[kind]
    return spread_(tokred.create_backbone(f"hf/{kind}_base", weights="random", num_classes=5, **sizes).eval())


def model_of(kind: str) -> Backbone:
    return MODELS[kind] if kind in MODELS else hf(kind) if kind in HF else other_vit(kind)


ALL_MODELS = [*MODELS, *OTHER_VITS, *HF]


def inputs_of(backbone: Backbone, num: int = 3) -> Tensor:
    return torch.randn(num, *backbone.sample_shape, generator=torch.Generator().manual_seed(1))


def close(ours: Tensor, theirs: Tensor) -> bool:
    """Up to rounding: the same sums in another order, of features of about 1."""
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def first_places(tokens, keep: int) -> Tensor:
    return torch.arange(keep).expand(tokens.x_BNC.shape[0], -1)


class MostReceived(Method):
    """Keeps the patches that receive most attention, the best first."""

    statistics = ("received",)

    def __init__(self, site: str, proportional_attention: bool = False):
        super().__init__()
        self.site, self.proportional_attention = site, proportional_attention

    def assign(self, tokens, attention, keep):
        best_BP = attention.received_BN[:, tokens.prefix :].argsort(1, descending=True) + tokens.prefix
        index_BK = torch.cat([first_places(tokens, tokens.prefix), best_BP[:, : keep - tokens.prefix]], 1)
        return Assignment.select(index_BK, tokens.num)


class Bright(Method):
    """Keeps the patches whose first channel is above ``least``: in one sample more than in another."""

    varies = True
    conserves_mass = False

    def __init__(self, least: float = 0.0, site: str = "after_attention"):
        super().__init__()
        self.least, self.site = least, site

    def assign(self, tokens, attention, keep):
        place_N = torch.arange(tokens.num)
        stays_BN = (tokens.x_BNC[..., 0] > self.least) | (place_N < max(tokens.prefix, 1))
        stays_BN &= place_N < tokens.num_real()[:, None]
        index_BK = (~stays_BN).long().argsort(dim=1, stable=True)[:, :keep]
        return Assignment.select(index_BK, tokens.num, place_N[:keep] < stays_BN.sum(1, keepdim=True))


class Pairs(Method):
    """The token behind the prefix and the next one become one, weighted 1 to 3; the map is merged along."""

    site = "attention"
    statistics = ("map",)
    proportional_attention = True

    def assign(self, tokens, attention, keep):
        place_N = torch.arange(tokens.num)
        group_N = (place_N - (place_N > tokens.prefix).long()).expand(tokens.x_BNC.shape[0], -1)
        weight_N = torch.where(place_N == tokens.prefix, 1.0, torch.where(place_N == tokens.prefix + 1, 3.0, 1.0))
        return Assignment(group_N, tokens.num - 1, weight_BN=weight_N.expand_as(group_N))


class EachAlone(Method):
    """Every token is its own group."""

    def __init__(self, site: str):
        super().__init__()
        self.site, self.statistics = site, ("map",) if site == "attention" else ()

    def assign(self, tokens, attention, keep):
        if self.site == "queries":
            return Assignment.select(first_places(tokens, tokens.num), tokens.num)
        return Assignment(first_places(tokens, tokens.num), tokens.num)


def in_every_layer(backbone: Backbone, method: Method) -> ReducedModel:
    """The method works in every layer, whatever comes out."""
    tokens = (backbone.num_tokens,) * backbone.depth
    every = tuple(range(backbone.depth))
    return ReducedModel(backbone, method, Schedule(backbone.num_tokens, tokens, tokens, "by hand", own_layers=every))


def counted(model: nn.Module, inputs: Tensor) -> int:
    """Multiply-adds, by torch's counter, which does not see fused attention on a CPU."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(inputs)
    return counter.get_total_flops() // 2


# Backbones in parts


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_queries_keys_and_values_by_parts_are_those_of_the_whole(kind):
    backbone = model_of(kind)
    with torch.no_grad():
        tokens = backbone.embed(inputs_of(backbone))
        q, k, v = backbone.qkv(1, tokens)
        parts = [*backbone.qkv(1, tokens, "qk"), *backbone.qkv(1, tokens, "v")]
    assert len(parts) == 3 and all(close(part, whole) for part, whole in zip(parts, (q, k, v), strict=True))


# Inside attention


@pytest.mark.parametrize("kind", ALL_MODELS)
@pytest.mark.parametrize("site", ["queries", "attention"])
def test_with_every_token_its_own_group_it_is_the_unreduced_model(site, kind):
    backbone = model_of(kind)
    with torch.no_grad():
        clips = inputs_of(backbone)
        assert close(in_every_layer(backbone, EachAlone(site))(clips), backbone(clips))


@pytest.mark.parametrize("proportional_attention", [False, True])
@pytest.mark.parametrize("kind", ["class_token", "registers", "umt", "gated", "vivit"])
def test_a_selection_among_queries_gives_what_it_gives_after_attention(kind, proportional_attention):
    backbone = model_of(kind)
    outputs = []
    for site in ("queries", "after_attention"):
        reduced = tokred.reduce(backbone, MostReceived(site, proportional_attention), r=[3, 4])
        with torch.no_grad():
            outputs.append(reduced.forward_features(inputs_of(backbone)))
    assert close(*outputs)


def test_a_selection_among_queries_traces_its_sources_as_after_attention():
    traces = [tokred.reduce(VIT, MostReceived(site), r=[3, 0, 4]).trace(X) for site in ("queries", "after_attention")]
    assert all(torch.equal(a, b) for a, b in zip(traces[0].source_BM, traces[1].source_BM, strict=True))


def test_a_merge_among_queries_is_refused_with_what_to_give():
    method = Pairs()
    method.site = "queries"
    with pytest.raises(ValueError, match=r"at the site queries a method selects tokens; give Assignment.select\(...\)"):
        tokred.reduce(VIT, method, r=[1])(X)


def test_inside_attention_the_map_is_merged_with_the_tokens_and_values_are_of_the_merged_ones():
    """Layer 0 in loops, from the full map of each head."""
    reduced = tokred.reduce(VIT, Pairs(), r=[1])
    states = []
    with torch.no_grad():
        reduced.run(X[:1], states=states)
        x_NC = VIT.embed(X[:1]).x_BNC[0]
        merged_KC = torch.cat([x_NC[:1], (x_NC[1:2] + 3 * x_NC[2:3]) / 4, x_NC[3:]])
        block = VIT.vit.blocks[0]
        # (N, 3 C): queries, keys and values; of those of the merged tokens only the values
        all_N, merged_K = (block.attn.qkv(block.norm1(rows)) for rows in (x_NC, merged_KC))
        members, share = [[0], [1, 2], *([n] for n in range(3, 17))], {1: 0.25, 2: 0.75}
        out_KC = torch.zeros(16, 24)
        for head in range(3):
            q, k = (all_N[:, 24 * part + 8 * head :][:, :8] for part in (0, 1))
            map_NN = (q @ k.T / 8**0.5).softmax(-1)
            for row, rows in enumerate(members):
                for column, columns in enumerate(members):
                    weight = sum(share.get(n, 1.0) * map_NN[n, m] for n in rows for m in columns)
                    out_KC[row, 8 * head :][:8] += weight * merged_K[column, 48 + 8 * head :][:8]
        expected_KC = merged_KC + block.attn.proj(out_KC)
        expected_KC = expected_KC + block.mlp(block.norm2(expected_KC))
    assert close(states[0].x_BNC[0], expected_KC)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("site", ["queries", "attention"])
def test_inside_attention_sizes_and_padding_count_as_in_plain_attention(site, padded):
    method = EachAlone(site)
    method.proportional_attention = True
    size_BN = torch.randint(1, 9, (4, 17), generator=torch.Generator().manual_seed(2)).float()
    valid_BN = torch.ones(4, 17, dtype=torch.bool)
    valid_BN[1, 12:] = not padded
    with torch.no_grad():
        tokens = replace(VIT.embed(X), size_BN=size_BN, valid_BN=valid_BN)
        inside = reduce_inside(VIT, 0, tokens, method, 17).x_BNC
        plain = VIT.attend(0, tokens, size_BN.log())[0].x_BNC
    assert close(inside[valid_BN], plain[valid_BN])


@pytest.mark.parametrize("method", ["none", "tome", "vid_tldr"])
def test_queries_keys_and_values_are_let_go_before_the_mlp(method, monkeypatch):
    reduced = tokred.reduce(VIT, method, **({} if method == "none" else {"r": [3, 2, 0]}))
    qkv, feedforward = VIT.qkv, VIT.feedforward
    made: list[weakref.ref[Tensor]] = []
    alive = []

    def noted(*given):
        found = qkv(*given)
        made.extend(map(weakref.ref, found))
        return found

    def watched(layer, tokens):
        alive.append(sum(ref() is not None for ref in made))
        return feedforward(layer, tokens)

    monkeypatch.setattr(VIT, "qkv", noted)
    monkeypatch.setattr(VIT, "feedforward", watched)
    with torch.no_grad():
        reduced(X)
    assert (len(made), alive) == (9, [0, 0, 0])


def test_layers_between_two_reductions_share_the_logs_of_sizes(monkeypatch):
    attend, biases = VIT.attend, []

    def noted(layer, tokens, bias_BN, **options):
        biases.append(bias_BN)
        return attend(layer, tokens, bias_BN, **options)

    monkeypatch.setattr(VIT, "attend", noted)
    with torch.no_grad():
        tokred.reduce(VIT, "tome", r=[3, 0, 0])(X)
        tokred.reduce(VIT, "tome", r=[3, 2, 0])(X)
    assert biases[0] is None and biases[1] is biases[2] and biases[4] is not biases[5]


# Counts that differ by sample


@pytest.mark.parametrize("kind", MODELS)
def test_counts_of_a_sample_are_those_of_the_sample_alone(kind):
    backbone = MODELS[kind]
    clips, reduced = inputs_of(backbone, 4), in_every_layer(backbone, Bright())
    with torch.no_grad():
        together: list[Tensor] = []
        reduced.run(clips, counts=together)
        alone = []
        for clip in clips.split(1):
            counts: list[Tensor] = []
            reduced.run(clip, counts=counts)
            alone.append([int(num) for num in counts])
    assert torch.stack(together, 1).tolist() == alone
    assert len({tuple(counts) for counts in alone}) > 1


@pytest.mark.parametrize("site", ["before_attention", "queries", "after_attention", "after_mlp"])
@pytest.mark.parametrize("kind", ["class_token", "umt"])
def test_the_output_of_a_sample_is_that_of_the_sample_alone(kind, site):
    backbone = MODELS[kind]
    clips, reduced = inputs_of(backbone, 4), in_every_layer(backbone, Bright(site=site))
    with torch.no_grad():
        assert close(reduced(clips), torch.cat([reduced(clip) for clip in clips.split(1)]))


def test_a_batch_is_padded_to_its_longest_sample_and_no_further():
    states = []
    with torch.no_grad():
        in_every_layer(VIT, Bright()).run(X, states=states)
    assert all(tokens.num == int(tokens.num_real().max()) for tokens in states)
    assert states[-1].num < 17


def test_what_is_counted_is_what_leaves_the_layers():
    with torch.no_grad():
        reduced, counts = in_every_layer(VIT, Bright()), []
        reduced.run(X, counts=counts)
        trace = reduced.trace(X)
    for num_B, own_B, source_BM in zip(counts, trace.num_B, trace.source_BM, strict=True):
        assert torch.equal(num_B, own_B)
        assert num_B.tolist() == [len(set(row[row >= 0].tolist())) for row in source_BM]


@pytest.mark.parametrize("site", ["before_attention", "queries", "after_attention", "after_mlp"])
def test_the_cost_of_a_sample_is_what_torch_counts_on_it_alone(site):
    reduced, counts = in_every_layer(VIT, Bright(site=site)), []
    with torch.no_grad():
        reduced.run(X, counts=counts)
    costs = reduced.costs(torch.stack(counts, 1))
    assert [cost.macs for cost in costs] == [counted(reduced, image) for image in X.split(1)]
    assert len({cost.macs for cost in costs}) > 1


def test_the_cost_of_the_longest_is_what_torch_counts_on_a_padded_batch():
    reduced, counts = in_every_layer(VIT, Bright()), []
    with torch.no_grad():
        reduced.run(X, counts=counts)
    num_BL = torch.stack(counts, 1)
    (longest,) = reduced.costs(num_BL.amax(0)[None])
    assert len(X) * longest.macs == counted(reduced, X)
    assert longest.macs >= sum(cost.macs for cost in reduced.costs(num_BL)) / len(X)


# What a method is told of its place


class Told(MostReceived):
    """Costs nothing, and notes where it is asked."""

    def __init__(self):
        super().__init__("after_attention")
        self.places = []

    def macs(self, num_tokens, keep, at):
        self.places.append((num_tokens, keep, at))
        return 0


@pytest.mark.parametrize(("kind", "frames"), [("class_token", 1), ("umt", 4), ("videomae", 2)])
def test_the_frames_of_the_grid_reach_the_methods_count(kind, frames):
    method = Told()
    tokred.reduce(model_of(kind), method, r=[2]).cost()
    assert {at.num_frames for _, _, at in method.places} == {frames} == {num_frames(model_of(kind))}


def test_the_solver_counts_at_the_same_places_as_the_cost():
    of_solver, of_cost = Told(), Told()
    plan = plan_schedule(MODELS["mini"], of_solver, budget=0.8)
    ReducedModel(MODELS["mini"], of_cost, plan).cost()
    assert of_cost.places and set(of_cost.places) <= set(of_solver.places)


def test_layer_and_sizes_reach_the_methods_count():
    method = Told()
    tokred.reduce(MODELS["registers"], method, r=[2, 0, 3]).cost()
    found = [(num, keep, at.layer, at.depth, at.prefix, at.channels, at.heads) for num, keep, at in method.places]
    assert found == [(21, 19, 0, 3, 5, 24, 3), (19, 16, 2, 3, 5, 24, 3)]
