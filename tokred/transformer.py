"""A plain video transformer with joint space-time attention: what UMT's encoder and the embedded models are made of.

Pre-norm blocks, attention without a key bias (BEiT's and VideoMAE's form), exact GELU. State-dict keys are those of the
official UMT vision encoder (``encoder.*``, ``pool_norm.*``).

Dimension key: B batch, T frames, N tokens, C channels, H heads, D channels of a head.
"""

import inspect
from numbers import Integral
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokred.in_place import run_mlp
from tokred.model import Backbone, Widths
from tokred.preprocess import Preprocess
from tokred.registry import unknown
from tokred.tokens import Tokens

NORM_EPS = 1e-6
DIVIDED = {
    "img_size": "patch_size",
    "num_frames": "tubelet",
    "embed_dim": "num_heads",
}  # each into whole parts of so many


class SelfAttention(nn.Module):
    """Its qkv has no bias; q and v have one of their own, k has none."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def qkv_of(self, x_BNC: Tensor, part: str) -> tuple[Tensor, ...]:
        """Queries, keys and values, or ``part`` of them, (B, H, N, D)."""
        C = self.proj.in_features
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        rows = rows_of(part, C)
        return heads(F.linear(x_BNC, self.qkv.weight[rows], bias[rows]), self.num_heads, C // self.num_heads)


class MLP(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x_BNC: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_BNC)))


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int, mlp_ratio: float):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, NORM_EPS), nn.LayerNorm(dim, NORM_EPS)
        self.attn = SelfAttention(dim, num_heads)
        self.mlp = MLP(dim, int(dim * mlp_ratio))


class PatchEmbed(nn.Module):
    def __init__(self, dim: int, tubelet: int, patch_size: int):
        super().__init__()
        size = (tubelet, patch_size, patch_size)
        self.proj = nn.Conv3d(3, dim, size, stride=size)

    def forward(self, clip_BTCHW: Tensor) -> Tensor:
        if clip_BTCHW.is_cuda:
            return F.linear(self._patches(clip_BTCHW), self.proj.weight.flatten(1), self.proj.bias)
        return self.proj(clip_BTCHW.transpose(1, 2)).flatten(2).mT.contiguous()  # else the tokens of a layer lie apart

    def _patches(self, clip_BTCHW: Tensor) -> Tensor:
        """(B, N, C): the pixels of each patch side by side. On CUDA a product of these is much faster than the convolution."""
        B, T, C, H, W = clip_BTCHW.shape
        t, h, w = self.proj.kernel_size
        parts = clip_BTCHW.reshape(B, T // t, t, C, H // h, h, W // w, w)
        return parts.permute(0, 1, 4, 6, 3, 2, 5, 7).reshape(B, -1, C * t * h * w)


class Encoder(nn.Module):
    """Holds the parameters under the names of the official checkpoints; ``VideoTransformer`` runs them."""

    def __init__(self, dim: int, depth: int, num_heads: int, mlp_ratio: float, tubelet: int, patch_size: int):
        super().__init__()
        self.patch_embed = PatchEmbed(dim, tubelet, patch_size)
        self.blocks = nn.ModuleList(Block(dim, num_heads, mlp_ratio) for _ in range(depth))
        self.norm: nn.Module = nn.LayerNorm(dim, NORM_EPS)


class VideoTransformer(Backbone):
    """Clips (B, T, 3, H, W) to logits (B, num_classes), or to the pooled feature (B, C) where there are no classes.

    Pools the class token where there is one, else the unweighted mean of the tokens (as UMT does).
    Positions are a fixed sinusoid over the flattened place, that of the grid ``positions_from`` interpolated where it is given,
    or parameters (``learned_positions``). ``final_norm`` before pooling, ``pool_norm`` after it.
    """

    pixels = Preprocess()
    positions: Tensor

    def __init__(
        self,
        *,
        img_size: int = 224,
        num_frames: int = 8,
        tubelet: int = 1,
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        num_classes: int = 0,
        class_token: bool = False,
        learned_positions: bool = False,
        positions_from: tuple[int, int, int] | None = None,
        final_norm: bool = True,
        pool_norm: bool = True,
    ):
        super().__init__()
        _check_sizes(
            **{"img_size": img_size, "patch_size": patch_size, "num_frames": num_frames, "tubelet": tubelet},
            **{"embed_dim": embed_dim, "num_heads": num_heads, "depth": depth, "num_classes": num_classes},
        )
        self.depth, self.num_heads = depth, num_heads
        self.sample_shape = (num_frames, 3, img_size, img_size)
        self.grid = (num_frames // tubelet, img_size // patch_size, img_size // patch_size)
        self.has_cls, self.prefix = class_token, int(class_token)
        self.gives_classes = num_classes > 0
        num_patches = self.grid[0] * self.grid[1] * self.grid[2]
        self.num_tokens = num_patches + self.prefix
        self.embed_dim = embed_dim
        self.encoder = Encoder(embed_dim, depth, num_heads, mlp_ratio, tubelet, patch_size)
        if not final_norm:
            self.encoder.norm = nn.Identity()
        self.pool_norm = nn.LayerNorm(embed_dim, NORM_EPS) if pool_norm else nn.Identity()
        self.classifier = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if class_token else None
        if learned_positions:
            self.positions = nn.Parameter(0.5 * separable_sinusoid(self.grid, embed_dim)[None])
        else:
            start = positions_from or self.grid
            table_NC = sinusoid(start[0] * start[1] * start[2], embed_dim)
            self.register_buffer("positions", interpolated(table_NC, start, self.grid)[None], persistent=False)
        self.apply(_initialise)

    @classmethod
    def made(cls, **sizes: Any) -> Self:
        """One of these sizes. Raises ValueError on a size there is not."""
        known = inspect.signature(cls.__init__).parameters
        strange = [name for name in sizes if name == "self" or name not in known]
        if strange:
            raise ValueError(unknown("sizes", strange[0], [name for name in known if name != "self"]))
        return cls(**sizes)

    def set_positions(self, table_1NC: Tensor) -> None:
        """Fixed positions of a checkpoint. Raises ValueError where they are not as many as the tokens."""
        if table_1NC.shape != self.positions.shape:
            raise ValueError(
                f"the checkpoint's positions are {list(table_1NC.shape)}, the model's {list(self.positions.shape)}; give the "
                "num_frames and img_size that it was trained with"
            )
        self.positions = table_1NC.to(self.positions)

    def preprocess(self) -> Preprocess:
        return self.pixels

    def embed(self, inputs: Tensor) -> Tokens:
        expected = self.sample_shape
        if tuple(inputs.shape[1:]) != expected:
            raise ValueError(f"clips must be (B, {', '.join(map(str, expected))}); got {tuple(inputs.shape)}")
        x_BNC = self.encoder.patch_embed(inputs)
        x_BNC = x_BNC + self.positions.to(x_BNC.dtype)
        if self.cls_token is not None:
            x_BNC = torch.cat([self.cls_token.to(x_BNC.dtype).expand(x_BNC.shape[0], -1, -1), x_BNC], 1)
        return Tokens(x_BNC, prefix=self.prefix, grid=self.grid)

    def qkv(self, layer: int, tokens: Tokens, part: str = "qkv") -> tuple[Tensor, ...]:
        block = self.encoder.blocks[layer]
        return block.attn.qkv_of(block.norm1(tokens.x_BNC), part)

    def project(self, layer: int, tokens: Tokens, out_BHND: Tensor) -> Tokens:
        y_BNC = self.encoder.blocks[layer].attn.proj(out_BHND.transpose(1, 2).flatten(2))
        return tokens.with_x(tokens.x_BNC + y_BNC)

    def feedforward(self, layer: int, tokens: Tokens) -> Tokens:
        block = self.encoder.blocks[layer]
        return tokens.with_x(tokens.x_BNC + run_mlp(block.mlp, block.norm2(tokens.x_BNC)))

    def normed(self, tokens: Tokens) -> Tokens:
        return tokens.with_x(self.encoder.norm(tokens.x_BNC))

    def head(self, tokens: Tokens) -> Tensor:
        return self.classifier(self.pooled(tokens))

    def pooled(self, tokens: Tokens) -> Tensor:
        """(B, C): the final norm, then the class token or the mean of the tokens, then ``pool_norm``."""
        return self.pool(self.normed(tokens))

    def pool(self, normed: Tokens) -> Tensor:
        """(B, C), of tokens that had the final norm."""
        return self.pool_norm(normed.x_BNC[:, 0] if self.has_cls else normed.mean_pool())

    def widths(self) -> Widths:
        encoder, dim = self.encoder, self.embed_dim
        hidden = encoder.blocks[0].mlp.fc1.out_features
        head = self.classifier.weight.numel() if isinstance(self.classifier, nn.Linear) else 0
        return Widths(
            embed=(self.num_tokens - self.prefix) * encoder.patch_embed.proj.weight.numel(),
            query_key=(2 * dim * dim,) * self.depth,
            value=(dim * dim,) * self.depth,
            output=(dim * dim,) * self.depth,
            logits=(dim,) * self.depth,
            mixing=(dim,) * self.depth,
            mlp=(2 * dim * hidden,) * self.depth,
            head=head,
            channels=dim,
            heads=self.num_heads,
        )


def rows_of(part: str, channels: int) -> slice:
    """Of one linear map to queries, keys and values the rows of ``part``: "qkv", "qk" or "v"."""
    return {"qkv": slice(None), "qk": slice(0, 2 * channels), "v": slice(2 * channels, None)}[part]


def heads(y_BNX: Tensor, num_heads: int, head_dim: int) -> tuple[Tensor, ...]:
    """(B, H, N, D) each, of the channels of one map side by side."""
    return y_BNX.unflatten(-1, (-1, num_heads, head_dim)).permute(2, 0, 3, 1, 4).unbind(0)


def sinusoid(num_positions: int, dim: int) -> Tensor:
    """(N, C): sin at even and cos at odd channels of n / 10000^(2 floor(j/2) / C), over the flattened place n."""
    channel = torch.arange(dim, dtype=torch.float64)
    angle_NC = torch.arange(num_positions, dtype=torch.float64)[:, None] / 10000 ** (2 * (channel // 2) / dim)
    return torch.where(channel % 2 == 0, angle_NC.sin(), angle_NC.cos()).float()


def interpolated(table_NC: Tensor, have: tuple[int, int, int], want: tuple[int, int, int]) -> Tensor:
    """The table of another grid: bicubic over height and width, then linear over time, as UMT's action recognition does."""
    grid_TCHW = table_NC.view(*have, -1).permute(0, 3, 1, 2)
    if have[1:] != want[1:]:
        grid_TCHW = F.interpolate(grid_TCHW, want[1:], mode="bicubic", align_corners=False)
    flat_1XT = grid_TCHW.permute(1, 2, 3, 0).reshape(1, -1, have[0])
    if have[0] != want[0]:
        flat_1XT = F.interpolate(flat_1XT, want[0], mode="linear", align_corners=False)
    return flat_1XT.view(-1, *want[1:], want[0]).permute(3, 1, 2, 0).reshape(-1, table_NC.shape[1])


def separable_sinusoid(grid: tuple[int, int, int], dim: int) -> Tensor:
    """(T H W, C): a third of the channels tells each of t, y and x; where learned positions start from."""
    channels = [dim - 2 * (dim // 3), dim // 3, dim // 3]
    places = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
    return torch.cat([sinusoid(n, c)[p.flatten()] for n, c, p in zip(grid, channels, places, strict=True)], -1)


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        least = 0 if name == "num_classes" else 1
        if not isinstance(size, Integral) or isinstance(size, bool) or size < least:
            raise ValueError(f"{name} must be a whole number of at least {least}; got {size!r}")
    for name, part in DIVIDED.items():
        if sizes[name] % sizes[part]:
            raise ValueError(f"{name} must be a multiple of {part}={sizes[part]}; got {sizes[name]}")


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
