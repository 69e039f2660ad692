"""Backbones by name."""

import fnmatch
from typing import Any

from tokred.model import Backbone
from tokred.registry import BACKBONES, unknown


def create_backbone(name: str, *, weights: str | None = None, task: str | None = None, **sizes: Any) -> Backbone:
    """A backbone by name, in evaluation mode; ``sizes`` override its dimensions (num_frames, img_size, num_classes, ...).

    ``task``: "classification", "retrieval" or "qa"; None: the first of those that it is built for.

    ``weights``: "embedded" (they come with tokred), "pretrained" (these too, else from the hub), "random", the path of a
    .safetensors or .pth file, or None: embedded where there are any, else random. Raises ValueError on an unknown name,
    or weights that do not fit.
    """
    family = family_of(name)
    tasks = family.tasks(name)
    if task is not None and task not in tasks:
        able = [short for other in BACKBONES for short in _short(other) if task in other.tasks(short)]
        raise ValueError(f"{name} is built for {' and '.join(tasks)}, not for {task}; that can: {', '.join(able)}")
    if weights == "embedded" and not family.embedded:
        raise ValueError(
            f"no weights of {name} come with tokred; say weights=pretrained (from the hub), weights=random, or the path of a file"
        )
    if (task or tasks[0]) != "classification":
        sizes["task"] = task or tasks[0]
    return family.build(name, weights=weights, **sizes).eval()


def family_of(name: str) -> type[Backbone]:
    """The family that builds the backbone of that name. Raises ValueError where there is none."""
    for family in BACKBONES:
        if name in family.names() or any(name.startswith(p) for p in family.prefixes):
            return family
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
