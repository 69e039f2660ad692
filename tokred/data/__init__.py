"""Where samples come from: clips drawn from a seed, videos and pictures from folders, videos with texts."""

import inspect
from typing import Any, get_args, get_type_hints

from tokred.data.annotations import VideoCaptions, VideoQuestions
from tokred.data.loading import Batch, DataSource, Problem
from tokred.data.moving import MovingShapes
from tokred.data.pictures import ImageFolder
from tokred.data.texts import Captions, Questions
from tokred.data.video import VideoFolder
from tokred.preprocess import Preprocess
from tokred.registry import unknown

__all__ = [
    "DATA",
    "Batch",
    "Captions",
    "DataSource",
    "ImageFolder",
    "MovingShapes",
    "Preprocess",
    "Problem",
    "Questions",
    "VideoCaptions",
    "VideoFolder",
    "VideoQuestions",
    "create_data",
]

DATA: dict[str, type[DataSource]] = {
    "moving_shapes": MovingShapes,
    "video_folder": VideoFolder,
    "image_folder": ImageFolder,
    "video_captions": VideoCaptions,
    "video_questions": VideoQuestions,
}


def create_data(name: str, **options: Any) -> DataSource:
    """The data source of this name. Raises ValueError for an unknown name or option, or a value of the wrong type.

    >>> len(create_data("moving_shapes", num_clips=8))
    8
    """
    if name not in DATA:
        raise ValueError(unknown("data", name, DATA))
    parameters, types = inspect.signature(DATA[name]).parameters, get_type_hints(DATA[name].__init__)
    for option, value in options.items():
        if option not in parameters:
            raise ValueError(unknown(f"the options of {name}", option, parameters))
        if not _is_a(types[option], value):
            wanted = getattr(types[option], "__name__", str(types[option]))
            raise ValueError(f"{option} of {name} must be {wanted}, not {value!r}")
    for option, parameter in parameters.items():
        if parameter.default is parameter.empty and option not in options:
            raise ValueError(f"{name} needs {option}, and none came; add {option}=...")
    return DATA[name](**options)


def _is_a(wanted: Any, value: Any) -> bool:
    """Whether the value is of a type, or of one of a union. Here True is no number, and 30 is a float."""
    kinds = get_args(wanted) or (wanted,)
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, (*kinds, int) if float in kinds else kinds)
