"""The contract of a method, as checks that any package can run on its own plugin.

    from tokred.testing import check_method, tiny_models

    def test_my_method():
        for model in tiny_models().values():
            check_method("my_method", model)

Whoever wrote a backbone runs ``check_method`` on it for every name in ``tokred.list_methods()``. Each claim is a function of a
``Case``; one that does not hold raises AssertionError with what was found. With pytest, parametrise over ``CLAIMS`` and
``cases(...)`` to have a test for each.
"""

import copy
import inspect
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, Literal, get_args, get_origin

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tokred.backbone import create_backbone
from tokred.model import Backbone, Method
from tokred.reduced import ReducedModel, Trace, check_fits
from tokred.reduction import as_backbone, create_method, method_options, reduce
from tokred.registry import METHODS
from tokred.tokens import Assignment, Tokens
from tokred.tree import Tree

_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 5}
_VIDEO = {"num_frames": 4, "img_size": 32, "embed_dim": 24, "depth": 3, "num_heads": 3}
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "class_token": ("timm/vit_tiny_patch16_224", _VIT),
    "mean": ("timm/vit_tiny_patch16_224", _VIT | {"class_token": False, "global_pool": "avg"}),
    "distilled": ("timm/deit_tiny_distilled_patch16_224", _VIT),
    "registers": ("timm/vit_tiny_patch16_224", _VIT | {"reg_tokens": 4}),
    "umt": ("umt_base_patch16_224", _VIDEO),
    "mini": ("mini_cls", _VIDEO),
}


