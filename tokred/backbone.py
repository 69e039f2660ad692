"""Backbones by name."""

import fnmatch
from typing import Any

from tokred.model import Backbone
from tokred.registry import BACKBONES, unknown


def create_backbone(name: str, *, weights: str | None = None, **sizes: Any) -> Backbone:
    """A backbone by name, in evaluation mode; ``sizes`` override its dimensions (num_frames, img_size, num_classes, ...).

    ``weights``: "pretrained" (from the package or the hub), "random", the path of a .safetensors or .pth file, or None: those
    that come with tokred where there are any, else random. Raises ValueError on an unknown name, or weights that do not fit.
    """
    for family in BACKBONES:
        if name in family.names() or any(name.startswith(p) for p in family.prefixes):
            return family.build(name, weights=weights, **sizes).eval()
    shown = [short for family in BACKBONES for short in _short(family)]
    raise ValueError(unknown("backbones", name, list_backbones(), broken=BACKBONES.broken, shown=shown))


def _short(family: type[Backbone]) -> list[str]:
    """Its names, or one that stands for them where they are very many."""
    names = family.names()
    return names if len(names) <= 10 else [f"{prefix}NAME ({len(names)} names)" for prefix in family.prefixes]


def list_backbones(pattern: str = "*") -> list[str]:
    """The names of all backbones that match a shell pattern."""
    names = [name for family in BACKBONES for name in family.names()]
    return sorted(fnmatch.filter(names, pattern))
