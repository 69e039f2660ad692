"""BERT in the form UMT uses it (ALBEF's): text layers, fusion layers that also look at a video, and a decoder of answers.

Parameters have the names of UMT's checkpoints, which inside a layer are Hugging Face's; the sums are those of its
``BertLayer`` (post-norm, exact GELU). What texts look at is a ``Context``: its keys and values are computed once and serve all
texts that look at it, which ``BertLayer`` cannot.

Dimension key: B texts, L word pieces, C channels, H heads, D channels of a head, V vocabulary, G contexts, S texts that look at
one context (B = G S, those of a context together), N places of a context.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-12
_LOGITS_AT_ONCE = 2**25  # 128 MiB in float32: of all texts and places they would be gigabytes


@dataclass(frozen=True)
class TextSizes:
    """``fusion_layer`` is the first layer that looks at a context; ``context_dim`` are the channels of what it looks at."""

    vocab_size: int = 30522
    dim: int = 768
    depth: int = 12
    num_heads: int = 12
    fusion_layer: int = 9
    context_dim: int = 768
    mlp_ratio: float = 4.0
    max_positions: int = 512

    def __post_init__(self):
        if self.dim % self.num_heads:
            raise ValueError(f"text_dim must be a multiple of text_heads; got {self.dim} and {self.num_heads}")
        if not 0 < self.fusion_layer < self.depth:
            raise ValueError(
                f"fusion_layer must lie between the layers, from 1 to text_depth - 1 = {self.depth - 1}; "
                f"got {self.fusion_layer}"
            )

    @property
    def num_fusion_layers(self) -> int:
        return self.depth - self.fusion_layer


class Context(NamedTuple):
    """Keys and values of one layer's cross-attention; ``mask_GN``: which places are real, None: all."""

    k_GHND: Tensor
    v_GHND: Tensor
    mask_GN: Tensor | None = None

    def of(self, some: list[int]) -> "Context":
        """That of some of the G."""
        return Context(self.k_GHND[some], self.v_GHND[some], None if self.mask_GN is None else self.mask_GN[some])


class _Projections(nn.Module):
    def __init__(self, sizes: TextSizes, context_dim: int):
        super().__init__()
        self.num_heads = sizes.num_heads
        self.query = nn.Linear(sizes.dim, sizes.dim)
        self.key, self.value = nn.Linear(context_dim, sizes.dim), nn.Linear(context_dim, sizes.dim)

    def heads(self, x_BLC: Tensor) -> Tensor:
        return x_BLC.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class _Residual(nn.Module):
    def __init__(self, dim_in: int, dim: int):
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(dim_in, dim), nn.LayerNorm(dim, NORM_EPS)

    def forward(self, y: Tensor, x_BLC: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(y) + x_BLC)


class _Attention(nn.Module):
    def __init__(self, sizes: TextSizes, context_dim: int | None = None):
        super().__init__()
        self.self = _Projections(sizes, context_dim or sizes.dim)
        self.output = _Residual(sizes.dim, sizes.dim)

    def context(self, x_GNC: Tensor, mask_GN: Tensor | None = None) -> Context:
        parts = self.self
        return Context(parts.heads(parts.key(x_GNC)), parts.heads(parts.value(x_GNC)), mask_GN)

    def forward(self, x_BLC: Tensor, context: Context, mask: Tensor | None) -> Tensor:
        """All queries of a context's texts in one go: B L places become G rows of S L."""
        num_contexts = len(context.k_GHND)
        q_GHQD = self.self.heads(self.self.query(x_BLC).reshape(num_contexts, -1, x_BLC.shape[-1]))
        out_GHQD = F.scaled_dot_product_attention(q_GHQD, context.k_GHND, context.v_GHND, attn_mask=mask)
        return self.output(out_GHQD.transpose(1, 2).reshape(x_BLC.shape), x_BLC)


class _Hidden(nn.Module):
    def __init__(self, sizes: TextSizes):
        super().__init__()
        self.dense = nn.Linear(sizes.dim, int(sizes.dim * sizes.mlp_ratio))

    def forward(self, x_BLC: Tensor) -> Tensor:
        return F.gelu(self.dense(x_BLC))


class Layer(nn.Module):
    """Self-attention, with ``fusion`` cross-attention, MLP; the norm after each."""

    def __init__(self, sizes: TextSizes, *, context_dim: int | None = None):
        super().__init__()
        self.attention = _Attention(sizes)
        if context_dim is not None:
            self.crossattention = _Attention(sizes, context_dim)
        self.intermediate = _Hidden(sizes)
        self.output = _Residual(int(sizes.dim * sizes.mlp_ratio), sizes.dim)

    def forward(
        self, x_BLC: Tensor, mask_B1QL: Tensor, context: Context | None = None, *, places: int | None = None
    ) -> Tensor:
        """``mask_B1QL``: True where a place may look at another one of its own text. ``places``: only the first so many are
        wanted; None: all."""
        x_BQC = self.attention(x_BLC[:, :places], self.attention.context(x_BLC), mask_B1QL)
        if context is not None:
            mask = None if context.mask_GN is None else context.mask_GN[:, None, None]
            x_BQC = self.crossattention(x_BQC, context, mask)
        return self.output(self.intermediate(x_BQC), x_BQC)


class Embeddings(nn.Module):
    def __init__(self, sizes: TextSizes):
        super().__init__()
        self.word_embeddings = nn.Embedding(sizes.vocab_size, sizes.dim)
        self.position_embeddings = nn.Embedding(sizes.max_positions, sizes.dim)
        self.token_type_embeddings = nn.Embedding(2, sizes.dim)
        self.LayerNorm = nn.LayerNorm(sizes.dim, NORM_EPS)

    def forward(self, ids_BL: Tensor) -> Tensor:
        place = self.position_embeddings.weight[: ids_BL.shape[1]]
        return self.LayerNorm(self.word_embeddings(ids_BL) + place + self.token_type_embeddings.weight[0])


