"""Where samples come from: clips drawn from a seed, videos and pictures from folders."""

import inspect
from typing import Any, get_type_hints

from tokred.data.loading import Batch, DataSource, Problem
from tokred.data.moving import MovingShapes
from tokred.data.pictures import ImageFolder
from tokred.data.video import VideoFolder
from tokred.preprocess import Preprocess
from tokred.registry import unknown

__all__ = [
    "DATA",
    "Batch",
    "DataSource",
    "ImageFolder",
    "MovingShapes",
    "Preprocess",
    "Problem",
    "VideoFolder",
    "create_data",
]

DATA: dict[str, type[DataSource]] = {
    "moving_shapes": MovingShapes,
    "video_folder": VideoFolder,
    "image_folder": ImageFolder,
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
        if not isinstance(value, types[option]) or isinstance(value, bool):  # True is an int, but no number
            wanted = getattr(types[option], "__name__", str(types[option]))
            raise ValueError(f"{option} of {name} must be {wanted}, not {value!r}")
    for option, parameter in parameters.items():
        if parameter.default is parameter.empty and option not in options:
            raise ValueError(f"{name} needs {option}, and none came; add {option}=...")
    return DATA[name](**options)
