"""``reduce``: a model with fewer tokens, from an existing one; methods by name, and the schedules they are given."""

import fnmatch
import inspect
import math
from collections.abc import Iterable, Sequence
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from torch import Tensor, nn

from tokred import schedule
from tokred.calibration import calibrated
from tokred.cost import count
from tokred.model import Backbone, Method
from tokred.reduced import ReducedModel, Trace, check_fits, num_frames, only_layer
from tokred.registry import BACKBONES, METHODS
from tokred.schedule import Schedule, Stage

__all__ = [
    "ReducedModel",
    "Trace",
    "as_backbone",
    "check_options",
    "create_method",
    "list_methods",
    "method_options",
    "plan_schedule",
    "reduce",
]


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
    calibrate_on: Tensor | Iterable[Tensor] | None = None,
    **options: Any,
) -> ReducedModel:
    """``model`` with fewer tokens: same call, same parameters; the model itself is left as it is.

    ``model``: a timm VisionTransformer, or any ``Backbone``. ``method``: a name (``tokred.list_methods()``), with its options as
    keywords, or a ``Method``. How much, one of: ``r``, tokens removed per layer: an int, a float below 1 (share of the
    current tokens), a list per layer (padded with zeros), a pair (r, inflection) with ToMe's meaning; ``keep_rate``, with
    ``layers`` (0-based) or one rate per layer; ``tokens``, those that leave each layer, prefix included; ``budget``, a share of
    the unreduced MACs, spent in the ``shape`` ("constant"; ``tokred.schedule.SHAPES``, or a list per layer) over ``layers``.
    None of them: nothing is removed.

    A method whose counts differ by sample (``varies``: ats, ltmp, rlt, prumerge) removes what its own options say, in ``layers``
    (all); r, keep_rate and tokens are then the most that may be left. For a budget, one of its options is solved for, such that
    the mean MACs over the samples in ``calibrate_on`` (inputs, or batches of them) meet it; take others than those of the test.

    Raises ValueError where the model cannot be cut, the method cannot run on it, or the schedule cannot be met;
    ``allow_clip=True`` stops at what is possible in a layer instead, as the official ToMe and vid-TLDR do.
    """
    backbone = as_backbone(model)
    name = method if isinstance(method, str) else ""
    method = create_method(method, **options) if isinstance(method, str) else _without_options(method, options)
    amounts: dict[str, Any] = {"r": r, "keep_rate": keep_rate, "tokens": tokens, "budget": budget}
    if calibrate_on is not None and (not method.varies or budget is None):
        raise ValueError(
            f"calibrate_on goes with a budget, and a method whose counts differ by sample; got {method.name} "
            f"and {'no budget' if budget is None else 'a budget'}"
        )
    if method.varies and budget is not None and calibrate_on is not None and name:
        check_saves(method)
        check_knob(method, backbone, options)
        _only_one(amounts, shape, layers)
        _check_no_shape(method, shape)
        batches = [calibrate_on] if isinstance(calibrate_on, Tensor) else list(calibrate_on)
        plan = plan_schedule(backbone, method, layers=layers)
        reduced = calibrated(backbone, lambda own: create_method(name, **options | own), plan, budget, batches)[0]
    else:
        plan = plan_schedule(backbone, method, **amounts, layers=layers, shape=shape, allow_clip=allow_clip)
        reduced = ReducedModel(backbone, method, plan)
    reduced.method.train(model.training)
    # not train(), which would reach into the model, and set a frozen part of it to train
    reduced.training = model.training
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
    stage, only = _stage(backbone, method), only_layer(method, backbone)
    named = _only_one({"r": r, "keep_rate": keep_rate, "tokens": tokens, "budget": budget}, shape, layers, method)
    if r is not None:
        return schedule.from_r(_at_site(r, only, backbone), stage, allow_clip=allow_clip)
    if keep_rate is not None:
        where = only if layers is None and isinstance(keep_rate, int | float) else layers
        return schedule.from_keep_rate(keep_rate, where, stage, num_extra=method.num_extra, allow_clip=allow_clip)
    if tokens is not None:
        return schedule.from_tokens(tokens, stage, allow_clip=allow_clip)
    where = only if layers is None else layers
    if named == "budget":
        _check_budget(method)
        assert budget is not None
        return schedule.solve_budget(budget, stage, _counter(backbone, method), shape=shape or "constant", layers=where)
    if method.varies:
        return schedule.own_counts(stage, where)
    return schedule.unreduced(stage)


def _only_one(
    amounts: dict[str, Any],
    shape: str | Sequence[float] | None,
    layers: Sequence[int] | None,
    method: Method | None = None,
) -> str | None:
    """The amount that was given. Raises ValueError where there are two, or what does not go with it."""
    given = [name for name, value in amounts.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"give one of r, keep_rate, tokens and budget; got {' and '.join(given)}")
    if shape is not None and given != ["budget"]:
        raise ValueError(f"shape goes with budget: it says where one is spent; got shape={shape!r} without one")
    own_counts = method is None or (method.varies and not given)
    if layers is not None and given not in (["keep_rate"], ["budget"]) and not own_counts:
        raise ValueError("layers goes with keep_rate or budget; for r give one number for each layer, 0 where none go")
    return given[0] if given else None


