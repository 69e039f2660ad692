"""ATS against the official code (``tests/golden/ats.json``), and what its options do.

The golden values came out of adaptivetokensampling/ATS @9271257 on timm 0.5.4: its ``libs/models/transformers/vit.py``, imported without
the package around it, as ``ViT`` with DROP_TOKENS, NUM_TOKENS of all tokens and the weights of a timm model; at batch 1, where no
padding shifts the scores. ``kept``: for each layer in ATS_BLOCKS, the places after CLS among the tokens that reach it, in the official order.
``more_samples``: with n_ref = 60, for which the argument of the same name was raised in the call.
"""

import functools
import json
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

import tokred
from tests.golden.weights import fill_, inputs
from tokred import METHODS, Assignment, Attention, Tokens
from tokred.methods.ats import drawn
from tokred.testing import tiny_models

CASES = json.loads((Path(__file__).parent / "golden" / "ats.json").read_text())["cases"]
RELATIVE = 1e-5  # the official softmax adds 1e-6 in all to a row, and is itself within 2e-6 of its float64 values


def model_of(case) -> torch.nn.Module:
    return fill_(timm.create_model(case["model"]["name"], **case["model"]["kwargs"]).eval(), case["seed"])


def images_of(case) -> Tensor:
    return inputs(case["input_shape"], case["input_seed"])


@functools.cache
def run(name: str):
    """The trace, and what each call of ``assign`` gave."""
    case, plans = CASES[name], []
    reduced = tokred.reduce(model_of(case), "ats", layers=case["layers"], samples=case["samples"])
    assign = reduced.method.assign

    def spy(*args):
        plans.append(assign(*args))
        return plans[-1]

    reduced.method.assign = spy
    with torch.no_grad():
        return reduced.trace(images_of(case)), plans


def of_scores(score_BP, prefix: int = 1, **tokens) -> tuple[Tokens, Attention]:
    """Tokens whose score is their attention: all values have length 1."""
    row_BN = torch.cat([torch.ones(len(score_BP), prefix), torch.as_tensor(score_BP)], 1)
    v_BHND = torch.ones(*row_BN.shape, 1)[:, None]
    attention = Attention(v_BHND, v_BHND, v_BHND, 1.0, found={"cls_row": row_BN, "received": row_BN})
    grid = (1, 1, row_BN.shape[1] - prefix)
    return Tokens(torch.zeros(*row_BN.shape, 2), prefix=prefix, grid=grid, **tokens), attention


def kept(plan: Assignment) -> list[list[int]]:
    """For each sample, the places of the tokens kept, in order."""
    return [index[valid].tolist() for index, valid in zip(plan.index_BK, plan.valid_BK, strict=True)]


def of_the_paper(score: list[float], draws: int) -> list[int]:
    """The places drawn, by rising score: written out for one sample, in double precision."""
    order = sorted(range(len(score)), key=lambda place: score[place])
    total, sums = 0.0, []
    for place in order:
        total += score[place]
        sums.append(total)
    share = [(value - sums[0]) / (sums[-1] - sums[0]) for value in sums]
    start = min(value for value in share if value > 0)
    found = set()
    for step in range(draws):
        at = start + step * (1 - start) / (draws - 1)
        found.add(min(range(len(share)), key=lambda rank: abs(share[rank] - at)))
    return [order[rank] for rank in sorted(found)]