@dataclass(frozen=True)
class Case:
    """A method, by name and options, on a model."""

    method: str
    model: nn.Module
    options: Mapping[str, Any] = field(default_factory=dict)
    model_name: str = ""

    def __str__(self) -> str:
        options = "".join(f",{name}={value}" for name, value in self.options.items())
        return f"{self.method}{options}-{self.model_name or type(self.model).__name__}"

    @cached_property
    def backbone(self) -> Backbone:
        return as_backbone(self.model)

    @cached_property
    def inputs(self) -> Tensor:
        return torch.randn(3, *self.backbone.sample_shape, generator=torch.Generator().manual_seed(7))

    def new_method(self) -> Method:
        return create_method(self.method, **self.options)

    def reduced(self) -> ReducedModel:
        """A fifth of the tokens go in two layers, with one between; in its one layer where the method works once."""
        method, num_tokens = self.new_method(), self.backbone.num_tokens - self.backbone.prefix
        r = max(1, num_tokens // 5)
        once = method.site in ("input", "output")
        return reduce(self.model, method, r=r if once else [r, 0, r][: self.backbone.depth], allow_clip=True)

    def runs(self) -> bool:
        """Whether the backbone has what the method needs."""
        try:
            check_fits(self.backbone, self.new_method())
        except ValueError:
            return False
        return True


@dataclass(frozen=True)
class Reduction:
    """One call of a method's ``reduce``, with the assignments it made on its way."""

    before: Tokens
    after: Tokens
    assignments: tuple[Assignment, ...]

    @property
    def is_soft(self) -> bool:
        return any(assignment.matrix_BKN is not None for assignment in self.assignments)


def check_method(name: str, model: nn.Module, **options: Any) -> None:
    """Runs every claim on the method with these options; on a model it cannot run on, that the refusal says why.

    Raises AssertionError, or whatever the method raises.
    """
    case = Case(name, model, options)
    if not case.runs():
        what_it_cannot_run_on_is_refused(case)
        return
    for claim in CLAIMS:
        try:
            claim(case)
        except AssertionError as error:
            raise AssertionError(f"{case}: {claim.__name__}: {error}") from error


def tiny_models() -> dict[str, Backbone]:
    """Small models of every kind: class token, none, distilled, registers, video; weights drawn from a fixed seed."""
    return {kind: spread_(create_backbone(name, weights="random", **sizes)) for kind, (name, sizes) in TINY.items()}


def spread_(model: Backbone, seed: int = 0) -> Backbone:
    """Redraws the weights, in place, so that attention is far from uniform: then what a method decides is no near tie."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1:
                std = 0.5 if value.shape[0] == 1 else 1.5 / prod(value.shape[1:]) ** 0.5  # tokens and positions; maps
                value.copy_(std * torch.randn(value.shape, generator=generator))
    return model


def cases(models: Mapping[str, nn.Module], *, with_variants: tuple[str, ...] = ()) -> list[Case]:
    """Every registered method on every model, with its default options; on the models named in ``with_variants`` also with
    each of its other options. Where it is refused, with the first option that lets it run, if there is one."""
    found = []
    for method in METHODS.names():
        for kind, model in models.items():
            of_model = [Case(method, model, options, kind) for options in option_variants(METHODS[method])]
            running = [case for case in of_model if case.runs()]
            found += running if kind in with_variants else running[:1]
    return found


def option_variants(cls: type[Method]) -> list[dict[str, Any]]:
    """The default options, and for each other value that a bool or a Literal can take, the options with it."""
    variants: list[dict[str, Any]] = [{}]
    for name, parameter in method_options(cls).items():
        kind, default = parameter.annotation, parameter.default
        if default is inspect.Parameter.empty:
            continue
        values = get_args(kind) if get_origin(kind) is Literal else (False, True) if kind is bool else ()
        variants += [{name: value} for value in values if value != default]
    return variants


# The claims


def schedule_is_obeyed(case: Case) -> None:
    """As many tokens leave each layer as the schedule says."""
    reduced = case.reduced()
    plan, backbone = reduced.schedule, case.backbone
    could = reduced.method.fewest(backbone.num_tokens, backbone.prefix) < backbone.num_tokens
    _expect(bool(plan.reducing_layers) == could, f"the schedule removes tokens in layers {plan.reducing_layers}")
    _expect_scheduled(reduced, _trace(reduced, case.inputs))


def least_tokens_are_reached(case: Case) -> None:
    """In each layer it can go down to what ``fewest`` says, and the result is finite."""
    num = case.backbone.num_tokens
    method = case.new_method()
    r = num if method.site in ("input", "output") else [num]
    reduced = reduce(case.model, method, r=r, allow_clip=True)
    trace = _trace(reduced, case.inputs)
    _expect_scheduled(reduced, trace)
    _expect(bool(trace.logits.isfinite().all()), "the output is not finite")


def prefix_is_first_and_untouched(case: Case) -> None:
    """CLS, distillation and register tokens leave a reduction as they came, at the same places."""
    prefix = case.backbone.prefix
    for reduction in _reductions(case.reduced(), case.inputs):
        before, after = reduction.before, reduction.after
        _expect(after.prefix == prefix, f"the prefix is {after.prefix} tokens after the reduction, {prefix} before")
        same = torch.equal(before.x_BNC[:, :prefix], after.x_BNC[:, :prefix])
        _expect(same, "the reduction changed the features of prefix tokens")
        _expect(bool((after.sizes()[:, :prefix] == 1).all()), "a prefix token has another size than 1")
        assert after.source_BM is not None
        alone = _count_sources(after)[:, :prefix] == 1
        own = after.source_BM[:, :prefix] == torch.arange(prefix)
        _expect(bool((alone & own).all()), "a prefix token is not alone in its group")


def mass_is_conserved_or_its_loss_declared(case: Case) -> None:
    """Sizes add up to what they were; ``conserves_mass = False`` on the method allows less, never more."""
    reduced = case.reduced()
    for reduction in _reductions(reduced, case.inputs):
        before_B, after_B = reduction.before.sizes().sum(1), reduction.after.sizes().sum(1)
        has_size_BN = reduction.after.sizes() > 0
        real_BN = torch.ones_like(has_size_BN) if reduction.after.valid_BN is None else reduction.after.valid_BN
        _expect(torch.equal(has_size_BN, real_BN), "a token has no size, or padding has one")
        gain = (
            ((after_B - before_B) / before_B).abs().max()
            if reduced.method.conserves_mass
            else (after_B / before_B - 1).max()
        )
        _expect(
            float(gain) < 1e-5,  # float32 sums of some hundred sizes
            f"the sizes were {before_B.tolist()} in all and are {after_B.tolist()}; a method that loses mass on purpose "
            "says `conserves_mass = False`",
        )


def every_source_is_valid(case: Case) -> None:
    """Each input token is in a token that exists, or dropped (-1) for good; each new token holds one at least."""
    reductions = _reductions(case.reduced(), case.inputs)
    for reduction in reductions:
        before_BM, after_BM, num = reduction.before.source_BM, reduction.after.source_BM, reduction.after.num
        _expect(after_BM is not None, "the tokens have lost their sources; make them with Tokens.reduce")
        assert before_BM is not None and after_BM is not None
        _expect(bool(((after_BM >= -1) & (after_BM < num)).all()), f"a source is outside -1..{num - 1}")
        _expect(bool((after_BM[before_BM == -1] == -1).all()), "a dropped token has come back")
        real_BN = torch.ones_like(_count_sources(reduction.after), dtype=torch.bool)
        if reduction.after.valid_BN is not None:
            real_BN = reduction.after.valid_BN
        if not reduction.is_soft:  # there a source is traced to the one token that takes most of it
            _expect(bool((_count_sources(reduction.after)[real_BN] > 0).all()), "a new token holds no input token")


def samples_are_independent(case: Case) -> None:
    """A sample gives the same in a batch as alone."""
    reduced = case.reduced()
    together, alone = _trace(reduced, case.inputs), [_trace(reduced, one) for one in case.inputs.split(1)]
    for layer, (source_BM, num_B) in enumerate(zip(together.source_BM, together.num_B, strict=True)):
        _expect(
            num_B.tolist() == [int(trace.num_B[layer]) for trace in alone], f"more are left in a batch, layer {layer}"
        )
        one_by_one = torch.cat([trace.source_BM[layer] for trace in alone])
        _expect(torch.equal(source_BM, one_by_one), f"other tokens go in a batch than alone, in layer {layer}")
    # 1e-5: a product of a larger batch may be summed in another order
    _expect_close(
        together.logits, torch.cat([trace.logits for trace in alone]), 1e-5, "outputs of a batch and of its samples"
    )


def second_call_is_equal(case: Case) -> None:
    """Nothing is left over from a forward."""
    reduced = case.reduced()
    first, _, second = (_trace(reduced, x) for x in (case.inputs, case.inputs.flip(0) * 0.5, case.inputs))
    same = all(torch.equal(a, b) for a, b in zip(first.source_BM, second.source_BM, strict=True))
    _expect(same, "the second call takes other tokens than the first")
    _expect_close(first.logits, second.logits, 1e-6, "outputs of the first and the second call")


def one_pass_gives_the_same(case: Case) -> None:
    """As one of several models that share layers, as in a sweep: what it is given it leaves as it was, for the others."""
    reduced = case.reduced()
    backbone, method = reduced.backbone, reduced.method
    fewer = reduce(backbone, method, r=[1], allow_clip=True) if method.site != "output" else reduced
    models = [reduced, fewer, *(reduce(backbone, "none") for _ in range(3))]  # where most go is walked last
    with torch.no_grad():
        alone = [model(case.inputs) for model in models]
        together = {arrived.model: backbone.head(arrived.reached()[0]) for arrived in Tree(models).walk(case.inputs)}
    for number, logits in enumerate(alone):
        _expect(torch.equal(together[number], logits), "a model gives something else where others share its layers")


def bfloat16_is_finite(case: Case) -> None:
    """With weights and inputs in bfloat16: as many tokens, and a finite output in bfloat16."""
    reduced = copy.deepcopy(case.reduced()).to(torch.bfloat16)
    trace = _trace(reduced, case.inputs.to(torch.bfloat16))
    _expect_scheduled(reduced, trace)
    _expect(trace.logits.dtype == torch.bfloat16, f"the output is {trace.logits.dtype}")
    _expect(bool(trace.logits.isfinite().all()), "the output is not finite")


def autocast_is_finite(case: Case) -> None:
    """Under autocast in bfloat16, as it is trained and evaluated: as many tokens, and a finite output."""
    reduced = case.reduced()
    with torch.autocast("cpu", torch.bfloat16):
        trace = _trace(reduced, case.inputs)
    _expect_scheduled(reduced, trace)
    _expect(bool(trace.logits.isfinite().all()), "the output is not finite")


def gradient_flows(case: Case) -> None:
    """To every sample of the input, and to every parameter that the model itself has a gradient for."""
    of_model = _gradients(copy.deepcopy(case.backbone), case.inputs)
    of_reduced = _gradients(copy.deepcopy(case.reduced()), case.inputs)
    for name, grad in of_model.items():
        found = of_reduced.get(name if name == "input" else f"backbone.{name}")
        _expect(found is not None, f"{name} has no gradient")
        assert found is not None
        _expect(bool(found.isfinite().all()), f"the gradient of {name} is not finite")
        _expect(bool(found.any()) or not grad.any(), f"the gradient of {name} is zero")
    reached = of_reduced["input"].flatten(1).any(1)
    _expect(bool(reached.all()), "the gradient does not reach every sample")


def compiles_to_one_graph(case: Case) -> None:
    """Dynamo traces it without a break, and what it traced gives the same."""
    reduced = case.reduced()
    torch._dynamo.reset()  # else the tests before this one count towards its limit of recompilations
    try:
        with torch.no_grad():
            compiled = torch.compile(reduced, backend="eager", fullgraph=True)(case.inputs)
            _expect_close(compiled, reduced(case.inputs), 1e-6, "outputs with and without compilation")
    finally:
        torch._dynamo.reset()


def meta_device_gives_the_shape(case: Case) -> None:
    """It runs without values, so that it can be counted at any size."""
    reduced = case.reduced()
    with torch.no_grad():
        shape = copy.deepcopy(reduced).to("meta")(case.inputs.to("meta")).shape
        _expect(shape == reduced(case.inputs).shape, f"its output there is {tuple(shape)}")


def pickling_keeps_it(case: Case) -> None:
    """A process that gets it pickled computes the same."""
    reduced = case.reduced()
    with torch.no_grad():
        same = torch.equal(pickle.loads(pickle.dumps(reduced))(case.inputs), reduced(case.inputs))  # noqa: S301 - its own
    _expect(same, "the output differs after pickling")


def copying_keeps_it(case: Case) -> None:
    """A deep copy computes the same."""
    reduced = case.reduced()
    with torch.no_grad():
        _expect(torch.equal(copy.deepcopy(reduced)(case.inputs), reduced(case.inputs)), "the output of a copy differs")


def removing_nothing_is_the_model(case: Case) -> None:
    """Without a reduction the outputs are the model's own."""
    with torch.no_grad():
        ours, models = reduce(case.model, case.new_method(), r=0)(case.inputs), case.model(case.inputs)
    # 1e-6: the same sums; attention alone may be computed by another kernel
    _expect_close(ours, models, 1e-6, "outputs with nothing removed and of the model itself")


def model_is_left_as_it_was(case: Case) -> None:
    """The model keeps its parameters, attributes, mode and outputs; the reduced one shares the parameters."""
    model = case.model
    with torch.no_grad():
        state, logits, attributes = copy.deepcopy(model.state_dict()), model(case.inputs), _attributes(model)
        reduced = case.reduced()
        reduced(case.inputs)
        _expect(torch.equal(model(case.inputs), logits), "the model's own output has changed")
    after = model.state_dict()
    _expect(list(after) == list(state), "the names in the model's state dict have changed")
    _expect(all(torch.equal(after[name], state[name]) for name in state), "the model's parameters have changed")
    _expect(_attributes(model) == attributes, "the model's modules have other attributes, hooks or modes than before")
    shared = {id(value) for value in reduced.backbone.parameters()} == {id(value) for value in model.parameters()}
    _expect(shared, "the reduced model has other parameters than the model")


def cost_is_what_is_counted(case: Case) -> None:
    """``cost()`` counts the multiply-adds that torch's counter sees."""
    reduced = copy.deepcopy(case.reduced()).requires_grad_(False)
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):  # it sees no fused one
        reduced(case.inputs[:1])
    num_left = _trace(reduced, case.inputs[:1]).num_B
    macs, counted = reduced.cost([int(num) for num in num_left]).macs, counter.get_total_flops() // 2
    _expect(macs == counted, f"cost() says {macs} MACs, torch counts {counted}; see Method.macs and Backbone.widths")


