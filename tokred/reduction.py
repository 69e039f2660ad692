"""``ReducedModel``: a backbone, a method and a schedule in one loop; ``reduce`` makes it from an existing model.

Dimension key: B batch, N tokens now, M tokens at the input, C channels.
"""

import fnmatch
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_origin

from torch import Tensor, nn

from tokred import schedule
from tokred.cost import Cost, count
from tokred.matching import sample_key
from tokred.model import SITES, Backbone, Method
from tokred.registry import BACKBONES, METHODS
from tokred.schedule import Schedule, Stage
from tokred.tokens import Tokens


@dataclass(frozen=True)
class Trace:
    """What a forward did: ``tokens[l]`` left layer l; ``source_BM[l]`` and ``size_BN[l]`` as they were there."""

    logits: Tensor
    tokens: tuple[int, ...]
    source_BM: tuple[Tensor, ...]
    size_BN: tuple[Tensor, ...]


class ReducedModel(nn.Module):
    """Called like the model it was made from, whose parameters it shares and never changes."""

    def __init__(self, backbone: Backbone, method: Method, plan: Schedule):
        super().__init__()
        _check(backbone, method, plan)
        self.backbone, self.method, self.schedule = backbone, method, plan

    def forward(self, inputs: Tensor) -> Tensor:
        return self.backbone.head(self.run(inputs))

    def forward_features(self, inputs: Tensor) -> Tensor:
        """(B, K, C): the tokens that are left, after the final norm."""
        return self.backbone.normed(self.run(inputs)).x_BNC

    def run(self, inputs: Tensor, *, states: list[Tokens] | None = None) -> Tokens:
        """The tokens that reach the head; appends those that leave each layer to ``states``, traced, where it is given."""
        tokens = self.backbone.embed(inputs)
        if self.method.random:
            tokens = replace(tokens, key_B=sample_key(inputs))
        if states is not None:
            tokens = tokens.traced()
        for layer, keep in enumerate(self.schedule.tokens):
            tokens = self._layer(layer, tokens, keep)
            if states is not None:
                states.append(tokens)
        return tokens

    def _layer(self, layer: int, tokens: Tokens, keep: int) -> Tokens:
        method = self.method
        reduces = keep < tokens.num
        if reduces and method.site in ("input", "before_attention"):
            tokens = method.reduce(tokens, None, keep)
        reads = reduces and method.site not in ("input", "before_attention")
        tokens, attention = self.backbone.attend(
            layer,
            tokens,
            tokens.log_size_BN() if method.proportional_attention else None,
            statistics=method.statistics if reads else (),
            biased_statistics=method.biased_statistics,
        )
        if reads and method.site == "after_attention":
            tokens = method.reduce(tokens, attention, keep)
        tokens = self.backbone.feedforward(layer, tokens)
        if reads and method.site in ("after_mlp", "output"):
            tokens = method.reduce(tokens, attention, keep)
        return tokens

    def cost(self) -> Cost:
        """Exact MACs per sample; ``cost().gmacs`` is the total, the reduction's own included."""
        return self._count(self.schedule.tokens, self.method)

    def unreduced_cost(self) -> Cost:
        """The same of the backbone alone."""
        return self._count((self.backbone.num_tokens,) * self.backbone.depth, self.method)

    def _count(self, tokens: Sequence[int], method: Method) -> Cost:
        backbone = self.backbone
        return count(backbone.widths(), method, tokens, num_tokens=backbone.num_tokens, prefix=backbone.prefix)

    def trace(self, inputs: Tensor) -> Trace:
        """A forward that also tells where every input token went."""
        states: list[Tokens] = []
        tokens = self.run(inputs, states=states)
        sources = tuple(state.source_BM for state in states if state.source_BM is not None)
        return Trace(
            self.backbone.head(tokens), tuple(s.num for s in states), sources, tuple(s.sizes() for s in states)
        )


