"""What backbones around the models of other libraries share: a check that a model run in pieces is the model, and counts."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation mode within, each part as it was afterwards."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def expect_close(ours: Tensor, theirs: Tensor, what: str, *, library: str, before: Tensor | float = 0.0) -> None:
    """Raises ValueError unless a part run in two halves gives what it gives whole.

    Apart by no more than rounding and a hundredth of what was added to ``before``: a branch that is left out is all of it.
    """
    if not torch.isfinite(theirs).all():
        return
    rounding = 4 * torch.finfo(theirs.dtype).eps * theirs.abs().max()
    if (ours - theirs).abs().max() > 1e-2 * (theirs - before).abs().max() + rounding:
        raise ValueError(other_version(f"{what} run in two halves does not give what it gives whole", library))


def other_version(what: str, library: str) -> str:
    """The line where a release has something that is not known here."""
    return f"{what}; it is not supported ({library}; constraints.txt names a version that is known)"


def linear_macs(module: nn.Module | None) -> int:
    """Multiply-adds of all linear maps in it, each applied to one token."""
    if module is None:
        return 0
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))
