"""Schedules: how many tokens leave each layer, and the solver that meets a budget of MACs.

A schedule is a list of integers. It is made from ToMe's ``r`` (removed per layer), EViT's ``keep_rate`` at ``layers``, an
explicit list of tokens, or a budget: the share of the unreduced model's MACs that may be spent, the method's own included.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate

SHAPES = {
    "constant": "the same number in each layer",
    "decreasing": "a number that falls linearly to zero at the last layer (ToMe's inflection -1)",
    "increasing": "a number that rises linearly from zero at the first layer (ToMe's inflection 1)",
    "front": "the same number in each layer of the first third",
    "stages": "the same share of the tokens at a quarter, a half and three quarters of the depth (EViT, DynamicViT)",
}
BUDGET_TOLERANCE = 0.005

Fewest = Callable[[int], int]  # tokens that reach a layer -> the least that the method can leave


@dataclass(frozen=True)
class Schedule:
    """``tokens[l]`` leave layer l, prefix included; ``requested[l]`` were asked for (they differ after clamps).

    ``own_layers``: where a method whose counts differ by sample works as its options say; ``tokens`` are then the most there are.
    """

    num_input_tokens: int
    tokens: tuple[int, ...]
    requested: tuple[int, ...]
    spec: str
    own_layers: tuple[int, ...] = ()

    @property
    def reducing_layers(self) -> tuple[int, ...]:
        return tuple(sorted({*reducing(self.num_input_tokens, self.tokens), *self.own_layers}))

    @property
    def clipped(self) -> bool:
        return self.tokens != self.requested


@dataclass(frozen=True)
class Stage:
    """What a schedule is made for: ``num_tokens`` reach layer 0 of ``depth``; ``prefix`` of them are never reduced."""

    depth: int
    num_tokens: int
    prefix: int
    fewest: Fewest
    method: str = "the method"


def unreduced(stage: Stage) -> Schedule:
    tokens = (stage.num_tokens,) * stage.depth
    return Schedule(stage.num_tokens, tokens, tokens, "none")


def own_counts(stage: Stage, layers: Sequence[int] | None) -> Schedule:
    """No cap: the method's own options say how many tokens are left, in ``layers`` (None: all)."""
    where = tuple(range(stage.depth)) if layers is None else tuple(sorted(layers))
    _check_layers(where, stage.depth)
    tokens = (stage.num_tokens,) * stage.depth
    return Schedule(stage.num_tokens, tokens, tokens, f"as many as {stage.method} says", own_layers=where)


def reducing(num_input_tokens: int, tokens: Sequence[int]) -> tuple[int, ...]:
    """The layers that fewer tokens leave than reach them."""
    before = (num_input_tokens, *tokens[:-1])
    return tuple(layer for layer, (n, k) in enumerate(zip(before, tokens, strict=True)) if k < n)


def from_r(r: int | float | tuple[float, float] | Sequence[int | float], stage: Stage, *, allow_clip: bool) -> Schedule:
    """``r``: an int (tokens removed in each layer), a float below 1 (share of the current tokens), a list per layer (padded
    with zeros), or a pair (r, inflection) with ToMe's meaning."""
    amounts = removed_per_layer(r, stage.depth)
    asked = [lambda num, a=a: num - (int(num * a) if isinstance(a, float) else a) for a in amounts]
    return _walk(asked, stage, allow_clip=allow_clip, spec=f"r={_plain(r)}")


def from_keep_rate(
    keep_rate: float | Sequence[float],
    layers: Sequence[int] | None,
    stage: Stage,
    *,
    num_extra: int = 0,
    allow_clip: bool,
) -> Schedule:
    """ceil(rate * unprotected tokens) are kept at each of ``layers``, plus what the method adds (EViT, Sec. 3.2)."""
    rates = _rates_per_layer(keep_rate, layers, stage.depth)

    def kept(rate: float) -> Callable[[int], int]:
        def after(num: int) -> int:
            left = math.ceil(rate * (num - stage.prefix))
            return num if left == num - stage.prefix else stage.prefix + left + num_extra

        return after

    where = "" if layers is None else f" at layers {list(layers)}"
    return _walk(
        [kept(rate) for rate in rates], stage, allow_clip=allow_clip, spec=f"keep_rate={_plain(keep_rate)}{where}"
    )


