"""Backbones by name."""

import fnmatch
from typing import Any

from tokred.model import Backbone
from tokred.registry import BACKBONES, unknown


def create_backbone(name: str, *, weights: str | None = None, task: str | None = None, **sizes: Any) -> Backbone:
    """A backbone by name, in evaluation mode; ``sizes`` override its dimensions (num_frames, img_size, num_classes, ...).

    ``task``: "classification", "retrieval" or "qa"; None: the first of those that it is built for.

    ``weights``: "pretrained" (from the package or the hub), "random", the path of a .safetensors or .pth file, or None: those
    that come with tokred where there are any, else random. Raises ValueError on an unknown name, or weights that do not fit.
    """
    for family in BACKBONES:
        if name in family.names() or any(name.startswith(p) for p in family.prefixes):
            tasks = family.tasks(name)
            if task is not None and task not in tasks:
                others = ", ".join(n for n in list_backbones() if task in _tasks(n)) or "no other"
                raise ValueError(f"{name} is built for {' and '.join(tasks)}, not for {task}; that can: {others}")
            if (task or tasks[0]) != "classification":
                sizes["task"] = task or tasks[0]
            return family.build(name, weights=weights, **sizes).eval()
    shown = [short for family in BACKBONES for short in _short(family)]
    raise ValueError(unknown("backbones", name, list_backbones(), broken=BACKBONES.broken, shown=shown))


def _short(family: type[Backbone]) -> list[str]:
    """Its names, or one that stands for them where they are very many."""
    names = family.names()
    return names if len(names) <= 10 else [f"{prefix}NAME ({len(names)} names)" for prefix in family.prefixes]


def _tasks(name: str) -> tuple[str, ...]:
    return next((family.tasks(name) for family in BACKBONES if name in family.names()), ())


def list_backbones(pattern: str = "*") -> list[str]:
    """The names of all backbones that match a shell pattern."""
    names = [name for family in BACKBONES for name in family.names()]
    return sorted(fnmatch.filter(names, pattern))
