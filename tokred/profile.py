"""Where the time of a reduced model goes: milliseconds by layer and part.

The model runs as it is, with a stopwatch around its parts; each moment of the forward belongs to one of them, so that they add
up to it. Two parts are not steps of their own and cannot be clocked from outside: these are run once more, alone, in the same
round, and their time is taken off the step that holds them.

- ``statistics`` share their products with attention. The layer's attention is run without them too: that is ``attention``, and
  what it takes less is ``statistics``, which noise can put below 0.
- At the sites inside attention, ``merging`` and ``statistics``. At the site "queries" the latter are all that is found out before
  the decision; at the site "attention" the map is attention's own, since the output is made of it.

``attention`` has its norm, projections and residual, and the bias by sizes where attention is proportional; ``mlp`` its norm and
residual. ``matching`` is ``Method.assign``, ``merging`` all else that a reduction does; where a ``reduce`` of the method's own
does not call ``assign`` (PruMerge's), it is all ``merging``. ``torch.compile`` knows no such parts: the model runs without it.
"""

import copy
import math
import statistics as averages
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tokred.attention import Attention, measure
from tokred.model import Backbone, Method
from tokred.reduced import AFTER, BEFORE, INSIDE, ReducedModel, trimmed
from tokred.tokens import Assignment, Tokens

LAYER_PARTS = ("attention", "statistics", "matching", "merging", "mlp")
PARTS = ("embedding", *LAYER_PARTS, "head")
REDUCTION = ("statistics", "matching", "merging")  # the parts that the unreduced model has not
MIN_MS = 200.0  # of measured time: models that are quicker than that are run in more rounds
Times = dict[tuple[int | None, str], float]  # milliseconds by layer, None where it is in none, and part
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Profile:
    """Medians over rounds, in milliseconds for the batch.

    ``layers_ms[l]``: by ``LAYER_PARTS``. ``tokens[l]`` left layer l, padding included. ``forward_ms``: of the model without a
    stopwatch, in the same rounds, of which the parts add up to ``sum_share``. ``reduction_share``: of statistics, matching and
    merging in the sum of the parts.
    """

    tokens: tuple[int, ...]
    embedding_ms: float
    layers_ms: tuple[dict[str, float], ...]
    head_ms: float
    forward_ms: float
    sum_share: float
    reduction_share: float

    @property
    def parts_ms(self) -> dict[str, float]:
        """By ``PARTS``, over all layers."""
        of_layers = {part: sum(layer[part] for layer in self.layers_ms) for part in LAYER_PARTS}
        return {"embedding": self.embedding_ms, **of_layers, "head": self.head_ms}


@torch.inference_mode()
def profiled(model: ReducedModel, inputs: Tensor, *, rounds: int = 10) -> Profile:
    """Runs the model in at least so many rounds, and one before them that is not counted.

    On CUDA the times are those of the device, from events, without waiting for it between the parts.
    """
    _check(inputs)
    tokens = model.trace(inputs).tokens
    found = _repeated(partial(_round, model, inputs), rounds)

    def median(part: str, layer: int | None = None) -> float:
        return averages.median(times_ms.get((layer, part), 0.0) for times_ms in found)

    return Profile(
        tokens,
        median("embedding"),
        tuple({part: median(part, layer) for part in LAYER_PARTS} for layer in range(len(tokens))),
        median("head"),
        median("forward"),
        averages.median(_sum(times_ms, PARTS) / _sum(times_ms, ["forward"]) for times_ms in found),
        _reduction_share(found),
    )


@torch.inference_mode()
def reduction_share(model: ReducedModel, inputs: Tensor, *, rounds: int = 3) -> float:
    """What ``profiled`` calls so, in half the time."""
    _check(inputs)
    return _reduction_share(_repeated(partial(_parts, model, inputs), rounds))


def _check(inputs: Tensor) -> None:
    if inputs.device.type not in ("cpu", "cuda"):
        raise ValueError(f"parts are timed on the CPU and on CUDA; the inputs are on {inputs.device.type}")


def _repeated(run: Callable[[int], Times], rounds: int) -> list[Times]:
    """``run`` gets 0 and 1 by turns."""
    warm_ms = sum(run(0).values())
    num = max(rounds, math.ceil(MIN_MS / max(warm_ms, MIN_MS / 1000)))
    return [run(number % 2) for number in range(num)]


def _round(model: ReducedModel, inputs: Tensor, turn: int) -> Times:
    """The parts, and the whole without a stopwatch: first or last, by turns."""
    whole = _Stopwatch(inputs.device.type, turn)
    if turn:
        whole.clocked("forward", lambda: model(inputs))
    parts_ms = _parts(model, inputs, turn)
    if not turn:
        whole.clocked("forward", lambda: model(inputs))
    return parts_ms | whole.times_ms()


def _parts(model: ReducedModel, inputs: Tensor, turn: int) -> Times:
    watch = _Stopwatch(inputs.device.type, turn)
    _Timed(model, watch)(inputs)
    return watch.times_ms()


def _reduction_share(found: Sequence[Times]) -> float:
    return averages.median(_sum(times_ms, REDUCTION) / _sum(times_ms, PARTS) for times_ms in found)


def _sum(times_ms: Times, parts: Collection[str]) -> float:
    return sum(time_ms for (_, part), time_ms in times_ms.items() if part in parts)


@dataclass(frozen=True)
class _Step:
    """``within``: the part that holds this one too, and gets its time taken off."""

    part: str
    layer: int | None = None
    within: str | None = None


