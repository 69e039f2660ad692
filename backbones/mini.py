"""Small video transformers trained on moving shapes; the weights are in the package.

With a class token, with mean pooling, and in the form of UMT's video-text models. ``python train.py model=mini_mean`` makes them
again.
"""

from pathlib import Path
from typing import Any

from tokred import BACKBONES, Backbone, VideoTransformer
from tokred.data.moving_shapes import CLASSES, IMAGE_SIZE, NUM_FRAMES
from tokred.preprocess import HALVES, Preprocess
from tokred.tokenizer import WordPieces
from tokred.video_text import MODELS
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
PIXELS = Preprocess(mean=HALVES, std=HALVES)


@BACKBONES.register("mini")
class Mini(VideoTransformer):
    """Small video transformers trained on moving shapes; the weights are in the package.

    ``mini_cls`` reads its class token, ``mini_mean`` the mean of its tokens; 256 tokens for a clip of 8 frames.
    """

    pixels = PIXELS
    embedded = True

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


TEXT_SIZES = {"text_dim": 96, "text_depth": 5, "text_heads": 3, "fusion_layer": 3, "max_positions": 64}


@BACKBONES.register("mini_umt")
class MiniUMT(Backbone):
    """The small twins of UMT's models, for retrieval and question answering on moving shapes."""

    embedded = True

    @classmethod
    def names(cls) -> list[str]:
        return ["mini_umt"]

    @classmethod
    def tasks(cls, name: str) -> tuple[str, ...]:
        return ("retrieval", "qa")

    @classmethod
    def build(cls, name: str, *, weights: str | None = None, task: str = "retrieval", **sizes: Any) -> Backbone:
        if "vocabulary" in sizes:
            raise ValueError(f"{name} has its own vocabulary; drop vocabulary={sizes['vocabulary']}")
        folder = Path(__file__).parent / "weights"
        words = WordPieces.read(folder / "mini_umt_vocab.txt")
        vision = {name: size for name, size in SIZES.items() if name != "num_classes"} | {"learned_positions": True}
        joint = {"joint_dim": 64} if task == "retrieval" else {}
        model = MODELS[task].made(words, **vision | TEXT_SIZES | joint | sizes)
        model.vision_encoder.pixels = PIXELS
        if weights in (None, "pretrained", "embedded"):
            weights = str(folder / f"mini_umt_{task}.safetensors")
        if weights != "random":
            load_strictly(model, read_state(weights), weights)
        return model
