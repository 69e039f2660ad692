"""timm's VisionTransformers: with nothing removed, their own outputs; what cannot be cut, refused."""

from functools import partial

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import Mlp, SwiGLU, SwiGLUPacked
from timm.models import vision_transformer as timm_vits
from torch import Tensor, nn

import tokred
from tokred import BACKBONES
from tokred.reduction import as_backbone

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 5}
MEAN = {"class_token": False, "global_pool": "avg"}
VARIANTS = {
    "class token": {},
    "mean": MEAN,
    "mean beside a class token": {"global_pool": "avg"},
    "mean with the prefix": {"global_pool": "avg", "pool_include_prefix": True},
    "mean without a norm after it": {"global_pool": "avg", "fc_norm": False},
    "largest": {"global_pool": "max"},
    "largest and mean": {"global_pool": "avgmax"},
    "attention pooling": {"class_token": False, "global_pool": "map"},
    "attention pooling beside a class token": {"global_pool": "map"},
    "pooling of pairs": {"global_pool": "prr"},
    "no pooling": {"global_pool": ""},
    "no classes": {"num_classes": 0},
    "registers": {"reg_tokens": 4},
    "registers without a class token": {"reg_tokens": 4, **MEAN},
    "positions for patches only": {"no_embed_class": True, "reg_tokens": 2},
    "no positions": {"pos_embed": "none"},
    "LayerScale": {"init_values": 0.3},
    "qk-norm": {"qk_norm": True},
    "qk-norm and scaled attention": {"qk_norm": True, "scale_attn_norm": True},
    "norm after attention and MLP": {"block_fn": timm_vits.ResPostBlock, **MEAN},
    "norm before the blocks": {"pre_norm": True},
    "no final norm": {"final_norm": False},
    "SwiGLU": {"mlp_layer": SwiGLU},
    "packed SwiGLU": {"mlp_layer": SwiGLUPacked},
    "norm in the MLP": {"mlp_layer": partial(Mlp, norm_layer=nn.LayerNorm)},
    "no bias": {"qkv_bias": False, "proj_bias": False},
    "pictures of any size": {"dynamic_img_size": True},
    "dropout": {"pos_drop_rate": 0.1, "proj_drop_rate": 0.1, "drop_path_rate": 0.1, "drop_rate": 0.1},
}


def vit(name: str = "vit_tiny_patch16_224", **more) -> nn.Module:
    """With weights spread so that every part of it counts."""
    model = timm.create_model(name, **(TINY | more)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return model


def images(num: int = 2, size: int = 32) -> Tensor:
    return torch.randn(num, 3, size, size, generator=torch.Generator().manual_seed(1))


def same(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)  # the same sums in float32


@pytest.mark.parametrize("variant", VARIANTS)
def test_with_nothing_removed_the_outputs_are_the_models_own(variant):
    model = vit(**VARIANTS[variant])
    with torch.no_grad():
        assert same(tokred.reduce(model, "tome")(images()), model(images()))


@pytest.mark.parametrize("variant", VARIANTS)
def test_with_nothing_removed_the_features_are_the_models_own(variant):
    model = vit(**VARIANTS[variant])
    with torch.no_grad():
        assert same(tokred.reduce(model, "tome").forward_features(images()), model.forward_features(images()))


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "no pooling"])
def test_with_tokens_removed_the_outputs_have_the_models_shape(variant):
    model = vit(**VARIANTS[variant])
    reduced = tokred.reduce(model, "tome", r=3)
    with torch.no_grad():
        assert reduced.trace(images()).tokens[-1] == as_backbone(model).num_tokens - 9
        assert reduced(images()).shape == model(images()).shape


def test_a_distilled_model_gives_its_own_outputs():
    model = vit("deit_tiny_distilled_patch16_224")
    with torch.no_grad():
        assert same(tokred.reduce(model, "tome")(images()), model(images()))


def test_a_distilled_model_in_training_gives_both_heads():
    model = vit("deit_tiny_distilled_patch16_224")
    model.set_distilled_training(True)
    ours, theirs = tokred.reduce(model.train(), "tome", r=2)(images()), model(images())
    assert [value.shape for value in ours] == [value.shape for value in theirs]


@pytest.mark.parametrize(
    ("variant", "prefix", "has_cls"),
    [
        ("class token", 1, True),
        ("mean", 0, False),
        ("registers", 5, True),
        ("registers without a class token", 4, False),
        ("positions for patches only", 3, True),
    ],
)
def test_prefix_tokens_are_known(variant, prefix, has_cls):
    backbone = as_backbone(vit(**VARIANTS[variant]))
    assert (backbone.prefix, backbone.has_cls, backbone.num_tokens) == (prefix, has_cls, 16 + prefix)
    assert backbone.grid == (1, 4, 4)