def check_saves(method: Method) -> None:
    """Raises ValueError where the method cannot save any of the encoder's MACs, so that no budget can be met."""
    if method.site == "output":
        other = f", or site={method.other_sites[0]} to work inside the encoder" if method.other_sites else ""
        raise ValueError(
            f"{method.name} works at the encoder's output, where all of its MACs are spent; give r, keep_rate or tokens in "
            f"place of a budget{other}"
        )


def _check_no_shape(method: Method, shape: str | Sequence[float] | None) -> None:
    if shape is not None:
        raise ValueError(
            f"shape says where a schedule spends a budget; that of {method.name} is met by one of its options, which decides "
            f"itself where tokens go; drop shape={shape!r}"
        )


def check_knob(method: Method, backbone: Backbone, options: dict[str, Any]) -> None:
    """Raises ValueError where the option is given that a budget is solved for."""
    name, _, _ = method.knob(backbone.num_tokens)
    if name in options:
        raise ValueError(
            f"{name} of {method.name} is what a budget is solved for; give one of the two: {name}={options[name]!r} without a "
            "budget, or the budget alone"
        )


def _check_budget(method: Method) -> None:
    check_saves(method)
    if method.varies:
        name, _, _ = method.knob(1)
        raise ValueError(
            f"the counts of {method.name} differ by sample, so that a budget is met by its option {name}, on samples apart from "
            f"the test: pass calibrate_on=INPUTS and the method by name, or give {name} yourself and no budget"
        )


def _counter(backbone: Backbone, method: Method):
    """``tokens`` that leave each layer -> MACs."""
    widths, num_tokens, prefix = backbone.widths(), backbone.num_tokens, backbone.prefix

    def macs(tokens: Sequence[int]) -> int:
        layers = schedule.reducing(num_tokens, tokens)
        counts = {"num_tokens": num_tokens, "prefix": prefix, "num_frames": num_frames(backbone)}
        return count(widths, method, tokens, layers=layers, **counts).macs

    return macs


def list_methods(pattern: str = "*") -> list[str]:
    """The names of all methods that match a shell pattern."""
    return fnmatch.filter(METHODS.names(), pattern)


def create_method(name: str, **options: Any) -> Method:
    """A method by name. Raises ValueError on an unknown name or option, or an option of the wrong type."""
    cls = METHODS[name]
    check_options(name, cls, options)
    if "site" not in options or "site" in inspect.signature(cls.__init__).parameters:
        return cls(**options)
    site = options.pop("site")
    method = cls(**options)
    method.site = site
    return method


def check_options(name: str, cls: type[Method], options: dict[str, Any]) -> None:
    """Options are the typed arguments of ``__init__``. Raises ValueError, with the list of them, where one is not."""
    known = method_options(cls)
    for option, value in options.items():
        if option not in known:
            raise ValueError(f"{name} has no option {option!r}; its options are: {', '.join(known) or 'none'}")
        wanted = _kind(known[option].annotation, value)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{option} of {name} must be a finite number; got {value!r}")
        if get_origin(wanted) is Literal and value not in get_args(wanted):
            raise ValueError(
                f"{option} of {name} must be one of {', '.join(map(str, get_args(wanted)))}; got {value!r}"
            )
        if wanted in (bool, int, float, str) and not _is_a(value, wanted):
            raise ValueError(f"{option} of {name} must be {wanted.__name__}; got {value!r}")


def _kind(annotation: Any, value: Any) -> Any:
    """Of ``kind | None`` the kind, where the value is not None."""
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    optional = get_origin(annotation) is UnionType and len(kinds) < len(get_args(annotation))
    return kinds[0] if optional and len(kinds) == 1 and value is not None else annotation


def method_options(cls: type[Method]) -> dict[str, inspect.Parameter]:
    """The options of a method, by name: the arguments of its ``__init__``, and ``site`` where it can be moved."""
    found: dict[str, inspect.Parameter] = {}
    if cls.__init__ is not nn.Module.__init__:  # else it has none of its own
        parameters = inspect.signature(cls.__init__, eval_str=True).parameters
        found = {name: parameter for name, parameter in parameters.items() if name != "self"}
    if cls.other_sites:
        sites = Literal.__getitem__((cls.site, *cls.other_sites))
        keyword = inspect.Parameter.KEYWORD_ONLY
        found.setdefault("site", inspect.Parameter("site", keyword, default=cls.site, annotation=sites))
    return found


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


def _stage(backbone: Backbone, method: Method) -> Stage:
    def fewest(num: int) -> int:
        return method.fewest(num, backbone.prefix)

    return Stage(backbone.depth, backbone.num_tokens, backbone.prefix, fewest, method.name or type(method).__name__)


def _at_site(r: Any, only: list[int] | None, backbone: Backbone) -> Any:
    """A plain number for a method that works once is meant for that place."""
    if only is None or not isinstance(r, int | float):
        return r
    return [r if layer in only else 0 for layer in range(backbone.depth)]


def _without_options(method: Method, options: dict[str, Any]) -> Method:
    if options:
        raise ValueError(f"options go with a method's name; {type(method).__name__} is made already: {sorted(options)}")
    return method


def _is_a(value: Any, wanted: type) -> bool:
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))
