"""The VisionTransformers of timm.

With CLS, mean or other pooling, distillation token, registers, LayerScale, qk-norm. The model is run from outside, block by
block, in two halves; nothing in it is changed.
"""

import difflib
import inspect
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import attention as timm_attention
from timm.layers.attention_pool import AttentionPoolLatent
from timm.models import vision_transformer as timm_vits
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tokred import BACKBONES, Backbone, Tokens, Widths
from tokred.foreign import evaluating, expect_close, linear_macs
from tokred.in_place import run_mlp
from tokred.preprocess import Preprocess
from tokred.registry import unknown
from tokred.transformer import heads, rows_of
from tokred.weights import load_strictly, read_state

PREFIX = "timm/"
SIZES = tuple(inspect.signature(timm_vits.VisionTransformer).parameters)
LIBRARY = f"timm {timm.__version__}"


@BACKBONES.register("timm_vit")
class TimmViT(Backbone):
    """Any plain VisionTransformer of timm: ViT, DeiT, AugReg, MAE, CLIP, SigLIP, DINOv2 and others.

    Around a timm model, whose parameters it shares: images (B, 3, H, W) to what the model gives.
    """

    prefixes = (PREFIX,)

    def __init__(self, vit: timm_vits.VisionTransformer):
        super().__init__()
        _refuse_what_cannot_be_cut(vit)
        self.vit = vit
        self.depth = len(vit.blocks)
        self.prefix, self.has_cls = vit.num_prefix_tokens, vit.has_class_token
        self.gives_classes = vit.num_classes > 0
        self.num_tokens = vit.patch_embed.num_patches + self.prefix
        self.sample_shape = (3, *vit.patch_embed.img_size)
        self.grid = (1, *vit.patch_embed.grid_size)
        _prove_halves(self)

    @classmethod
    def names(cls) -> list[str]:
        return [
            PREFIX + name for name in timm.list_models(module="vision_transformer") + timm.list_models(module="deit")
        ]

    @classmethod
    def build(cls, name: str, *, weights: str | None = None, **sizes: Any) -> "TimmViT":
        name = name.removeprefix(PREFIX)
        if not timm.is_model(name):
            near = ", ".join(difflib.get_close_matches(PREFIX + name, cls.names(), n=3)) or "none"
            raise ValueError(
                f"timm has no plain VisionTransformer {name!r}; near it are {near}; `tokred list 'timm/*'` names all"
            )
        if strange := [
            size for size in sizes if size not in SIZES
        ]:  # timm's own would have it read files and addresses
            raise ValueError(unknown(f"the sizes of {name}", strange[0], SIZES))
        try:
            model = timm.create_model(name, pretrained=weights == "pretrained", **sizes)
        except (TypeError, AssertionError, ZeroDivisionError) as error:
            raise ValueError(f"{name} does not take {sizes}: {error}") from error
        except Exception as error:  # the hub client raises many kinds, of its own and of the libraries below it
            if weights != "pretrained":
                raise
            raise ValueError(
                f"the pretrained weights of {name} could not be had ({type(error).__name__}); without a network, give "
                "weights=PATH of a file fetched elsewhere, or weights=random"
            ) from error
        backbone = cls.wrap(model)
        if weights not in (None, "pretrained", "random"):
            state = timm_vits.checkpoint_filter_fn(read_state(weights), model)
            load_strictly(model, state, Path(weights))
        return backbone

    @classmethod
    def adapts(cls, model: nn.Module) -> bool:
        return any(base.__module__.startswith("timm.models.") for base in type(model).__mro__)

    @classmethod
    def wrap(cls, model: nn.Module) -> "TimmViT":
        return cls(model)  # whose __init__ refuses what is none

    def embed(self, inputs: Tensor) -> Tokens:
        if tuple(inputs.shape[1:]) != self.sample_shape:
            raise ValueError(f"images must be (B, {', '.join(map(str, self.sample_shape))}); got {tuple(inputs.shape)}")
        vit = self.vit
        return Tokens(vit.norm_pre(vit._pos_embed(vit.patch_embed(inputs))), prefix=self.prefix, grid=self.grid)

    def qkv(self, layer: int, tokens: Tokens, part: str = "qkv") -> tuple[Tensor, ...]:
        attn: Any = self.vit.blocks[layer].attn
        x_BNC, rows = self._to_attention(layer, tokens), rows_of(part, attn.num_heads * attn.head_dim)
        if part == "qkv":
            y_BNX = attn.qkv(x_BNC)
        else:
            y_BNX = F.linear(x_BNC, attn.qkv.weight[rows], None if attn.qkv.bias is None else attn.qkv.bias[rows])
        found = heads(y_BNX, attn.num_heads, attn.head_dim)
        return found if part == "v" else (attn.q_norm(found[0]), attn.k_norm(found[1]), *found[2:])

    def project(self, layer: int, tokens: Tokens, out_BHND: Tensor) -> Tokens:
        block, attn = self.vit.blocks[layer], self.vit.blocks[layer].attn
        y_BNC = out_BHND.transpose(1, 2).flatten(2)
        if hasattr(attn, "norm"):  # timm has it from 1.0.17 on
            y_BNC = attn.norm(y_BNC)
        if getattr(attn, "gate", None) is not None:
            y_BNC = y_BNC * attn.gate(self._to_attention(layer, tokens)).sigmoid()
        y_BNC = attn.proj_drop(attn.proj(y_BNC))
        y_BNC = block.norm1(y_BNC) if isinstance(block, timm_vits.ResPostBlock) else block.ls1(y_BNC)
        return tokens.with_x(tokens.x_BNC + block.drop_path1(y_BNC))

    def scale(self, layer: int) -> float:
        attn: Any = self.vit.blocks[layer].attn
        return attn.scale

    def _to_attention(self, layer: int, tokens: Tokens) -> Tensor:
        block = self.vit.blocks[layer]
        return tokens.x_BNC if isinstance(block, timm_vits.ResPostBlock) else block.norm1(tokens.x_BNC)

    def feedforward(self, layer: int, tokens: Tokens) -> Tokens:
        block, x_BNC = self.vit.blocks[layer], tokens.x_BNC
        if isinstance(block, timm_vits.ResPostBlock):
            return tokens.with_x(x_BNC + block.drop_path2(block.norm2(run_mlp(block.mlp, x_BNC))))
        return tokens.with_x(x_BNC + block.drop_path2(block.ls2(run_mlp(block.mlp, block.norm2(x_BNC)))))

    def normed(self, tokens: Tokens) -> Tokens:
        return tokens.with_x(self.vit.norm(tokens.x_BNC))

    def head(self, tokens: Tokens) -> Tensor:
        vit, tokens = self.vit, self.normed(tokens)
        if vit.global_pool != "avg" or vit.attn_pool is not None:
            if tokens.valid_BN is not None and vit.global_pool != "token":
                raise ValueError(f"pooling {vit.global_pool!r} cannot leave out tokens where counts differ by sample")
            return vit.forward_head(tokens.x_BNC)
        pooled_BC = tokens.mean_pool(skip_prefix=not vit.pool_include_prefix)
        return vit.head(vit.head_drop(vit.fc_norm(pooled_BC)))

    def preprocess(self) -> Preprocess:
        config = timm.data.resolve_model_data_config(self.vit)
        crop_pct, crop_mode = config["crop_pct"], config["crop_mode"]
        if crop_mode == "squash" and crop_pct == 1:
            crop_pct = None
        elif crop_mode != "center":
            raise ValueError(f"pictures cut in timm's way {crop_mode!r} with crop_pct={crop_pct} are not supported")
        return Preprocess(config["mean"], config["std"], config["interpolation"], crop_pct, antialias=True)

    def widths(self) -> Widths:
        vit, attentions = self.vit, [block.attn for block in self.vit.blocks]
        return Widths(
            embed=_embed_macs(vit, self.sample_shape),
            query_key=tuple(attn.qkv.weight.numel() * 2 // 3 for attn in attentions),
            value=tuple(attn.qkv.weight.numel() // 3 for attn in attentions),
            output=tuple(linear_macs(attn) - attn.qkv.weight.numel() for attn in attentions),
            logits=tuple(attn.num_heads * attn.head_dim for attn in attentions),
            mixing=tuple(attn.num_heads * attn.head_dim for attn in attentions),
            mlp=tuple(linear_macs(block.mlp) for block in vit.blocks),
            channels=vit.embed_dim,
            heads=attentions[0].num_heads,
            **_head_macs(vit, self.prefix),
        )


def _refuse_what_cannot_be_cut(vit: nn.Module) -> None:
    """Raises ValueError with the reason where tokens cannot be taken out between attention and MLP."""
    name = type(vit).__name__
    if not isinstance(vit, timm_vits.VisionTransformer):
        raise ValueError(f"{name} cannot be reduced: {_why_not(vit)}; plain VisionTransformers of timm can")
    for block in vit.blocks:
        kind = type(block)
        if kind not in (timm_vits.Block, timm_vits.ResPostBlock):
            reason = "is not known here"
            if "Parallel" in kind.__name__:
                reason = "runs attention and MLP side by side, with no place between them"
            raise ValueError(f"{name} cannot be reduced: its block {kind.__module__}.{kind.__name__} {reason}")
        if type(block.attn) is not timm_attention.Attention:
            raise ValueError(
                f"{name} cannot be reduced: its attention {type(block.attn).__name__} is not the plain one"
            )
        if block.attn.attn_drop.p > 0:
            raise ValueError(
                f"{name} cannot be reduced with dropout on attention weights (attn_drop_rate={block.attn.attn_drop.p})"
            )
    if not isinstance(vit.patch_drop, nn.Identity):
        raise ValueError(f"{name} cannot be reduced with patch_drop_rate > 0, which takes out tokens itself")


def _why_not(model: nn.Module) -> str:
    parts = [*model.named_modules(), *model.named_parameters(), *model.named_buffers()]
    names = {name.rsplit(".", 1)[-1] for name, _ in parts} | set(vars(model))
    modules = {type(module).__name__ for module in model.modules()}
    if any("Window" in kind for kind in modules) or "window_size" in names:
        return "its attention works in windows, which need every token in its place"
    if "rope" in names or "rope_embeds" in names:
        return "its rotary positions would have to follow the tokens that stay, which is not built yet"
    if any("RelPos" in kind or "relative_position" in kind for kind in modules | names):
        return "its relative positions need every token in its place"
    return "it is no plain VisionTransformer"


def _prove_halves(backbone: TimmViT) -> None:
    """Every block in two halves must equal the block itself; of a class that changes the forward pass, so must the whole
    model. Raises ValueError where not (a timm release that changed a block, say)."""
    vit = backbone.vit
    parameter = next(vit.parameters())
    if parameter.device.type == "meta":
        return
    x_BNC = torch.linspace(-1, 1, 5 * vit.embed_dim, device=parameter.device, dtype=parameter.dtype).view(1, 5, -1)
    with torch.no_grad(), evaluating(vit):
        for layer, block in enumerate(vit.blocks):
            halves = backbone.feedforward(layer, backbone.attend(layer, Tokens(x_BNC))[0]).x_BNC
            expect_close(halves, block(x_BNC), f"block {layer} of {type(vit).__name__}", library=LIBRARY, before=x_BNC)
        if type(vit) not in (timm_vits.VisionTransformer, VisionTransformerDistilled):
            image = torch.linspace(-1, 1, 3 * backbone.sample_shape[1] * backbone.sample_shape[2]).to(x_BNC)
            image, what = image.view(1, *backbone.sample_shape), f"a {type(vit).__name__}"
            # an untrained head may be all zeros, behind which nothing can be told apart
            expect_close(backbone.forward_features(image), vit.forward_features(image), what, library=LIBRARY)
            expect_close(backbone(image), vit(image), what, library=LIBRARY)


def _head_macs(vit: timm_vits.VisionTransformer, prefix: int) -> dict[str, int]:
    """What pooling and classifier cost: once, for each token that leaves the last layer, for each pair of them."""
    classifier, pool = linear_macs(vit.head) + linear_macs(getattr(vit, "head_dist", None)), vit.attn_pool
    if isinstance(pool, AttentionPoolLatent):  # a few latent queries look at the tokens
        per_token = pool.kv.weight.numel() + pool.kv.out_features * pool.latent_len
        once = classifier + pool.latent_len * (linear_macs(pool) - pool.kv.weight.numel())
        unseen = 0 if vit.pool_include_prefix else prefix
        return {"head": once - unseen * per_token, "head_per_token": per_token}
    if vit.global_pool == "prr":  # the tokens look at one another, without projections
        return {"head": classifier, "head_per_pair": 2 * vit.embed_dim}
    if vit.global_pool == "":  # each token is classified
        return {"head": 0, "head_per_token": classifier}
    return {"head": classifier}


def _embed_macs(vit: timm_vits.VisionTransformer, sample_shape: tuple[int, ...]) -> int:
    """Of one image: the closed form of a plain patch embedding, else counted (a hybrid's convolutions)."""
    if isinstance(vit.patch_embed.proj, nn.Conv2d):
        return vit.patch_embed.num_patches * vit.patch_embed.proj.weight.numel()
    parameter = next(vit.parameters())
    image = torch.zeros(1, *sample_shape, device=parameter.device, dtype=parameter.dtype)
    with torch.no_grad(), evaluating(vit), FlopCounterMode(display=False) as counter:
        vit.patch_embed(image)
    return counter.get_total_flops() // 2
