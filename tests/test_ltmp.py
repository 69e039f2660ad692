"""LTMP against the official code (``tests/golden/ltmp.json``), and what its options do.

The golden values came out of Mxbonn/ltmp @1a9c055 on timm 0.9.5, the version it asks for: ``InferenceLTMPVisionTransformer`` of
``ltmp/timm/lt_mergeprune_inference.py`` with the weights of a timm model and the same two thresholds in all blocks, at batch 1
(more samples it takes only where their counts agree); its import of wandb was stubbed. ``sizes``: of the tokens that leave
each layer; ``norms``: the length of each token after the final norm.
"""

import functools
import json
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

import tokred
from tests.golden.weights import fill_, inputs
from tokred import METHODS, Attention, Tokens

CASES = json.loads((Path(__file__).parent / "golden" / "ltmp.json").read_text())["cases"]
RELATIVE = 1e-5  # the official code in float32 is within 7e-6 of itself in float64, of logits of about 3


def model_of(case) -> torch.nn.Module:
    return fill_(timm.create_model(case["model"]["name"], **case["model"]["kwargs"]).eval(), case["seed"])


def images_of(case) -> Tensor:
    return inputs(case["input_shape"], case["input_seed"])


def reduced_as(case):
    options = {name: case[name] for name in ("merge_threshold", "prune_threshold")}
    return tokred.reduce(model_of(case), "ltmp", **options)


@functools.cache
def run(name: str):
    with torch.no_grad():
        return reduced_as(CASES[name]).trace(images_of(CASES[name]))


def of_keys(keys_BND: Tensor, received_BN: Tensor, prefix: int = 1, **tokens) -> tuple[Tokens, Attention]:
    attention = Attention(keys_BND[:, None], keys_BND[:, None], None, 1.0, found={"received": received_BN})
    return Tokens(keys_BND, prefix=prefix, **tokens), attention


