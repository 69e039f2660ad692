"""A video encoder, whose tokens are reduced, under a text encoder that looks at those that are left (UMT; Li et al., ICCV 2023).

Two models: one that matches videos and texts (retrieval), one that answers questions. To methods and schedules both are the
video encoder. State-dict keys are those of the official fine-tuned checkpoints.

Dimension key: B videos, N tokens of a video, C its channels, P texts, L word pieces, E channels of the joint space, S texts of
each of G videos or questions.
"""

import inspect
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokred.model import Backbone, Widths
from tokred.preprocess import Preprocess
from tokred.registry import unknown
from tokred.text import Context, TextDecoder, TextEncoder, TextSizes, initialise
from tokred.tokenizer import WordPieces
from tokred.tokens import Tokens
from tokred.transformer import VideoTransformer

TEXT_NAMES = {"text_dim": "dim", "text_depth": "depth", "text_heads": "num_heads"}  # others have one name


class VideoText(Backbone):
    """What both have: everything that happens to video tokens is the vision encoder's."""

    gives_classes = False
    pool_norm = True

    def __init__(self, vision: dict[str, Any], text: TextSizes, words: WordPieces | None):
        super().__init__()
        self.vision_encoder = VideoTransformer.made(**vision, pool_norm=self.pool_norm)
        self.text_encoder = TextEncoder(text).apply(initialise)
        self.words = words
        for name in ("depth", "sample_shape", "grid", "num_tokens", "prefix", "has_cls"):
            setattr(self, name, getattr(self.vision_encoder, name))

    @classmethod
    def made(cls, words: WordPieces | None, **sizes: Any) -> Self:
        """One of these sizes: those of ``VideoTransformer``, and text_dim, text_depth, text_heads, fusion_layer, vocab_size, ...

        Raises ValueError on a size there is not, or a vocabulary larger than the model's.
        """
        of_vision = set(inspect.signature(VideoTransformer.__init__).parameters) - {"self", "num_classes", "pool_norm"}
        of_text = {field.name for field in fields(TextSizes)} - {*TEXT_NAMES.values(), "context_dim", "mlp_ratio"}
        of_text |= set(TEXT_NAMES)
        own = set(inspect.signature(cls.__init__).parameters) - {"self", "vision", "text", "words"}
        for name in sizes:
            if name not in of_vision | of_text | own:
                raise ValueError(unknown("sizes", name, of_vision | of_text | own))
        vision = {name: size for name, size in sizes.items() if name in of_vision}
        text = {TEXT_NAMES.get(name, name): size for name, size in sizes.items() if name in of_text}
        text["context_dim"] = inspect.signature(VideoTransformer.__init__).parameters["embed_dim"].default
        text["context_dim"] = vision.get("embed_dim", text["context_dim"])
        if words is not None and len(words) > text.setdefault("vocab_size", len(words)):
            raise ValueError(
                f"the model knows {text['vocab_size']} words, the vocabulary has {len(words)}; give its own"
            )
        return cls(vision, TextSizes(**text), words, **{name: size for name, size in sizes.items() if name in own})

    def cut(self, texts: Sequence[str], max_length: int) -> tuple[Tensor, Tensor]:
        """Ids and mask (P, L) on the model's device. Raises ValueError where it was made without a vocabulary."""
        if self.words is None:
            raise ValueError("the model has no vocabulary to cut texts with; give vocabulary=PATH of its vocab.txt")
        device = next(self.parameters()).device
        ids_PL, mask_PL = self.words(texts, max_length)
        return ids_PL.to(device), mask_PL.to(device)

    def embed(self, inputs: Tensor) -> Tokens:
        return self.vision_encoder.embed(inputs)

    def qkv(self, layer: int, tokens: Tokens, part: str = "qkv") -> tuple[Tensor, ...]:
        return self.vision_encoder.qkv(layer, tokens, part)

    def project(self, layer: int, tokens: Tokens, out_BHND: Tensor) -> Tokens:
        return self.vision_encoder.project(layer, tokens, out_BHND)

    def feedforward(self, layer: int, tokens: Tokens) -> Tokens:
        return self.vision_encoder.feedforward(layer, tokens)

    def normed(self, tokens: Tokens) -> Tokens:
        return self.vision_encoder.normed(tokens)

    def preprocess(self) -> Preprocess:
        return self.vision_encoder.preprocess()

    def widths(self) -> Widths:
        return self.vision_encoder.widths()

    def fusion_macs(self, num_tokens: int, text_length: int) -> tuple[int, int]:
        """Multiply-adds of the text encoder's cross-attending layers: once a video, and for each text that ``match`` looks at.

        A video of N tokens takes 2 N C D a layer; a text of L word pieces, of which Q are wanted, 2 L D^2 + 4 Q D^2 + 2 Q L D +
        2 Q N D and the MLP of Q: all L in each layer but the last, there the first.
        """
        sizes, L = self.text_encoder.sizes, text_length
        D, hidden = sizes.dim, int(sizes.dim * sizes.mlp_ratio)

        def of_layer(Q: int) -> int:
            return 2 * L * D * D + Q * (4 * D * D + 2 * L * D + 2 * num_tokens * D + 2 * D * hidden)

        of_video = sizes.num_fusion_layers * 2 * num_tokens * D * sizes.context_dim
        return of_video, (sizes.num_fusion_layers - 1) * of_layer(L) + of_layer(1)


