"""What tasks have in common: a task knows the data and the backbone of a group of cells, and evaluates one cell at a time.

Dimension key: B batch, N samples (clips, texts or questions: whatever a metric counts), L layers.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import lightning as L
import numpy as np
import torch
from torch import Tensor

from tokred.data import Batch, DataSource, Problem
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


class Evaluation(L.LightningModule, ABC):
    """Runs a reduced model over batches; ``on_batch`` is called after each, for progress."""

    def __init__(self, model: ReducedModel, on_batch: Callable[[], None] = lambda: None):
        super().__init__()
        self.model, self.on_batch = model, on_batch
        self.invalid: list[int] = []
        self.problems: list[Problem] = []
        self.counts: list[Tensor] = []  # of each batch (B, L), how many tokens of its samples left each layer

    def encoded(self, inputs: Tensor) -> Tokens:
        """The tokens that reach the head; ``counts`` notes how many where that differs by sample."""
        if not self.model.method.varies:
            return self.model.run(inputs)
        counts: list[Tensor] = []
        tokens = self.model.run(inputs, counts=counts)
        self.counts.append(torch.stack(counts, 1).cpu())
        return tokens

    @abstractmethod
    def take(self, batch: Batch) -> None:
        """A batch that holds at least one sample."""

    @abstractmethod
    def outcome(self) -> Outcome:
        """What came out. Raises ValueError where not one sample could be read."""

    def test_step(self, batch: Batch, step: int) -> None:
        self.problems.extend(batch.problems)
        if len(batch.index_B):
            self.take(batch)
        self.on_batch()

    def precision(self) -> AbstractContextManager[Any]:
        """The autocast of the Trainer, for what runs outside of its steps."""
        return self.trainer.precision_plugin.forward_context() if self._trainer is not None else nullcontext()

    def nothing_read(self) -> ValueError:
        first = f"; the first: {self.problems[0].path}: {self.problems[0].reason}" if self.problems else ""
        return ValueError(f"not one of the {len(self.problems)} files could be read{first}")


class Task(ABC):
    """``data`` and ``backbone`` are those of the cells. Raises ValueError where they do not go together."""

    name: ClassVar[str]

    def __init__(self, data: DataSource, backbone: Backbone, *, shortlist: int | None = None):
        self.data, self.backbone = data, backbone

    @abstractmethod
    def evaluation(self, model: ReducedModel, on_batch: Callable[[], None] = lambda: None) -> Evaluation: ...

    def why_agreement(self, weights: str) -> str:
        """Why there is nothing to be right about but what the unreduced model says; empty where there is."""
        return "the weights are random" if weights == "random" else ""

    def identity(self) -> dict[str, Any]:
        """What a result depends on beside weights, data and cell; JSON-able."""
        return {"task": self.name}

    def costs(self, num_tokens: int) -> dict[str, float]:
        """GMACs beyond those of the backbone, which no table of the field counts, where as many tokens reach the head."""
        return {}