def test_a_picture_that_is_not_square_has_its_grid():
    backbone = as_backbone(vit(img_size=(32, 16)))
    assert backbone.grid == (1, 4, 2)
    with torch.no_grad():
        x = torch.randn(1, 3, 32, 16)
        assert same(backbone(x), backbone.vit(x))


def test_proportional_attention_is_attention_to_copies():
    """A token of size 3 is looked at like three equal tokens."""
    backbone = as_backbone(vit())
    x_BNC = torch.randn(1, 5, 24, generator=torch.Generator().manual_seed(0))
    size_BN = torch.tensor([[1.0, 3.0, 1.0, 2.0, 1.0]])
    with torch.no_grad():
        weighed, _ = backbone.attend(0, tokred.Tokens(x_BNC), size_BN.log())
        copies, _ = backbone.attend(0, tokred.Tokens(x_BNC.repeat_interleave(size_BN[0].long(), 1)))
    assert same(weighed.x_BNC, copies.x_BNC[:, [0, 1, 4, 5, 7]])


def test_padding_is_not_looked_at():
    backbone = as_backbone(vit())
    x_BNC = torch.randn(1, 5, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        padded, _ = backbone.attend(0, tokred.Tokens(x_BNC, valid_BN=torch.tensor([[True, True, True, False, False]])))
        alone, _ = backbone.attend(0, tokred.Tokens(x_BNC[:, :3]))
    assert same(padded.x_BNC[:, :3], alone.x_BNC)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_of_another_precision_passes_the_self_test(dtype):
    assert as_backbone(vit().to(dtype)).vit.blocks[0].attn.qkv.weight.dtype == dtype


# What is refused

ODD = {"img_size": 64, "patch_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}
REFUSED = {
    "windows": (
        lambda: timm.create_model("swin_tiny_patch4_window7_224", embed_dim=16, depths=(1, 1), num_heads=(2, 2)),
        "SwinTransformer cannot be reduced: its attention works in windows",
    ),
    "parallel blocks": (
        lambda: vit(block_fn=timm_vits.ParallelScalingBlock),
        "VisionTransformer cannot be reduced: its block .*ParallelScalingBlock runs attention and MLP side by side",
    ),
    "parallel things": (
        lambda: vit(block_fn=timm_vits.ParallelThingsBlock),
        "its block .*ParallelThingsBlock runs attention and MLP side by side",
    ),
    "rope": (
        lambda: timm.create_model("eva02_tiny_patch14_224", **(ODD | {"patch_size": 16})),
        "Eva cannot be reduced: its rotary positions would have to follow the tokens that stay, which is not built yet",
    ),
    "relative positions": (
        lambda: timm.create_model("beit_base_patch16_224", **ODD),
        "Beit cannot be reduced: its relative positions need every token in its place",
    ),
    "relative positions in a ViT": (
        lambda: timm.create_model("vit_relpos_small_patch16_224", **(ODD | {"img_size": 64})),
        "VisionTransformerRelPos cannot be reduced: its relative positions",
    ),
    "convolutions": (
        lambda: timm.create_model("resnet18"),
        "ResNet cannot be reduced: it is no plain VisionTransformer",
    ),
    "class attention": (lambda: timm.create_model("cait_xxs24_224", **ODD), "Cait cannot be reduced: it is no plain"),
    "tokens dropped by the model": (lambda: vit(patch_drop_rate=0.2), "cannot be reduced with patch_drop_rate > 0"),
    "dropout on attention": (
        lambda: vit(attn_drop_rate=0.1),
        r"cannot be reduced with dropout on attention weights \(attn_drop_rate=0.1\)",
    ),
    "a block of one's own": (
        lambda: vit(block_fn=type("OwnBlock", (timm_vits.Block,), {})),
        "its block .*OwnBlock is not known here",
    ),
    "attention of one's own": (lambda: with_attention(vit()), "its attention OwnAttention is not the plain one"),
}


def with_attention(model: nn.Module) -> nn.Module:
    model.blocks[1].attn.__class__ = type("OwnAttention", (type(model.blocks[1].attn),), {})
    return model


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_cut_is_refused_with_the_reason_in_one_line(what):
    make, message = REFUSED[what]
    with pytest.raises(ValueError, match=message) as error:
        tokred.reduce(make(), "tome", r=1)
    assert "\n" not in str(error.value)


def test_a_block_whose_halves_are_not_the_whole_is_refused(monkeypatch):
    """As after a timm release that changed what a block does."""
    monkeypatch.setattr(
        timm_vits.Block, "forward", lambda self, x, *_: x + self.attn(self.norm1(x)) + self.mlp(self.norm2(x))
    )
    with pytest.raises(
        ValueError, match="block 0 of VisionTransformer run in two halves does not give what it gives whole"
    ):
        as_backbone(vit())


def test_a_block_whose_halves_are_not_the_whole_is_refused_though_it_is_untrained(monkeypatch):
    """Weights of .02 and a LayerScale of .001: what a block adds is far below what it is given."""
    monkeypatch.setattr(timm_vits.Block, "forward", lambda self, x, *_: x + self.ls1(self.attn(self.norm1(x))))
    with pytest.raises(ValueError, match="run in two halves does not give what it gives whole"):
        as_backbone(timm.create_model("vit_tiny_patch16_224", **TINY, init_values=1e-3).eval())


def test_a_model_that_changes_the_forward_pass_is_refused():
    class Own(timm_vits.VisionTransformer):
        def forward_features(self, x, *_, **__):
            return super().forward_features(x.flip(-1))

    with pytest.raises(ValueError, match="a Own run in two halves does not give what it gives whole"):
        as_backbone(Own(**TINY))


@pytest.mark.parametrize("shape", [(2, 3, 48, 48), (2, 1, 32, 32), (3, 32, 32), (2, 4, 3, 32, 32)])
def test_pictures_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"images must be \(B, 3, 32, 32\); got "):
        tokred.reduce(vit(), "tome", r=1)(torch.zeros(shape))


# Built by name


def test_every_plain_vit_of_timm_has_a_name():
    names = tokred.list_backbones("timm/*")
    assert {"timm/vit_small_patch16_224", "timm/deit_small_distilled_patch16_224"} <= set(names)
    assert BACKBONES["timm_vit"].names() == [name for name in BACKBONES["timm_vit"].names() if name.startswith("timm/")]


def test_a_backbone_is_built_by_name_with_its_sizes():
    backbone = tokred.create_backbone("timm/vit_small_patch16_224", **TINY)
    assert (backbone.depth, backbone.num_tokens, backbone.training) == (3, 17, False)


def test_a_size_that_the_model_does_not_take_is_refused():
    with pytest.raises(ValueError, match="no 'num_frames' in the sizes of vit_small_patch16_224"):
        tokred.create_backbone("timm/vit_small_patch16_224", num_frames=4)


@pytest.mark.parametrize("option", ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"])
def test_what_has_timm_read_a_file_or_an_address_is_no_size(option):
    with pytest.raises(ValueError, match=f"no '{option}' in the sizes of"):
        tokred.create_backbone("timm/vit_small_patch16_224", **{option: "x.pth"})


@pytest.mark.parametrize(("size", "value"), [("embed_dim", 25), ("num_heads", 0)])
def test_sizes_that_do_not_fit_are_refused(size, value):
    with pytest.raises(ValueError, match=f"vit_small_patch16_224 does not take .*'{size}': {value}"):
        tokred.create_backbone("timm/vit_small_patch16_224", **(TINY | {size: value}))


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_are_loaded_from_a_file(suffix, tmp_path):
    state, path = vit().state_dict(), tmp_path / f"vit.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(state, path)
    backbone = tokred.create_backbone("timm/vit_tiny_patch16_224", weights=str(path), **TINY)
    assert all(torch.equal(value, state[name]) for name, value in backbone.vit.state_dict().items())


def test_weights_of_another_model_are_refused(tmp_path):
    save_file(vit(num_classes=7).state_dict(), tmp_path / "vit.safetensors")
    with pytest.raises(ValueError, match=r"2 of another shape \(head.weight is \[7, 24\], not \[5, 24\], head.bias"):
        tokred.create_backbone("timm/vit_tiny_patch16_224", weights=str(tmp_path / "vit.safetensors"), **TINY)


def test_pretrained_weights_without_a_network_are_refused_with_what_to_do():
    with pytest.raises(
        ValueError, match="the pretrained weights of vit_tiny_patch16_224 could not be had .*weights=PATH"
    ):
        tokred.create_backbone("timm/vit_tiny_patch16_224", weights="pretrained")


def test_pictures_are_prepared_as_the_model_was_trained():
    prepared = tokred.create_backbone("timm/vit_tiny_patch16_224", **TINY).preprocess()
    assert (prepared.mean, prepared.interpolation) == ((0.5, 0.5, 0.5), "bicubic")
