"""Small video transformers trained on moving shapes, with a class token or mean pooling; the weights are in the package.

``python train.py model=mini_mean`` makes them again.
"""

from pathlib import Path
from typing import Any

from tokred import BACKBONES, VideoTransformer
from tokred.data.moving_shapes import CLASSES, IMAGE_SIZE, NUM_FRAMES
from tokred.preprocess import Preprocess
from tokred.weights import load_strictly, read_state

SIZES = {
    "img_size": IMAGE_SIZE,
    "num_frames": NUM_FRAMES,
    "tubelet": 2,
    "patch_size": 8,
    "embed_dim": 96,
    "depth": 6,
    "num_heads": 3,
    "num_classes": len(CLASSES),
}


@BACKBONES.register("mini")
class Mini(VideoTransformer):
    """``mini_cls`` reads its class token, ``mini_mean`` the mean of its tokens; 256 tokens for a clip of 8 frames."""

    @classmethod
    def names(cls) -> list[str]:
        return ["mini_cls", "mini_mean"]

    @classmethod
    def build(cls, name: str, *, weights: str | None = None, **sizes: Any) -> "Mini":
        model = cls.made(**SIZES | {"class_token": name == "mini_cls", "learned_positions": True} | sizes)
        if weights in (None, "pretrained", "embedded"):
            weights = str(Path(__file__).parent / "weights" / f"{name}.safetensors")
        if weights != "random":
            load_strictly(model, read_state(weights), weights)
        return model

    def preprocess(self) -> Preprocess:
        return Preprocess(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