CLAIMS: tuple[Callable[[Case], None], ...] = (
    schedule_is_obeyed,
    least_tokens_are_reached,
    prefix_is_first_and_untouched,
    mass_is_conserved_or_its_loss_declared,
    every_source_is_valid,
    samples_are_independent,
    second_call_is_equal,
    one_pass_gives_the_same,
    bfloat16_is_finite,
    autocast_is_finite,
    gradient_flows,
    compiles_to_one_graph,
    meta_device_gives_the_shape,
    pickling_keeps_it,
    copying_keeps_it,
    removing_nothing_is_the_model,
    model_is_left_as_it_was,
    cost_is_what_is_counted,
)


def what_it_cannot_run_on_is_refused(case: Case) -> None:
    """A method that reads a class token says so where there is none, and one that compares frames where there is one frame."""
    missing = "class token" if case.new_method().needs_cls and not case.backbone.has_cls else "frames"
    try:
        case.reduced()
    except ValueError as error:
        _expect(missing in str(error), f"the refusal does not say that it needs {missing}: {error}")
        return
    _expect(False, f"a method that needs {missing} runs on a model without")


def _expect_scheduled(reduced: ReducedModel, trace: Trace) -> None:
    """As many tokens as the schedule says; at most as many where counts differ by sample."""
    plan, left = reduced.schedule.tokens, trace.tokens
    if reduced.method.varies:
        _expect(all(num <= most for num, most in zip(left, plan, strict=True)), f"{left} left; at most {plan} may")
        _expect(bool((torch.stack(trace.num_B) >= 1).all()), "a sample has no tokens left")
    else:
        _expect(left == plan, f"{left} tokens left the layers; the schedule says {plan}")


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)


