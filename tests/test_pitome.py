"""PiToMe against the official code (``tests/golden/pitome.json``), and a case made by hand.

Run: ``algo.pitome.patch.deit`` of hchautran/PiToMe @550b5de on VisionTransformer of timm 0.4.12 (tests/golden/README.md). Its patch
has no option for the variant of a layer nor for the margin: those were set on its blocks (``_info["use_bsm_pitome"]``,
``margin``); for proportional attention its attention was handed the sizes, which it takes and its block does not give.
``margin`` in the file is the smallest gap that decided; 8e-6 and more, where float32 is within 1e-7.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import tokred
from tests.golden.weights import fill_, inputs
from tokred import Attention, Tokens, create_method
from tokred.methods.pitome import crowded_groups
from tokred.reduction import ReducedModel, Trace

GOLDEN = json.loads((Path(__file__).parent / "golden" / "pitome.json").read_text())
CASES, COUNTS = list(GOLDEN["cases"]), list(GOLDEN["counts"])


@dataclass(frozen=True)
class Run:
    case: dict[str, Any]
    reduced: ReducedModel
    trace: Trace


@functools.cache
def run(name: str) -> Run:
    case = GOLDEN["cases"][name]
    options = {key: value for key, value in case["options"].items() if key != "ratio"}
    model = fill_(timm.create_model(case["model"]["name"], **case["model"]["kwargs"]).eval(), case["seed"])
    reduced = tokred.reduce(model, "pitome", keep_rate=[case["options"]["ratio"]] * 6, allow_clip=True, **options)
    with torch.no_grad():
        return Run(case, reduced, reduced.trace(inputs(case["input_shape"], case["seed"])))


def attention_of(metric_BND: torch.Tensor) -> Attention:
    k_BHND = metric_BND[:, None]
    return Attention(k_BHND, k_BHND, k_BHND, 1.0)


# The official code


@pytest.mark.parametrize("name", CASES)
def test_weights_are_those_of_the_golden_case(name):
    found = run(name)
    total = sum(p.double().sum().item() for p in found.reduced.backbone.parameters())
    assert total == pytest.approx(found.case["parameter_sum"], rel=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_a_keep_rate_in_each_layer_leaves_the_official_number_of_tokens(name):
    found = run(name)
    assert list(found.trace.tokens) == found.case["tokens"]


@pytest.mark.parametrize("name", CASES)
def test_each_token_joins_the_official_group_in_the_official_order(name):
    found = run(name)
    assert found.trace.source_BM[-1].tolist() == found.case["groups"]


@pytest.mark.parametrize("name", CASES)
def test_sizes_are_the_official_ones(name):
    found = run(name)
    assert found.trace.size_BN[-1].tolist() == found.case["size"]


@pytest.mark.parametrize("name", CASES)
def test_logits_are_the_official_ones(name):
    found = run(name)
    official = torch.tensor(found.case["logits"])
    # the official float32 is within 1.3e-6 of its float64
    assert (found.trace.logits - official).abs().max() < 1e-5 * official.abs().max()


@pytest.mark.parametrize(
    "entry", GOLDEN["functions"], ids=lambda entry: f"{entry['matching']}_{entry['metric']['shape'][1]}"
)
def test_the_function_gives_the_official_groups_means_and_sizes(entry):
    method = create_method("pitome", matching=entry["matching"], margin=entry["margin"])
    tokens = Tokens(inputs(**entry["x"]), prefix=entry["prefix"], size_BN=torch.tensor(entry["size_before"]))
    assignment = method.assign(tokens, attention_of(inputs(**entry["metric"])), entry["keep"])
    after = tokens.reduce(assignment)
    assert assignment.group_BN.tolist() == entry["groups"]
    assert after.size_BN.tolist() == entry["size_after"]
    official = torch.tensor(entry["merged"])
    assert (after.x_BNC - official).abs().max() < 1e-6 * official.abs().max()  # sums of a few float32 values


# By hand


def test_a_crowd_merges_and_lone_tokens_are_protected():
    """Places 0, 2, 4, 5 lie within a few degrees of one another; 1 and 3 stand alone."""
    degrees = torch.tensor([[0.0, 120.0, 4.0, 240.0, 9.0, 1.0]]).deg2rad()
    keys_BND = torch.stack([degrees.cos(), degrees.sin()], -1)
    tokens = Tokens(torch.eye(6)[None])
    assignment = create_method("pitome", matching="protected").assign(tokens, attention_of(keys_BND), 4)
    # by energy: 5 or 2 lead, then 0, and 4 comes last of the crowd; sources are the first and third of it
    groups = assignment.group_BN[0].tolist()
    assert {groups[1], groups[3]} == {0, 1}, "protected tokens come first"
    assert sorted(groups[place] for place in (0, 2, 4, 5)) in ([2, 2, 2, 3], [2, 3, 3, 3], [2, 2, 3, 3])


def test_groups_of_a_given_order():
    alike_BNN = torch.zeros(1, 5, 5)
    alike_BNN[0, 3, 0], alike_BNN[0, 1, 2] = 0.9, 0.8  # sources 3, 1, 4; destinations 0, 2
    order_BN = torch.tensor([[3, 0, 1, 2, 4]])
    assert crowded_groups(alike_BNN, order_BN, 5, 1).tolist() == [[2, 0, 3, 2, 1]]
    assert crowded_groups(alike_BNN, order_BN, 5, 2).tolist() == [[1, 2, 2, 1, 0]]
    assert crowded_groups(alike_BNN, order_BN, 4, 2).tolist() == [[1, 2, 2, 1, 0]]  # 4 is protected


# Options


@pytest.mark.parametrize(
    ("options", "layer", "expected"),
    [({}, 0, 0.75), ({}, 6, 0.375), ({"margin": 0.9}, 3, 0.675), ({"fall": 0.4}, 6, 0.55), ({"fall": 0.0}, 11, 0.75)],
)
def test_the_margin_falls_with_depth(options, layer, expected, monkeypatch):
    seen = []
    elu = torch.nn.functional.elu
    monkeypatch.setattr(torch.nn.functional, "elu", lambda x, alpha: seen.append(x) or elu(x, alpha))
    tokens = Tokens(torch.eye(4)[None], layer=layer, depth=12)
    create_method("pitome", **options).assign(tokens, attention_of(torch.eye(4)[None]), 3)
    assert float(seen[0][0, 0, 1]) == pytest.approx(-expected)  # a cosine of 0 less the margin


def test_alpha_damps_what_lies_below_the_margin():
    """Tokens 0 and 1 are as good as one, and opposite to all others; 3 and 4 lie 45 degrees off 2. What lies above a margin of
    0.5 alone says 0 and 1; where the opposites count too, the pair has more of them."""
    degrees = torch.tensor([[0.0, 1.0, 180.0, 225.0, 135.0]]).deg2rad()
    tokens, attention = Tokens(torch.eye(5)[None]), attention_of(torch.stack([degrees.cos(), degrees.sin()], -1))
    joined = []
    for alpha in (0.0, 1.0):
        method = create_method("pitome", matching="protected", alpha=alpha, margin=0.5)
        groups = method.assign(tokens, attention, 4).group_BN[0].tolist()
        joined.append([place for place in range(5) if groups.count(groups[place]) == 2])
    assert joined[0] == [0, 1] and joined[1][0] == 2


@pytest.mark.parametrize("name", ["ratio09", "ratio075"])
def test_proportional_attention_is_off_by_default(name):
    assert not run(name).reduced.method.proportional_attention


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_half_of_the_tokens_can_go_at_once(prefix):
    assert create_method("pitome").fewest(16 + prefix, prefix) == 8 + prefix


# What it costs


def deit_small(counts: list[int]) -> ReducedModel:
    with torch.device("meta"):
        return tokred.reduce(timm.create_model("deit_small_patch16_224"), "pitome", tokens=counts)


@pytest.mark.parametrize("ratio", COUNTS)
def test_a_keep_rate_is_the_published_ratio_at_real_size(ratio):
    with torch.device("meta"):
        reduced = tokred.reduce(timm.create_model("deit_small_patch16_224"), "pitome", keep_rate=[float(ratio)] * 12)
    assert list(reduced.schedule.tokens) == GOLDEN["counts"][ratio]["tokens"]


@pytest.mark.parametrize(("ratio", "gmacs"), [("0.9", 2.595), ("0.925", 2.991), ("0.95", 3.439)])
def test_deit_small_costs_what_the_formula_says_beside_the_matching(ratio, gmacs):
    cost = deit_small(GOLDEN["counts"][ratio]["tokens"]).cost()
    assert round(cost.gmacs - cost.gmacs_reduction, 3) == gmacs


@pytest.mark.parametrize("ratio", COUNTS)
def test_the_official_counter_takes_every_layer_for_one_that_removes_nothing(ratio):
    """It counts a block by the tokens that enter it, its MLP too, and neither embedding nor head: 4 % above what is computed
    at a ratio of 0.9."""
    entry = GOLDEN["counts"][ratio]
    entering, C = [197, *entry["tokens"][:-1]], 384
    assert entry["official_count"] == sum(12 * n * C**2 + 2 * n**2 * C for n in entering)
