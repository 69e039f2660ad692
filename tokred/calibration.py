"""Budgets of methods whose counts differ by sample: one of their options is solved for, on samples apart from the test.

The mean MACs over the calibration samples meet the budget; those over the test samples are then what they are, and reported.

Dimension key: N samples, L layers.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from scipy.optimize import brentq
from torch import Tensor

from tokred.foreign import evaluating
from tokred.model import Backbone, Method
from tokred.reduced import Calibration, ReducedModel
from tokred.schedule import Schedule

AIM = 0.0025  # of the budget: where the search ends
TOLERANCE = 0.02  # of the budget: where the option is a whole number, or the samples are few, no value may come nearer than that
FINEST = 1e-6  # of the range: where the share jumps over the budget, the search ends at the two sides of the jump
MOST_TRIES = 24


class BudgetMissed(ValueError):
    """No value of the option meets the budget."""


def calibrated(
    backbone: Backbone,
    create: Callable[[dict[str, Any]], Method],
    plan: Schedule,
    budget: float,
    batches: Sequence[Tensor],
    *,
    known: dict[float, float] | None = None,
) -> tuple[ReducedModel, Calibration]:
    """The model whose mean MACs over the inputs in ``batches`` are ``budget`` of the unreduced model's, and how it was found.

    ``create(options)`` makes the method with one option set. Searches between the two ends of ``Method.knob``, between
    which MACs must rise or fall.
    ``known``: the shares of the values tried so far, to which it adds. Raises BudgetMissed where none comes within 2 %.
    """
    if not 0 < budget <= 1:
        raise ValueError(f"budget is a share of the unreduced MACs, above 0 and at most 1; got {budget!r}")
    num_samples = _num_samples(batches)
    tried = {} if known is None else known
    option, most, least = create({}).knob(backbone.num_tokens)
    whole = isinstance(most, int) and isinstance(least, int)

    def share(value: float) -> float:
        value = round(value) if whole else value
        if value not in tried:
            tried[value] = mean_share(ReducedModel(backbone, create({option: value}), plan), batches)
        return tried[value]

    _search(share, budget, *_ends(tried, budget, most, least), grain=0.5 if whole else FINEST * abs(least - most))
    value = min(tried, key=lambda value: abs(tried[value] - budget))
    reached, model = tried[value], ReducedModel(backbone, create({option: value}), plan)
    if abs(reached / budget - 1) > TOLERANCE:
        raise BudgetMissed(
            f"{model.method.name} cannot spend {budget:g} of the unreduced MACs by its option {option}; the nearest it reaches "
            f"on the {num_samples} calibration samples is {reached:.3f}, with {option}={value:g}"
        )
    spec = f"budget={budget:g}: {option}={value:g} spends {reached:.4f} on {num_samples} calibration samples"
    model.schedule = replace(plan, spec=spec)
    model.calibration = Calibration(option, value, reached, num_samples)
    return model, model.calibration


def mean_share(model: ReducedModel, batches: Sequence[Tensor]) -> float:
    """The mean MACs of samples in these batches, as a share of the unreduced model's."""
    found: list[Tensor] = []
    device = next(model.backbone.parameters()).device
    with torch.no_grad(), evaluating(model):
        for inputs in batches:
            counts: list[Tensor] = []
            model.run(inputs.to(device), counts=counts)
            found.append(torch.stack(counts, 1).cpu())
    macs = [cost.macs for cost in model.costs(torch.cat(found))]
    return sum(macs) / len(macs) / model.unreduced_cost().macs


def _num_samples(batches: Sequence[Tensor]) -> int:
    strange = [type(batch).__name__ for batch in batches if not isinstance(batch, Tensor)]
    if strange:
        raise ValueError(f"calibrate_on must be inputs, or batches of inputs alone, and got a {strange[0]} among them")
    if not (num_samples := sum(len(batch) for batch in batches)):
        raise ValueError("calibrate_on must hold one sample at least")
    return num_samples


def _ends(tried: dict[float, float], budget: float, most: float, least: float) -> tuple[float, float]:
    """The nearest values on either side of the budget, of those tried and the ends of the option's range. Of several with one
    share, as beside a jump, the one nearest to the other side."""
    below = [value for value, share in tried.items() if share < budget]
    above = [value for value, share in tried.items() if share >= budget]
    return (
        max(below, key=lambda value: (tried[value], -abs(value - least)), default=most),
        min(above, key=lambda value: (tried[value], abs(value - most)), default=least),
    )


def _search(share: Callable[[float], float], budget: float, most: float, least: float, *, grain: float) -> None:
    """Brent's method until the ends are ``grain`` apart; every value that ``share`` was asked for is a candidate."""

    def miss(value: float) -> float:
        found = share(value)
        return 0.0 if abs(found / budget - 1) <= AIM else found - budget

    if miss(most) < 0 < miss(least):
        brentq(miss, most, least, xtol=grain, maxiter=MOST_TRIES, disp=False)