@dataclass
class _Stopwatch:
    """What runs from which moment on; inside of a step that of another is no longer its own. ``turn``: 0 or 1, by rounds."""

    device: str
    turn: int
    _running: list[_Step] = field(default_factory=list)
    _marks: list[tuple[_Step | None, Any]] = field(default_factory=list)

    @contextmanager
    def step(self, part: str, layer: int | None = None, *, within: str | None = None) -> Iterator[None]:
        """``layer``: by default that of the step around it."""
        layer = self._running[-1].layer if layer is None and self._running else layer
        self._running.append(_Step(part, layer, within))
        self._mark()
        try:
            yield
        finally:
            self._running.pop()
            self._mark()

    def clocked(self, part: str, call: Callable[[], Any], *, within: str | None = None) -> Any:
        with self.step(part, within=within):
            return call()

    def _mark(self) -> None:
        if self.device == "cuda":
            now: Any = torch.cuda.Event(enable_timing=True)
            now.record()
        else:
            now = time.perf_counter()
        self._marks.append((self._running[-1] if self._running else None, now))

    def times_ms(self) -> Times:
        if self.device == "cuda":
            torch.cuda.synchronize()
        found: Times = {}
        for (step, start), (_, end) in zip(self._marks, self._marks[1:]):
            if step is None:
                continue
            time_ms = start.elapsed_time(end) if self.device == "cuda" else (end - start) * 1e3
            for part, sign in ((step.part, 1), (step.within, -1)):
                if part is not None:
                    found[step.layer, part] = found.get((step.layer, part), 0.0) + sign * time_ms
        return found


class _Timed(ReducedModel):
    """The model, its parameters shared, on a stopwatch."""

    def __init__(self, model: ReducedModel, watch: _Stopwatch):
        super().__init__(_timed_backbone(model.backbone, watch), _timed_method(model.method, watch), model.schedule)
        self.watch = watch

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = self.run(inputs)
        with self.watch.step("head"):
            return self.backbone.head(tokens)

    def embedded(self, inputs: Tensor) -> Tokens:
        with self.watch.step("embedding"):
            return super().embedded(inputs)

    def attended(self, layer: int, tokens: Tokens, inputs: Tensor) -> tuple[Tokens, Attention | None]:
        with self.watch.step("merging" if self._site(layer) in BEFORE else "attention", layer):
            return super().attended(layer, tokens, inputs)

    def between(
        self, layer: int, tokens: Tokens, attention: Attention | None, inputs: Tensor
    ) -> tuple[Tokens, Attention | None]:
        with self.watch.step("merging", layer):
            return super().between(layer, tokens, attention, inputs)

    def fed(self, layer: int, tokens: Tokens, attention: Attention | None, inputs: Tensor) -> Tokens:
        with self.watch.step("merging" if self._site(layer) in AFTER else "mlp", layer):
            return super().fed(layer, tokens, attention, inputs)


def _timed_backbone(backbone: Backbone, watch: _Stopwatch) -> Backbone:
    def attend(
        layer: int,
        tokens: Tokens,
        bias_BN: Tensor | None = None,
        *,
        statistics: Sequence[str] = (),
        biased_statistics: bool = True,
    ) -> tuple[Tokens, Attention]:
        def run(*names: str) -> tuple[Tokens, Attention]:
            return backbone.attend(layer, tokens, bias_BN, statistics=names, biased_statistics=biased_statistics)

        if not statistics:
            return watch.clocked("attention", run)
        if watch.turn:  # what runs second may find its data in the cache
            watch.clocked("attention", run, within="statistics")
        found = watch.clocked("statistics", lambda: run(*statistics))
        if not watch.turn:
            watch.clocked("attention", run, within="statistics")
        return found

    def feedforward(layer: int, tokens: Tokens) -> Tokens:
        return watch.clocked("mlp", lambda: backbone.feedforward(layer, tokens))

    return _with(backbone, attend=attend, feedforward=feedforward)


def _timed_method(method: Method, watch: _Stopwatch) -> Method:
    def assign(tokens: Tokens, attention: Attention | None, keep: int) -> Assignment:
        assignment = watch.clocked("matching", lambda: method.assign(tokens, attention, keep))
        if method.site in INSIDE and attention is not None:
            _again_alone(method, tokens, attention, assignment, watch)
        return assignment

    return _with(method, assign=assign)


def _again_alone(
    method: Method, tokens: Tokens, attention: Attention, assignment: Assignment, watch: _Stopwatch
) -> None:
    """What ``tokred.reduced.reduce_inside`` does beside attention."""
    has_map = method.site == "attention"

    def measured(names: Sequence[str]) -> Attention:
        return measure(
            attention.q_BHND,
            attention.k_BHND,
            v_BHND=attention.v_BHND,
            scale=attention.scale,
            bias_BN=attention.bias_BN,
            valid_BN=tokens.valid_BN,
            statistics=names,
            biased_statistics=method.biased_statistics or has_map,
        )

    watch.clocked("statistics", lambda: measured(method.statistics), within="attention")
    watch.clocked("merging", lambda: trimmed(tokens.reduce(assignment)), within="attention")
    if has_map:
        watch.clocked("attention", lambda: measured(["map"]), within="statistics")
        watch.clocked("merging", lambda: assignment.merge_map(attention.map_BHNN, tokens.sizes()), within="attention")


def _with(module: Module, **methods: Callable[..., Any]) -> Module:
    """A shallow copy, which shares all that is in it, with these in place of its methods."""
    copied = copy.copy(module)
    vars(copied).update(methods)
    return copied
