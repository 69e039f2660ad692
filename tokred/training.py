"""Training of the embedded models on moving shapes, which are drawn as they are needed: no clip is seen twice.

A model that is taught what the whole clip shows learns next to nothing for a long time. So the first steps have a plain
background and few other objects (``ramp``), and extra heads, dropped afterwards, are taught pattern and direction apart, of
the clip and of what each token shows.

Dimension key: B batch, N tokens, C channels, T frames, H height, W width.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tokred.backbone import create_backbone
from tokred.data.moving_shapes import DIRECTIONS, FILLS, Clip, clip_tensor, make_clip
from tokred.transformer import VideoTransformer
from tokred.weights import load_strictly, read_state


@dataclass
class TrainConfig:
    model: str = "mini_mean"
    out: str = "backbones/weights/${model}.safetensors"
    init: str | None = None  # weights to start from
    resume: str | None = None  # a checkpoint of a run that was stopped
    steps: int = 3200
    batch_size: int = 32
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    warmup: int = 100
    ramp: int = 600  # steps over which the task becomes as hard as it will be
    precision: str = "bf16-mixed"
    workers: int = 1
    seed: int = 0
    num_validation: int = 512
    progress: bool = True


class Lesson(NamedTuple):
    """A clip, its class, and for each token the pattern and the motion it shows (the last number of each: background)."""

    clip: Tensor
    label: int
    pattern_N: Tensor
    motion_N: Tensor


MOTIONS = (*DIRECTIONS, "still", "trembling")


def lesson(clip: Clip, grid: tuple[int, int, int]) -> Lesson:
    """What is taught of a clip."""
    most_N = token_targets(clip, grid)
    patterns = np.array([FILLS.index(thing.fill) for thing in clip.scene.things] + [len(FILLS)])
    motions = np.array([MOTIONS.index(thing.motion) for thing in clip.scene.things] + [len(MOTIONS)])
    return Lesson(
        clip_tensor(clip), clip.scene.label, torch.from_numpy(patterns[most_N]), torch.from_numpy(motions[most_N])
    )


def token_targets(clip: Clip, grid: tuple[int, int, int]) -> np.ndarray:
    """(N,): which object each token shows: the one that covers most of it, if that is at least a quarter; else their number."""
    T, H, W = grid
    frames, height, width = clip.owner_THW.shape
    owner_NP = clip.owner_THW.reshape(T, frames // T, H, height // H, W, width // W)
    owner_NP = owner_NP.transpose(0, 2, 4, 1, 3, 5).reshape(T * H * W, -1)
    covered = np.stack([(owner_NP == number + 1).mean(1) for number in range(len(clip.scene.things))], 1)
    return np.where(covered.max(1) >= 0.25, covered.argmax(1), len(clip.scene.things))


class GrowingClips(Dataset):
    """Training clips by index, from ``start`` on; those before ``ramp_clips`` are easier."""

    def __init__(self, start: int, stop: int, ramp_clips: int, seed: int, grid: tuple[int, int, int]):
        self.start, self.stop, self.ramp_clips, self.seed, self.grid = start, stop, ramp_clips, seed, grid

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> Lesson:
        index += self.start
        difficulty = min(1.0, index / self.ramp_clips) if self.ramp_clips else 1.0
        return lesson(make_clip(f"train-{self.seed}", index, difficulty=difficulty), self.grid)


class ValidationClips(Dataset):
    def __init__(self, num_clips: int):
        self.num_clips = num_clips

    def __len__(self) -> int:
        return self.num_clips

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        clip = make_clip("validation", index)
        return clip_tensor(clip), clip.scene.label


class Recipe(L.LightningModule):
    """AdamW with a warm-up and a cosine."""

    def __init__(self, config: TrainConfig):
        super().__init__()
        self.config = config

    def configure_optimizers(self):
        decayed = [p for p in self.parameters() if p.ndim > 1]
        plain = [p for p in self.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": self.config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.config.learning_rate, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, step: int) -> float:
        if step < self.config.warmup:
            return (step + 1) / self.config.warmup
        done = (step - self.config.warmup) / max(1, self.config.steps - self.config.warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Training(Recipe):
    """Cross-entropy of the class, and of pattern and direction apart."""

    def __init__(self, model: VideoTransformer, config: TrainConfig):
        super().__init__(config)
        self.model = model
        dim = model.embed_dim
        self.of_clip = nn.Linear(dim, len(FILLS) + len(DIRECTIONS))
        self.of_token = nn.Linear(dim, len(FILLS) + 1 + len(MOTIONS) + 1)
        # five tokens of six show background, one of twenty the traveller
        self.register_buffer("pattern_weight", torch.tensor([1.0] * len(FILLS) + [0.1]))
        self.register_buffer("motion_weight", torch.tensor([1.0] * len(DIRECTIONS) + [0.5] * 2 + [0.1]))

    def training_step(self, batch: Lesson, step: int) -> Tensor:
        tokens = self.model.last_tokens(batch.clip)
        feature_BC = self.model.pooled(tokens)
        loss = F.cross_entropy(self.model.classifier(feature_BC), batch.label)
        pattern, direction = self.of_clip(feature_BC).split([len(FILLS), len(DIRECTIONS)], -1)
        loss_clip = F.cross_entropy(pattern, batch.label // len(DIRECTIONS))
        loss_clip = loss_clip + F.cross_entropy(direction, batch.label % len(DIRECTIONS))
        x_BNC = self.model.normed(tokens).x_BNC[:, tokens.prefix :]
        pattern, motion = self.of_token(x_BNC).split([len(FILLS) + 1, len(MOTIONS) + 1], -1)
        loss_token = F.cross_entropy(pattern.mT, batch.pattern_N, weight=self.pattern_weight)
        loss_token = loss_token + F.cross_entropy(motion.mT, batch.motion_N, weight=self.motion_weight)
        self.log_dict({"loss": loss, "loss_clip": loss_clip, "loss_token": loss_token}, prog_bar=True)
        return loss + 0.5 * loss_clip + loss_token

    def validation_step(self, batch: tuple[Tensor, Tensor], step: int) -> None:
        clips, label_B = batch
        right_B = self.model(clips).argmax(-1) == label_B
        self.log("val_accuracy", right_B.float().mean(), prog_bar=True, on_epoch=True, batch_size=len(label_B))


def train(config: TrainConfig) -> list[Path]:
    """Trains, writes the weights (without the extra heads) as safetensors, and returns their paths."""
    L.seed_everything(config.seed)
    return train_texts(config) if config.model == "mini_umt" else [train_classes(config)]


def train_classes(config: TrainConfig) -> Path:
    model = create_backbone(config.model, weights="random").train()
    if config.init:  # what the other model has, the class token aside
        load_strictly(model, model.state_dict() | read_state(config.init), config.init)
    done = torch.load(config.resume, weights_only=True)["global_step"] if config.resume else 0
    start, stop, ramp = (steps * config.batch_size for steps in (done, config.steps, config.ramp))
    clips = GrowingClips(start, stop, ramp, config.seed, model.grid)
    # in order, not shuffled: every index is another draw, and the ramp follows the index
    loader = DataLoader(clips, config.batch_size, num_workers=config.workers)
    validation = DataLoader(ValidationClips(config.num_validation), 64, num_workers=config.workers)
    fit(Training(model, config), loader, validation, config)
    return save(model, config.out)


def train_texts(config: TrainConfig) -> list[Path]:
    """The two video-text models, from one training; ``init`` gives the vision encoder its start."""
    from tokred.text_training import TextClips, TextTraining, collate

    models = [create_backbone(config.model, task=task, weights="random").train() for task in ("retrieval", "qa")]
    if config.init:
        vision = models[0].vision_encoder
        state = {name: value for name, value in read_state(config.init).items() if name in vision.state_dict()}
        load_strictly(vision, state, config.init)
    done = torch.load(config.resume, weights_only=True)["global_step"] if config.resume else 0
    start, stop = (steps * config.batch_size for steps in (done, config.steps))
    clips = TextClips(f"train-{config.seed}", start, stop, models[0].vision_encoder.grid)
    loader = DataLoader(clips, config.batch_size, num_workers=config.workers, collate_fn=collate)
    held_out = TextClips("validation", 0, config.num_validation, clips.grid)
    validation = DataLoader(held_out, 64, num_workers=config.workers, collate_fn=collate)
    fit(TextTraining(models[0], models[1], config), loader, validation, config)
    tasks = zip(models, ("retrieval", "qa"), strict=True)
    return [save(model, Path(config.out).with_stem(f"{Path(config.out).stem}_{task}")) for model, task in tasks]


def fit(module: L.LightningModule, loader: DataLoader, validation: DataLoader, config: TrainConfig) -> None:
    L.Trainer(
        max_steps=config.steps,
        precision=config.precision,
        gradient_clip_val=1.0,
        val_check_interval=min(500, config.steps),
        logger=CSVLogger("runs/train", name=config.model),
        callbacks=[ModelCheckpoint(Path("runs/train") / config.model, save_last=True, every_n_train_steps=250)],
        log_every_n_steps=20,
        enable_progress_bar=config.progress,
    ).fit(module, loader, validation, ckpt_path=config.resume, weights_only=True)


def save(model: nn.Module, out: str | Path) -> Path:
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous().cpu() for name, value in model.state_dict().items()}, path)
    return path


def main(argv: list[str]) -> int:
    """``python train.py``: a user's mistake is one line, not a traceback."""
    if argv[:1] in (["--help"], ["-h"]):
        print(
            "usage: python train.py [KEY=VALUE ...]",
            OmegaConf.to_yaml(OmegaConf.structured(TrainConfig)),
            sep="\n",
            end="",
        )
        return 0
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), OmegaConf.from_cli(argv)))
        print("wrote " + ", ".join(map(str, train(config))))
    except (ValueError, OmegaConfBaseException) as error:
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    return 0
