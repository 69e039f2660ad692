"""Lightning's side of a sweep: the data of a backbone, and the Trainer's pass over it."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L
from torch.utils.data import DataLoader

from tokred.data import Batch, DataSource
from tokred.model import Backbone

CACHE_BYTES = 2 * 2**30  # of batches, so that the cells of a backbone decode the data once


class EvaluationData(L.LightningDataModule):
    """The samples of a source as a backbone takes them. Batches stay in memory after the first pass, while there is room."""

    def __init__(self, source: DataSource, backbone: Backbone, *, batch_size: int, num_workers: int = 0):
        super().__init__()
        self.source = source
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


def evaluate(
    module: L.LightningModule, data: EvaluationData, *, device: str = "cpu", precision: str = "32-true"
) -> None:
    """One pass of Lightning's Trainer over the data; what came out is the module's to tell."""
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
        try:
            trainer.test(module, datamodule=data, verbose=False)
        finally:  # Lightning leaves it on the CPU, and with it the backbone that the next cell shares
            module.to(device)


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
