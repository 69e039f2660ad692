"""``ReducedModel``: a backbone, a method and a schedule in one loop, the only place where the three meet.

Dimension key: B batch, N tokens now, K tokens after, M tokens at the input, L layers, C channels, H heads, D channels of a head.
"""

import inspect
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn

from tokred.attention import Attention, measure, plain
from tokred.cost import Cost, count
from tokred.matching import sample_key
from tokred.model import SITES, Backbone, Method
from tokred.onnx_export import only_what_onnx_has
from tokred.rows import gather_rows
from tokred.schedule import Schedule
from tokred.tokens import Tokens

BEFORE, INSIDE = ("input", "before_attention"), ("queries", "attention")
AFTER = ("after_attention", "after_mlp", "output")  # the sites that see what attention did


@dataclass(frozen=True)
class Trace:
    """What a forward did: ``tokens[l]`` left layer l, padding included, ``num_B[l]`` without it; ``source_BM[l]`` and
    ``size_BN[l]`` as they were there."""

    logits: Tensor
    tokens: tuple[int, ...]
    num_B: tuple[Tensor, ...]
    source_BM: tuple[Tensor, ...]
    size_BN: tuple[Tensor, ...]


@dataclass(frozen=True)
class Calibration:
    """``option`` = ``value`` spends ``share`` of the unreduced MACs, the mean over ``num_samples``."""

    option: str
    value: float
    share: float
    num_samples: int