def reduce(
    model: nn.Module,
    method: str | Method,
    *,
    r: int | float | tuple[float, float] | Sequence[int | float] | None = None,
    keep_rate: float | Sequence[float] | None = None,
    tokens: Sequence[int] | None = None,
    budget: float | None = None,
    layers: Sequence[int] | None = None,
    shape: str | Sequence[float] | None = None,
    allow_clip: bool = False,
    **options: Any,
) -> ReducedModel:
    """``model`` with fewer tokens: same call, same parameters; the model itself is left as it is.

    ``model``: a timm VisionTransformer, or any ``Backbone``. ``method``: a name (``tokred.list_methods()``), with its options as
    keywords, or a ``Method``. How much, one of: ``r``, tokens removed per layer: an int, a float below 1 (share of the
    current tokens), a list per layer (padded with zeros), a pair (r, inflection) with ToMe's meaning; ``keep_rate``, with
    ``layers`` (0-based) or one rate per layer; ``tokens``, those that leave each layer, prefix included; ``budget``, a share of
    the unreduced MACs, spent in the ``shape`` ("constant"; ``tokred.schedule.SHAPES``, or a list per layer) over ``layers``.
    None of them: nothing is removed.

    Raises ValueError where the model cannot be cut, the method cannot run on it, or the schedule cannot be met;
    ``allow_clip=True`` stops at what is possible in a layer instead, as the official ToMe and vid-TLDR do.
    """
    backbone = as_backbone(model)
    method = create_method(method, **options) if isinstance(method, str) else _without_options(method, options)
    plan = plan_schedule(
        backbone,
        method,
        r=r,
        keep_rate=keep_rate,
        tokens=tokens,
        budget=budget,
        layers=layers,
        shape=shape,
        allow_clip=allow_clip,
    )
    reduced = ReducedModel(backbone, method, plan)
    method.train(model.training)
    reduced.training = (
        model.training
    )  # not train(), which would reach into the model, and set a frozen part of it to train
    return reduced


def plan_schedule(
    backbone: Backbone,
    method: Method,
    *,
    r: int | float | tuple[float, float] | Sequence[int | float] | None = None,
    keep_rate: float | Sequence[float] | None = None,
    tokens: Sequence[int] | None = None,
    budget: float | None = None,
    layers: Sequence[int] | None = None,
    shape: str | Sequence[float] | None = None,
    allow_clip: bool = False,
) -> Schedule:
    """The schedule that ``reduce`` would use; arguments as there."""
    check_fits(backbone, method)
    stage = _stage(backbone, method)
    given = {"r": r, "keep_rate": keep_rate, "tokens": tokens, "budget": budget}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise ValueError(f"give one of r, keep_rate, tokens and budget; got {' and '.join(named)}")
    if shape is not None and named != ["budget"]:
        raise ValueError(f"shape goes with budget: it says where one is spent; got shape={shape!r} without one")
    if layers is not None and named != ["keep_rate"] and named != ["budget"]:
        raise ValueError("layers goes with keep_rate or budget; for r give one number for each layer, 0 where none go")
    if r is not None:
        return schedule.from_r(_at_site(r, method, backbone), stage, allow_clip=allow_clip)
    if keep_rate is not None:
        return schedule.from_keep_rate(keep_rate, layers, stage, num_extra=method.num_extra, allow_clip=allow_clip)
    if tokens is not None:
        return schedule.from_tokens(tokens, stage, allow_clip=allow_clip)
    if budget is not None:
        widths = backbone.widths()

        def macs(counts: Sequence[int]) -> int:
            return count(widths, method, counts, num_tokens=backbone.num_tokens, prefix=backbone.prefix).macs

        where = _only_layer(method, backbone) if layers is None else layers
        return schedule.solve_budget(budget, stage, macs, shape=shape or "constant", layers=where)
    return schedule.unreduced(stage)


def list_methods(pattern: str = "*") -> list[str]:
    """The names of all methods that match a shell pattern."""
    return fnmatch.filter(METHODS.names(), pattern)


def create_method(name: str, **options: Any) -> Method:
    """A method by name. Raises ValueError on an unknown name or option, or an option of the wrong type."""
    cls = METHODS[name]
    check_options(name, cls, options)
    return cls(**options)


