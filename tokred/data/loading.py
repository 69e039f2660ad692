"""What all data share: how pixels become a model's input, what a batch holds, and what a data source can do.

A sample that cannot be read is left out of its batch and named in ``Batch.problems``; it is never skipped in silence
and never ends a run. Indices are those of the source's fixed order, so two cells can be compared sample by sample.

Dimension key: B samples of a batch that were read, V views, T frames, H height, W width.
"""

import math
import multiprocessing
import os
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tokred.data.texts import Captions, Questions
from tokred.open_files import OpenFiles
from tokred.preprocess import Preprocess

MAX_PIXELS = (
    89_478_485  # of a picture, also of one that is resized; PIL's own mark from which it warns of a decompression bomb
)
INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class Problem(NamedTuple):
    """A file that could not be read, and why."""

    path: str
    reason: str


class Unreadable(Exception):
    """Raised by ``DataSource.read`` for one sample; it becomes a ``Problem`` of the batch."""

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)
        self.problem = Problem(path, reason)


class Batch(NamedTuple):
    """``inputs`` (B, 3, H, W) or (B, T, 3, H, W) float32; ``label_B`` long, -1 where there is none; ``index_B`` long.

    (B, V, T, 3, H, W) from a source with ``num_views`` above 1. B is the batch size less ``len(problems)``, and may be 0.
    """

    inputs: Tensor
    label_B: Tensor
    index_B: Tensor
    problems: list[Problem]


class DataSource(ABC):
    """Samples in a fixed order. A subclass sets the attributes and says what sample ``index`` holds."""

    name: ClassVar[str]
    kind: ClassVar[str]  # "clip" or "image"
    classes: tuple[str, ...] = ()  # by label; empty where labels are plain integers or there are none
    has_labels: bool = False
    num_views: int = 1  # that a sample is read as; what the model says of them is averaged
    open_files: OpenFiles = OpenFiles()  # which one is being read, in case that its process dies of it

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def label(self, index: int) -> int:
        """-1 where the source has no labels."""

    @abstractmethod
    def read(self, index: int, sample_shape: tuple[int, ...], preprocess: Preprocess) -> Tensor:
        """The input, float32 of ``sample_shape``, or of (num_views, *sample_shape) above 1. Raises ``Unreadable``."""

    @abstractmethod
    def digest(self) -> str:
        """A sha256 that changes whenever a sample, its place in the order or its label does."""

    def contents(self) -> set[str]:
        """One text for each sample that is the same for the same content, wherever it lies."""
        return {f"{self.digest()}/{index}" for index in range(len(self))}

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """The name and the options, JSON-able: ``create_data(**source.description())`` is this source again."""

    def foreground(self, index: int) -> np.ndarray | None:
        """(T, H, W) bool: which pixels of the input, as ``read`` gives it, show an object; None where that is not known."""
        return None

    def apart(self, num_samples: int) -> "DataSource | None":
        """As many samples of the same kind that are not among these, for calibration; None where the source knows of none."""
        return None

    def captions(self) -> Captions:
        """Of all samples, numbered as they are. Raises ValueError where the source has none."""
        raise ValueError(
            f"{self.name} holds no captions; choose data that has them, such as moving_shapes or video_captions"
        )

    def questions(self) -> Questions:
        """About all samples, numbered as they are. Raises ValueError where the source has none."""
        raise ValueError(
            f"{self.name} holds no questions; choose data that has them, such as moving_shapes or video_questions"
        )

    def loader(
        self, sample_shape: tuple[int, ...], preprocess: Preprocess, *, batch_size: int, num_workers: int = 0
    ) -> DataLoader:
        """Yields a ``Batch`` at a time, in order, the last one smaller where it does not come out even.

        ``sample_shape`` is (3, H, W) or (T, 3, H, W). Raises ValueError where this source cannot give it.
        """
        self.check_shape(sample_shape)
        _check(preprocess)
        input_shape = (self.num_views, *sample_shape) if self.num_views > 1 else tuple(sample_shape)
        return _Loader(
            _Samples(self, tuple(sample_shape), preprocess, input_shape),
            batch_size,
            num_workers=num_workers,
            collate_fn=partial(_collate, input_shape),
            pin_memory=torch.cuda.is_available(),
        )

    def check_shape(self, sample_shape: tuple[int, ...]) -> None:
        if len(sample_shape) not in (3, 4) or sample_shape[-3] != 3 or min(sample_shape) < 1:
            raise ValueError(f"sample_shape must be (3, H, W) or (T, 3, H, W), not {tuple(sample_shape)}")
        wanted = "clip" if len(sample_shape) == 4 else "image"
        if wanted != self.kind:
            raise ValueError(
                f"{self.name} holds {self.kind}s, but the backbone takes {wanted}s of shape {tuple(sample_shape)}; "
                f"choose data of {wanted}s or a backbone for {self.kind}s"
            )


def fit(pixels_HWC: np.ndarray, size: tuple[int, ...], preprocess: Preprocess) -> np.ndarray:
    """(3, *size) uint8: the picture resized and, with ``crop_pct``, cut to (height, width) ``size``.

    ``antialias`` True: PIL's resize, as timm; False: torch's, rounded back to whole numbers, as UMT (torchvision 0.13).
    """
    if preprocess.crop_pct is None:
        return _resize(pixels_HWC, size, preprocess)
    resized = _resize(pixels_HWC, _size_before_crop(pixels_HWC.shape[:2], size, preprocess.crop_pct), preprocess)
    top, left = (round((have - want) / 2) for have, want in zip(resized.shape[1:], size, strict=True))
    return resized[:, top : top + size[0], left : left + size[1]]


