"""The embedded data set: clips of ``moving_shapes``, drawn once and kept."""

import hashlib
import json
import re
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from tokred.data.loading import DataSource, fit, normalize
from tokred.data.moving_shapes import (
    ANSWERS,
    CLASSES,
    IMAGE_SIZE,
    NUM_FRAMES,
    caption,
    make_clip,
    make_scene,
    questions,
)
from tokred.data.texts import Captions, Questions, clean
from tokred.preprocess import Preprocess

CAPTION_LENGTH = 48  # word pieces: the longest caption, of five objects, is 24 words
SHORTLIST = 32  # where UMT takes 128: a sweep is to end in minutes on two cores
KEPT_CLIPS = 4096  # 98,304 bytes each: 384 MiB; clips beyond are drawn anew in each pass


class MovingShapes(DataSource):
    """``num_clips`` clips of a split: "test", "validation" or "train-SEED" (``tokred.training`` draws "train-0")."""

    name = "moving_shapes"
    kind = "clip"
    classes = CLASSES
    has_labels = True

    def __init__(self, num_clips: int = 1000, split: str = "test"):
        if num_clips < 1:
            raise ValueError(f"num_clips must be 1 or more, not {num_clips}")
        if not re.fullmatch(r"test|validation|train-\d+", split):
            raise ValueError(f"split must be test, validation or train-SEED (such as train-0), not {split!r}")
        self.num_clips, self.split = num_clips, split
        self._kept: tuple[np.ndarray, list[int]] | None = None  # frames_NTHWC and labels, from the first loader on

    def __len__(self) -> int:
        return self.num_clips

    def label(self, index: int) -> int:
        return self._clip(index)[1]

    def read(self, index: int, sample_shape: tuple[int, ...], preprocess: Preprocess) -> Tensor:
        frames_THWC, _ = self._clip(index)
        return normalize(np.stack([fit(frame, sample_shape[-2:], preprocess) for frame in frames_THWC]), preprocess)

    def foreground(self, index: int) -> np.ndarray:
        return make_clip(self.split, index).owner_THW > 0

    def apart(self, num_samples: int) -> "MovingShapes":
        return MovingShapes(num_samples, split="validation" if self.split == "test" else "test")

    def captions(self) -> Captions:
        """One for each clip. Of the 1,000 clips of the test two have the same: each is right for both."""
        texts = tuple(clean(caption(make_scene(self.split, index))) for index in range(self.num_clips))
        clips: dict[str, list[int]] = {}
        for index, text in enumerate(texts):
            clips.setdefault(text, []).append(index)
        return Captions(texts, tuple(tuple(clips[text]) for text in texts), CAPTION_LENGTH, shortlist=SHORTLIST)

    def questions(self) -> Questions:
        """Five for each clip, with the ids CLIP-NUMBER; ``ANSWERS`` to choose from."""
        rows = [
            (clean(question), index, answer, f"{index}-{number}")
            for index in range(self.num_clips)
            for number, (question, answer) in enumerate(questions(make_scene(self.split, index)))
        ]
        texts, video, answer, ids = zip(*rows)
        return Questions(texts, video, answer, ids, ANSWERS)

    def digest(self) -> str:
        """Over the description, the class names, and the first and the last clip: the generator draws the rest."""
        sha = hashlib.sha256(json.dumps([self.description(), CLASSES]).encode())
        for index in (0, self.num_clips - 1):
            frames_THWC, label = self._clip(index)
            sha.update(frames_THWC.tobytes() + str(label).encode())
        return sha.hexdigest()

    def contents(self) -> set[str]:
        return {f"{self.split}/{index}" for index in range(self.num_clips)}

    def description(self) -> dict[str, Any]:
        return {"name": self.name, "num_clips": self.num_clips, "split": self.split}

    def loader(
        self, sample_shape: tuple[int, ...], preprocess: Preprocess, *, batch_size: int, num_workers: int = 0
    ) -> DataLoader:
        """Draws the clips at the first call (7 ms each), here and not in the workers, whose memory ends with them."""
        loader = super().loader(sample_shape, preprocess, batch_size=batch_size, num_workers=num_workers)
        if self._kept is None:
            self._kept = _draw(self.split, min(self.num_clips, KEPT_CLIPS))
        return loader

    def check_shape(self, sample_shape: tuple[int, ...]) -> None:
        super().check_shape(sample_shape)
        own = (NUM_FRAMES, 3, IMAGE_SIZE, IMAGE_SIZE)
        if tuple(sample_shape) != own:
            raise ValueError(
                f"{self.name} holds clips of shape {own}, but the backbone takes {tuple(sample_shape)}; "
                f"use a backbone of that shape (mini_mean, or mini_umt where there are texts), or data of your own"
            )

    def _clip(self, index: int) -> tuple[np.ndarray, int]:
        if self._kept is not None and index < len(self._kept[1]):
            return self._kept[0][index], self._kept[1][index]
        return _draw_one(self.split, index)


@lru_cache(maxsize=2)  # a sample's pixels and its label are asked for one after the other
def _draw_one(split: str, index: int) -> tuple[np.ndarray, int]:
    clip = make_clip(split, index)
    return clip.frames_THWC, clip.scene.label


def _draw(split: str, num_clips: int) -> tuple[np.ndarray, list[int]]:
    frames_NTHWC = np.empty((num_clips, NUM_FRAMES, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    labels = []
    for index in range(num_clips):
        frames_NTHWC[index], label = _draw_one(split, index)
        labels.append(label)
    return frames_NTHWC, labels
