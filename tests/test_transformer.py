"""The plain video transformer, against its formulas written out."""

import math

import pytest
import torch
from torch import Tensor, nn

import tokred
from tokred import VideoTransformer
from tokred.testing import spread_
from tokred.transformer import SelfAttention, separable_sinusoid, sinusoid

SIZES = {"img_size": 32, "patch_size": 8, "num_frames": 4, "tubelet": 2, "embed_dim": 24, "depth": 2, "num_heads": 3}


def model(**more) -> VideoTransformer:
    return spread_(VideoTransformer(**(SIZES | more)).eval())


def clips(num: int = 2) -> Tensor:
    return torch.randn(num, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + 1e-6).sqrt() * norm.weight + norm.bias


def by_hand(transformer: VideoTransformer, clip_TCHW: Tensor) -> Tensor:
    """The tokens (N, C) of one clip after the final norm, in float64, patch by patch and head by head."""
    transformer = transformer.double()
    encoder = transformer.encoder
    weight, bias = encoder.patch_embed.proj.weight, encoder.patch_embed.proj.bias
    tokens = []
    for t in range(2):
        for y in range(4):
            for x in range(4):
                cube_TCHW = clip_TCHW[2 * t : 2 * t + 2, :, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8].double()
                tokens.append((weight * cube_TCHW.transpose(0, 1)).sum((1, 2, 3, 4)) + bias)
    x_NC = torch.stack(tokens) + transformer.positions[0]
    if transformer.has_cls:
        x_NC = torch.cat([transformer.cls_token[0], x_NC])
    for block in encoder.blocks:
        x_NC = x_NC + attention_by_hand(block.attn, layer_norm(x_NC, block.norm1))
        hidden = layer_norm(x_NC, block.norm2) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        x_NC = x_NC + hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
    return layer_norm(x_NC, encoder.norm)


def attention_by_hand(attn: SelfAttention, x_NC: Tensor) -> Tensor:
    wq, wk, wv = attn.qkv.weight.chunk(3)
    q, k, v = x_NC @ wq.T + attn.q_bias, x_NC @ wk.T, x_NC @ wv.T + attn.v_bias
    heads = []
    for part in range(3):
        of_head = slice(8 * part, 8 * part + 8)
        logits = q[:, of_head] @ k[:, of_head].T / math.sqrt(8)
        weights = logits.exp() / logits.exp().sum(1, keepdim=True)
        heads.append(weights @ v[:, of_head])
    return torch.cat(heads, 1) @ attn.proj.weight.T + attn.proj.bias


@pytest.mark.parametrize("kind", [{}, {"class_token": True}, {"learned_positions": True}])
def test_the_tokens_are_those_of_the_formulas(kind):
    transformer = model(**kind)
    with torch.no_grad():
        ours = transformer.forward_features(clips())
        theirs = torch.stack([by_hand(transformer, clip) for clip in clips()])
    assert torch.allclose(ours.double(), theirs, rtol=1e-4, atol=1e-4)  # two layers of float32 on values of about 10


def test_the_mean_of_the_tokens_is_pooled_without_a_class_token():
    transformer = model()
    with torch.no_grad():
        x_BNC = transformer.forward_features(clips())
        assert torch.allclose(transformer(clips()), transformer.pool_norm(x_BNC.mean(1)), atol=1e-6)


def test_the_mean_after_merging_is_not_weighted():
    """As the official code of UMT and vid-TLDR has it."""
    transformer = model()
    reduced = tokred.reduce(transformer, "tome", r=[5, 3])
    with torch.no_grad():
        x_BKC = reduced.forward_features(clips())
        assert torch.allclose(reduced(clips()), transformer.pool_norm(x_BKC.mean(1)), atol=1e-6)


def test_the_class_token_is_pooled_where_there_is_one():
    transformer = model(class_token=True)
    with torch.no_grad():
        x_BNC = transformer.forward_features(clips())
        assert torch.allclose(transformer(clips()), transformer.pool_norm(x_BNC[:, 0]), atol=1e-6)


def test_classes_are_read_from_the_pooled_feature():
    transformer = model(num_classes=7)
    with torch.no_grad():
        pooled_BC = transformer.pooled(transformer.last_tokens(clips()))
        assert torch.equal(transformer(clips()), transformer.classifier(pooled_BC))
    assert transformer(clips()).shape == (2, 7)


def test_the_sizes_are_known():
    transformer = model(class_token=True)
    assert (transformer.depth, transformer.prefix, transformer.num_tokens) == (2, 1, 33)
    assert transformer.grid == (2, 4, 4)
    assert transformer.sample_shape == (4, 3, 32, 32)


def test_fixed_positions_are_no_weights():
    names = set(model().state_dict()) ^ set(model(learned_positions=True).state_dict())
    assert names == {"positions"}


def test_the_sinusoid_is_that_of_the_formula():
    table_NC = sinusoid(50, 6)
    for n in (0, 1, 49):
        for j in range(6):
            angle = n / 10000 ** (2 * (j // 2) / 6)
            assert table_NC[n, j].item() == pytest.approx(math.sin(angle) if j % 2 == 0 else math.cos(angle), abs=1e-6)


@pytest.mark.parametrize("dim", [24, 25, 26])
def test_the_separable_sinusoid_gives_each_axis_its_channels(dim):
    table = separable_sinusoid((2, 3, 4), dim).view(2, 3, 4, dim)
    third = dim // 3
    assert torch.equal(table[:, 0, 0, : dim - 2 * third], sinusoid(2, dim - 2 * third))
    assert torch.equal(table[0, :, 0, dim - 2 * third : dim - third], sinusoid(3, third))
    assert torch.equal(table[0, 0, :, dim - third :], sinusoid(4, third))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        *(
            ({name: 0}, f"{name} must be a whole number of at least 1; got 0")
            for name in ("num_frames", "img_size", "depth", "embed_dim")
        ),
        *(
            ({name: -1}, f"{name} must be a whole number of at least 1; got -1")
            for name in ("patch_size", "tubelet", "num_heads")
        ),
        ({"num_classes": -1}, "num_classes must be a whole number of at least 0; got -1"),
        ({"depth": True}, "depth must be a whole number of at least 1; got True"),
        ({"embed_dim": 24.0}, "embed_dim must be a whole number of at least 1; got 24.0"),
        ({"img_size": 30}, "img_size must be a multiple of patch_size=8; got 30"),
        ({"num_frames": 5}, "num_frames must be a multiple of tubelet=2; got 5"),
        ({"embed_dim": 25}, "embed_dim must be a multiple of num_heads=3; got 25"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        VideoTransformer(**(SIZES | sizes))


@pytest.mark.parametrize("shape", [(2, 8, 3, 32, 32), (2, 3, 4, 32, 32), (2, 4, 3, 16, 16), (4, 3, 32, 32)])
def test_clips_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"clips must be \(B, 4, 3, 32, 32\); got "):
        model()(torch.zeros(shape))
