"""COCO 2017, LVIS and DensePose-COCO: images, the categories on them, and what boxes and masks of their json can be.

A box is left, top, right and bottom in pixels from 0; right and bottom are outside of it. Published boxes reach a pixel
or two beyond the edge of their image, and a few of COCO's have no area; both are taken as they are. A box that lies
wholly elsewhere, or whose right edge is left of its left one, is an error of the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.lists import (
    first_file,
    first_folder,
    folder_contents,
    labels_below,
    require_files,
    require_unique,
)
from benchmarks.task import InputError, Labels
from results.files import MAX_PIXELS, read_bytes

ROUNDING = 2  # pixels by which published boxes reach over an edge
REMEDY = "take it from its owner again, or remove the annotation"


class _Image(NamedTuple):
    id: int
    file_name: str
    coco_url: str


class _Category(NamedTuple):
    id: int
    name: str


class _Annotation(NamedTuple):
    image_id: int
    category_id: int


def read_coco(folder: Path, split: str, kind: str = "instances") -> Labels:
    """Items of `train` or `val`, sorted by id (the number in the file name), the json as the one annotation.

    Targets say which categories an image shows, crowds included; categories are in the order of their ids.

    Args:
        kind: the annotations: instances (boxes and masks) or person_keypoints.

    Raises:
        InputError: the split does not exist, a json is malformed, or an image is missing.
    """
    part = f"{split.removesuffix('2017')}2017"
    names = [f"annotations/{kind}_{part}.json", f"{kind}_{part}.json"]
    file = first_file(folder, names)
    if file is None:
        raise InputError(
            f"{folder} has no split {split}: expected {names[0]} and the images in {part}/, found "
            f"{folder_contents(folder)}; unpack the files of the COCO page (cocodataset.org) there"
        )
    images = first_folder(folder, (part, f"images/{part}"))
    if images is None:
        raise InputError(f"{folder} has {file.name} but no folder {part} with the images; unpack {part}.zip there")
    return _labels([file], images, lambda image: image.file_name.rpartition("/")[2])


def read_lvis(folder: Path, split: str, version: str = "v1") -> Labels:
    """Items of `train` or `val` of LVIS, as `read_coco`. The images are COCO's, in ../coco or next to the json.

    v1 names them by their COCO URL; its val has images of COCO's train2017.

    Args:
        folder: lvis, with the json.
        version: v1 or v0.5.

    Raises:
        InputError: the split does not exist, a json is malformed, or COCO or an image is missing.
    """
    names = [f"lvis_{version}_{split}.json", f"annotations/lvis_{version}_{split}.json"]
    file = first_file(folder, names)
    if file is None:
        raise InputError(
            f"{folder} has no split {split}: expected {names[0]}, found {folder_contents(folder)}; take it from "
            "the LVIS page (lvisdataset.org)"
        )
    images = next((at for at in (folder.parent / "coco", folder) if (at / "train2017").is_dir()), None)
    if images is None:
        raise InputError(f"{folder.parent / 'coco'} has no folder train2017 with LVIS's images; unpack COCO 2017 there")
    return _labels([file], images, lambda image: _lvis_name(image, split))


def read_densepose(folder: Path, split: str) -> Labels:
    """Items of `train` or `val` of DensePose-COCO, as `read_coco`; train has two json files.

    Its splits are those of 2014: train and "valminusminival" together are train2017, "minival" is val2017.

    Raises:
        InputError: the split does not exist, a json is malformed, or an image is missing.
    """
    parts = {"train": ("train", "valminusminival"), "val": ("minival",)}.get(split, ())
    files = []
    for part in parts:
        names = [f"annotations/densepose_{part}2014.json", f"densepose_{part}2014.json"]
        files += [file for file in [first_file(folder, names)] if file is not None]
    if not parts or len(files) < len(parts):
        expected = " and ".join(f"annotations/densepose_{part}2014.json" for part in parts) or "train or val"
        raise InputError(
            f"{folder} has no split {split}: expected {expected}, found {folder_contents(folder)}; take it from "
            "the DensePose page (densepose.org)"
        )
    images = first_folder(folder, (f"{split}2017", f"images/{split}2017"))
    if images is None:
        raise InputError(f"{folder} has {files[0].name} but no folder {split}2017; unpack {split}2017.zip there")
    return _labels(files, images, _name_of_2017)


def _lvis_name(image: _Image, split: str) -> str:
    if image.coco_url:
        return "/".join(image.coco_url.split("/")[-2:])
    return f"{split}2017/{_name_of_2017(image)}"


def _name_of_2017(image: _Image) -> str:
    """The file name of 2017 of an image that the json names as in 2014: COCO_val2014_000000000139.jpg."""
    return image.file_name.rpartition("_")[2]


def _labels(files: Sequence[Path], folder: Path, name_of: Callable[[_Image], str]) -> Labels:
    """The items of one json, or of several with the same categories and different images."""
    images: list[_Image] = []
    annotations: list[_Annotation] = []
    for file in files:
        own, categories, found = _read(file)
        images += own
        annotations += found
    if not images:
        raise InputError(f"{file} lists no image; take it from its owner again")
    images.sort()
    names = [name_of(image) for image in images]
    require_unique(file, names)
    row = {image.id: number for number, image in enumerate(images)}
    if len(row) < len(images):
        raise InputError(f"{file} gives several images the same id; take it from its owner again")
    column = {category.id: number for number, category in enumerate(sorted(categories))}
    targets = np.zeros((len(images), len(column)), dtype=np.int8)
    try:
        where = [(row[found.image_id], column[found.category_id]) for found in annotations]
    except KeyError as error:
        raise InputError(
            f"{file} annotates the unknown image or category {error.args[0]}; take it from its owner again"
        ) from error
    if where:
        targets[tuple(np.array(where).T)] = 1
    require_files(folder, names, file.name, "unpack the images of COCO again")
    ids = [name.rpartition("/")[2].rpartition(".")[0] for name in names]
    classes = [category.name for category in sorted(categories)]
    return labels_below(folder, names, classes, targets, ids=ids, groups_in=file.parent.parent, annotations=files)


def _read(file: Path) -> tuple[list[_Image], list[_Category], list[_Annotation]]:
    """The lists, with every object reduced as it is parsed: the polygons of train2017 would take gigabytes."""
    try:
        content = json.loads(read_bytes(file), object_hook=_reduced)
        lists = content["images"], content["categories"], content["annotations"]
    except RecursionError as error:
        raise InputError(f"{file} is nested too deeply; take it from its owner again") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file} is not a COCO json ({type(error).__name__}: {error}); take it from its owner again"
        ) from error
    for found, kind in zip(lists, (_Image, _Category, _Annotation), strict=True):
        what = kind.__name__[1:].lower()
        if not isinstance(found, list) or not all(isinstance(entry, kind) for entry in found):
            raise InputError(f"{file} has malformed {what} entries; take it from its owner again")
        types = get_type_hints(kind)
        strange = next((entry for entry in found if [type(value) for value in entry] != [*types.values()]), None)
        if strange is not None:
            expected = ", ".join(f"{name}: {of.__name__}" for name, of in types.items())
            raise InputError(
                f"{file} has an {what} with {str(tuple(strange))[:200]}, where ids must be whole numbers and names "
                f"text ({expected}); take it from its owner again"
            )
    return lists


def _reduced(found: dict[str, Any]) -> Any:
    if "image_id" in found and "category_id" in found:
        return _Annotation(found["image_id"], found["category_id"])
    if "height" in found and "width" in found and "id" in found:
        return _Image(found["id"], found.get("file_name", ""), found.get("coco_url", ""))
    if "name" in found and "id" in found and "url" not in found:
        return _Category(found["id"], found["name"])
    return found


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