def from_tokens(tokens: Sequence[int], stage: Stage, *, allow_clip: bool) -> Schedule:
    """``tokens[l]`` are to leave layer l, prefix included."""
    if len(tokens) != stage.depth:
        raise ValueError(
            f"tokens must name one count for each of the {stage.depth} layers; got {len(tokens)}: {_plain(tokens)}"
        )
    before = (stage.num_tokens, *tokens[:-1])
    for layer, (num, keep) in enumerate(zip(before, tokens, strict=True)):
        if keep > num:
            raise ValueError(f"tokens[{layer}] is {keep}, but only {num} tokens reach layer {layer}; lower it")
    asked = [partial(_whatever_comes, keep) for keep in tokens]
    return _walk(asked, stage, allow_clip=allow_clip, spec=f"tokens={_plain(tokens)}")


def solve_budget(
    budget: float,
    stage: Stage,
    macs: Callable[[Sequence[int]], int],
    *,
    shape: str | Sequence[float] = "constant",
    layers: Sequence[int] | None = None,
) -> Schedule:
    """The schedule of this shape whose MACs are ``budget`` of the unreduced model's, within 0.5 %.

    ``macs(tokens)`` counts a list of tokens per layer. ``shape``: a name, or how much each layer does relative to the others
    (padded with zeros). ``layers`` restricts where tokens go. Bisection on the amount
    removed, then single tokens. Raises ValueError, with the share that can be reached, where the budget cannot.
    """
    if not isinstance(budget, int | float) or not 0 < budget <= 1:
        raise ValueError(f"budget is a share of the unreduced MACs, above 0 and at most 1; got {budget!r}")
    spec = f"budget={budget:g}, {_plain(shape)}" + ("" if layers is None else f" at layers {list(layers)}")
    macs = cache(macs)  # bisection asks for the same tokens again and again
    full = macs((stage.num_tokens,) * stage.depth)
    if budget == 1:
        return Schedule(stage.num_tokens, *((stage.num_tokens,) * stage.depth,) * 2, spec)
    weights, as_share = shape_amounts(shape, stage.depth, layers), shape == "stages"
    amount, tokens = _closest(budget * full, stage, macs, weights, as_share)
    reached = macs(tokens) / full
    if abs(reached / budget - 1) > BUDGET_TOLERANCE:
        raise ValueError(
            f"{stage.method} cannot spend {budget:g} of the unreduced MACs with the shape {shape!r} here; the nearest it "
            f"reaches is {reached:.3f}; ask for another budget, shape or layers"
        )
    wanted = _shaped(amount, stage, weights, as_share, clip=False)
    clipped = wanted != _shaped(amount, stage, weights, as_share)
    return Schedule(stage.num_tokens, tokens, wanted if clipped else tokens, spec)


def removed_per_layer(r: int | float | tuple[float, float] | Sequence[int | float], depth: int) -> list[int | float]:
    """``r`` as one number per layer: an int is tokens, a float a share of the tokens there.

    >>> removed_per_layer((16, -1), 12)
    [32, 29, 26, 23, 20, 17, 14, 11, 8, 5, 2, 0]
    """
    if isinstance(r, int | float):
        return [_one_r(r)] * depth
    if isinstance(r, str) or not all(isinstance(amount, int | float) for amount in r):
        raise ValueError(
            f"r must be a number, a list of one number for each layer, or a pair (r, inflection); got {r!r}"
        )
    if isinstance(r, tuple) and len(r) == 2:
        return _inflected(r[0], r[1], depth)
    if len(r) > depth:
        raise ValueError(f"r has {len(r)} entries, but the backbone has {depth} layers; give at most {depth}")
    if any(amount < 0 for amount in r):
        raise ValueError(f"r must not be negative; got {_plain(r)} (a pair of r and inflection is a tuple: (8, -1))")
    return [_one_r(amount) for amount in r] + [0] * (depth - len(r))


