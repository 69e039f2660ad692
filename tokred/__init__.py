"""Token reduction for image and video transformers: which method, at which layers, how many tokens, and what it costs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokred.public import *

__version__ = "0.1.0"

__all__ = [
    "BACKBONES",
    "METHODS",
    "Assignment",
    "Attention",
    "Backbone",
    "Method",
    "Place",
    "ReducedModel",
    "Schedule",
    "Tokens",
    "Trace",
    "VideoTransformer",
    "Widths",
    "create_backbone",
    "create_method",
    "list_backbones",
    "list_methods",
    "matching",
    "reduce",
]


def __getattr__(name: str) -> Any:
    """The public names, when they are asked for: to import a part of tokred that needs no torch takes no seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    public = import_module("tokred.public")
    globals().update({name: getattr(public, name) for name in __all__})
    return globals()[name]


def __dir__() -> list[str]:
    return [*globals(), *__all__]