def check_options(name: str, cls: type[Method], options: dict[str, Any]) -> None:
    """Options are the typed arguments of ``__init__``. Raises ValueError, with the list of them, where one is not."""
    known = method_options(cls)
    for option, value in options.items():
        if option not in known:
            raise ValueError(f"{name} has no option {option!r}; its options are: {', '.join(known) or 'none'}")
        wanted = known[option].annotation
        if get_origin(wanted) is Literal and value not in get_args(wanted):
            raise ValueError(
                f"{option} of {name} must be one of {', '.join(map(str, get_args(wanted)))}; got {value!r}"
            )
        if wanted in (bool, int, float, str) and not _is_a(value, wanted):
            raise ValueError(f"{option} of {name} must be {wanted.__name__}; got {value!r}")


def method_options(cls: type[Method]) -> dict[str, inspect.Parameter]:
    """The options of a method, by name."""
    if cls.__init__ is nn.Module.__init__:  # it has none of its own
        return {}
    parameters = inspect.signature(cls.__init__, eval_str=True).parameters
    return {name: parameter for name, parameter in parameters.items() if name != "self"}


def as_backbone(model: nn.Module) -> Backbone:
    """The model as a backbone. Raises ValueError where no backbone family can cut it."""
    if isinstance(model, ReducedModel):
        raise ValueError("the model is reduced already; reduce the model it was made from")
    if isinstance(model, Backbone):
        return model
    for family in BACKBONES:
        if family.adapts(model):
            return family.wrap(model)
    raise ValueError(
        f"no backbone family can cut a {type(model).__name__} between attention and MLP; there are "
        f"{', '.join(BACKBONES.names())}; write a Backbone for it (see tokred/model.py)"
    )


def check_fits(backbone: Backbone, method: Method) -> None:
    """Raises ValueError, with the reason, where the method cannot run on the backbone."""
    if method.site not in SITES:
        raise ValueError(f"{method.name}: no site {method.site!r}; there are {', '.join(SITES)}")
    if method.needs_cls and not backbone.has_cls:
        way_out = "; with scores='received' it reads the attention each token receives" if _has_scores(method) else ""
        raise ValueError(
            f"{method.name} reads the attention of a class token, and {type(backbone).__name__} has none here{way_out}"
        )


def _has_scores(method: Method) -> bool:
    return "scores" in method_options(type(method))


def _stage(backbone: Backbone, method: Method) -> Stage:
    def fewest(num: int) -> int:
        return method.fewest(num, backbone.prefix)

    return Stage(backbone.depth, backbone.num_tokens, backbone.prefix, fewest, method.name or type(method).__name__)


def _only_layer(method: Method, backbone: Backbone) -> list[int] | None:
    """Where a method works that does so once: at the input or at the output."""
    return {"input": [0], "output": [backbone.depth - 1]}.get(method.site)


def _at_site(r: Any, method: Method, backbone: Backbone) -> Any:
    """A plain number for a method that works once is meant for that place."""
    only = _only_layer(method, backbone)
    if only is None or not isinstance(r, int | float):
        return r
    return [r if layer in only else 0 for layer in range(backbone.depth)]


def _check(backbone: Backbone, method: Method, plan: Schedule) -> None:
    check_fits(backbone, method)
    if len(plan.tokens) != backbone.depth or plan.num_input_tokens != backbone.num_tokens:
        raise ValueError(
            f"the schedule is for {len(plan.tokens)} layers and {plan.num_input_tokens} tokens; the backbone has "
            f"{backbone.depth} layers and {backbone.num_tokens} tokens"
        )
    only = _only_layer(method, backbone)
    if only is not None and any(layer not in only for layer in plan.reducing_layers):
        raise ValueError(f"{method.name} works at the {method.site} only: layer {only[0]}; got {plan.reducing_layers}")


def _without_options(method: Method, options: dict[str, Any]) -> Method:
    if options:
        raise ValueError(f"options go with a method's name; {type(method).__name__} is made already: {sorted(options)}")
    return method


def _is_a(value: Any, wanted: type) -> bool:
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))