def shape_amounts(shape: str | Sequence[float], depth: int, layers: Sequence[int] | None = None) -> list[float]:
    """How much of the reduction each layer does, relative to the others."""
    if not isinstance(shape, str):
        return _given_amounts(shape, depth, layers)
    if shape not in SHAPES:
        raise ValueError(f"no schedule shape {shape!r}; there are {', '.join(SHAPES)}")
    if layers is not None:
        _check_layers(layers, depth)
        places = sorted(layers)
    elif shape == "front":
        places = list(range(max(1, depth // 3)))
    elif shape == "stages":
        places = sorted({depth * quarter // 4 for quarter in (1, 2, 3)})
    else:
        places = list(range(depth))
    weights = [0.0] * depth
    for rank, layer in enumerate(places):
        slope = {"decreasing": len(places) - 1 - rank, "increasing": rank}.get(shape, 1)
        weights[layer] = float(slope) if len(places) > 1 else 1.0
    return weights


def _given_amounts(amounts: Sequence[float], depth: int, layers: Sequence[int] | None) -> list[float]:
    numbers = all(isinstance(amount, int | float) and amount >= 0 for amount in amounts)
    if layers is not None or not numbers or not 0 < len(amounts) <= depth or not any(amounts):
        raise ValueError(
            f"a shape that is a list says how much each of the {depth} layers removes relative to the others: numbers from 0, at "
            f"least one of them above it, and no layers beside it; got {_plain(amounts)}"
        )
    return [float(amount) for amount in amounts] + [0.0] * (depth - len(amounts))


def _closest(
    target: float, stage: Stage, macs: Callable[[Sequence[int]], int], weights: list[float], as_share: bool
) -> tuple[float, tuple[int, ...]]:
    """The amount and its tokens: bisection on the amount, then one token more in each layer from the first on, then single
    tokens moved between neighbouring layers."""

    def miss(tokens: tuple[int, ...]) -> float:
        return abs(macs(tokens) - target)

    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if macs(_shaped(middle, stage, weights, as_share)) > target:
            low = middle
        else:
            high = middle
    above, below = (_removed(_shaped(amount, stage, weights, as_share), stage) for amount in (low, high))
    mixed = [_tokens([*below[:layer], *above[layer:]], stage) for layer in range(stage.depth + 1)]
    best = min((tokens for tokens in mixed if _feasible(tokens, stage)), key=miss)
    for steps, enough in (
        ((1,), 0.001),
        ((1, 4, 16), BUDGET_TOLERANCE),
    ):  # moving more than it takes would bend the shape
        for _ in range(8):
            better = min(_tokens_moved(best, stage, weights, steps), key=miss, default=best)
            if miss(best) <= enough * target or miss(better) >= miss(best):
                break
            best = better
    return high, best


def _tokens_moved(
    tokens: tuple[int, ...], stage: Stage, weights: list[float], steps: tuple[int, ...]
) -> list[tuple[int, ...]]:
    """All lists in which ``steps`` tokens more, or less, are there between one reducing layer and the next."""
    places = [layer for layer, weight in enumerate(weights) if weight > 0]
    ends = [*places[1:], stage.depth]
    moved = [
        tuple(keep + step if place <= layer < end else keep for layer, keep in enumerate(tokens))
        for place, end in zip(places, ends, strict=True)
        for step in (*steps, *(-step for step in steps))
    ]
    return [candidate for candidate in moved if _feasible(candidate, stage)]


def _removed(tokens: Sequence[int], stage: Stage) -> list[int]:
    return [num - keep for num, keep in zip((stage.num_tokens, *tokens[:-1]), tokens, strict=True)]


def _tokens(removed: Sequence[int], stage: Stage) -> tuple[int, ...]:
    return tuple(stage.num_tokens - gone for gone in accumulate(removed))


def _shaped(amount: float, stage: Stage, weights: list[float], as_share: bool, *, clip: bool = True) -> tuple[int, ...]:
    """``amount`` in 0..1: of the tokens there (shares), or of the input's tokens in the heaviest layer (numbers).

    With ``clip``, as much as the method can do where it cannot do all: a shape is a way to spend a budget.
    """
    tokens, num = [], stage.num_tokens
    for weight in weights:
        free = num - stage.prefix
        whole = free if as_share else stage.num_tokens - stage.prefix
        removed = round(whole * amount * weight / max(weights))
        least = min(num, stage.fewest(num)) if clip else stage.prefix
        num = num if removed == 0 else max(num - removed, least)
        tokens.append(num)
    return tuple(tokens)


def _feasible(tokens: Sequence[int], stage: Stage) -> bool:
    before = (stage.num_tokens, *tokens[:-1])
    return all(
        keep == num or (keep < num and keep >= stage.fewest(num)) for num, keep in zip(before, tokens, strict=True)
    )


def _walk(asked: Sequence[Callable[[int], int]], stage: Stage, *, allow_clip: bool, spec: str) -> Schedule:
    """Layer by layer: what is asked of the tokens that are there, and what the method can do of it."""
    tokens, requested, num = [], [], stage.num_tokens
    for layer, after in enumerate(asked):
        wanted = after(num)
        possible = num if wanted >= num else max(wanted, min(num, stage.fewest(num)))
        if possible != wanted and not allow_clip:
            raise ValueError(
                f"{spec} asks {stage.method} to leave {wanted} of the {num} tokens that reach layer {layer}; it can leave "
                f"no fewer than {possible} there; lower the amount, or pass allow_clip=True to stop at what is possible"
            )
        tokens.append(possible)
        requested.append(wanted)
        num = possible
    return Schedule(stage.num_tokens, tuple(tokens), tuple(requested), spec)


def _whatever_comes(keep: int, num: int) -> int:
    return keep


def _inflected(r: float, inflection: float, depth: int) -> list[int | float]:
    """ToMe's ``parse_r``: from r (1 - inflection) to r (1 + inflection), truncated."""
    low = int(r * (1 - inflection))
    step = (2 * r - 2 * low) / (depth - 1) if depth > 1 else 0.0
    amounts = [int(low + step * layer) for layer in range(depth)]
    if min(amounts) < 0:
        raise ValueError(f"the inflection must lie in -1..1; got (r, inflection) = ({r:g}, {inflection:g})")
    return list(amounts)


def _one_r(r: int | float) -> int | float:
    if isinstance(r, bool) or r < 0 or (r >= 1 and r != int(r)):
        raise ValueError(f"r must be a whole number of tokens, or a share of them below 1; got {r!r}")
    return int(r) if r >= 1 or r == 0 else float(r)


def _rates_per_layer(keep_rate: float | Sequence[float], layers: Sequence[int] | None, depth: int) -> list[float]:
    rates = [keep_rate] if isinstance(keep_rate, int | float) else list(keep_rate)
    if any(not 0 < rate <= 1 for rate in rates):
        raise ValueError(f"keep_rate must lie above 0 and at most at 1; got {_plain(keep_rate)}")
    if layers is None:
        if isinstance(keep_rate, int | float):
            raise ValueError("keep_rate needs layers=[...] (0-based), or one rate for each layer")
        if len(rates) != depth:
            raise ValueError(f"keep_rate must be one rate, or one for each of the {depth} layers; got {len(rates)}")
        return rates
    _check_layers(layers, depth)
    if len(rates) == 1:
        rates = rates * len(layers)
    if len(rates) != len(layers):
        raise ValueError(f"keep_rate has {len(rates)} rates for {len(layers)} layers; give one, or one for each")
    at = dict(zip(layers, rates, strict=True))
    return [at.get(layer, 1.0) for layer in range(depth)]


def _check_layers(layers: Sequence[int], depth: int) -> None:
    wrong = [layer for layer in layers if not 0 <= layer < depth]
    if wrong or len(set(layers)) != len(layers) or not layers:
        raise ValueError(f"layers must be different numbers from 0 to {depth - 1}; got {list(layers)}")


def _plain(value: object) -> str:
    return str(list(value)) if isinstance(value, Sequence) and not isinstance(value, tuple | str) else str(value)
