"""Make VOC 2012 aug: SegmentationClassAug and its lists from the .mat files of SBD (Hariharan et al. 2011)."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.datasets.lists import read_lines
from benchmarks.datasets.safe_readers import read_mat
from benchmarks.task import progress
from results.command_line import run_script
from results.errors import InputError
from results.files import open_image, replacing, write_file

log = logging.getLogger("prepare_voc12aug")

CLASSES = 21
_MAX_MAT = 2**25  # bytes of a .mat file, unpacked; those of SBD have half a million


@dataclass
class Prepare:
    """Convert SBD's masks for the images that it adds to VOC's train, and write aug.txt and trainaug.txt.

    The lists are those of mmsegmentation's converter: everything of SBD and of VOC's train that is not in VOC's val.
    A run that was stopped resumes when it is started again.
    """

    data: Path = Path("work/data")
    """root of the data sets, with VOCdevkit/VOC2012"""
    sbd: Path | None = None
    """folder with cls/, train.txt and val.txt; default VOCdevkit/VOCaug/dataset below the root"""
    expected: int = 10_582
    """number of images that train and SBD must have together, without val"""


def prepare(options: Prepare) -> int:
    """Write masks and lists.

    Raises:
        InputError: a list or a mask is missing or malformed, or the lists have another number of images.
        OSError: a file cannot be written.
    """
    voc = options.data / "VOCdevkit" / "VOC2012"
    sbd = options.sbd or options.data / "VOCdevkit" / "VOCaug" / "dataset"
    lists = voc / "ImageSets" / "Segmentation"
    train, val = set(read_lines(lists / "train.txt")), set(read_lines(lists / "val.txt"))
    added = {*read_lines(sbd / "train.txt"), *read_lines(sbd / "val.txt")} - train - val
    together = len(train | added)
    if together != options.expected:
        raise InputError(
            f"{sbd} and {lists} list {together} training images, expected {options.expected}; take train.txt and "
            "val.txt of SBD's benchmark_RELEASE and of VOC 2012, or change the number with --expected"
        )
    masks = voc / "SegmentationClassAug"
    todo = sorted(id for id in added if not (masks / f"{id}.png").is_file())
    for id in progress(todo, "masks"):
        _write_mask(_read_mask(sbd / "cls" / f"{id}.mat", voc / "JPEGImages" / f"{id}.jpg"), masks / f"{id}.png")
    _write_list(lists / "aug.txt", sorted(added))
    _write_list(lists / "trainaug.txt", sorted(train | added))
    log.info("wrote %d masks to %s, and the lists", len(todo), masks)
    return 0


def _read_mask(file: Path, image: Path) -> NDArray[np.uint8]:
    """(H, W) class indices of one .mat file, checked against its image."""
    truth = read_mat(file, ("GTcls",), _MAX_MAT)["GTcls"]
    masks = truth.get("Segmentation", []) if isinstance(truth, dict) else []
    mask = masks[0] if len(masks) == 1 else None
    try:
        with open_image(image) as picture:
            width, height = picture.size
    except FileNotFoundError as error:
        raise InputError(f"{image} is missing; unpack VOC 2012 again") from error
    except Exception as error:  # Pillow raises nearly anything on a damaged file
        raise InputError(f"{image} cannot be read ({error}); unpack VOC 2012 again") from error
    if not isinstance(mask, np.ndarray) or mask.shape != (height, width) or not _are_classes(mask):
        raise InputError(
            f"{file} is not a mask of {width} by {height} pixels with values below {CLASSES}; unpack SBD again"
        )
    return mask.astype(np.uint8)


def _are_classes(mask: NDArray[np.generic]) -> bool:
    return bool(np.isin(mask, np.arange(CLASSES)).all())


def _write_mask(mask: NDArray[np.uint8], file: Path) -> None:
    image = Image.fromarray(mask)
    image.putpalette(_palette())
    with replacing(file) as temporary:
        image.save(temporary, format="PNG")


def _palette() -> list[int]:
    """VOC's colours: the bits of the index, from the lowest, are dealt to red, green and blue from the highest down."""
    return [
        sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8))
        for index in range(256)
        for channel in range(3)
    ]


def _write_list(file: Path, lines: Iterable[str]) -> None:
    write_file(file, "".join(f"{line}\n" for line in lines))


def main(arguments: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    return run_script(Prepare, prepare, "prepare-voc12aug", arguments)


if __name__ == "__main__":
    sys.exit(main())
