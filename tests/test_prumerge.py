"""PruMerge against the official code (``tests/golden/prumerge.json``), and what its options do."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.golden.weights import inputs
from tokred import METHODS, Attention, Tokens
from tokred.attention import measure
from tokred.methods.prumerge import upper_fence

CASES = json.loads((Path(__file__).parent / "golden" / "prumerge.json").read_text())["cases"]


def of_case(case) -> tuple[Tokens, Attention]:
    """Features, queries and keys as the official code was given them."""
    B, N, H, D = case["shape"]
    # the official code has no class token among its features; its own is not looked at
    x_BNC = inputs((B, N, H * D), case["seed"])
    q_BHND, k_BHND = (case["spread"] * inputs((B, N, H, D), case["seed"] + i).transpose(1, 2) for i in (1, 2))
    return Tokens(x_BNC, prefix=1), measure(q_BHND, k_BHND, scale=D**-0.5, statistics=("cls_row", "received"))


def reduced(tokens: Tokens, attention: Attention, keep: int | None = None, **options) -> Tokens:
    return METHODS["prumerge"](**options).reduce(tokens, attention, keep or tokens.num)


def num_left(tokens: Tokens, attention: Attention, keep: int | None = None, **options) -> list[int]:
    return reduced(tokens, attention, keep, **options).num_real().tolist()


def both(one: str, other: str) -> tuple[Tokens, Attention]:
    """Two cases of one shape in a batch."""
    (x, a), (y, b) = of_case(CASES[one]), of_case(CASES[other])
    found = {name: torch.cat([a.found[name], b.found[name]]) for name in a.found}
    q_BHND, k_BHND = torch.cat([a.q_BHND, b.q_BHND]), torch.cat([a.k_BHND, b.k_BHND])
    return replace(x, x_BNC=torch.cat([x.x_BNC, y.x_BNC])), replace(a, q_BHND=q_BHND, k_BHND=k_BHND, found=found)


@pytest.mark.parametrize("name", CASES)
def test_it_gives_the_official_tokens_in_the_official_order(name):
    case = CASES[name]
    left = reduced(*of_case(case), spatial=case["plus"])
    official, num = torch.tensor(case["out"]), 1 + case["kept"] + 1  # class token, those kept, the sum of the rest
    assert left.num_real().tolist() == [num]
    ours = left.x_BNC[:, 1:num, case["channels"]]
    assert (ours - official).abs().max() < 2e-6 * official.abs().max()  # sums of up to 500 float32 values


def test_a_sample_has_its_own_threshold_in_a_batch():
    together = reduced(*both("plain_576", "plus_576_sharp"))
    for sample, name in enumerate(("plain_576", "plus_576_sharp")):
        alone = reduced(*of_case(CASES[name]))
        assert torch.equal(together.valid_BN[sample], alone.valid_BN[0])
        assert torch.allclose(together.x_BNC[sample], alone.x_BNC[0], atol=1e-5)


@pytest.mark.parametrize("num", [1, 2, 5, 8, 9, 30])
def test_the_threshold_is_that_of_numpys_percentiles(num):
    score_BN = torch.cat([inputs((1, num), 3).abs(), torch.zeros(1, 4)], 1)
    q1, q3 = np.percentile(score_BN[0, :num].numpy(), [25, 75])
    fence_B1 = upper_fence(score_BN, torch.tensor([[num]]), 1.5)
    assert fence_B1.item() == pytest.approx(q3 + 1.5 * (q3 - q1), rel=1e-6)


def test_neighbours_are_added_by_attention_and_the_rest_is_summed():
    key = [[1.0, 0.0], [0.0, 0.1], [0.0, 0.2], [0.1, 0.1], [5.0, 4.0], [0.1, 0.0]]  # the class token pays 4 the most
    x_BNC = torch.tensor([[1.0, 2, 4, 8, 16, 32]])[..., None]
    k_BHND = torch.tensor(key)[None, None]
    left = METHODS["prumerge"](neighbors=2).reduce(Tokens(x_BNC, prefix=1), Attention(k_BHND, k_BHND, None, 1.0), 6)
    attention = (
        (k_BHND[0, 0] @ k_BHND[0, 0, 0] * 2**-0.5).softmax(0).tolist()
    )  # over all channels, the class token included
    near = (
        16 + attention[3] * 8 + attention[5] * 32
    )  # of 4 (5, 4): 3 (1, 1) and 5 (1, 0) are nearer than 1 and 2 (0, 1)
    rest = sum(attention[i] * 2**i for i in (1, 2, 3, 5))
    assert left.valid_BN.tolist() == [[True] * 3 + [False] * 3]
    assert left.x_BNC.flatten().tolist() == pytest.approx([1, near, rest, 0, 0, 0])


def test_the_sum_of_the_rest_has_their_size():
    tokens, attention = of_case(CASES["plain_64"])
    left = reduced(tokens.traced(), attention)
    assert left.sizes().tolist() == [[1] * 8 + [65 - 8] + [0] * (65 - 9)]
    assert left.source_BM.flatten().bincount().tolist() == [1] * 8 + [65 - 8]


def test_keep_is_the_most_that_may_be_left():
    tokens, attention = of_case(CASES["plain_64"])
    best, all_of_them = reduced(tokens, attention, 6), reduced(tokens, attention)
    assert best.num_real().tolist() == [6]
    assert torch.allclose(best.x_BNC[:, :5], all_of_them.x_BNC[:, :5], atol=1e-5)  # class token, four best


def test_a_larger_factor_leaves_fewer_tokens():
    counts = [num_left(*of_case(CASES["plain_100_heads_3"]), factor=factor)[0] for factor in (-1.0, 0.0, 1.5, 3.0)]
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) == 4


def test_the_knobs_ends_leave_one_token_and_all_of_them():
    tokens, attention = of_case(CASES["plain_64"])
    option, most, least = METHODS["prumerge"]().knob(tokens.num)
    assert num_left(tokens, attention, **{option: most}) == [2]  # the class token, and the sum of the others
    assert num_left(tokens, attention, **{option: least}) == [tokens.num]


def test_where_all_patches_stay_there_is_no_sum_of_the_rest():
    tokens, attention = of_case(CASES["plain_64"])
    left = reduced(tokens, attention, factor=-10.0, neighbors=0)
    assert left.valid_BN.all()
    assert torch.equal(left.x_BNC.sort(1).values, tokens.x_BNC.sort(1).values)


def test_without_neighbours_a_token_that_stays_is_as_it_was():
    tokens, attention = of_case(CASES["plain_64"])
    left = reduced(tokens.traced(), attention, neighbors=0)
    place_BK = torch.tensor([[left.source_BM[0].tolist().index(slot) for slot in range(8)]])
    assert torch.equal(left.x_BNC[:, :8], tokens.x_BNC.take_along_dim(place_BK[..., None], 1))


def test_split_heads_scores_by_the_models_own_attention():
    tokens, attention = of_case(CASES["plain_64"])
    method = METHODS["prumerge"](split_heads=True)
    assert method.statistics == ("cls_row",)
    assert (
        method.assign(tokens, attention, 65).group_BN[0].tolist().index(1) == attention.cls_row_BN[0, 1:].argmax() + 1
    )


def test_received_scores_need_no_class_token():
    tokens, attention = of_case(CASES["plain_64"])
    plan = METHODS["prumerge"](scores="received").assign(replace(tokens, prefix=0), attention, 65)
    assert plan.group_BN[0].tolist().index(0) == attention.received_BN[0].argmax()


@pytest.mark.parametrize("spatial", [False, True])
def test_padding_is_never_kept_and_counts_nowhere(spatial):
    tokens, attention = of_case(CASES["plain_100_heads_3"])
    alone = reduced(tokens, attention, spatial=spatial)
    more = [torch.cat([part, 9 * torch.ones_like(part[:, :, :20])], 2) for part in (attention.q_BHND, attention.k_BHND)]
    x_BNC = torch.cat([tokens.x_BNC, 9 * torch.ones_like(tokens.x_BNC[:, :20])], 1)
    valid_BN = (torch.arange(x_BNC.shape[1]) < tokens.num)[None]
    padded = replace(attention, q_BHND=more[0], k_BHND=more[1])
    left = reduced(replace(tokens, x_BNC=x_BNC, valid_BN=valid_BN), padded, spatial=spatial)
    num = int(alone.num_real())
    assert int(left.num_real()) == num
    assert torch.allclose(left.x_BNC[:, :num], alone.x_BNC[:, :num], atol=1e-5)


def test_spatial_keeps_up_to_three_patches_more_for_each_outlier():
    case = CASES["plus_576"]
    assert num_left(*of_case(case)) == [1 + case["num_outliers"] + 1]
    step = 576 // case["num_outliers"] // 3
    more = num_left(*of_case(case), spatial=True)[0] - (1 + case["num_outliers"] + 1)
    assert 0 < more <= len(range(0, 575, step))


def test_one_hot_and_constant_attention_give_finite_tokens():
    x_BNC = inputs((2, 9, 4), 5)
    k_BHND = torch.zeros(2, 1, 9, 4)
    k_BHND[1, 0, 3] = 1e4
    q_BHND = torch.ones(2, 1, 9, 4)
    left = reduced(Tokens(x_BNC, prefix=1), Attention(q_BHND, k_BHND, None, 0.5))
    assert left.x_BNC.isfinite().all()
    assert left.num_real().tolist() == [2, 3]
    assert left.sizes().sum(1).tolist() == pytest.approx([9, 9])


def test_a_negative_number_of_neighbors_is_refused():
    with pytest.raises(ValueError, match="neighbors must be 0 or more; got -1"):
        METHODS["prumerge"](neighbors=-1)
