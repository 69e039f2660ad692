"""The two plugin interfaces; ``tokred.reduced`` has the loop that is the only place where they meet.

Dimension key: B batch, N tokens now, M tokens at the input, C channels.
"""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from tokred.attention import Attention, attend
from tokred.preprocess import Preprocess
from tokred.tokens import Assignment, Tokens

SITES = {
    "input": "before the first layer, once",
    "before_attention": "at the start of a layer",
    "queries": "inside attention: the tokens that go are still looked at in this layer, and ask no more (ATS)",
    "attention": "inside attention: its map is merged with the tokens, whose values are those of the merged ones (MCTF)",
    "after_attention": "between attention and MLP",
    "after_mlp": "at the end of a layer",
    "output": "after the last layer, once",
}


class Backbone(nn.Module, abc.ABC):
    """A pretrained transformer, cut at the places where tokens can be reduced.

    ``depth`` layers; ``sample_shape`` is (3, H, W) for images, (T, 3, H, W) for clips; ``prefix`` leading tokens are never
    reduced, of which the first is a class token where ``has_cls``; ``num_tokens`` reach the first layer, prefix included, the
    others in the order of a ``grid`` (T, H, W);
    ``gives_classes``: the output is logits, not a feature.
    """

    depth: int
    sample_shape: tuple[int, ...]
    grid: tuple[int, int, int]
    num_tokens: int
    prefix: int
    has_cls: bool
    gives_classes: bool = True
    prefixes: ClassVar[tuple[str, ...]] = ()  # of further names that ``build`` answers to
    embedded: ClassVar[bool] = False  # weights come with the package

    @classmethod
    def names(cls) -> list[str]:
        """The names this family answers to in ``create_backbone``."""
        return []

    @classmethod
    def tasks(cls, name: str) -> tuple[str, ...]:
        """What the backbone of that name can be built for; ``build`` gets ``task`` where that is not classification."""
        return ("classification",)

    @classmethod
    def build(cls, name: str, *, weights: str | None = None, **sizes: Any) -> "Backbone":
        """The backbone of that name. ``weights``: "pretrained", "embedded", "random", a path, or None: embedded where there are
        any, else random. Raises ValueError where a size or the weights do not fit."""
        raise ValueError(f"{cls.__name__} builds no backbones by name")

    @classmethod
    def adapts(cls, model: nn.Module) -> bool:
        """True where ``wrap`` knows this class of model."""
        return False

    @classmethod
    def wrap(cls, model: nn.Module) -> "Backbone":
        """A backbone around (a copy of) a model built elsewhere. Raises ValueError with the reason where it cannot be cut."""
        raise ValueError(f"{cls.__name__} cannot wrap a {type(model).__name__}")

    @abc.abstractmethod
    def embed(self, inputs: Tensor) -> Tokens:
        """The tokens that reach layer 0, position embedding added."""

    @abc.abstractmethod
    def qkv(self, layer: int, tokens: Tokens, part: str = "qkv") -> tuple[Tensor, ...]:
        """Queries, keys and values (B, H, N, D) of the layer, or of ``part`` "qk" or "v" those alone."""

    @abc.abstractmethod
    def project(self, layer: int, tokens: Tokens, out_BHND: Tensor) -> Tokens:
        """The tokens with what attention gave them: through the output map, and added to the residual."""

    def scale(self, layer: int) -> float | None:
        """What queries times keys are multiplied with; None: 1 / sqrt(D)."""
        return None

    def attend(
        self,
        layer: int,
        tokens: Tokens,
        bias_BN: Tensor | None = None,
        *,
        statistics: Sequence[str] = (),
        biased_statistics: bool = True,
    ) -> tuple[Tokens, Attention]:
        """The layer up to and with the residual of its attention; ``bias_BN`` is added to the logits of each key."""
        q_BHND, k_BHND, v_BHND = self.qkv(layer, tokens)
        out_BHND, attention = attend(
            q_BHND,
            k_BHND,
            v_BHND,
            scale=self.scale(layer) or q_BHND.shape[-1] ** -0.5,
            bias_BN=bias_BN,
            valid_BN=tokens.valid_BN,
            statistics=statistics,
            biased_statistics=biased_statistics,
        )
        return self.project(layer, tokens, out_BHND), attention

    @abc.abstractmethod
    def feedforward(self, layer: int, tokens: Tokens) -> Tokens:
        """The rest of the layer: its MLP and residual."""

    @abc.abstractmethod
    def normed(self, tokens: Tokens) -> Tokens:
        """The tokens after the final norm; as they are where the model has none."""

    @abc.abstractmethod
    def head(self, tokens: Tokens) -> Tensor:
        """What the model gives out, from the tokens that leave the last layer: final norm, pooling, classifier."""

    def forward_features(self, inputs: Tensor) -> Tensor:
        """(B, N, C): the tokens of the unreduced model after the final norm."""
        return self.normed(self.last_tokens(inputs)).x_BNC

    def preprocess(self) -> Preprocess:
        """How a picture becomes what the model was trained on."""
        return Preprocess()

    @abc.abstractmethod
    def widths(self) -> "Widths":
        """The sizes of the linear maps, from which MACs follow (``tokred.cost``)."""

    def forward(self, inputs: Tensor) -> Tensor:
        """The unreduced model: (B, *sample_shape) to what ``head`` gives."""
        return self.head(self.last_tokens(inputs))

    def last_tokens(self, inputs: Tensor) -> Tokens:
        """The tokens that leave the last layer of the unreduced model, before any final norm."""
        tokens = self.embed(inputs)
        for layer in range(self.depth):
            tokens = self.feedforward(layer, self.attend(layer, tokens)[0])
        return tokens


