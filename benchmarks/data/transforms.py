"""Decoding and geometry: from a file to an RGB image of the protocol's size. Normalisation is left to the encoder."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from benchmarks.contract import InputError
from results.schema import Geometry

_INTERPOLATION = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
# What Pillow's decoders raise on files that are damaged in one way or another.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def decode(path: Path) -> Image.Image:
    """The picture in RGB, upright by its EXIF tag, transparency laid on white, 16-bit grey scaled to 8.

    Raises:
        InputError: no such file, not an image, damaged, or of 32-bit pixels, whose range nothing tells.
    """
    try:
        with Image.open(path) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; restore it or leave it out of the lists") from error
    except _DAMAGED as error:
        raise InputError(f"{path} cannot be decoded as an image ({error}); replace or remove the file") from error
    if image.mode == "F" or image.mode == "I":
        raise InputError(f"{path} has 32-bit pixels of unknown range; save it with 8 or 16 bits per channel")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def apply_geometry(image: Image.Image, geometry: Geometry) -> Image.Image:
    """The image at `geometry.crop` squared, with torchvision's rounding and Pillow's antialiased resampling."""
    how = _INTERPOLATION[geometry.interpolation]
    if geometry.resize:
        image = TF.resize(image, [geometry.resize], how)
    if geometry.mode == "warp":
        return TF.resize(image, [geometry.crop, geometry.crop], how)
    return TF.center_crop(image, [geometry.crop, geometry.crop])


class Images(Dataset[tuple[Tensor, int]]):
    """Decoded and transformed files: (3, crop, crop) uint8 and the index of the file."""

    def __init__(self, paths: Sequence[Path], geometry: Geometry) -> None:
        self.paths = tuple(paths)
        self.geometry = geometry

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return TF.pil_to_tensor(apply_geometry(decode(self.paths[index]), self.geometry)), index
