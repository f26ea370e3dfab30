"""Image files: decoding to RGB, the protocol's resize and crop, `Images` (the torch data set of both), and nvJPEG.

Normalisation is left to the encoder. The decoder `nvjpeg` of a geometry decodes, resizes and crops JPEG files on a CUDA
device. Its pixels differ from Pillow's by rounding: nvJPEG has an inverse DCT and an upsampling of colours of its own,
and on the device an image is resized in float32 and rounded once, where Pillow rounds after each direction.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from benchmarks.datasets.batch_files import read_batch_image
from benchmarks.datasets.lists import batch_file
from benchmarks.task import InputError
from results.files import open_image
from results.schema import Geometry

# Pillow warns about odd tags once per image and worker, and nobody can act on it. (A filter for the time of a call
# would not be safe in threads.)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

# What Pillow's decoders raise for damaged files.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
INTERPOLATION = {
    "bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC, "lanczos": InterpolationMode.LANCZOS,
}  # fmt: skip
CHUNK_PIXELS = 2**26  # that nvJPEG decodes at a time: 0.2 GB, and up to 0.8 GB in float32 while they are resized
_END = b"\xff\xd9"  # of a JPEG file

ImageT = TypeVar("ImageT", Image.Image, Tensor)


class BadImage(InputError):  # noqa: N818 - the image is bad, not the program
    """A listed image that cannot be read. The message names the file, the fault and the remedy."""

    def __init__(self, message: str) -> None:
        # torch raises an exception of a loader's worker again, with the worker's whole traceback as its text.
        super().__init__(message.rpartition("BadImage: ")[2])


def decode(path: Path, geometry: Geometry | None = None) -> Image.Image:
    """The image in RGB with the pixels that Pillow's `convert("RGB")`, and so torchvision's loader, gives.

    MoCo, DINO, VISSL and lemniscate see the same pixels. The EXIF orientation is not applied: they do not apply it
    (OpenMMLab's reader, cv2, does), and boxes and masks refer to the pixels as stored. An alpha channel is dropped,
    CMYK is converted, and the first frame of an animation is taken. 16-bit grey is scaled to 8 bits, where Pillow would
    clip nearly all of it to white.

    Args:
        path: a file, or an image in a batch file as `data_batch_1#17` of CIFAR-10.
        geometry: names the decoder of JPEG files, and the size that a scaled one may decode to. Without it, and with
            nvjpeg, which decodes batches (see `decode_cropped`), Pillow decodes at full size.

    Raises:
        BadImage: the file is missing, damaged or not an image, or has 32-bit pixels, whose range is unknown.
        InputError: the decoder is not installed.
    """
    if "#" in path.name and batch_file(str(path)):
        try:
            return Image.fromarray(read_batch_image(path))
        except InputError as error:
            raise BadImage(str(error)) from error
    try:
        with open_image(path) as image:
            is_rgb_jpeg = image.format == "JPEG" and image.mode == "RGB"
            if is_rgb_jpeg and geometry is not None and geometry.decoder not in ("pil", "nvjpeg"):
                return _jpeg(path, image, geometry)
            image.load()
        return _rgb(path, image)
    except FileNotFoundError as error:
        raise BadImage(f"{path} does not exist; restore it or leave it out of the lists") from error
    except DAMAGED as error:
        raise BadImage(f"{path} cannot be decoded as an image ({_fault(path, error)}); replace or remove it") from error


def _jpeg(path: Path, image: Image.Image, geometry: Geometry) -> Image.Image:
    """An RGB image of an opened JPEG file, by the decoder of `geometry`."""
    least = smallest_side(geometry)
    if geometry.decoder == "pil-draft":
        image.draft("RGB", (least, least))  # no side becomes smaller than that
        image.load()
        return _rgb(path, image)
    simplejpeg = require_simplejpeg()
    side = least if geometry.decoder == "simplejpeg-scaled" and least < min(image.size) else 0
    return Image.fromarray(simplejpeg.decode_jpeg(path.read_bytes(), min_height=side, min_width=side))


def smallest_side(geometry: Geometry) -> int:
    """Pixels that no side of a decoded image may fall below, so that the geometry never enlarges it for that reason.

    Borders are cut in pixels of the full image, so then nothing may be scaled.
    """
    return 2**16 if geometry.border else max(geometry.resize, geometry.crop)


def require_simplejpeg() -> Any:
    """The module.

    Raises:
        InputError: it is not installed.
    """
    try:
        import simplejpeg
    except ImportError as error:
        raise InputError(
            "geometry.decoder=simplejpeg needs the package simplejpeg, which is not installed: pip install simplejpeg, "
            "or leave the decoder at pil"
        ) from error
    return simplejpeg


def _rgb(path: Path, image: Image.Image) -> Image.Image:
    if image.mode in ("F", "I"):
        raise BadImage(f"{path} has 32-bit pixels of unknown range; save it with 8 or 16 bits per channel")
    if image.mode.startswith("I;16"):
        # A 16-bit value spans 257 steps of an 8-bit one.
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    image.info.pop("transparency", None)  # has no part in the conversion, and Pillow warns about it
    return image.convert("RGB")


def _fault(path: Path, error: BaseException) -> str:
    if path.is_file() and path.stat().st_size == 0:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return "Pillow does not recognise the format"
    return " ".join(str(error).split())


def apply_geometry(image: ImageT, geometry: Geometry) -> ImageT:
    """The image at `geometry.crop` squared, with torchvision's rounding and Pillow's antialiased resampling.

    Args:
        image: one of Pillow, or (N, 3, H, W) uint8 of one size, whose pixels come out as Pillow's but for rounding.
    """
    interpolation = INTERPOLATION[geometry.interpolation]
    if geometry.border:
        width, height = TF.get_image_size(image)
        edge = min(geometry.border, (min(width, height) - 1) // 2)  # something must be left
        image = TF.crop(image, edge, edge, height - 2 * edge, width - 2 * edge)
    if geometry.resize:
        image = TF.resize(image, [geometry.resize], interpolation)
    if geometry.mode == "warp":
        return TF.resize(image, [geometry.crop, geometry.crop], interpolation)
    return TF.center_crop(image, [geometry.crop, geometry.crop])


class Images(Dataset[tuple[Tensor, int]]):
    """Decoded and transformed files: (3, crop, crop) uint8 and the index of the file.

    A file that cannot be read raises `BadImage`; the caller decides whether to stop or to leave it out.
    """

    def __init__(self, paths: Sequence[Path], geometry: Geometry) -> None:
        self.paths = paths
        self.geometry = geometry
        if geometry.decoder.startswith("simplejpeg"):
            require_simplejpeg()  # before any work

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return TF.pil_to_tensor(apply_geometry(decode(self.paths[index], self.geometry), self.geometry)), index


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

    torchvision decodes on a stream of its own, into memory that it allocates on the current one. Its stream does not
    wait for work that is still queued here and reads what that memory held before, so the host waits for that work.

    Raises:
        RuntimeError: at least one of them cannot be decoded.
    """
    from torchvision.io import ImageReadMode, decode_jpeg

    torch.cuda.current_stream(device).synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision means to move it into another package
        try:
            found: list[Tensor] = decode_jpeg(files, ImageReadMode.RGB, device=device)
        except RuntimeError:
            torch.cuda.synchronize(device)  # the other files may still be on their way into memory that is free now
            raise
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
        for number, crop in zip(numbers, apply_geometry(same, geometry), strict=True):
            found[number] = crop
    return found
