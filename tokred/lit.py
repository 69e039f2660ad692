"""Lightning's side of a sweep: the data of a backbone, and the Trainer's pass over it, one for many models."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tokred.data import Batch, DataSource
from tokred.model import Backbone
from tokred.tasks.task import Evaluation
from tokred.tree import Arrived, Tree

CACHE_BYTES = 2**28  # of batches: small data are decoded once for several passes, and the timing finds its samples
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class EvaluationData(L.LightningDataModule):
    """The samples of a source as a backbone takes them. The first batches stay in memory, as many as there is room for; where
    that is all of them, a further pass reads no file."""

    def __init__(self, source: DataSource, backbone: Backbone, *, batch_size: int, num_workers: int = 0):
        super().__init__()
        self.source = source
        loader = source.loader(
            backbone.sample_shape, backbone.preprocess(), batch_size=batch_size, num_workers=num_workers
        )
        self.batches = _Kept(loader)

    def test_dataloader(self) -> "_Kept":
        return self.batches

    def first_inputs(self, size: int) -> list[Tensor]:
        """Of the first ``size`` samples that can be read; fewer where there are not as many."""
        found = [one for batch in self.batches.kept for one in batch.inputs]
        if len(found) < size and not self.batches.whole:
            found = []
            for batch in self.batches:
                found.extend(batch.inputs)
                if len(found) >= size:
                    break
        return found[:size]


class _Kept:
    """The batches of a loader, of which the first ones are ``kept``; ``whole``: all of them."""

    def __init__(self, loader: DataLoader):
        self.loader = loader
        self.kept: list[Batch] = []

    @property
    def whole(self) -> bool:
        return len(self.kept) == len(self.loader)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        if self.whole:
            yield from self.kept
            return
        room = CACHE_BYTES
        for place, batch in enumerate(self.loader):
            room -= batch.inputs.nbytes
            if room >= 0 and place == len(self.kept):  # before the yield: after the last, Lightning does not ask again
                # what a worker sends lies in /dev/shm, of which a container may have little
                self.kept.append(batch._replace(inputs=batch.inputs.clone()) if batch.inputs.is_shared() else batch)
            yield batch


def evaluate(
    evaluations: Sequence[Evaluation],
    data: EvaluationData,
    *,
    on_batch: Callable[[], None] = lambda: None,
    device: str = "cpu",
    precision: str = "32-true",
) -> None:
    """One pass of Lightning's Trainer over the data, for all ``evaluations`` of one backbone: each batch is decoded once, and
    what the models have in common is run once. What goes wrong in one ends that one (``Evaluation.failed``), and not the
    others. ``on_batch`` is called after each batch.
    """
    trainer = L.Trainer(
        accelerator="gpu" if device == "cuda" else device,
        devices=1,
        precision=precision,  # type: ignore[arg-type]  # a Literal of strings
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = _Pass(evaluations, on_batch)
    with _interruptible():
        try:
            trainer.test(module, datamodule=data, verbose=False)
        except _NoneLeft:
            pass
        finally:  # Lightning leaves it on the CPU, and with it the backbone that the next pass shares
            module.to(device)


def finish(evaluation: Evaluation, *, device: str = "cpu", precision: str = "32-true") -> None:
    """What an evaluation runs once all batches were taken, in the precision of ``evaluate``."""
    with torch.inference_mode():
        evaluation.finish(partial(autocast, device, precision))


@contextmanager
def autocast(device: str, precision: str) -> Iterator[None]:
    """That of a Trainer of this precision."""
    with torch.autocast(device, AUTOCAST.get(precision, torch.bfloat16), enabled=precision in AUTOCAST):
        yield


class _NoneLeft(Exception):
    """Every evaluation of a pass was given up."""


class _Pass(L.LightningModule):
    def __init__(self, evaluations: Sequence[Evaluation], on_batch: Callable[[], None]):
        super().__init__()
        self.on_batch = on_batch
        self.models = nn.ModuleList([evaluation.model for evaluation in evaluations])  # for Lightning to move
        self._open = list(evaluations)
        self._tree = Tree([evaluation.model for evaluation in self._open])

    def test_step(self, batch: Batch, step: int) -> None:
        for evaluation in self._open:
            evaluation.problems.extend(batch.problems)
        if len(batch.index_B):
            inputs = batch.inputs.reshape(-1, *self._open[0].model.backbone.sample_shape)
            for arrived in self._tree.walk(inputs):
                _take(self._open[arrived.model], arrived, batch)
            self._close_failed()
        self.on_batch()

    def _close_failed(self) -> None:
        left = [evaluation for evaluation in self._open if evaluation.failed is None]
        if not left:
            raise _NoneLeft
        if len(left) < len(self._open):
            self._open, self._tree = left, Tree([evaluation.model for evaluation in left])


def _take(evaluation: Evaluation, arrived: Arrived, batch: Batch) -> None:
    try:
        tokens, num_BL = arrived.reached()
        if evaluation.model.method.varies:
            evaluation.counts.append(num_BL.cpu())
        evaluation.take(tokens, batch)
    except Exception as error:  # a plugin can raise anything; the other models go on
        evaluation.give_up(error)


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
