"""How a picture or a frame becomes what a model was trained on."""

from dataclasses import dataclass

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocess:
    """``crop_pct`` None: resized to exactly the model's size, the aspect ratio not kept (as UMT does); a number: the short side
    to size / crop_pct, then a centre crop (as timm does). Then (x / 255 - mean) / std."""

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bicubic"
    crop_pct: float | None = None
    antialias: bool = False
