"""How a picture or a frame becomes what a model was trained on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

HALVES = (0.5, 0.5, 0.5)
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # PIL's numbers
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocess:
    """``crop_pct`` None: resized to exactly the model's size, the aspect ratio not kept (as UMT does); a number: the short side
    to size / crop_pct, then a centre crop (as timm does). Then (x / 255 - mean) / std."""

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bicubic"
    crop_pct: float | None = None
    antialias: bool = False


def as_preprocess(processor: Mapping[str, Any]) -> Preprocess:
    """What an image processor of Hugging Face does, from its file. Raises ValueError where ``Preprocess`` cannot say it."""
    defaults: dict[str, Any] = dict.fromkeys(("do_resize", "do_rescale", "do_normalize", "do_center_crop"), True)
    asked = (
        defaults
        | {"image_mean": HALVES, "image_std": HALVES, "rescale_factor": 1 / 255, "resample": 2}
        | dict(processor)
    )
    mean, std = (asked["image_mean"], asked["image_std"]) if asked["do_normalize"] else ((0.0,) * 3, (1.0,) * 3)
    span, offset = 255.0, 0.0
    if asked["do_rescale"]:  # ViViT's subtract 1 after it: (x rescale_factor - offset - mean) / std
        span *= asked["rescale_factor"]
        offset = float(asked.get("offset", str(asked.get("video_processor_type")).startswith("Vivit")))
    return Preprocess(
        tuple(round((offset + value) / span, 6) for value in mean),
        tuple(round(value / span, 6) for value in std),
        RESAMPLE.get(asked["resample"], f"PIL's number {asked['resample']}"),
        _crop_pct(asked),
        antialias=True,
    )


def _crop_pct(asked: Mapping[str, Any]) -> float | None:
    size = asked.get("size") or {}
    short = size if isinstance(size, int) else size.get("shortest_edge")  # old files give a number
    crop = (asked.get("crop_size") or short or size) if asked["do_center_crop"] else None
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    if asked["do_resize"] and short and crop and crop["height"] == crop["width"]:
        return crop["height"] / short
    if asked["do_resize"] and not short and crop in (None, size):
        return None
    raise ValueError(
        f"pictures resized to {size} and cut to {crop}, as its image processor asks for, are not supported"
    )
