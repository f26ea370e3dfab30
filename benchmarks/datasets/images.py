"""From a file to an RGB image; what is no readable image is told apart by `BadImage`."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from benchmarks.contract import InputError
from benchmarks.datasets.cifar10 import is_member, read_member

# Pillow's remarks on odd tags come once per image and worker, and nothing can be done about them. (A filter for the
# time of a call would not be safe in threads.)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

# What Pillow's decoders raise on files that are damaged in one way or another.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


class BadImage(InputError):  # noqa: N818 - it is the image that is bad
    """A listed image that cannot be read. Its one sentence names the file, the fault and the remedy."""

    def __init__(self, sentence: str) -> None:
        # From a loader's worker torch raises it anew with the worker's whole traceback as the text.
        super().__init__(sentence.rpartition("BadImage: ")[2])


def decode(path: Path) -> Image.Image:
    """The picture in RGB with the pixels that Pillow's `convert("RGB")`, and so torchvision's loader, gives.

    That is what MoCo, DINO, VISSL and lemniscate see. The EXIF orientation is not applied, for they do not apply it
    (OpenMMLab's reader, cv2, does), and boxes and masks refer to the pixels as stored. An alpha channel is dropped,
    CMYK is converted, of an animation the first frame is taken. 16-bit grey is scaled to 8 bits, where Pillow would
    clip nearly all of it to white.

    Args:
        path: a file, or an image in a batch file of CIFAR-10 as `data_batch_1#17`.

    Raises:
        BadImage: no such file, not an image, damaged, or of 32-bit pixels, whose range nothing tells.
    """
    if is_member(path):
        try:
            return Image.fromarray(read_member(path))
        except InputError as error:
            raise BadImage(str(error)) from error
    try:
        with Image.open(path) as image:
            image.load()
        return _rgb(path, image)
    except FileNotFoundError as error:
        raise BadImage(f"{path} does not exist; restore it or leave it out of the lists") from error
    except _DAMAGED as error:
        raise BadImage(f"{path} cannot be decoded as an image ({_fault(path, error)}); replace or remove it") from error


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
        return "its content is no image format that Pillow knows"
    return " ".join(str(error).split())