class _Layers(nn.Module):
    def __init__(self, layers: Sequence[Layer]):
        super().__init__()
        self.layer = nn.ModuleList(layers)


class TextEncoder(nn.Module):
    """``read`` runs the text layers, ``fuse`` the others: in turn they are what UMT calls its multi_modal mode."""

    def __init__(self, sizes: TextSizes):
        super().__init__()
        self.sizes = sizes
        looks = [None] * sizes.fusion_layer + [sizes.context_dim] * sizes.num_fusion_layers
        self.embeddings = Embeddings(sizes)
        self.encoder = _Layers([Layer(sizes, context_dim=dim) for dim in looks])

    def read(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """(B, L, C): texts, each for itself; ``mask_BL`` False at padding."""
        x_BLC, mask_B11L = self.embeddings(ids_BL), mask_BL[:, None, None]
        for layer in self.encoder.layer[: self.sizes.fusion_layer]:
            x_BLC = layer(x_BLC, mask_B11L)
        return x_BLC

    def contexts(self, x_GNC: Tensor, mask_GN: Tensor | None = None) -> list[Context]:
        """What the fusion layers see of (G, N, context_dim) video tokens; ``mask_GN``: which are real, None: all."""
        return [layer.crossattention.context(x_GNC, mask_GN) for layer in self.encoder.layer[self.sizes.fusion_layer :]]

    def fuse(self, x_BLC: Tensor, mask_BL: Tensor, contexts: Sequence[Context], *, places: int | None = None) -> Tensor:
        """(B, L, C): texts that ``read`` gave, having looked at the contexts; S = B / G in a row at each.

        ``places``: only the first so many of the L are wanted, which the last layer need not compute; None: all.
        """
        mask_B11L, (*layers, last) = mask_BL[:, None, None], self.encoder.layer[self.sizes.fusion_layer :]
        for layer, context in zip(layers, contexts[:-1], strict=True):
            x_BLC = layer(x_BLC, mask_B11L, context)
        return last(x_BLC, mask_B11L, contexts[-1], places=places)


class _Bert(nn.Module):
    def __init__(self, sizes: TextSizes):
        super().__init__()
        self.embeddings = Embeddings(sizes)
        self.encoder = _Layers([Layer(sizes, context_dim=sizes.dim) for _ in range(sizes.num_fusion_layers)])


class _Transform(nn.Module):
    def __init__(self, sizes: TextSizes):
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(sizes.dim, sizes.dim), nn.LayerNorm(sizes.dim, NORM_EPS)

    def forward(self, x_BLC: Tensor) -> Tensor:
        return self.LayerNorm(F.gelu(self.dense(x_BLC)))


class _Predictions(nn.Module):
    def __init__(self, sizes: TextSizes):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(sizes.vocab_size))
        self.transform = _Transform(sizes)


class _Head(nn.Module):
    def __init__(self, sizes: TextSizes):
        super().__init__()
        self.predictions = _Predictions(sizes)


class TextDecoder(nn.Module):
    """Predicts a text word piece by word piece, looking at a question's states; as many layers as the encoder has for fusion.

    The output's matrix is that of the word embeddings.
    """

    def __init__(self, sizes: TextSizes):
        super().__init__()
        self.bert, self.cls = _Bert(sizes), _Head(sizes)

    def contexts(self, x_GNC: Tensor, mask_GN: Tensor) -> list[Context]:
        return [layer.crossattention.context(x_GNC, mask_GN) for layer in self.bert.encoder.layer]

    def forward(self, ids_BL: Tensor, mask_BL: Tensor, contexts: Sequence[Context]) -> Tensor:
        """(B, L, C): the states from which ``logits`` tells the next word piece at each place."""
        causal_LL = torch.ones(ids_BL.shape[1], ids_BL.shape[1], dtype=torch.bool, device=ids_BL.device).tril()
        mask_B1LL = mask_BL[:, None, None] & causal_LL
        x_BLC = self.bert.embeddings(ids_BL)
        for layer, context in zip(self.bert.encoder.layer, contexts, strict=True):
            x_BLC = layer(x_BLC, mask_B1LL, context)
        return x_BLC

    def logits(self, x: Tensor) -> Tensor:
        """(..., V)"""
        head = self.cls.predictions
        return F.linear(head.transform(x), self.bert.embeddings.word_embeddings.weight, head.bias)

    def log_likelihood(self, ids_BL: Tensor, mask_BL: Tensor, contexts: Sequence[Context]) -> Tensor:
        """(B,): the sum over a text's word pieces after the first of log p(piece | those before); no length normalisation."""
        states_BLC = self(ids_BL[:, :-1], mask_BL[:, :-1], contexts)  # nothing comes after the last
        next_BL, real_BL = ids_BL[:, 1:], mask_BL[:, 1:]
        at_once = max(1, _LOGITS_AT_ONCE // (next_BL.shape[1] * len(self.cls.predictions.bias)))
        parts = zip(states_BLC.split(at_once), next_BL.split(at_once), strict=True)
        found = [-F.cross_entropy(self.logits(x).float().mT, ids, reduction="none") for x, ids in parts]
        return torch.cat(found).masked_fill(~real_BL, 0).sum(1)


def initialise(module: nn.Module) -> None:
    """BERT's own: normal with a deviation of 0.02, biases zero. For ``module.apply``."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
