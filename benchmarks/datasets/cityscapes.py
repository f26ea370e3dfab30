"""Cityscapes: leftImg8bit with the fine annotations of gtFine."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.datasets.classification import class_folders
from benchmarks.datasets.lists import LazyPaths, folder_contents, read_groups, require_files
from benchmarks.task import InputError, Labels

# The 19 classes in the order of their trainIds, with the labelIds of the owner's own masks (cityscapesscripts).
LABEL_IDS = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19,
    "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27,
    "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip
# The classes with instance masks, in the same order.
THINGS = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
_IGNORED = 255

_IMAGE = "_leftImg8bit.png"


def read_cityscapes(folder: Path, split: str, truth: str = "labels") -> Labels:
    """Items of `train`, `val` or `test` over all cities, sorted by id, as `aachen_000000_000019`.

    Args:
        truth: which masks are the annotations. `labels`: labelTrainIds if the first image has them, else the owner's
            labelIds, which `label_map` translates. `instances`: instanceIds, 16-bit, id * 1000 + number for objects.

    Raises:
        InputError: the split does not exist, or an image has no mask.
    """
    images = folder / "leftImg8bit" / split
    cities = class_folders(images)
    if not cities:
        raise InputError(
            f"{folder} has no split {split}: expected leftImg8bit/{split}/<city>/*{_IMAGE}, found "
            f"{folder_contents(folder)}; unpack the files of the Cityscapes page (cityscapes-dataset.com) there"
        )
    names = sorted(
        f"{city}/{file.name}" for city in cities for file in (images / city).iterdir() if file.name.endswith(_IMAGE)
    )
    if not names:
        raise InputError(f"{images} has no *{_IMAGE} in its cities; unpack leftImg8bit_trainvaltest.zip again")
    ids = tuple(name.rpartition("/")[2].removesuffix(_IMAGE) for name in names)
    masks = folder / "gtFine" / split
    stems = [name.removesuffix(_IMAGE) for name in names]
    if truth == "instances":
        kind = "instanceIds"
    else:
        kind = "labelTrainIds" if (masks / f"{stems[0]}_gtFine_labelTrainIds.png").is_file() else "labelIds"
    files = [f"{stem}_gtFine_{kind}.png" for stem in stems]
    require_files(masks, files, f"the masks of leftImg8bit/{split}", "unpack gtFine_trainvaltest.zip again")
    classes = THINGS if truth == "instances" else tuple(LABEL_IDS)
    targets = np.zeros((len(ids), 0), dtype=np.int8)
    groups = read_groups(folder, ids)
    return Labels(ids, LazyPaths(images, names), classes, targets, groups, tuple(LazyPaths(masks, files)))


def label_map(labels: Labels) -> dict[int, int] | None:
    """Mask value -> class index, 255 for ignored pixels. None if the masks already hold class indices."""
    if not labels.annotations or not labels.annotations[0].name.endswith("_labelIds.png"):
        return None
    index = {label_id: number for number, label_id in enumerate(LABEL_IDS.values())}
    return {value: index.get(value, _IGNORED) for value in range(256)}