def _expect_close(ours: Tensor, theirs: Tensor, relative: float, what: str) -> None:
    _expect(ours.shape == theirs.shape, f"{what} have the shapes {tuple(ours.shape)} and {tuple(theirs.shape)}")
    distance = float((ours - theirs).abs().max() / theirs.abs().max())
    _expect(distance <= relative, f"{what} differ by {distance:.2g} of the largest; {relative:g} is allowed")


def _trace(reduced: ReducedModel, inputs: Tensor):
    with torch.no_grad():
        return reduced.trace(inputs)


def _reductions(reduced: ReducedModel, inputs: Tensor) -> list[Reduction]:
    """What ``reduce`` was given and gave back in a forward."""
    found: list[Reduction] = []
    made: list[Assignment] = []
    method, assign, apply = reduced.method, reduced.method.assign, reduced.method.reduce

    def seen_assign(*arguments):
        made.append(assign(*arguments))
        return made[-1]

    def seen_reduce(tokens, *arguments):
        made.clear()
        after = apply(tokens, *arguments)
        found.append(Reduction(tokens, after, tuple(made)))
        return after

    method.assign, method.reduce = seen_assign, seen_reduce  # type: ignore[method-assign]
    _trace(reduced, inputs)
    return found


def _count_sources(tokens: Tokens) -> Tensor:
    """(B, N): how many input tokens each token holds."""
    source_BM = tokens.source_BM
    assert source_BM is not None
    kept_BM = source_BM >= 0
    zeros_BN = torch.zeros(tokens.x_BNC.shape[:2], dtype=torch.long)
    return zeros_BN.scatter_add(1, source_BM.clamp_min(0), kept_BM.long())


def _gradients(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """By parameter, and that of the input."""
    inputs = inputs.clone().requires_grad_()
    model.requires_grad_(True).zero_grad()
    model(inputs).square().sum().backward()
    found = {name: value.grad for name, value in model.named_parameters()} | {"input": inputs.grad}
    return {name: grad for name, grad in found.items() if grad is not None}


def _attributes(model: nn.Module) -> dict[str, tuple]:
    """Of each module: the names of its attributes, its mode, how many hooks it has."""
    return {
        name: (sorted(vars(module)), module.training, len(module._forward_hooks) + len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    }
