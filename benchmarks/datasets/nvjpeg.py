"""The decoder `nvjpeg` of a geometry: JPEG files are decoded, resized and cropped on a CUDA device.

Pixels differ from Pillow's by rounding: nvJPEG has an inverse DCT and an upsampling of colours of its own, and on the
device an image is resized in float32 and rounded once, where Pillow rounds after each direction.
"""

from __future__ import annotations

import io
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as TF

from benchmarks.datasets.images import DAMAGED, INTERPOLATION
from benchmarks.task import InputError
from results.files import open_image
from results.schema import Geometry

NAME = "nvjpeg"
CHUNK_PIXELS = 2**26  # decoded at a time: 0.2 GB, and up to 0.8 GB in float32 while they are resized
_END = b"\xff\xd9"


class EncodedImage(NamedTuple):
    """A JPEG file that has not been decoded.

    Attributes:
        data: the file, (bytes,) uint8.
        pixels: width times height.
    """

    data: Tensor
    pixels: int


def require_nvjpeg(device: torch.device) -> None:
    """Raises InputError where JPEG files cannot be decoded on the device; the message says why."""
    if device.type != "cuda":
        raise InputError(
            f"geometry.decoder=nvjpeg needs a CUDA device, and this runs on {device}; choose another decoder"
        )
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "jpeg")
    try:
        decode_jpegs([torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)], device)
    except (ImportError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).splitlines()[0].split())[:160]
        raise InputError(
            f"geometry.decoder=nvjpeg needs a torchvision that is built with nvJPEG ({reason}); install one, or choose "
            "another decoder"
        ) from error


def read_encoded(path: Path) -> EncodedImage | None:
    """A whole RGB JPEG file, not decoded; None for any other file, which is left to Pillow."""
    try:
        with open_image(path) as image:
            if image.format != "JPEG" or image.mode != "RGB" or _is_untransformed(image):
                return None
            size = image.width * image.height
        data = path.read_bytes()
    except DAMAGED:
        return None
    if not data.endswith(_END):
        return None  # cut off, which Pillow refuses
    return EncodedImage(torch.frombuffer(bytearray(data), dtype=torch.uint8), size)


def _is_untransformed(image: Image.Image) -> bool:
    """Whether a JPEG file stores red, green and blue instead of YCbCr, which nvJPEG does not look at."""
    layers: list[tuple[int, ...]] = getattr(image, "layer", [])
    return image.info.get("adobe_transform") == 0 or [layer[0] for layer in layers] == list(b"RGB")


def decode_jpegs(files: list[Tensor], device: torch.device) -> list[Tensor]:
    """(3, H, W) uint8 of each file, on the device.

    Raises:
        RuntimeError: at least one of them cannot be decoded.
    """
    from torchvision.io import ImageReadMode, decode_jpeg

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision means to move it into another package
        found: list[Tensor] = decode_jpeg(files, ImageReadMode.RGB, device=device)
    return found


def decode_cropped(files: Sequence[EncodedImage], geometry: Geometry, device: torch.device) -> list[Tensor | None]:
    """(3, crop, crop) uint8 of each file, on the device; None for one that nvJPEG cannot decode."""
    found: list[Tensor | None] = []
    chunk: list[EncodedImage] = []
    for number, file in enumerate(files, start=1):
        chunk.append(file)
        if number == len(files) or sum(each.pixels for each in chunk) + files[number].pixels > CHUNK_PIXELS:
            found += _cropped(_decoded([each.data for each in chunk], device), geometry)
            chunk = []
    return found


def _decoded(files: list[Tensor], device: torch.device) -> list[Tensor | None]:
    """As `decode_jpegs`, which gives nothing where one file is bad: then each half alone."""
    try:
        return [*decode_jpegs(files, device)]
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        half = len(files) // 2
        return [*_decoded(files[:half], device), *_decoded(files[half:], device)] if half else [None]


def _cropped(images: Sequence[Tensor | None], geometry: Geometry) -> list[Tensor | None]:
    """Images of one size are resized together."""
    found: list[Tensor | None] = [None] * len(images)
    by_size: dict[torch.Size, list[int]] = defaultdict(list)
    for number, image in enumerate(images):
        if image is not None:
            by_size[image.shape].append(number)
    for numbers in by_size.values():
        same = torch.stack([image for number in numbers if (image := images[number]) is not None])
        for number, crop in zip(numbers, apply_geometry_to_tensor(same, geometry), strict=True):
            found[number] = crop
    return found


def apply_geometry_to_tensor(images: Tensor, geometry: Geometry) -> Tensor:
    """(N, 3, crop, crop) of (N, 3, H, W) uint8 images, as `apply_geometry` but for rounding."""
    interpolation = INTERPOLATION[geometry.interpolation]
    if geometry.border:
        height, width = images.shape[2:]
        edge = min(geometry.border, (min(width, height) - 1) // 2)  # something must be left
        images = images[:, :, edge : height - edge, edge : width - edge]
    if geometry.resize:
        images = TF.resize(images, [geometry.resize], interpolation, antialias=True)
    if geometry.mode == "warp":
        return TF.resize(images, [geometry.crop, geometry.crop], interpolation, antialias=True)
    return TF.center_crop(images, [geometry.crop, geometry.crop])
