"""``ReducedModel``: a backbone, a method and a schedule in one loop, the only place where the three meet.

Dimension key: B batch, N tokens now, K tokens after, M tokens at the input, L layers, C channels, H heads, D channels of a head.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn

from tokred.attention import Attention, measure, plain
from tokred.cost import Cost, count
from tokred.matching import sample_key
from tokred.model import SITES, Backbone, Method
from tokred.schedule import Schedule
from tokred.tokens import Tokens

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
        self._layers = frozenset(plan.reducing_layers)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.backbone.head(self.run(inputs))

    def forward_features(self, inputs: Tensor) -> Tensor:
        """(B, K, C): the tokens that are left, after the final norm."""
        return self.backbone.normed(self.run(inputs)).x_BNC

    def run(self, inputs: Tensor, *, states: list[Tokens] | None = None, counts: list[Tensor] | None = None) -> Tokens:
        """The tokens that reach the head. Appends those that leave each layer to ``states``, traced, where it is given, and to
        ``counts`` how many (B,) they are in each sample."""
        tokens = replace(self.backbone.embed(inputs), depth=self.backbone.depth)
        if self.method.random:
            tokens = replace(tokens, key_B=sample_key(inputs))
        if self.method.needs_places:
            tokens = tokens.placed()
        if states is not None:
            tokens = tokens.traced()
        for layer, keep in enumerate(self.schedule.tokens):
            pixels = inputs if layer == 0 and self.method.site == "input" else None
            tokens = self._layer(layer, replace(tokens, layer=layer, pixels=pixels), keep)
            if states is not None:
                states.append(tokens)
            if counts is not None:
                counts.append(tokens.num_real())
        return tokens

    def _layer(self, layer: int, tokens: Tokens, keep: int) -> Tokens:
        method, backbone = self.method, self.backbone
        site = method.site if layer in self._layers else None
        if site in ("input", "before_attention"):
            tokens = replace(self._reduce(tokens, None, keep), pixels=None)
        attention = None
        if site in ("queries", "attention"):
            tokens = reduce_inside(backbone, layer, tokens, method, min(keep, tokens.num))
        else:
            tokens, attention = backbone.attend(
                layer,
                tokens,
                tokens.log_size_BN() if method.proportional_attention else None,
                statistics=method.statistics if site in AFTER else (),
                biased_statistics=method.biased_statistics,
            )
        if site == "after_attention":
            tokens = self._reduce(tokens, attention, keep)
        before_mlp_BNC = tokens.x_BNC
        tokens = backbone.feedforward(layer, tokens)
        if site in ("after_mlp", "output"):
            tokens = self._reduce(replace(tokens, before_mlp_BNC=before_mlp_BNC), attention, keep)
            tokens = replace(tokens, before_mlp_BNC=None)
        return tokens

    def _reduce(self, tokens: Tokens, attention: Attention | None, keep: int) -> Tokens:
        return trimmed(self.method.reduce(tokens, attention, min(keep, tokens.num)))

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
        index = assignment.index_BK[:, None, : left.num, None].expand(-1, q_BHND.shape[1], -1, q_BHND.shape[3])
        q_BHKD = q_BHND.gather(2, index)
        out_BHKD = plain(q_BHKD, k_BHND, v[0], scale=scale, bias_BN=bias_BN, valid_BN=tokens.valid_BN)
    else:
        (v_BHKD,) = backbone.qkv(layer, left, "v")
        out_BHKD = assignment.merge_map(attention.map_BHNN, tokens.sizes()).to(v_BHKD.dtype) @ v_BHKD
    return backbone.project(layer, left, out_BHKD)


def trimmed(tokens: Tokens) -> Tokens:
    """Padding that nobody needs goes, where shapes may follow values: not in a graph, and not without values."""
    if tokens.valid_BN is None or torch.compiler.is_compiling() or tokens.x_BNC.device.type == "meta":
        return tokens
    return tokens.trimmed()


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
