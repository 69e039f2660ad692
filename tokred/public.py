"""The names that ``tokred`` has."""

from tokred import matching
from tokred.attention import Attention
from tokred.backbone import create_backbone, list_backbones
from tokred.model import Backbone, Method, Place, Widths
from tokred.reduction import ReducedModel, Trace, create_method, list_methods, reduce
from tokred.registry import BACKBONES, METHODS
from tokred.schedule import Schedule
from tokred.tokens import Assignment, Tokens
from tokred.transformer import VideoTransformer
