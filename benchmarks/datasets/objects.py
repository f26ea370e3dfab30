"""Boxes, masks and points of objects in annotation files of VOC and COCO: what none can be.

A box is left, top, right and bottom in pixels from 0; right and bottom are outside of it. Published boxes reach a pixel
or two beyond the edge of their image, and a few of COCO's have no area; both are taken as they are. A box that lies
wholly elsewhere, or whose right edge is left of its left one, is an error of the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from benchmarks.task import InputError
from results.files import MAX_PIXELS, require_regular

ROUNDING = 2  # pixels by which published boxes reach over an edge
REMEDY = "take it from its owner again, or remove the annotation"


def read_box(numbers: Iterable[Any]) -> list[float]:
    """The four numbers of a box.

    Raises:
        ValueError: another number of them, or one that is not finite.
        TypeError, OverflowError: one that is no number.
    """
    found = [float(number) for number in numbers]
    if len(found) != 4 or not all(map(math.isfinite, found)):
        raise ValueError(f"a box of {found}, where four finite numbers are expected")
    return found


def require_in_image(box: list[float], width: int, height: int) -> None:
    """Raises ValueError for a box that shows nothing of its image, or whose edges are the wrong way round."""
    left, top, right, bottom = box
    shown = f"left, top, right and bottom are {', '.join(f'{edge:g}' for edge in box)}"
    if right < left or bottom < top:
        raise ValueError(f"a box of negative size: {shown}")
    # A box without an area may lie on the edge, and one with an area may not lie behind it.
    across = right > 0 and left < width if right > left else -ROUNDING <= left <= width + ROUNDING
    down = bottom > 0 and top < height if bottom > top else -ROUNDING <= top <= height + ROUNDING
    if not (across and down):
        raise ValueError(f"a box outside of its image of {width} by {height} pixels: {shown}")


def reaches_outside(box: list[float], width: int, height: int) -> bool:
    """Whether a box is beyond an edge by more than the rounding of published boxes."""
    left, top, right, bottom = box
    return min(left, top) < -ROUNDING or right > width + ROUNDING or bottom > height + ROUNDING


def require_size(width: Any, height: Any) -> None:
    """Raises ValueError where these are not the whole numbers of pixels of an image."""
    if type(height) is not int or type(width) is not int or min(height, width) < 1 or height * width > MAX_PIXELS:
        raise ValueError(f"{str(width)[:20]} by {str(height)[:20]} pixels, which no image has")


# ---- VOC -------------------------------------------------------------------------------------------------------------


VocObject = tuple[str, int, list[float]]  # class, whether it is difficult, box


def read_voc_objects(file: Path, *, inclusive: bool = False) -> tuple[tuple[int, int], list[VocObject]]:
    """Width and height of an image of VOC, and its objects.

    Args:
        inclusive: take VOC's right and bottom edges as inside, so that a width is right - left.

    Raises:
        InputError: the file is no annotation of VOC, or a box cannot be one of its image.
    """
    try:
        require_regular(file)
        root = ElementTree.parse(file).getroot()  # noqa: S314 - expat stops at entity bombs
        width, height = (int(_text(root, f"size/{part}")) for part in ("width", "height"))
        objects = []
        for number, found in enumerate(root.iter("object"), start=1):
            corners = read_box(_text(found, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax"))
            # The devkit counts pixels from 1 and has both edges inside.
            box = [corners[0] - 1, corners[1] - 1, *corners[2:]]
            try:
                require_in_image(box, width, height)
            except ValueError as error:
                raise InputError(f"{file}: object {number} has {error}; {REMEDY}") from error
            box = [*box[:2], box[2] - inclusive, box[3] - inclusive]
            objects.append((_text(found, "name"), int(found.findtext("difficult") or 0), box))
    except (ElementTree.ParseError, OSError, ValueError) as error:
        raise InputError(f"{file} is not a VOC annotation ({error}); unpack the devkit again") from error
    return (width, height), objects


def _text(element: ElementTree.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"no {path}")
    return text


# ---- COCO ------------------------------------------------------------------------------------------------------------


def read_coco_box(numbers: Any, width: int, height: int) -> list[float]:
    """A box that COCO gives as left, top, width and height.

    Raises:
        TypeError, ValueError, OverflowError: they are not the four numbers of a box of this image.
    """
    left, top, wide, high = read_box(numbers)
    box = [left, top, left + wide, top + high]
    require_in_image(box, width, height)
    return box


def coco_box_faults(file: Path) -> Iterator[str]:
    """A sentence for each box of a COCO json that cannot be one of its image. The file has been read once before."""
    content = json.loads(file.read_bytes(), object_hook=_with_box)
    if content is None:  # other json
        return
    sizes: dict[Any, Any] = dict(image for image in content["images"] if isinstance(image, tuple))
    for found in content["annotations"]:
        if not isinstance(found, tuple):  # no box, which classification does not need
            continue
        name, image, box = found
        if image not in sizes:
            continue
        try:
            require_size(*sizes[image])
            read_coco_box(box, *sizes[image])
        except (TypeError, ValueError, OverflowError) as error:
            yield f"{file}: annotation {str(name)[:40]} of image {str(image)[:40]} has {error}; {REMEDY}"


def _with_box(found: dict[str, Any]) -> Any:
    """An object of the json reduced as it is parsed: the polygons of train2017 would take gigabytes."""
    if "image_id" in found and "bbox" in found:
        return found.get("id"), found["image_id"], found["bbox"]
    if "height" in found and "width" in found and "id" in found:
        return found["id"], (found["width"], found["height"])
    return found if "images" in found and "annotations" in found else None


# ---- masks and points ------------------------------------------------------------------------------------------------


def require_finite(values: Any) -> list[float]:
    """The list of numbers. Raises TypeError, ValueError or OverflowError where it is not one of finite numbers."""
    if not isinstance(values, list) or not all(map(math.isfinite, values)):
        raise ValueError("it is no list of finite numbers")
    return values


def usable_run_lengths(mask: Any, height: int, width: int) -> Any:
    """Run lengths as pycocotools packs them. It ends the interpreter for some others, and makes up pixels for those
    that do not fill the image.

    Raises:
        KeyError, TypeError, ValueError: the mask has none, or they are of another size.
    """
    size = [height, width]
    if mask["size"] != size:
        raise ValueError(f"its size is {str(mask['size'])[:40]} instead of {size}")
    counts = mask["counts"]
    if isinstance(counts, list):
        if any(type(count) is not int or count < 0 for count in counts) or sum(counts) != height * width:
            raise ValueError("its run lengths do not fill the image")
        from pycocotools import mask as rle

        return rle.frPyObjects(mask, *size)
    lengths = unpacked_run_lengths(counts)
    if (lengths < 0).any() or lengths.sum() != height * width:
        raise ValueError("its packed run lengths do not fill the image")
    return mask


def unpacked_run_lengths(text: str) -> NDArray[np.int64]:
    """Lengths in COCO's packed text: 5 bits of a number a character, lowest first. A sixth bit says that it goes on.

    From the fourth on, they are differences from the last but one.

    Raises:
        TypeError, ValueError: it is no such text.
    """
    if not isinstance(text, str):
        raise TypeError("its packed run lengths are no text")
    codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - ord("0")
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("its packed run lengths are not valid")
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.append(0, ends[:-1] + 1)
    places = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    if places.max() > 6:  # 35 bits; no image has as many pixels
        raise ValueError("its packed run lengths are too large")
    numbers = np.add.reduceat((codes & 31) << 5 * places, starts)
    numbers -= np.where(codes[ends] & 16, np.int64(1) << 5 * (places[ends] + 1), 0)  # negative ones
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers
