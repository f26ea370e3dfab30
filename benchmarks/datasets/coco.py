"""COCO 2017, LVIS and DensePose-COCO: images, the categories on them, and the json with boxes, masks and keypoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import numpy as np

from benchmarks.datasets.lists import (
    first_file,
    first_folder,
    folder_contents,
    labels_below,
    require_files,
    require_unique,
)
from benchmarks.task import InputError, Labels
from results.files import read_bytes


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
