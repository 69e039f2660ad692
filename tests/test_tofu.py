"""ToFu against the only code there is, in its own variants, and against slow loops and cases made by hand for MLERP.

Its authors gave out none. Run: ``algo.tofu.patch.deit`` of hchautran/PiToMe @550b5de on VisionTransformer of timm 0.4.12
(``tests/golden/tofu.json``); other strategies than its own were set with its ``init_strategy``. Its tracing takes what is pruned for
merged; for ``groups`` it was told to follow pruned tokens as dropped.
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
from tokred.reduction import ReducedModel, Trace

GOLDEN = json.loads((Path(__file__).parent / "golden" / "tofu.json").read_text())
CASES = list(GOLDEN["cases"])


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
    reduced = tokred.reduce(model, "tofu", tokens=case["tokens"], **options)
    with torch.no_grad():
        return Run(case, reduced, reduced.trace(inputs(case["input_shape"], case["seed"])))


# The other authors' code


@pytest.mark.parametrize("name", CASES)
def test_weights_are_those_of_the_golden_case(name):
    found = run(name)
    total = sum(p.double().sum().item() for p in found.reduced.backbone.parameters())
    assert total == pytest.approx(found.case["parameter_sum"], rel=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_each_token_joins_its_group_or_is_dropped_as_there(name):
    found = run(name)
    assert found.trace.source_BM[-1].tolist() == found.case["groups"]


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_that_code(name):
    found = run(name)
    theirs = torch.tensor(found.case["logits"])
    # its float32 is within 1.2e-6 of its float64
    assert (found.trace.logits - theirs).abs().max() < 1e-5 * theirs.abs().max()


# By hand


def merged(x_BNC: torch.Tensor, keys_BND: torch.Tensor, keep: int, *, layer: int = 11, **options) -> Tokens:
    tokens = Tokens(x_BNC, layer=layer, depth=12, prefix=options.pop("prefix", 0))
    k_BHND = keys_BND[:, None]
    return create_method("tofu", **options).reduce(tokens, Attention(k_BHND, k_BHND, k_BHND, 1.0), keep)


X_BNC = torch.tensor([[[6.0, 0.0], [0.0, 2.0], [0.0, 5.0], [1.0, 0.0]]])  # 0 joins 1 of these, by the keys
KEYS_BND = torch.tensor([[[1.0, 0.1], [1.0, 0.0], [0.0, 1.0], [0.5, -1.0]]])


def test_mlerp_points_where_the_mean_points_and_is_as_long_as_the_longest():
    # mean (3, 1), longest 6
    expected = torch.tensor([3.0, 1.0]) / 10**0.5 * 6
    assert torch.allclose(merged(X_BNC, KEYS_BND, 3).x_BNC[0, 1], expected)


def test_average_is_the_mean():
    assert merged(X_BNC, KEYS_BND, 3, merge="average").x_BNC[0, 1].tolist() == [3, 1]


def test_old_norm_divides_by_the_length_of_the_destination():
    assert merged(X_BNC, KEYS_BND, 3, merge="old_norm").x_BNC[0, 1].tolist() == [9, 3]  # (3, 1) / 2 * 6


@pytest.mark.parametrize("merge", ["mlerp", "average", "old_norm"])
def test_an_early_layer_drops_the_source(merge):
    after = merged(X_BNC, KEYS_BND, 3, layer=6, merge=merge)
    assert after.x_BNC[0].tolist() == X_BNC[0, [2, 1, 3]].tolist()
    assert after.sizes().tolist() == [[1, 1, 1]]


@pytest.mark.parametrize(("options", "first"), [({}, 7), ({"merge_from": 3}, 3), ({"merge_from": 0}, 0)])
def test_merge_from_is_the_first_layer_that_merges(options, first):
    total = [merged(X_BNC, KEYS_BND, 3, layer=layer, **options).sizes().sum().item() for layer in range(12)]
    assert total == [3] * first + [4] * (12 - first)


def test_tokens_that_merge_with_none_keep_every_bit():
    x_BNC, keys_BND = inputs([2, 33, 24], 1), inputs([2, 33, 8], 2)
    after = merged(x_BNC, keys_BND, 28, prefix=1)
    traced = tokred.create_method("tofu").assign(
        Tokens(x_BNC, prefix=1, layer=11, depth=12),
        Attention(*(keys_BND[:, None],) * 3, 1.0),
        28,
    )
    for b in range(2):
        groups = traced.group_BN[b].tolist()
        alone = [place for place, group in enumerate(groups) if groups.count(group) == 1]
        assert len(alone) > 20
        for place in alone:
            assert torch.equal(after.x_BNC[b, groups[place]], x_BNC[b, place])


def test_mlerp_is_the_slow_loop_also_with_many_members_and_sizes():
    """Means are over tokens, not by size."""
    x_BNC, keys_BND = inputs([2, 24, 6], 3), inputs([2, 24, 4], 4)
    tokens = Tokens(x_BNC, size_BN=1 + torch.arange(24.0).expand(2, -1) % 3, layer=5, depth=6)
    attention, method = Attention(*(keys_BND[:, None],) * 3, 1.0), create_method("tofu")
    groups, after = method.assign(tokens, attention, 12).group_BN, method.reduce(tokens, attention, 12)
    for b in range(2):
        for group in range(12):
            members = [x_BNC[b, place] for place in range(24) if groups[b, place] == group]
            mean = torch.stack(members).mean(0)
            expected = mean / mean.norm() * max(member.norm() for member in members)
            assert torch.allclose(after.x_BNC[b, group], expected, atol=1e-5)
    assert torch.equal(after.sizes().sum(1), tokens.sizes().sum(1))


def test_opposite_tokens_give_zero_and_finite_gradients():
    x_BNC = torch.tensor([[[2.0, 0.0], [-2.0, 0.0]]], requires_grad=True)
    after = merged(x_BNC, torch.ones(1, 2, 2), 1)
    after.x_BNC.sum().backward()
    assert after.x_BNC.tolist() == [[[0, 0]]] and x_BNC.grad.isfinite().all()


def test_mlerp_does_not_leave_float16():
    after = merged(200 * X_BNC.half(), KEYS_BND.half(), 3)
    assert after.x_BNC.dtype == torch.float16
    assert torch.allclose(after.x_BNC[0, 1].float().norm(), torch.tensor(1200.0), rtol=1e-3)


# Options, counts


def test_proportional_attention_is_off_by_default_and_can_be_had():
    found = run("ratio09")
    with_it = tokred.reduce(
        found.reduced.backbone, "tofu", tokens=found.case["tokens"], merge="old_norm", proportional_attention=True
    )
    assert not found.reduced.method.proportional_attention
    with torch.no_grad():
        assert not torch.equal(with_it(inputs(found.case["input_shape"], found.case["seed"])), found.trace.logits)


def test_what_is_pruned_takes_its_mass_along():
    found = run("ratio08_all_pruned")
    assert found.trace.size_BN[-1].tolist() == [[1.0] * found.case["tokens"][-1]] * 2
    assert not found.reduced.method.conserves_mass


def test_it_costs_what_tome_costs():
    with torch.device("meta"):
        vit = timm.create_model("deit_small_patch16_224")
        ours, tome = (tokred.reduce(vit, method, r=13).cost() for method in ("tofu", "tome"))
    assert ours == tome and round(ours.gmacs - ours.gmacs_reduction, 3) == 2.703


def test_a_constant_picture_is_finite():
    found = run("ratio075")
    with torch.no_grad():
        assert found.reduced(torch.zeros(found.case["input_shape"])).isfinite().all()