@dataclass(frozen=True)
class Widths:
    """The multiply-adds of a backbone's linear maps, by what they are applied to.

    ``embed`` and ``head`` per sample, ``head_per_token`` and ``head_per_pair`` for the tokens that reach the head; the others
    have one entry a layer: ``query_key``, ``value``, ``output`` (the maps around attention) and ``mlp`` per token; ``logits`` per
    query and key (the channels of the queries), ``mixing`` per query and value (the channels of the values). ``channels`` are
    those of a token, ``heads`` those of each layer.
    """

    embed: int
    query_key: tuple[int, ...]
    value: tuple[int, ...]
    output: tuple[int, ...]
    logits: tuple[int, ...]
    mixing: tuple[int, ...]
    mlp: tuple[int, ...]
    head: int
    channels: int
    heads: int
    head_per_token: int = 0
    head_per_pair: int = 0


@dataclass(frozen=True)
class Place:
    """Where a reduction takes place: in ``layer`` of ``depth``, on tokens of ``channels``, in attention of ``heads``, behind
    ``prefix`` tokens that stay; the grid of the input has ``num_frames`` (1: an image)."""

    prefix: int
    channels: int
    heads: int
    layer: int = 0
    depth: int = 1
    num_frames: int = 1


class Method(nn.Module, abc.ABC):
    """Decides which tokens join. How many, and in which layers, is the schedule's business.

    ``paper``, ``code`` (the official one: owner/name @commit, licence) and ``tuning`` ("none", "optional", "finetuned": as it
    was published) are for the catalogue, docs/methods.md.
    """

    name: ClassVar[str] = ""  # set by the registry
    paper: ClassVar[str] = ""
    code: ClassVar[str] = ""
    tuning: ClassVar[str] = "none"
    site: str = "after_attention"  # where it was published to work
    other_sites: ClassVar[tuple[str, ...]] = ()  # where the option `site` can move it
    proportional_attention: bool = False
    statistics: tuple[str, ...] = ()  # of the attention, as named in tokred.attention.STATISTICS
    biased_statistics: bool = True
    needs_cls: bool = False
    needs_frames: bool = False  # it compares frames, of which an image has one
    needs_places: bool = False  # it reads `tokens.place_BN`
    varies: bool = (
        False  # counts differ by sample; `keep` is then the most that may be left, and `assign` gives `valid_BK`
    )
    at_most_half: bool = False  # it pairs tokens, so that no more than half of those behind the prefix can go at once
    conserves_mass: bool = True  # False: it drops or attenuates tokens, so that sizes do not add up to the input's
    random: bool = False
    trained: bool = False  # has parameters of its own that must be trained
    num_extra: int = 0  # tokens it adds to those that `keep_rate` keeps (EViT's fused token)

    @abc.abstractmethod
    def assign(self, tokens: Tokens, attention: Attention | None, keep: int) -> Assignment:
        """Which of ``keep`` groups each token joins; the prefix comes first and stays alone.

        ``attention`` is that of the layer, with what ``statistics`` names; None at the sites before it.
        """

    def reduce(self, tokens: Tokens, attention: Attention | None, keep: int) -> Tokens:
        """``assign`` applied; override it where the result is no weighted sum of tokens. At the sites inside attention it is not
        called: there ``assign`` is all there is."""
        return tokens.reduce(self.assign(tokens, attention, keep))

    def fewest(self, num_tokens: int, prefix: int) -> int:
        """The least tokens, prefix included, it can leave of ``num_tokens`` at once."""
        return num_tokens - (num_tokens - prefix) // 2 if self.at_most_half else prefix + 1 + self.num_extra

    def macs(self, num_tokens: int, keep: int, at: Place) -> int:
        """Multiply-adds of its own in one reduction of one sample, beyond the attention's; 0 where it only sorts.

        All products of matrices are counted, elementwise ones are not, as torch's counter does it.
        """
        return 0

    def knob(self, num_tokens: int) -> tuple[str, float, float]:
        """Of a method that ``varies``, the option that a budget is solved for: its name, the value that removes most, and the
        value that removes least, where ``num_tokens`` reach the first layer."""
        raise ValueError(f"{self.name or type(self).__name__} has no option that a budget could be solved for")
