"""Geometry: from an RGB image to one of the protocol's size. Normalisation is left to the encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from benchmarks.datasets.images import decode
from results.schema import Geometry

__all__ = ["Images", "apply_geometry", "decode"]

_INTERPOLATION = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}


def apply_geometry(image: Image.Image, geometry: Geometry) -> Image.Image:
    """The image at `geometry.crop` squared, with torchvision's rounding and Pillow's antialiased resampling."""
    how = _INTERPOLATION[geometry.interpolation]
    if geometry.resize:
        image = TF.resize(image, [geometry.resize], how)
    if geometry.mode == "warp":
        return TF.resize(image, [geometry.crop, geometry.crop], how)
    return TF.center_crop(image, [geometry.crop, geometry.crop])


class Images(Dataset[tuple[Tensor, int]]):
    """Decoded and transformed files: (3, crop, crop) uint8 and the index of the file.

    A file that cannot be read raises `benchmarks.datasets.images.BadImage`; what becomes of it is up to the caller.
    """

    def __init__(self, paths: Sequence[Path], geometry: Geometry) -> None:
        self.paths = paths
        self.geometry = geometry

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return TF.pil_to_tensor(apply_geometry(decode(self.paths[index]), self.geometry)), index