class ReducedModel(nn.Module):
    """Called like the model it was made from, whose parameters it shares and never changes.

    ``calibration``: how a budget was met where counts differ by sample; else None.
    """

    calibration: Calibration | None = None

    def __init__(self, backbone: Backbone, method: Method, plan: Schedule):
        super().__init__()
        _check(backbone, method, plan)
        self.backbone, self.method, self.schedule = backbone, method, plan
        self._layers, self._first = frozenset(plan.reducing_layers), min(plan.reducing_layers, default=None)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.backbone.head(self.run(inputs))

    def forward_features(self, inputs: Tensor) -> Tensor:
        """(B, K, C): the tokens that are left, after the final norm."""
        return self.backbone.normed(self.run(inputs)).x_BNC

    def run(self, inputs: Tensor, *, states: list[Tokens] | None = None, counts: list[Tensor] | None = None) -> Tokens:
        """The tokens that reach the head. Appends those that leave each layer to ``states``, traced, where it is given, and to
        ``counts`` how many (B,) they are in each sample."""
        with only_what_onnx_has():
            return self._run(inputs, states, counts)

    def _run(self, inputs: Tensor, states: list[Tokens] | None, counts: list[Tensor] | None) -> Tokens:
        tokens = self.embedded(inputs)
        if states is not None:
            tokens = tokens.traced()
        for layer in range(self.backbone.depth):
            tokens, attention = self.attended(layer, tokens, inputs)
            tokens, attention = self.between(layer, tokens, attention, inputs)
            tokens = self.fed(layer, tokens, attention, inputs)
            if states is not None:
                states.append(tokens)
            if counts is not None:
                counts.append(tokens.num_real())
        return tokens

    def embedded(self, inputs: Tensor) -> Tokens:
        """The tokens that reach layer 0."""
        return replace(self.backbone.embed(inputs), depth=self.backbone.depth)

    def attended(self, layer: int, tokens: Tokens, inputs: Tensor) -> tuple[Tokens, Attention | None]:
        """The first half of a layer: its attention with the residual, and what is reduced before or inside of it."""
        method, backbone, site = self.method, self.backbone, self._site(layer)
        tokens = replace(tokens, layer=layer)
        if method.proportional_attention:
            tokens = tokens.logged()
        if site in BEFORE:
            pixels = inputs if site == "input" else None
            tokens = replace(self._reduce(layer, replace(tokens, pixels=pixels), None, inputs), pixels=None)
        if site in INSIDE:
            keep = min(self.schedule.tokens[layer], tokens.num)
            return reduce_inside(backbone, layer, self._ready(layer, tokens, inputs), method, keep), None
        return backbone.attend(
            layer,
            tokens,
            tokens.log_size_BN() if method.proportional_attention else None,
            statistics=method.statistics if site in AFTER else (),
            biased_statistics=method.biased_statistics,
        )

    def between(
        self, layer: int, tokens: Tokens, attention: Attention | None, inputs: Tensor
    ) -> tuple[Tokens, Attention | None]:
        """The second half begins: what is reduced before the MLP. The attention goes on only where it is read once more: its
        queries, keys and values, beside the hidden layer of the MLP, would be the most memory that a forward takes."""
        site = self._site(layer)
        if site == "after_attention":
            return self._reduce(layer, tokens, attention, inputs), None
        return tokens, attention if site in AFTER else None

    def fed(self, layer: int, tokens: Tokens, attention: Attention | None, inputs: Tensor) -> Tokens:
        """The MLP with its residual, and what is reduced after it."""
        site = self._site(layer)
        before_mlp_BNC = tokens.x_BNC
        tokens = self.backbone.feedforward(layer, tokens)
        if site in ("after_mlp", "output"):
            tokens = self._reduce(layer, replace(tokens, before_mlp_BNC=before_mlp_BNC), attention, inputs)
            tokens = replace(tokens, before_mlp_BNC=None)
        return tokens

    def halves(self) -> list[tuple[Hashable, ...]]:
        """Of each half of each layer, in order, what its result follows from: where the lists of two models of one backbone begin
        alike, so far they have the same tokens. A method is the same where it is the same object."""
        found: list[tuple[Hashable, ...]] = []
        for layer, keep in enumerate(self.schedule.tokens):
            site, reduced = self._site(layer), (self.method, keep)
            asked = tuple(self.method.statistics) if site in AFTER else ()
            found.append(reduced if site in (*BEFORE, *INSIDE) else asked)
            found.append(reduced if site in AFTER else ())
        return found

    def _site(self, layer: int) -> str | None:
        """Where in this layer tokens are reduced; None: not at all."""
        return self.method.site if layer in self._layers else None

    def _reduce(self, layer: int, tokens: Tokens, attention: Attention | None, inputs: Tensor) -> Tokens:
        keep = min(self.schedule.tokens[layer], tokens.num)
        return trimmed(self.method.reduce(self._ready(layer, tokens, inputs), attention, keep))

    def _ready(self, layer: int, tokens: Tokens, inputs: Tensor) -> Tokens:
        """With what the method reads of the input, from where it first does: before, all methods have the same tokens."""
        if layer != self._first:
            return tokens
        if self.method.random:
            tokens = replace(tokens, key_B=sample_key(inputs))
        return tokens.placed() if self.method.needs_places else tokens

    def costs(self, num_NL: Tensor) -> list[Cost]:
        """Of each sample, of which num_NL[:, l] tokens leave layer l."""
        known = cache(self.cost)
        return [known(tuple(tokens)) for tokens in num_NL.tolist()]

    def cost(self, tokens: Sequence[int] | None = None) -> Cost:
        """Exact MACs per sample; ``cost().gmacs`` is the total, the reduction's own included.

        ``tokens``: of a sample of which as many leave each layer; None: as many as the schedule says. Of a method whose counts
        differ by sample that is the most there can be; what was met on average is in ``calibration.share``.
        """
        layers = self.schedule.reducing_layers
        return self._count(self.schedule.tokens if tokens is None else tokens, layers)

    def unreduced_cost(self) -> Cost:
        """The same of the backbone alone."""
        return self._count((self.backbone.num_tokens,) * self.backbone.depth, ())

    def _count(self, tokens: Sequence[int], layers: Sequence[int]) -> Cost:
        backbone = self.backbone
        counts = {"num_tokens": backbone.num_tokens, "prefix": backbone.prefix, "num_frames": num_frames(backbone)}
        return count(backbone.widths(), self.method, tokens, layers=layers, **counts)

    def trace(self, inputs: Tensor) -> Trace:
        """A forward that also tells where every input token went."""
        states: list[Tokens] = []
        tokens = self.run(inputs, states=states)
        return Trace(
            self.backbone.head(tokens),
            tuple(s.num for s in states),
            tuple(s.num_real() for s in states),
            tuple(s.source_BM for s in states if s.source_BM is not None),
            tuple(s.sizes() for s in states),
        )