def normalize(pixels: np.ndarray, preprocess: Preprocess) -> Tensor:
    """(..., 3, H, W) uint8 to float32, by the operations of torchvision's ToTensor and Normalize in their order.

    In NumPy, which rounds alike: torch would wake all its threads for each of these small steps, and wait for them where
    the cores are taken (seen on 2 taken cores: 2 to 35 ms a clip of 8 x 64 x 64; with one thread 0.5).
    """
    mean, std = (np.array(value, np.float32)[:, None, None] for value in (preprocess.mean, preprocess.std))
    values = np.ascontiguousarray(pixels).astype(np.float32)
    values /= np.float32(255)
    values -= mean
    values /= std
    return torch.from_numpy(values)


def _check(preprocess: Preprocess) -> None:
    if preprocess.interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation must be {' or '.join(INTERPOLATIONS)}, not {preprocess.interpolation!r}")
    if preprocess.crop_pct is not None and not 0 < preprocess.crop_pct <= 1:
        raise ValueError(f"crop_pct must be above 0 and at most 1, or None for no crop, not {preprocess.crop_pct}")


def _size_before_crop(have: tuple[int, ...], want: tuple[int, ...], crop_pct: float) -> tuple[int, int]:
    """timm's two rules, which differ in rounding: torchvision's Resize for squares, ResizeKeepRatio for the rest."""
    height, width = have
    target = [math.floor(side / crop_pct) for side in want]
    if target[0] == target[1]:
        long = int(target[0] * max(have) / min(have))
        return (target[0], long) if height <= width else (long, target[0])
    ratio = min(height / target[0], width / target[1])
    return round(height / ratio), round(width / ratio)


def _resize(pixels_HWC: np.ndarray, size: tuple[int, ...], preprocess: Preprocess) -> np.ndarray:
    if pixels_HWC.shape[:2] == tuple(size):
        return pixels_HWC.transpose(2, 0, 1)
    if math.prod(size) > MAX_PIXELS:  # a line of 1 x 65,000 whose short side becomes 224
        height, width = pixels_HWC.shape[:2]
        raise ValueError(f"{width} x {height} would be resized to {size[1]} x {size[0]}, more than {MAX_PIXELS} pixels")
    if preprocess.antialias:
        picture = Image.fromarray(pixels_HWC).resize((size[1], size[0]), INTERPOLATIONS[preprocess.interpolation])
        return np.asarray(picture).transpose(2, 0, 1)
    # the permuted view takes torch's channels-last kernel, as UMT's frames do; the other one rounds a few pixels apart
    pixels = torch.from_numpy(pixels_HWC).permute(2, 0, 1)[None].float()
    resized = F.interpolate(pixels, size, mode=preprocess.interpolation, align_corners=False, antialias=False)
    return resized[0].clamp_(0, 255).round_().to(torch.uint8).numpy()


class _Samples(Dataset):
    """Items are (index, label, input), or a ``Problem``."""

    def __init__(
        self, source: DataSource, sample_shape: tuple[int, ...], preprocess: Preprocess, input_shape: tuple[int, ...]
    ):
        self.source, self.sample_shape, self.preprocess = source, sample_shape, preprocess
        self.input_shape = input_shape

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[int, int, Tensor] | Problem:
        try:
            sample = self.source.read(index, self.sample_shape, self.preprocess)
        except Unreadable as error:
            return error.problem
        assert sample.shape == self.input_shape, (sample.shape, self.input_shape)
        return index, self.source.label(index), sample


class _Loader(DataLoader):
    """Where a process that reads ahead dies over a file, others go on with that batch, without the file."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        if not self.num_workers:
            yield from super().__iter__()
            return
        samples, wanted, num_batches = self.dataset, list(self.batch_sampler or ()), 0
        assert isinstance(samples, _Samples)
        while num_batches < len(wanted):
            batches, workers = _started(wanted[num_batches:], self)
            try:
                for batch in batches:
                    num_batches += 1
                    yield batch
            except RuntimeError:
                codes = {one.pid: one.exitcode for one in workers if one.pid and one.exitcode is not None}
                if not samples.source.open_files.died(codes):
                    raise


def _started(
    wanted: list[list[int]], like: DataLoader
) -> tuple[Iterator[Batch], list[multiprocessing.process.BaseProcess]]:
    """The ``wanted`` batches, and the processes that read them. When one of these dies, torch would raise that at once from
    whatever runs, in the middle of a model; without its handler it does so where the next batch is asked for."""
    loader = DataLoader(
        like.dataset,
        batch_sampler=wanted,  # any list will do
        num_workers=like.num_workers,
        collate_fn=like.collate_fn,
        pin_memory=like.pin_memory,
    )
    before = set(multiprocessing.active_children())
    has_handler = os.name == "posix" and threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD) if has_handler else None
    batches = iter(loader)
    if has_handler:
        signal.signal(signal.SIGCHLD, handler)
    return batches, [one for one in multiprocessing.active_children() if one not in before]


def _collate(input_shape: tuple[int, ...], items: list[tuple[int, int, Tensor] | Problem]) -> Batch:
    problems = [item for item in items if isinstance(item, Problem)]
    read = [item for item in items if not isinstance(item, Problem)]
    inputs = torch.stack([sample for _, _, sample in read]) if read else torch.empty(0, *input_shape)
    label_B = torch.tensor([label for _, label, _ in read], dtype=torch.long)
    index_B = torch.tensor([index for index, _, _ in read], dtype=torch.long)
    return Batch(inputs, label_B, index_B, problems)
