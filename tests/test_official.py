"""tokred against the official implementations of ToMe, EViT and vid-TLDR, by the values in ``tests/golden``.

Left out, since tokred has no such thing yet: pooling by size as an option of a timm model (the MAE cases compare everything
else, and ``Tokens.mean_pool(by_size=True)``), UMT's pooling by frame and its position table interpolated in time.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import tokred
from tests.golden.weights import fill_, inputs
from tokred import METHODS, Assignment, Attention, Schedule, Tokens, matching
from tokred.matching import contrast
from tokred.reduction import ReducedModel, Trace
from tokred.schedule import Stage, from_keep_rate, removed_per_layer
from tokred.transformer import sinusoid

FOLDER = Path(__file__).parent / "golden"
GOLDEN = {name: json.loads((FOLDER / f"{name}.json").read_text()) for name in ("tome", "evit", "vid_tldr")}

# What tokred promises; it comes within 1e-6. The official float32 results are within 5e-6 of their own float64 ones.
RELATIVE = 1e-4


@dataclass(frozen=True)
class Run:
    """A case, what tokred makes of it, and what went in and came out of each call of ``assign``."""

    case: dict[str, Any]
    reduced: ReducedModel
    images: Tensor
    trace: Trace
    calls: list[tuple[Tokens, Attention, Assignment]]


def run(case: dict[str, Any], model: torch.nn.Module, images: Tensor, method: str, **options: Any) -> Run:
    reduced = tokred.reduce(model, method, **options)
    calls, assign = [], reduced.method.assign

    def spy(tokens, attention, keep):
        calls.append((tokens, attention, assign(tokens, attention, keep)))
        return calls[-1][-1]

    reduced.method.assign = spy
    with torch.no_grad():
        trace = reduced.trace(images)
    del reduced.method.assign  # the spy; the class's own is back
    return Run(case, reduced, images, trace, calls)


def timm_model(case: dict[str, Any]) -> torch.nn.Module:
    return fill_(timm.create_model(case["model"]["name"], **case["model"]["kwargs"]).eval(), case["seed"])


def error(ours: Tensor, official: Any) -> float:
    """The largest difference, relative to the largest official value."""
    official = torch.as_tensor(official)
    assert ours.shape == official.shape
    return float((ours - official).abs().max() / official.abs().max())


def cases(method: str) -> list[str]:
    return list(GOLDEN[method]["cases"])


# ToMe


@functools.cache
def tome(name: str) -> Run:
    case = GOLDEN["tome"]["cases"][name]
    given = case["options"]
    return run(
        case,
        timm_model(case),
        inputs(case["input_shape"], case["seed"]),
        "tome",
        r=tuple(given["r"]) if given["pair"] else given["r"],
        allow_clip="clamped" in name,
        proportional_attention=given["proportional_attention"],
    )


@pytest.mark.parametrize("name", cases("tome"))
def test_weights_and_inputs_are_those_of_the_golden_tome_case(name):
    found = tome(name)
    # the sums are written with 7 digits
    assert sum(p.double().sum().item() for p in found.reduced.backbone.parameters()) == pytest.approx(
        found.case["parameter_sum"], rel=1e-6
    )
    assert found.images.double().sum().item() == pytest.approx(found.case["input_sum"], rel=1e-6)


@pytest.mark.parametrize("name", [name for name in cases("tome") if "weighted_pool" not in name])
def test_tome_gives_the_official_logits(name):
    found = tome(name)
    assert error(found.trace.logits, found.case["logits"]) < RELATIVE


@pytest.mark.parametrize("name", [name for name in cases("tome") if "weighted_pool" in name])
def test_the_official_pooling_of_mae_models_is_mean_pool_by_size(name):
    found = tome(name)
    with torch.no_grad():
        pooled_BC = found.reduced.run(found.images).mean_pool(by_size=True)
        vit = found.reduced.backbone.vit
        logits = vit.head(vit.fc_norm(pooled_BC))
    assert error(logits, found.case["logits"]) < RELATIVE


@pytest.mark.parametrize("name", cases("tome"))
def test_tome_leaves_the_official_number_of_tokens_after_each_layer(name):
    found = tome(name)
    assert list(found.trace.tokens) == found.case["tokens"]


@pytest.mark.parametrize("name", [name for name in cases("tome") if "groups" in GOLDEN["tome"]["cases"][name]])
def test_tome_merges_each_token_into_the_official_group_in_the_official_order(name):
    found = tome(name)
    assert found.trace.source_BM[-1].tolist() == found.case["groups"]


@pytest.mark.parametrize("name", [name for name in cases("tome") if "size" in GOLDEN["tome"]["cases"][name]])
def test_tome_gives_the_official_sizes(name):
    found = tome(name)
    assert found.trace.size_BN[-1].tolist() == found.case["size"]


@pytest.mark.parametrize("entry", GOLDEN["tome"]["parse_r"], ids=lambda entry: f"{entry['r']}_{entry['num_layers']}")
def test_r_means_what_the_official_parse_r_makes_of_it(entry):
    r, depth = tuple(entry["r"]) if entry["pair"] else entry["r"], entry["num_layers"]
    if isinstance(r, list) and len(r) > depth:
        with pytest.raises(ValueError, match=f"r has {len(r)} entries"):  # the official code ignores what is too much
            removed_per_layer(r, depth)
    else:
        assert removed_per_layer(r, depth) == entry["r_by_layer"]


def of_bipartite(entry: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The metric, and our group_BN of it, with the official clamp."""
    metric_BNC = inputs(**entry["metric"])
    prefix = entry["options"]["class_token"] + entry["options"]["distill_token"]
    r = min(entry["options"]["r"], (metric_BNC.shape[1] - prefix) // 2)
    return metric_BNC, matching.bipartite_matching(metric_BNC, r, prefix=prefix, sort=prefix > 0)


# r = 0 is left out: there the official function hands back its input, and tokred's loop does not call the method at all
BIPARTITE = [e for e in GOLDEN["tome"]["functions"]["bipartite_soft_matching"] if e["options"]["r"] > 0]
MERGES = {"mean": True, "sum": False}


@pytest.mark.parametrize("entry", BIPARTITE, ids=lambda entry: str(list(entry["options"].values())))
def test_bipartite_matching_gives_the_official_groups(entry):
    assert of_bipartite(entry)[1].tolist() == entry["groups"]


@pytest.mark.parametrize("entry", BIPARTITE, ids=lambda entry: str(list(entry["options"].values())))
@pytest.mark.parametrize("mode", MERGES)
def test_reduce_gives_the_official_merge(entry, mode):
    _, group_BN = of_bipartite(entry)
    ones_BN = torch.ones(group_BN.shape)
    plan = Assignment(group_BN, int(group_BN.max()) + 1, weight_BN=ones_BN, normalize=MERGES[mode])
    assert error(Tokens(inputs(**entry["x"])).reduce(plan).x_BNC, entry[mode]) < 1e-6  # sums of up to 11 float32 values


@pytest.mark.parametrize("entry", BIPARTITE, ids=lambda entry: str(list(entry["options"].values())))
def test_reduce_by_size_gives_the_official_weighted_average(entry):
    _, group_BN = of_bipartite(entry)
    tokens = Tokens(inputs(**entry["x"]), size_BN=torch.tensor(entry["size_before"]).float())
    merged = tokens.reduce(Assignment(group_BN, int(group_BN.max()) + 1))
    assert error(merged.x_BNC, entry["wavg"]) < 1e-6
    assert merged.size_BN.tolist() == entry["size_after"]


# with a distillation token the official merge reorders its output, which its unmerge does not know
UNMERGED = [e for e in BIPARTITE if not e["options"]["distill_token"]]


@pytest.mark.parametrize("entry", UNMERGED, ids=lambda entry: str(list(entry["options"].values())))
def test_unmerge_gives_the_official_unmerge(entry):
    _, group_BN = of_bipartite(entry)
    back_BNC = Assignment(group_BN, int(group_BN.max()) + 1).unmerge(torch.tensor(entry["sum"]))
    assert back_BNC.tolist() == torch.tensor(entry["unmerge_of_sum"]).tolist()


# Where tokred's kth differs (ToMe's docstring): it drops no tail, so the official one is given a length without one; and of
# 8 tokens with 6 sources it takes k = 3, which is enough, where the official k = 4 has as many: k = 4 is left out.
KTH = [e for e in GOLDEN["tome"]["functions"]["kth_bipartite_soft_matching"] if e["options"]["k"] in (2, 3)]


@pytest.mark.parametrize("entry", KTH, ids=lambda entry: str(entry["options"]["k"]))
def test_kth_matching_gives_the_official_groups_where_all_sources_merge_and_no_tail_is_left(entry):
    k, metric_BNC = entry["options"]["k"], inputs(**entry["metric"])
    num = metric_BNC.shape[1] // k * k
    group_BN = matching.kth_matching(metric_BNC[:, :num], num - num // k)
    assert group_BN.tolist() == [row[:num] for row in entry["groups"]]


# EViT


@functools.cache
def evit(name: str) -> Run:
    case = GOLDEN["evit"]["cases"][name]
    rates, at_call = case["options"]["keep_rate"], case.get("at_call", {})
    depth = case["model"]["kwargs"]["depth"]
    if "tokens" in at_call:  # kept tokens by layer: CLS and the fused token are not among them there
        asked = {"tokens": case["tokens"]}
    elif "keep_rate" in at_call:  # in place of the model's own, where those are below 1
        asked = {"keep_rate": at_call["keep_rate"], "layers": [layer for layer, rate in enumerate(rates) if rate < 1]}
    else:
        asked = {"keep_rate": rates if len(rates) == depth else rates * depth}
    images = inputs(case["input_shape"], case["seed"])
    return run(case, timm_model(case), images, "evit", fuse=case["options"]["fuse"], **asked)


# One token set apart and fused alone: the count does not fall, and the official code scales that token by its attention.
# tokred reduces nothing there (docstring of EViT); the test of it is below.
ONE_FUSED = "one_dropped_and_fused"
EVIT = [name for name in cases("evit") if name != ONE_FUSED]


@pytest.mark.parametrize("name", EVIT)
def test_evit_gives_the_official_logits(name):
    found = evit(name)
    assert error(found.trace.logits, found.case["logits"]) < RELATIVE


@pytest.mark.parametrize("name", cases("evit"))
def test_evit_leaves_the_official_number_of_tokens_after_each_layer(name):
    found = evit(name)
    assert list(found.trace.tokens) == found.case["tokens"]


@pytest.mark.parametrize("name", EVIT)
def test_evit_keeps_the_official_tokens_in_the_official_order(name):
    found = evit(name)
    ours = [kept_places(plan, fuse=found.case["options"]["fuse"]) for _, _, plan in found.calls]
    assert ours == found.case["kept"]


def kept_places(plan: Assignment, *, fuse: bool) -> list[list[int]]:
    """For each sample, the places after CLS of the tokens kept, in the order of their groups."""
    num_kept = plan.num_groups - 1 - int(fuse)
    assert plan.group_BN is not None
    after_cls = [
        sorted((group, place) for place, group in enumerate(row) if group > 0) for row in plan.group_BN[:, 1:].tolist()
    ]
    return [[place for _, place in pairs[:num_kept]] for pairs in after_cls]


def test_evit_differs_from_the_official_code_where_one_token_would_be_fused_alone():
    found = evit(ONE_FUSED)
    without = run(found.case, timm_model(found.case), found.images, "evit", keep_rate=[1, 1, 1, 0.7, 1, 1])
    assert torch.equal(found.trace.logits, without.trace.logits)  # as if nothing had been asked of that layer
    assert error(found.trace.logits, found.case["logits"]) > 0.01  # which the official code does not do


def test_evit_keeps_as_many_tokens_as_the_official_rounding():
    rows = GOLDEN["evit"]["kept_table"]["rows"] + GOLDEN["evit"]["kept_table_rounding"]["rows"]
    ours = [[rate, num, kept_of(rate, num)] for rate, num, _ in rows]
    assert ours == rows


def kept_of(rate: float, num: int) -> int:
    stage = Stage(depth=1, num_tokens=num + 1, prefix=1, fewest=lambda _: 2)
    plan: Schedule = from_keep_rate(rate, [0], stage, allow_clip=False)
    return plan.tokens[0] - 1


# vid-TLDR


@functools.cache
def vid_tldr(name: str) -> Run:
    case = GOLDEN["vid_tldr"]["cases"][name]
    sizes, (_, _, num_frames, _, _) = case["model"]["kwargs"], case["input_shape"]
    backbone = tokred.create_backbone(
        "umt_base_patch16_224",
        num_frames=num_frames,  # one for an image, which has a position table of its own
        img_size=sizes["img_size"],
        embed_dim=sizes["encoder_embed_dim"],
        depth=sizes["encoder_depth"],
        num_heads=sizes["encoder_num_heads"],
    )
    clips_BTCHW = inputs(case["input_shape"], case["seed"]).transpose(1, 2)
    model = fill_(backbone, case["seed"])
    return run(case, model, clips_BTCHW, "vid_tldr", r=case["options"]["r"], allow_clip="clamped" in name)


REDUCING = [name for name in cases("vid_tldr") if "groups" in GOLDEN["vid_tldr"]["cases"][name]]


def test_the_encoder_has_the_official_parameter_names_and_shapes():
    ours = {name: list(value.shape) for name, value in vid_tldr("r0").reduced.backbone.state_dict().items()}
    assert ours == GOLDEN["vid_tldr"]["keys"]


@pytest.mark.parametrize("name", cases("vid_tldr"))
def test_weights_and_inputs_are_those_of_the_golden_vid_tldr_case(name):
    found = vid_tldr(name)
    assert sum(p.double().sum().item() for p in found.reduced.backbone.parameters()) == pytest.approx(
        found.case["parameter_sum"], rel=1e-6
    )
    assert found.images.double().sum().item() == pytest.approx(found.case["input_sum"], rel=1e-6)


@pytest.mark.parametrize("name", cases("vid_tldr"))
def test_vid_tldr_gives_the_official_tokens_after_the_final_norm(name):
    found = vid_tldr(name)
    with torch.no_grad():
        x_BKC = found.reduced.forward_features(found.images)
    assert list(x_BKC.shape) == found.case["x_vis_shape"]
    assert error(x_BKC[..., found.case["x_vis_channels"]], found.case["x_vis"]) < RELATIVE
    assert error(x_BKC.norm(dim=-1), found.case["x_vis_norms"]) < RELATIVE


@pytest.mark.parametrize("name", cases("vid_tldr"))
def test_vid_tldr_gives_the_official_pooled_feature(name):
    found = vid_tldr(name)
    assert error(found.trace.logits, found.case["pooled"]) < RELATIVE


@pytest.mark.parametrize("name", cases("vid_tldr"))
def test_vid_tldr_leaves_the_official_number_of_tokens_after_each_layer(name):
    found = vid_tldr(name)
    assert list(found.trace.tokens) == found.case["tokens"]


@pytest.mark.parametrize("name", REDUCING)
def test_vid_tldr_weighs_tokens_as_the_official_code(name):
    found = vid_tldr(name)
    ours = [contrast(attention.row_entropy_BN) for _, attention, _ in found.calls]
    # a weight is a difference of entropies over the largest one, in which a few digits cancel
    assert max(error(w_BN, official) for w_BN, official in zip(ours, found.case["weights"], strict=True)) < 1e-4


@pytest.mark.parametrize("name", REDUCING)
def test_vid_tldr_gives_the_official_masses(name):
    found = vid_tldr(name)
    assert error(found.trace.size_BN[-1], found.case["mass"]) < RELATIVE
    for size_BN, official in zip(found.trace.size_BN, found.case["mass_sum_by_layer"], strict=True):
        assert official is None or error(size_BN.sum(1), official) < RELATIVE


@pytest.mark.parametrize("name", REDUCING)
def test_vid_tldr_merges_each_token_into_the_official_group(name):
    """The official trace loses a token that was merged with weight 0; ours knows its group all the same."""
    found = vid_tldr(name)
    source_BM, there_BM = found.trace.source_BM[-1], torch.ones(found.trace.source_BM[-1].shape, dtype=torch.bool)
    for tokens, _, plan in found.calls:
        assert tokens.source_BM is not None and plan.mass_BN is not None
        there_BM = there_BM & (plan.mass_BN.gather(1, tokens.source_BM) > 0)
    assert (source_BM >= 0).all()
    assert source_BM.where(there_BM, -1).tolist() == found.case["groups"]


def attention_map(entry: dict[str, Any]) -> Tensor:
    return (2 * inputs(**{key: entry["attention"][key] for key in ("shape", "seed")})).softmax(-1)


def with_row_entropy(map_BHNN: Tensor) -> Attention:
    mean_BNN, nothing = map_BHNN.mean(1), torch.empty(0)
    return Attention(nothing, nothing, nothing, 1.0, found={"row_entropy": (mean_BNN * mean_BNN.log()).sum(-1)})


@pytest.mark.parametrize(
    "entry", GOLDEN["vid_tldr"]["functions"]["get_objective_score"], ids=lambda e: str(e["attention"]["shape"])
)
def test_saliency_is_the_official_objective_score(entry):
    w_BN = contrast(with_row_entropy(attention_map(entry)).row_entropy_BN)
    assert error(w_BN, entry["w"]) < 1e-5  # entropies of about 2 in float32, differences of about 0.1


@pytest.mark.parametrize("with_size", [False, True])
@pytest.mark.parametrize(
    "entry", GOLDEN["vid_tldr"]["functions"]["merging"], ids=lambda e: f"{e['attention']['shape']}_{e['r']}"
)
def test_vid_tldr_reduces_single_tensors_as_the_official_merging(entry, with_size):
    size_BN = torch.tensor(entry["size_before"]) if with_size else None
    tokens, suffix = Tokens(inputs(**entry["x"]), size_BN=size_BN), "_with_size" if with_size else ""
    keep = tokens.num - entry["removed"]
    merged = METHODS["vid_tldr"]().reduce(tokens, with_row_entropy(attention_map(entry)), keep)
    assert error(merged.x_BNC, entry[f"x_out{suffix}"]) < 1e-5
    assert error(merged.sizes(), entry[f"size_out{suffix}"]) < 1e-5


# one entry is interpolated from 4 to 8 frames, which tokred does not do
@pytest.mark.parametrize(
    "entry", [e for e in GOLDEN["vid_tldr"]["sinusoid"] if "cur_frame" not in e], ids=lambda e: str(e["num_positions"])
)
def test_the_position_table_is_the_official_one(entry):
    table_NC = sinusoid(entry["num_positions"], entry["channels"])
    for place, channel, value in entry["entries"]:
        assert table_NC[place, channel].item() == pytest.approx(value, abs=1e-6)
    assert table_NC.double().sum().item() == pytest.approx(entry["sum"], rel=1e-6)
    assert table_NC.double().norm().item() == pytest.approx(entry["norm"], rel=1e-6)