def reduce_inside(backbone: Backbone, layer: int, tokens: Tokens, method: Method, keep: int) -> Tokens:
    """The layer up to and with the residual of its attention, where the method works inside of that."""
    bias_BN = tokens.log_size_BN() if method.proportional_attention else None
    q_BHND, k_BHND, *v = backbone.qkv(layer, tokens, "qkv" if method.site == "queries" else "qk")
    scale = backbone.scale(layer) or q_BHND.shape[-1] ** -0.5
    attention = measure(
        q_BHND,
        k_BHND,
        v_BHND=v[0] if v else None,
        scale=scale,
        bias_BN=bias_BN,
        valid_BN=tokens.valid_BN,
        statistics=method.statistics,
        biased_statistics=method.biased_statistics or method.site == "attention",  # there the output is made of the map
    )
    assignment = method.assign(tokens, attention, keep)
    left = trimmed(tokens.reduce(assignment))
    if method.site == "queries":
        if assignment.index_BK is None:
            raise ValueError(f"{method.name}: at the site queries a method selects tokens; give Assignment.select(...)")
        B, H, N, D = q_BHND.shape
        q_BNC = q_BHND.transpose(1, 2).reshape(B, N, H * D)
        q_BHKD = gather_rows(q_BNC, assignment.index_BK[:, : left.num]).view(B, left.num, H, D).transpose(1, 2)
        out_BHKD = plain(q_BHKD, k_BHND, v[0], scale=scale, bias_BN=bias_BN, valid_BN=tokens.valid_BN)
    else:
        (v_BHKD,) = backbone.qkv(layer, left, "v")
        out_BHKD = assignment.merge_map(attention.map_BHNN, tokens.sizes()).to(v_BHKD.dtype) @ v_BHKD
    return backbone.project(layer, left, out_BHKD)


def trimmed(tokens: Tokens) -> Tokens:
    """Padding that nobody needs goes, where shapes may follow values: not in a graph, and not without values."""
    x_BNC = tokens.x_BNC
    in_graph = torch.compiler.is_compiling() or (x_BNC.is_cuda and torch.cuda.is_current_stream_capturing())
    return tokens if tokens.valid_BN is None or in_graph or x_BNC.is_meta else tokens.trimmed()


def check_fits(backbone: Backbone, method: Method) -> None:
    """Raises ValueError, with the reason, where the method cannot run on the backbone."""
    if method.site not in SITES:
        raise ValueError(f"{method.name}: no site {method.site!r}; there are {', '.join(SITES)}")
    if method.needs_cls and not backbone.has_cls:
        way_out = ""
        if "scores" in inspect.signature(type(method).__init__).parameters:
            way_out = "; with scores='received' it reads the attention each token receives"
        raise ValueError(
            f"{method.name} reads the attention of a class token, and {type(backbone).__name__} has none here{way_out}"
        )
    if method.needs_frames and num_frames(backbone) < 2:
        raise ValueError(f"{method.name} compares frames, and the inputs of {type(backbone).__name__} have one here")


def num_frames(backbone: Backbone) -> int:
    """Of the grid of tokens: as many as there are times."""
    grid = getattr(backbone, "grid", None)
    return 1 if grid is None else grid[0]


def only_layer(method: Method, backbone: Backbone) -> list[int] | None:
    """Where a method works that does so once: at the input or at the output."""
    return {"input": [0], "output": [backbone.depth - 1]}.get(method.site)


def _check(backbone: Backbone, method: Method, plan: Schedule) -> None:
    check_fits(backbone, method)
    if len(plan.tokens) != backbone.depth or plan.num_input_tokens != backbone.num_tokens:
        raise ValueError(
            f"the schedule is for {len(plan.tokens)} layers and {plan.num_input_tokens} tokens; the backbone has "
            f"{backbone.depth} layers and {backbone.num_tokens} tokens"
        )
    only = only_layer(method, backbone)
    if only is not None and any(layer not in only for layer in plan.reducing_layers):
        raise ValueError(f"{method.name} works at the {method.site} only: layer {only[0]}; got {plan.reducing_layers}")
