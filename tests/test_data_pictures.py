"""Pictures: as timm reads and transforms them; broken and oversized ones are problems."""

import struct
import zlib

import numpy as np
import pytest
import timm.data
import torch
import torchvision.transforms.functional as vision
from PIL import Image

from tokred.data import ImageFolder, Preprocess
from tokred.data.pictures import read_picture


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Blocks and pixels: what a wrong filter or a shift of one pixel shows up on."""
    random = np.random.RandomState(0)
    coarse = random.randint(0, 200, (height // 16 + 1, width // 16 + 1, channels)).repeat(16, 0).repeat(16, 1)
    return (coarse[:height, :width] + random.randint(0, 56, (height, width, channels))).astype(np.uint8)


def timm_transform(shape, **config):
    return timm.data.create_transform(
        **timm.data.resolve_data_config({}, pretrained_cfg={"input_size": shape, **config})
    )


def read(root, shape, preprocess) -> torch.Tensor:
    (batch,) = ImageFolder(root).loader(shape, preprocess, batch_size=8)
    assert batch.problems == []
    return batch.inputs


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
@pytest.mark.parametrize("size", [(150, 211), (211, 150), (40, 37), (64, 64)])
@pytest.mark.parametrize(
    ("shape", "interpolation", "crop_pct"),
    [
        ((3, 64, 64), "bicubic", 0.9),
        ((3, 64, 64), "bilinear", 0.875),
        ((3, 64, 64), "bicubic", 1.0),
        ((3, 96, 64), "bicubic", 0.95),
    ],
)
def test_inputs_equal_those_of_timm(tmp_path, name, size, shape, interpolation, crop_pct):
    Image.fromarray(noise(*size)).save(tmp_path / name, quality=95)
    config = {
        "mean": (0.48, 0.46, 0.41),
        "std": (0.27, 0.26, 0.28),
        "interpolation": interpolation,
        "crop_pct": crop_pct,
    }
    with Image.open(tmp_path / name) as picture:
        expected = timm_transform(shape, **config)(picture.convert("RGB"))
    assert torch.equal(read(tmp_path, shape, Preprocess(**config, antialias=True))[0], expected)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(150, 211), (40, 37), (64, 48)])
def test_without_crop_and_antialias_inputs_equal_torchvisions_resize_of_a_uint8_tensor(tmp_path, interpolation, size):
    pixels = noise(*size)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    mode = vision.InterpolationMode(interpolation)
    resized = vision.resize(torch.from_numpy(pixels).permute(2, 0, 1)[None], [64, 48], mode, antialias=False)
    expected = vision.normalize(resized / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert torch.equal(read(tmp_path, (3, 64, 48), Preprocess(interpolation=interpolation)), expected)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_every_mode_becomes_rgb_as_pil_converts_it(tmp_path, mode):
    name = "a.jpg" if mode == "CMYK" else "a.png"
    Image.fromarray(noise(32, 32)).convert(mode).save(tmp_path / name)
    with Image.open(tmp_path / name) as picture:
        assert picture.mode == mode
        expected = np.array(picture.convert("RGB"))
    assert np.array_equal(read_picture(str(tmp_path / name)), expected)


def test_exif_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to show
    Image.fromarray(noise(20, 30)).save(tmp_path / "a.jpg", exif=exif)
    assert read_picture(str(tmp_path / "a.jpg")).shape == (20, 30, 3)


def header_only(width: int, height: int) -> bytes:
    """A PNG that states its size and holds no pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + b"\0\0\0\0IDAT"


def test_broken_pictures_are_problems_and_the_rest_is_read(tmp_path):
    Image.fromarray(noise(64, 64)).save(tmp_path / "good.png")
    Image.fromarray(noise(64, 64)).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "whole.jpg").unlink()
    bad_png = bytearray((tmp_path / "good.png").read_bytes())
    bad_png[60] ^= 0xFF
    files = {
        "cut.jpg": (whole[: len(whole) // 2], "OSError: image file is truncated"),
        "empty.jpg": (b"", "ValueError: not a picture in JPEG, PNG"),
        "flipped.png": (bytes(bad_png), "Error"),
        "text.jpg": (b"no picture", "ValueError: not a picture in JPEG, PNG"),
        "script.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "ValueError: not a picture in JPEG, PNG"),
        "bomb.png": (header_only(12_000, 12_000), "ValueError: 12000 x 12000 are more than 89478485 pixels"),
        "worse.png": (header_only(60_000, 60_000), "DecompressionBombError: Image size (3600000000 pixels)"),
    }
    for name, (content, _) in files.items():
        (tmp_path / name).write_bytes(content)
    (batch,) = ImageFolder(tmp_path).loader((3, 32, 32), Preprocess(), batch_size=16)
    assert batch.inputs.shape == (1, 3, 32, 32)
    reasons = dict(batch.problems)
    assert reasons.keys() == files.keys()
    for name, (_, reason) in files.items():
        assert reason in reasons[name]


@pytest.mark.filterwarnings("error")
def test_a_large_picture_is_refused_without_a_warning(tmp_path):
    (tmp_path / "bomb.png").write_bytes(header_only(12_000, 12_000))
    with pytest.raises(ValueError, match="12000 x 12000"):
        read_picture(str(tmp_path / "bomb.png"))
