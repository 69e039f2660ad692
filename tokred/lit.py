"""Lightning's side of a sweep: the data of a backbone, and the module that evaluates one cell.

Dimension key: B batch, N samples of the data set.
"""

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tokred.data import Batch, DataSource, Problem
from tokred.model import Backbone

CACHE_BYTES = 2 * 2**30  # of batches, so that the cells of a backbone decode the data once


class EvaluationData(L.LightningDataModule):
    """The samples of a source as a backbone takes them. Batches stay in memory after the first pass, while there is room."""

    def __init__(self, source: DataSource, backbone: Backbone, *, batch_size: int, num_workers: int = 0):
        super().__init__()
        loader = source.loader(
            backbone.sample_shape, backbone.preprocess(), batch_size=batch_size, num_workers=num_workers
        )
        self.batches = _Kept(loader)

    def test_dataloader(self) -> "_Kept":
        return self.batches


class _Kept:
    def __init__(self, loader: DataLoader):
        self.loader = loader
        self._batches: list[Batch] = []
        self._whole = False

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        if self._whole:
            yield from self._batches
            return
        self._batches, room = [], CACHE_BYTES
        for batch in self.loader:
            room -= batch.inputs.nbytes
            self._batches = [*self._batches, batch] if room >= 0 else []
            # before the last yield, after which Lightning does not ask again
            self._whole = len(self._batches) == len(self.loader)
            yield batch


@dataclass(frozen=True)
class Predictions:
    """By sample that was read, in order: its index in the data set, its label (-1: none) and the class predicted.

    ``invalid`` are indices of samples whose logits are not finite; ``problems`` are files that could not be read.
    """

    index_N: np.ndarray
    label_N: np.ndarray
    prediction_N: np.ndarray
    invalid: tuple[int, ...]
    problems: tuple[Problem, ...]


class Evaluation(L.LightningModule):
    """Runs a model over batches and keeps what it predicts; ``on_batch`` is called after each, for progress."""

    def __init__(self, model: nn.Module, on_batch: Callable[[], None] = lambda: None):
        super().__init__()
        self.model, self.on_batch = model, on_batch
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self._invalid: list[int] = []
        self._problems: list[Problem] = []

    def test_step(self, batch: Batch, step: int) -> None:
        self._problems.extend(batch.problems)
        if len(batch.index_B):
            logits = self.model(batch.inputs)
            finite_B = torch.isfinite(logits).all(-1)
            self._invalid.extend(batch.index_B[~finite_B].tolist())
            self._parts.append((batch.index_B.cpu(), batch.label_B.cpu(), logits.argmax(-1).cpu()))
        self.on_batch()

    def predictions(self) -> Predictions:
        """What was predicted since the start. Raises ValueError where not one sample could be read."""
        if not self._parts:
            first = f"; the first: {self._problems[0].path}: {self._problems[0].reason}" if self._problems else ""
            raise ValueError(f"not one of the {len(self._problems)} files could be read{first}")
        index_N, label_N, prediction_N = (torch.cat(part).numpy() for part in zip(*self._parts, strict=True))
        return Predictions(index_N, label_N, prediction_N, tuple(self._invalid), tuple(self._problems))


def evaluate(
    model: nn.Module,
    data: EvaluationData,
    *,
    device: str = "cpu",
    precision: str = "32-true",
    on_batch: Callable[[], None] = lambda: None,
) -> Predictions:
    """One pass of Lightning's Trainer over the data."""
    module = Evaluation(model, on_batch)
    trainer = L.Trainer(
        accelerator="gpu" if device == "cuda" else device,
        devices=1,
        precision=precision,  # type: ignore[arg-type]  # a Literal of strings
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with _interruptible():
        trainer.test(module, datamodule=data, verbose=False)
    return module.predictions()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl+C stays a KeyboardInterrupt: Lightning turns it into an exit with code 1, and ignores the next one."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, before)
        raise KeyboardInterrupt from error


def arrays(predictions: Predictions, reference: Mapping[int, int] | None) -> dict[str, np.ndarray]:
    """What a store keeps: index, label, prediction, and ``reference``, the unreduced model's prediction, where given."""
    kept = {"index": predictions.index_N, "label": predictions.label_N, "prediction": predictions.prediction_N}
    if reference is not None:
        kept["reference"] = np.array([reference[int(index)] for index in predictions.index_N])
    return kept