class RetrievalModel(VideoText):
    """Clips to their place in the joint space of videos and texts, (B, E) of length 1, unreduced or not from the unweighted
    mean of the tokens; ``match`` looks closer at a pair."""

    def __init__(self, vision: dict[str, Any], text: TextSizes, words: WordPieces | None, joint_dim: int = 512):
        super().__init__(vision, text, words)
        self.vision_proj = nn.Linear(text.context_dim, joint_dim)
        self.text_proj = nn.Linear(text.dim, joint_dim)
        self.temp = nn.Parameter(torch.tensor(0.07))  # of the training's contrastive loss; no score at test uses it
        self.itm_head = nn.Linear(text.dim, 2)

    def head(self, tokens: Tokens) -> Tensor:
        return self.place(self.vision_encoder.pooled(tokens))

    def place(self, pooled_BC: Tensor) -> Tensor:
        return F.normalize(self.vision_proj(pooled_BC), dim=-1)

    def place_text(self, states_PLC: Tensor) -> Tensor:
        """(P, E), from what ``text_encoder.read`` gave."""
        return F.normalize(self.text_proj(states_PLC[:, 0]), dim=-1)

    def match(self, states_PLC: Tensor, mask_PL: Tensor, contexts: Sequence[Context]) -> Tensor:
        """(P,): the logit that a text belongs to the video it looks at, S = P / G texts in a row at each of G contexts."""
        return self.itm_head(self.text_encoder.fuse(states_PLC, mask_PL, contexts, places=1)[:, 0])[:, 1]

    def widths(self) -> Widths:
        return replace(super().widths(), head=self.vision_proj.weight.numel())


class AnsweringModel(VideoText):
    """Clips to their tokens after the final norm, (B, N, C); a decoder ranks answers to questions that looked at them."""

    pool_norm = False

    def __init__(self, vision: dict[str, Any], text: TextSizes, words: WordPieces | None):
        super().__init__(vision, text, words)
        self.text_decoder = TextDecoder(text).apply(initialise)

    def head(self, tokens: Tokens) -> Tensor:
        return self.normed(tokens).x_BNC

    def ask(self, ids_PL: Tensor, mask_PL: Tensor, contexts: Sequence[Context]) -> list[Context]:
        """What the decoder looks at: the states of questions, S = P / G in a row at each of G videos' contexts."""
        states_PLC = self.text_encoder.fuse(self.text_encoder.read(ids_PL, mask_PL), mask_PL, contexts)
        return self.text_decoder.contexts(states_PLC, mask_PL)

    def rank(
        self, asked: Sequence[Context], answer_ids_AL: Tensor, answer_mask_AL: Tensor, *, shortlist: int
    ) -> tuple[Tensor, Tensor]:
        """For each question its ``shortlist`` best answers, best first: places in the list and scores (P, K).

        By the probability of its first word piece an answer comes on the shortlist; its score is the log of that, plus the
        log-likelihood of the whole answer (so the first piece counts twice, as in UMT). Of equals the earlier comes first.
        """
        num_questions = len(asked[0].k_GHND)
        shortlist = min(shortlist, len(answer_ids_AL))
        start_P1 = answer_ids_AL[:1, :1].expand(num_questions, 1)
        states_PC = self.text_decoder(start_P1, torch.ones_like(start_P1, dtype=torch.bool), asked)[:, 0]
        first_PV = self.text_decoder.logits(states_PC).float().log_softmax(-1)
        first_PA = first_PV[:, answer_ids_AL[:, 1]]
        first_PK, index_PK = (found[:, :shortlist] for found in first_PA.sort(dim=1, descending=True, stable=True))
        index = index_PK.flatten()
        likelihood = self.text_decoder.log_likelihood(answer_ids_AL[index], answer_mask_AL[index], asked)
        score_PK, order_PK = (first_PK + likelihood.view_as(first_PK)).sort(dim=1, descending=True, stable=True)
        return index_PK.gather(1, order_PK), score_PK


MODELS: dict[str, type[VideoText]] = {"retrieval": RetrievalModel, "qa": AnsweringModel}
