"""Lightning's side of a sweep: the data of a backbone, and the Trainer's pass over it, one for many models."""

import math
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import compress

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tokred.data import Batch, DataSource
from tokred.devices import Peers, led, moved
from tokred.memory import ran_out
from tokred.model import Backbone
from tokred.reduced import ReducedModel
from tokred.tasks.task import Evaluation, reason_of
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

    def share(self, peers: Peers) -> "_Share":
        return _Share(self.batches, peers)

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

    def every(self, num: int, first: int) -> Iterable[Batch]:
        """Each ``num``-th, of which the others are not read."""
        if self.whole:
            return self.kept[first::num]
        loader = self.loader
        like_it = type(loader)  # whose reading processes may die
        return like_it(
            loader.dataset,
            batch_sampler=list(loader.batch_sampler)[first::num],  # type: ignore[arg-type]  # there always is one
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
        )

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


class _Share:
    """Every so-many-th batch; where they do not come out even the last is empty, so that all processes take as many steps."""

    def __init__(self, batches: _Kept, peers: Peers):
        self._batches, self._peers = batches, peers

    def __len__(self) -> int:
        return math.ceil(len(self._batches) / self._peers.num)

    def __iter__(self) -> Iterator[Batch]:
        left = len(self)
        for batch in self._batches.every(self._peers.num, self._peers.rank):
            left -= 1
            yield batch
        if left:
            nothing = torch.empty(0, dtype=torch.long)
            yield Batch(torch.empty(0), nothing, nothing, [])


def evaluate(
    evaluations: Sequence[Evaluation],
    data: EvaluationData,
    *,
    on_batch: Callable[[], None] = lambda: None,
    device: str = "cpu",
    precision: str = "32-true",
    devices: int = 1,
) -> None:
    """One pass of Lightning's Trainer over the data, for all ``evaluations`` of one backbone: each batch is decoded once, and
    what the models have in common is run once. What goes wrong in one ends that one (``Evaluation.failed``), and not the
    others. ``on_batch`` is called after each batch. On several ``devices`` each takes every so-many-th batch.
    """
    module = _Pass([evaluation.model for evaluation in evaluations], evaluations, on_batch)
    if devices == 1:
        _test(module, data.test_dataloader(), device, precision)
        return
    module.to("cpu")  # what is sent is on no device
    batches = data.batches.loader
    with led(devices, _follow, [evaluation.model for evaluation in evaluations], batches, device, precision) as peers:
        module.peers = peers
        _test(module, data.share(peers), device, precision)


def _follow(models: Sequence[ReducedModel], loader: DataLoader, device: str, precision: str, peers: Peers) -> None:
    """A pass of another process for its evaluations."""
    _test(_Pass(models, peers=peers), _Share(_Kept(loader), peers), device, precision)


def _test(module: "_Pass", batches: Iterable[Batch], device: str, precision: str) -> None:
    trainer = L.Trainer(
        accelerator="gpu" if device == "cuda" else device,
        devices=module.peers.num if module.peers else 1,
        strategy=module.peers.strategy() if module.peers else "auto",
        use_distributed_sampler=False,
        precision=precision,  # type: ignore[arg-type]  # a Literal of strings
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with _interruptible():
        try:
            trainer.test(module, dataloaders=batches, verbose=False)
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
    """Without ``evaluations`` it is another's pass, who is sent what arrives."""

    def __init__(
        self,
        models: Sequence[ReducedModel],
        evaluations: Sequence[Evaluation] = (),
        on_batch: Callable[[], None] = lambda: None,
        *,
        peers: Peers | None = None,
    ):
        super().__init__()
        self.on_batch, self.peers = on_batch, peers
        self.models = nn.ModuleList(models)  # for Lightning to move
        self._open, self._evaluations = list(models), list(evaluations)
        self._tree = Tree(self._open)

    def test_step(self, batch: Batch, step: int) -> None:
        sent = []
        for arrived in self._walk(batch):
            if self._evaluations:
                self._take(arrived, batch)
            else:
                sent.append(_packed(arrived))
        if self._evaluations:
            self._batch_is_over(batch)
        if self.peers is not None:
            for other, theirs in self.peers.gathered((batch._replace(inputs=batch.index_B), sent)):
                for arrived in theirs:
                    self._take(_unpacked(arrived, self.device), other)
                self._batch_is_over(other)
        self._close_failed()

    def _walk(self, batch: Batch) -> Iterator[Arrived]:
        if len(batch.index_B):
            yield from self._tree.walk(batch.inputs.reshape(-1, *self._open[0].backbone.sample_shape))

    def _take(self, arrived: Arrived, batch: Batch) -> None:
        _take(self._evaluations[arrived.model], arrived, batch)

    def _batch_is_over(self, batch: Batch) -> None:
        for evaluation in self._evaluations:
            evaluation.problems.extend(batch.problems)
        if len(batch.index_B) or batch.problems:
            self.on_batch()

    def _close_failed(self) -> None:
        going_on = [evaluation.failed is None for evaluation in self._evaluations]
        if self.peers is not None:
            going_on = self.peers.led(going_on)
        if not any(going_on):
            raise _NoneLeft
        if not all(going_on):
            self._open = list(compress(self._open, going_on))
            self._evaluations = list(compress(self._evaluations, going_on))
            self._tree = Tree(self._open)


def _packed(arrived: Arrived) -> Arrived:
    """For another process, in the memory of no device."""
    outcome = arrived.outcome
    if isinstance(outcome, Exception):  # of a plugin's kind it might not be known there
        return Arrived(arrived.model, MemoryError(str(outcome)) if ran_out(outcome) else ValueError(reason_of(outcome)))
    tokens, num_BL = outcome
    return Arrived(arrived.model, (moved(tokens, "cpu"), num_BL.cpu()))


def _unpacked(arrived: Arrived, device: torch.device) -> Arrived:
    if isinstance(arrived.outcome, Exception):
        return arrived
    tokens, num_BL = arrived.outcome
    return Arrived(arrived.model, (moved(tokens, device), num_BL))


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
