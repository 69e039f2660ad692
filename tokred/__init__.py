"""Token reduction for image and video transformers: which method, at which layers, how many tokens, and what it costs."""

from tokred import matching
from tokred.attention import Attention
from tokred.backbone import create_backbone, list_backbones
from tokred.model import Backbone, Method, Place, Widths
from tokred.reduction import ReducedModel, Trace, create_method, list_methods, reduce
from tokred.registry import BACKBONES, METHODS
from tokred.schedule import Schedule
from tokred.tokens import Assignment, Tokens
from tokred.transformer import VideoTransformer

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