def drawn(B: int, N: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    received_BN = torch.rand(B, N, generator=generator)
    return torch.randn(B, N, 3, generator=generator), received_BN / received_BN.sum(1, keepdim=True)


def members(plan, sample: int = 0) -> list[list[int]]:
    """The places in each group of a sample, real groups only."""
    num = int(plan.valid_BK[sample].sum())
    group = plan.group_BN[sample].tolist()
    return [[place for place, found in enumerate(group) if found == slot] for slot in range(num)]


def of_the_paper(keys_ND: Tensor, received: list[float], prefix: int, merge_threshold: float, prune_threshold: float):
    """The same groups, written out for one sample."""
    keys_ND = F.normalize(keys_ND.double(), dim=-1)
    importance = {place: float("inf") if place < prefix else value for place, value in enumerate(received)}
    groups = {place: [place] for place in range(len(received))}
    for even in range(0, len(received), 2):
        others = [odd for odd in range(1, len(received), 2) if odd >= prefix]
        if even < prefix or not others:
            continue
        best = max(others, key=lambda odd: float(keys_ND[even] @ keys_ND[odd]))
        if float(keys_ND[even] @ keys_ND[best]) > merge_threshold:
            groups[best] += groups.pop(even)
            importance[best] = max(importance[best], received[even])
    order = sorted(groups, key=lambda place: (place >= prefix, 0 if place < prefix else place % 2, place))
    return [sorted(groups[place]) for place in order if importance[place] > prune_threshold]


@pytest.mark.parametrize("name", CASES)
def test_weights_and_inputs_are_those_of_the_golden_case(name):
    case = CASES[name]
    parameter_sum = sum(p.double().sum().item() for p in model_of(case).parameters())
    assert parameter_sum == pytest.approx(case["parameter_sum"], rel=1e-6)  # written with 7 digits
    assert images_of(case).double().sum().item() == pytest.approx(case["input_sum"], rel=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_it_gives_the_official_logits(name):
    official = torch.tensor(CASES[name]["logits"])
    assert (run(name).logits - official).abs().max() < RELATIVE * official.abs().max()


@pytest.mark.parametrize("name", CASES)
def test_it_leaves_the_official_number_of_tokens_after_each_layer(name):
    assert list(run(name).tokens) == CASES[name]["tokens"]


@pytest.mark.parametrize("name", CASES)
def test_it_gives_the_official_sizes_in_the_official_order(name):
    assert [size_BN[0].tolist() for size_BN in run(name).size_BN] == CASES[name]["sizes"]


@pytest.mark.parametrize("name", CASES)
def test_it_gives_the_official_tokens_in_the_official_order(name):
    with torch.no_grad():
        norms = reduced_as(CASES[name]).forward_features(images_of(CASES[name])).norm(dim=-1)[0]
    official = torch.tensor(CASES[name]["norms"])
    assert (norms - official).abs().max() < RELATIVE * official.abs().max()


def test_in_a_batch_each_sample_gives_what_the_official_code_gives_for_it_alone():
    names = [name for name in CASES if name.startswith("both")]
    with torch.no_grad():
        trace = reduced_as(CASES[names[0]]).trace(torch.cat([images_of(CASES[name]) for name in names]))
    official = torch.tensor([CASES[name]["logits"][0] for name in names])
    assert (trace.logits - official).abs().max() < RELATIVE * official.abs().max()
    counts = zip(*(CASES[name]["tokens"] for name in names), strict=True)
    assert [num_B.tolist() for num_B in trace.num_B] == [list(layer) for layer in counts]


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("thresholds", [(0.5, 0.0), (0.9, 0.04), (0.0, 0.06), (-1.0, 0.0), (1.1, 0.0)], ids=str)
def test_groups_are_those_of_the_formula(prefix, thresholds):
    keys_BND, received_BN = drawn(6, 21)
    tokens, attention = of_keys(keys_BND, received_BN, prefix)
    plan = METHODS["ltmp"](*thresholds).assign(tokens, attention, tokens.num)
    for sample in range(6):
        expected = of_the_paper(keys_BND[sample], received_BN[sample].tolist(), prefix, *thresholds)
        assert members(plan, sample) == expected


def test_padding_takes_no_part():
    keys_BND, received_BN = drawn(5, 21)
    num = [21, 20, 13, 4, 1]
    real_BN = torch.arange(21) < torch.tensor(num)[:, None]
    keys_BND[~real_BN] = keys_BND[0, 2].clone()  # as like as can be, were it looked at
    tokens, attention = of_keys(keys_BND, received_BN, valid_BN=real_BN)
    plan = METHODS["ltmp"](0.3, 0.03).assign(tokens, attention, 21)
    for sample, n in enumerate(num):
        alone = of_the_paper(keys_BND[sample, :n], received_BN[sample, :n].tolist(), 1, 0.3, 0.03)
        assert members(plan, sample) == alone
    assert (plan.group_BN[~real_BN] == -1).all()


def test_of_five_tokens_by_hand():
    """CLS, then a, b, c, d; b is like a and joins it, d is like nobody; c is pruned."""
    keys_BND = torch.tensor([[[1.0, 1.0], [1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, -1.0]]])
    tokens, attention = of_keys(keys_BND, torch.tensor([[0.3, 0.1, 0.3, 0.05, 0.25]]))
    plan = METHODS["ltmp"](0.9, 0.06).assign(tokens, attention, 5)
    assert members(plan) == [[0], [4], [1, 2]]  # even places first; the pair as important as its better half
    assert plan.group_BN.tolist() == [[0, 2, 2, -1, 1]]


def test_a_token_goes_with_the_one_it_joined():
    keys_BND = torch.tensor([[[1.0, 1.0], [1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]])
    tokens, attention = of_keys(keys_BND, torch.tensor([[0.3, 0.01, 0.02, 0.67]]))
    assert METHODS["ltmp"](0.9, 0.05).assign(tokens, attention, 4).group_BN.tolist() == [[0, -1, -1, 1]]


def test_a_group_is_the_mean_by_size():
    keys_BND = torch.tensor([[[1.0, 1.0], [1.0, 0.0], [1.0, 0.1]]])
    tokens, attention = of_keys(keys_BND, torch.full((1, 3), 1 / 3), size_BN=torch.tensor([[1.0, 3.0, 1.0]]))
    left = METHODS["ltmp"]().reduce(tokens, attention, 3)
    assert torch.allclose(left.x_BNC[0, 1], torch.tensor([1.0, 0.025]))
    assert left.sizes().tolist() == [[1, 4, 0]]


def test_no_token_merges_at_the_upper_end_of_the_knob_and_all_even_ones_at_the_lower():
    _, most, least = METHODS["ltmp"]().knob(21)
    tokens, attention = of_keys(*drawn(3, 21))
    num = [METHODS["ltmp"](value).reduce(tokens, attention, 21).num_real().tolist() for value in (most, least)]
    assert num == [[11] * 3, [21] * 3]


def test_where_more_are_left_than_may_be_kept_the_least_important_go():
    keys_BND, received_BN = drawn(4, 21)
    tokens, attention = of_keys(keys_BND, received_BN)
    plan = METHODS["ltmp"](2.0).assign(tokens, attention, 9)  # none merges
    best_BK = received_BN[:, 1:].topk(8).indices + 1
    for sample in range(4):
        assert {group[0] for group in members(plan, sample)} == {0, *best_BK[sample].tolist()}


def test_without_proportional_attention_sizes_do_not_enter_the_logits():
    case = CASES["merge_only_1"]
    options = {"merge_threshold": 0.5, "proportional_attention": False}
    with torch.no_grad():
        logits = tokred.reduce(model_of(case), "ltmp", **options)(images_of(case))
    assert (logits - run("merge_only_1").logits).abs().max() > 0.01


@pytest.mark.parametrize("budget", [0.8, 0.7, 0.6, 0.5])
def test_the_merge_threshold_is_solved_for_a_budget(budget):
    sizes = {"img_size": 48, "patch_size": 8, "embed_dim": 24, "depth": 12, "num_heads": 2, "num_classes": 5}
    model = fill_(timm.create_model("vit_tiny_patch16_224", **sizes).eval(), 1)
    images = inputs((12, 3, 48, 48), 0)
    reduced = tokred.reduce(model, "ltmp", budget=budget, calibrate_on=images)
    with torch.no_grad():
        costs = reduced.costs(torch.stack(reduced.trace(images).num_B, 1))
    share = sum(cost.macs for cost in costs) / len(costs) / reduced.unreduced_cost().macs
    assert share == pytest.approx(budget, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tokens_that_are_all_alike_merge_to_finite_ones(dtype):
    keys_BND = torch.ones(2, 9, 4, dtype=dtype)
    tokens, attention = of_keys(keys_BND, torch.full((2, 9), 1 / 9))
    left = METHODS["ltmp"]().reduce(tokens, attention, 9)
    assert left.x_BNC.isfinite().all()
    assert left.num_real().tolist() == [5, 5]  # CLS, and the odd ones


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_of_each_sample_the_most_important_patch_stays_whatever_the_threshold(prefix):
    k_BHND = inputs([3, 1, 9, 4], 2)
    received_BN = inputs([3, 9], 3).softmax(1)
    attention = Attention(k_BHND, k_BHND, k_BHND, 1.0, found={"received": received_BN})
    tokens = Tokens(inputs([3, 9, 4], 4), prefix=prefix).traced()
    left = tokens.reduce(
        METHODS["ltmp"](merge_threshold=1.0, prune_threshold=2.0).assign(tokens, attention, 9)
    ).trimmed()
    assert left.num == prefix + 1
    best_B = received_BN[:, prefix:].argmax(1) + prefix
    assert left.source_BM.gather(1, best_B[:, None]).flatten().tolist() == [prefix] * 3
