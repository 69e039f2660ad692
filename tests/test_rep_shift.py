"""Representation Shift against slow loops over timm's own modules and a case made by hand.

The official code (mlvlab/Representation-Shift) could not be had; the reference here is written from D(F(x), x).
"""

from dataclasses import replace

import pytest
import timm
import torch

import tokred
from tests.golden.weights import fill_, inputs
from tokred import Tokens
from tokred.reduction import create_method

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 3, "num_classes": 5}
LEFT = [17, 12, 12, 6]


@pytest.fixture(scope="module")
def vit():
    return fill_(timm.create_model("vit_tiny_patch16_224", **SIZES).eval(), 5)


def slow_distance(name, a, b):
    if name == "cosine":
        return 1 - (a @ b) / (a.norm() * b.norm())
    return (a - b).abs().sum() if name == "l1" else (a - b).square().sum().sqrt()


def slow_logits(vit, image_CHW, distance, after):
    """One sample, timm's modules one by one, a token at a time; the class token always stays."""
    x_NC = vit._pos_embed(vit.patch_embed(image_CHW[None]))[0]
    for block, keep in zip(vit.blocks, LEFT, strict=True):
        before_NC = x_NC + block.attn(block.norm1(x_NC)[None])[0]
        out_NC = block.mlp(block.norm2(before_NC))
        x_NC = before_NC + out_NC
        if keep < len(x_NC):
            moved_NC = x_NC if after == "residual" else out_NC
            shift = [slow_distance(distance, *pair).item() for pair in zip(moved_NC, before_NC, strict=True)]
            most = sorted(range(1, len(x_NC)), key=lambda n: -shift[n])[: keep - 1]
            x_NC = x_NC[[0, *sorted(most)]]
    return vit.head(vit.norm(x_NC)[0])


@pytest.mark.parametrize("after", ["residual", "mlp"])
@pytest.mark.parametrize("distance", ["l2", "l1", "cosine"])
@torch.no_grad()
def test_logits_are_those_of_slow_loops(vit, distance, after):
    images = inputs([2, 3, 32, 32], 5)
    reduced = tokred.reduce(vit, "rep_shift", tokens=LEFT, distance=distance, after=after)
    expected = torch.stack([slow_logits(vit, image, distance, after) for image in images])
    assert (reduced(images) - expected).abs().max() < 1e-5 * expected.abs().max()  # sums in another order


# By hand: (before, after) of four tokens; the first moves farthest by l1, the second by l2, the third turns most

BEFORE = torch.tensor([[[9.0, 9, 9, 9], [9.0, 0, 0, 0], [0.1, 0, 0, 0], [5.0, 0, 0, 0]]])
AFTER = torch.tensor([[[11.0, 11, 11, 11], [14.0, 0, 0, 0], [-0.1, 0, 0, 0], [5.0, 0.1, 0, 0]]])


def kept(keep, prefix=0, **options):
    tokens = replace(Tokens(AFTER, prefix=prefix), before_mlp_BNC=BEFORE)
    group_BN = create_method("rep_shift", **options).assign(tokens, None, keep).group_BN
    return (group_BN[0] >= 0).nonzero().flatten().tolist()


@pytest.mark.parametrize(("distance", "farthest"), [("l1", 0), ("l2", 1), ("cosine", 2)])
def test_each_distance_has_its_own_farthest_token(distance, farthest):
    assert kept(1, distance=distance, after="residual") == [farthest]


def test_the_mlps_output_alone_is_far_from_a_token_that_it_hardly_changes():
    assert kept(1) == kept(1, after="mlp") == [0]  # |out - x| of 14 against 4, 0.3 and 5


def test_tokens_that_stay_keep_their_order():
    tokens = replace(Tokens(AFTER), before_mlp_BNC=BEFORE)
    after = tokens.reduce(create_method("rep_shift").assign(tokens, None, 2))
    assert torch.equal(after.x_BNC, AFTER[:, [0, 3]])  # shifted by 14 and by 5


def test_a_prefix_stays_however_little_it_moves():
    assert kept(2, prefix=1, distance="cosine", after="residual") == [0, 2]


def test_no_attention_is_asked_for_so_that_it_stays_fused():
    assert create_method("rep_shift").statistics == ()


def test_it_costs_nothing_beside_the_model():
    with torch.device("meta"):
        model = timm.create_model("deit_small_patch16_224").eval()
    cost = tokred.reduce(model, "rep_shift", tokens=[197] * 2 + [138] * 10).cost()
    assert cost.gmacs_reduction == 0