@pytest.mark.parametrize("name", CASES)
def test_weights_and_inputs_are_those_of_the_golden_case(name):
    case = CASES[name]
    parameter_sum = sum(p.double().sum().item() for p in model_of(case).parameters())
    assert parameter_sum == pytest.approx(case["parameter_sum"], rel=1e-6)  # written with 7 digits
    assert images_of(case).double().sum().item() == pytest.approx(case["input_sum"], rel=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_it_gives_the_official_logits(name):
    official = torch.tensor(CASES[name]["logits"])
    assert (run(name)[0].logits - official).abs().max() < RELATIVE * official.abs().max()


@pytest.mark.parametrize("name", CASES)
def test_it_keeps_the_official_tokens_in_the_official_order(name):
    ours = [[place - 1 for place in kept(plan)[0][1:]] for plan in run(name)[1]]
    assert ours == CASES[name]["kept"]


@pytest.mark.parametrize("name", CASES)
def test_it_leaves_the_official_number_of_tokens(name):
    case = CASES[name]
    assert [run(name)[0].tokens[layer] for layer in case["layers"]] == case["tokens"]


def test_in_a_batch_each_sample_gives_what_the_official_code_gives_for_it_alone():
    names = [name for name in CASES if name.startswith("default")]
    case = CASES[names[0]]
    reduced = tokred.reduce(model_of(case), "ats", layers=case["layers"])
    with torch.no_grad():
        trace = reduced.trace(torch.cat([images_of(CASES[name]) for name in names]))
    official = torch.tensor([CASES[name]["logits"][0] for name in names])
    assert (trace.logits - official).abs().max() < RELATIVE * official.abs().max()
    assert [trace.num_B[layer].tolist() for layer in case["layers"]] == [
        list(layer) for layer in zip(*(CASES[name]["tokens"] for name in names), strict=True)
    ]


@pytest.mark.parametrize("draws", [2, 3, 7, 20, 100])
def test_tokens_are_drawn_as_the_formula_says(draws):
    score_BP = torch.rand(8, 20, generator=torch.Generator().manual_seed(0)) ** 3
    tokens, attention = of_scores(score_BP)
    ours = kept(METHODS["ats"](samples=draws + 1).assign(tokens, attention, tokens.num))
    assert ours == [[0, *(place + 1 for place in of_the_paper(row, draws))] for row in score_BP.double().tolist()]


def test_padding_changes_nothing():
    score_BP = torch.rand(6, 20, generator=torch.Generator().manual_seed(0))
    real_BN = torch.arange(21) < torch.tensor([21, 20, 15, 9, 4, 2])[:, None]
    tokens, attention = of_scores(score_BP, valid_BN=real_BN)
    ours = kept(METHODS["ats"](samples=12).assign(tokens, attention, tokens.num))
    alone = [of_scores(row[None, : num - 1]) for row, num in zip(score_BP, real_BN.sum(1).tolist(), strict=True)]
    assert ours == [kept(METHODS["ats"](samples=12).assign(t, a, t.num))[0] for t, a in alone]


def test_of_four_tokens_by_hand():
    # sums 1, 3, 6, 10 -> 0, 2/9, 5/9, 1; steps from 2/9 in thirds of 7/9: .22, .48, .74, 1 -> the second, third (twice), fourth
    tokens, attention = of_scores([[4.0, 1.0, 3.0, 2.0]])
    assert kept(METHODS["ats"]().assign(tokens, attention, 5)) == [[0, 4, 3, 1]]
    assert kept(METHODS["ats"](samples=3).assign(tokens, attention, 5)) == [[0, 4, 1]]  # at .22 and 1


def test_the_score_is_attention_times_the_length_of_the_value_over_all_heads():
    tokens, attention = of_scores([[0.5, 0.25, 0.25]])
    v_BHND = torch.ones(1, 2, 4, 3)
    v_BHND[:, 1, 1] = 0  # the value of the first patch: sqrt(3) in place of sqrt(6)
    v_BHND[:, :, 2] *= 3
    attention = Attention(attention.q_BHND, attention.k_BHND, v_BHND, 1.0, found=attention.found)
    ours = kept(METHODS["ats"](samples=3).assign(tokens, attention, 4))
    assert ours == [[0, *(1 + place for place in of_the_paper([0.5 * 3**0.5, 0.25 * 3 * 6**0.5, 0.25 * 6**0.5], 2))]]


def test_by_default_as_many_are_drawn_as_the_input_has_patches():
    score_BP = torch.rand(4, 20, generator=torch.Generator().manual_seed(0))
    tokens, attention = of_scores(score_BP)
    default, given = METHODS["ats"](), METHODS["ats"](samples=21)
    assert kept(default.assign(tokens, attention, 21)) == kept(given.assign(tokens, attention, 21))


def test_without_a_grid_samples_must_be_given():
    tokens, attention = of_scores([[1.0, 2.0]])
    with pytest.raises(ValueError, match="give samples="):
        METHODS["ats"]().assign(Tokens(tokens.x_BNC, prefix=1), attention, 3)


def test_fewer_than_three_samples_are_refused():
    with pytest.raises(ValueError, match="samples must be 3 at least, or 0"):
        METHODS["ats"](samples=2)


def test_more_samples_keep_more_tokens():
    tokens, attention = of_scores(torch.rand(8, 50, generator=torch.Generator().manual_seed(0)))
    num = [sum(map(len, kept(METHODS["ats"](samples=n).assign(tokens, attention, 51)))) for n in (4, 10, 25, 50, 500)]
    assert num == sorted(num) and num[0] < num[-1]


def test_the_token_of_least_score_always_goes():
    score_BP = torch.rand(8, 50, generator=torch.Generator().manual_seed(0))
    tokens, attention = of_scores(score_BP)
    for left, row in zip(kept(METHODS["ats"](samples=5000).assign(tokens, attention, 51)), score_BP, strict=True):
        assert len(left) == 50 and 1 + int(row.argmin()) not in left


def test_where_more_are_drawn_than_may_be_kept_the_best_stay():
    tokens, attention = of_scores(torch.rand(8, 20, generator=torch.Generator().manual_seed(0)))
    every, capped = (kept(METHODS["ats"]().assign(tokens, attention, keep)) for keep in (21, 7))
    assert capped == [[0, *row[1:][-6:]] for row in every]


def test_all_prefix_tokens_are_kept():
    tokens, attention = of_scores([[4.0, 1.0, 3.0, 2.0]], prefix=3)
    assert kept(METHODS["ats"](samples=3).assign(tokens, attention, 7)) == [[0, 1, 2, 6, 3]]


@pytest.mark.parametrize("score", [[0.0] * 6, [0.0, 0, 0, 1, 0, 0], [1.0] * 6], ids=["none", "one", "even"])
def test_where_scores_do_not_tell_the_result_is_finite_and_not_empty(score):
    tokens, attention = of_scores([score])
    plan = METHODS["ats"]().assign(tokens, attention, 7)
    assert len(kept(plan)[0]) >= 2
    assert tokens.reduce(plan).x_BNC.isfinite().all()


def test_all_attention_on_one_token_keeps_that_one():
    tokens, attention = of_scores([[0.0, 0, 0, 1, 0, 0]])
    assert kept(METHODS["ats"]().assign(tokens, attention, 7)) == [[0, 4]]


def test_the_last_of_the_sorted_tokens_is_always_drawn():
    score_BP = torch.rand(8, 30, generator=torch.Generator().manual_seed(0)).sort(1).values
    assert drawn(score_BP, torch.ones_like(score_BP, dtype=torch.bool), 2)[:, -1].all()


def test_scores_by_attention_received_run_without_a_class_token():
    model = tiny_models()["umt"]
    reduced = tokred.reduce(model, "ats", scores="received")
    assert reduced(torch.randn(2, *model.sample_shape)).isfinite().all()


@pytest.mark.parametrize("budget", [0.8, 0.7, 0.6, 0.5])
def test_samples_are_solved_for_a_budget(budget):
    sizes = {"img_size": 48, "patch_size": 8, "embed_dim": 24, "depth": 12, "num_heads": 2, "num_classes": 5}
    model = fill_(timm.create_model("vit_tiny_patch16_224", **sizes).eval(), 1)
    images = inputs((12, 3, 48, 48), 0)
    reduced = tokred.reduce(model, "ats", budget=budget, calibrate_on=images)
    with torch.no_grad():
        costs = reduced.costs(torch.stack(reduced.trace(images).num_B, 1))
    share = sum(cost.macs for cost in costs) / len(costs) / reduced.unreduced_cost().macs
    assert share == pytest.approx(budget, rel=0.02)


def test_tokens_that_go_still_pay_for_keys_and_values_in_their_layer():
    reduced = tokred.reduce(timm.create_model("deit_small_patch16_224"), "ats", layers=[3])
    tokens, C = [197] * 3 + [100] * 9, 384
    saved = 97 * (C * C + 2 * 197 * C + 8 * C * C)  # in layer 3: the output map, rows of attention, the MLP
    saved += 8 * (12 * C * C * 97 + 2 * C * (197**2 - 100**2))  # in the eight layers behind it
    row = 197 * C  # what CLS pays attention to
    assert reduced.cost(tokens).macs == reduced.unreduced_cost().macs - saved + row
