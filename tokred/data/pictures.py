"""Pictures from a folder, read with PIL.

As timm and torchvision do: converted to RGB, an alpha channel dropped, the first picture of a file that holds several,
EXIF orientation not applied.
"""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from tokred.data.listing import FolderSource
from tokred.data.loading import MAX_PIXELS, fit
from tokred.preprocess import Preprocess

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")  # all that PIL may try, whatever the file is called


class ImageFolder(FolderSource):
    """Pictures in class folders, in one folder, or named by a CSV (``tokred.data.listing``)."""

    name = "image_folder"
    kind = "image"
    extensions = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")

    def __init__(self, root: str | Path, csv: str | Path | None = None, limit: int | None = None):
        super().__init__(root, csv, limit, separator=",")

    def pixels(self, path: str, sample_shape: tuple[int, ...], preprocess: Preprocess) -> np.ndarray:
        return fit(read_picture(path), sample_shape[-2:], preprocess)


def read_picture(path: str) -> np.ndarray:
    """(H, W, 3) uint8. Raises ValueError above ``MAX_PIXELS``, before decoding, and on broken files what PIL raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # ours is the check below
        try:
            picture = Image.open(path, formats=FORMATS)
        except UnidentifiedImageError:
            raise ValueError(f"not a picture in {', '.join(FORMATS)} format") from None
    with picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(f"{picture.width} x {picture.height} are more than {MAX_PIXELS} pixels")
        return np.array(picture.convert("RGB"))
