"""What tasks have in common: a task knows the data and the backbone of a group of cells, and has an evaluation for each cell.

Dimension key: B batch, N samples (clips, texts or questions: whatever a metric counts), L layers.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from tokred.data import Batch, DataSource, Problem
from tokred.memory import ran_out
from tokred.model import Backbone
from tokred.reduced import ReducedModel
from tokred.tokens import Tokens


@dataclass(frozen=True)
class Metric:
    """A share of samples. Right are those whose prediction is the label, or, where ``ranks`` names an array of ranks (0: first),
    those with a rank below ``at``. The indices of a rank's samples are in the array ``index`` names."""

    index: str = "index"
    ranks: str | None = None
    at: int = 1

    def right(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """By sample, whether it is right."""
        if self.ranks is not None:
            return arrays[self.ranks] < self.at
        return arrays["prediction"] == arrays["reference" if "reference" in arrays else "label"]


AGREEMENT = {"agreement": Metric()}  # with the unreduced model


@dataclass(frozen=True)
class Outcome:
    """What a cell gave: by sample ``arrays`` for the store, among them index and prediction, and cluster where samples can share
    a video; ``metrics`` of them by name, the headline first, a number where it has no samples of its own (a mean of others);
    ``invalid``: indices of samples whose scores are not finite; ``problems``: files that could not be read."""

    arrays: dict[str, np.ndarray]
    metrics: Mapping[str, Metric | float]
    invalid: tuple[int, ...] = ()
    problems: tuple[Problem, ...] = ()


class Evaluation(ABC):
    """What one reduced model makes of the data: takes batch after batch, as one of many in a pass (``tokred.lit``), then says
    what came out. ``failed``: why it was given up; then it takes no more. ``ran_out``: it was memory that was missing."""

    def __init__(self, model: ReducedModel):
        self.model = model
        self.invalid: list[int] = []
        self.problems: list[Problem] = []
        self.counts: list[
            Tensor
        ] = []  # of each batch (B, L), how many tokens of its samples left each layer, where they differ
        self.failed: str | None = None
        self.ran_out = False

    @abstractmethod
    def take(self, tokens: Tokens, batch: Batch) -> None:
        """``tokens`` reach the head, of a batch that holds at least one sample; of several views of a sample each is a row."""

    def give_up(self, error: Exception) -> None:
        """Keeps the reason, and not the error, which would keep the tensors that it came from."""
        self.failed, self.ran_out = reason_of(error), ran_out(error)
        self.close()

    def close(self) -> None:  # noqa: B027  # most keep little
        """Frees what was kept for ``outcome``."""

    def finish(self, autocast: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:  # noqa: B027
        """What is to be run once all batches were taken; ``autocast``: the precision they were taken in."""

    def outcome(self) -> Outcome:
        """What came out. Raises ValueError where it was given up, or not one sample could be read."""
        if self.failed is not None:
            raise ValueError(self.failed)
        if not self.has_read:
            first = f"; the first: {self.problems[0].path}: {self.problems[0].reason}" if self.problems else ""
            raise ValueError(f"not one of the {len(self.problems)} files could be read{first}")
        return self.found()

    @property
    @abstractmethod
    def has_read(self) -> bool:
        """Whether it took a batch."""

    @abstractmethod
    def found(self) -> Outcome:
        """``outcome``, where there is one."""


def reason_of(error: Exception) -> str:
    """For a record: a ValueError is written for people; with others it takes their type to understand them."""
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


class Task(ABC):
    """``data`` and ``backbone`` are those of the cells. Raises ValueError where they do not go together."""

    name: ClassVar[str]

    def __init__(self, data: DataSource, backbone: Backbone, *, shortlist: int | None = None):
        self.data, self.backbone = data, backbone

    @abstractmethod
    def evaluation(self, model: ReducedModel) -> Evaluation: ...

    def why_agreement(self, weights: str) -> str:
        """Why there is nothing to be right about but what the unreduced model says; empty where there is."""
        return "the weights are random" if weights == "random" else ""

    def identity(self) -> dict[str, Any]:
        """What a result depends on beside weights, data and cell; JSON-able."""
        return {"task": self.name}

    def costs(self, num_tokens: int) -> dict[str, float]:
        """GMACs beyond those of the backbone, which no table of the field counts, where as many tokens reach the head."""
        return {}

    def bytes_kept(self, num_tokens: int) -> int:
        """What an evaluation keeps from batch to batch, at most, where as many tokens reach the head."""
        return 0
