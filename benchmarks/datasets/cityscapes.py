"""Cityscapes: leftImg8bit with the fine annotations of gtFine."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.contract import InputError, Labels
from benchmarks.datasets.groups import read_groups
from benchmarks.datasets.imagefolder import class_folders
from benchmarks.datasets.layout import contents
from benchmarks.datasets.paths import Below, require

OWNER = "the Cityscapes page (cityscapes-dataset.com)"
# The 19 classes in the order of their trainIds, with the labelIds of the owner's own masks (cityscapesscripts).
LABEL_IDS = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19,
    "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27,
    "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip
# The classes whose objects are told apart, in the same order.
THINGS = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
IGNORED = 255

_IMAGE = "_leftImg8bit.png"


def read_cityscapes(folder: Path, split: str, truth: str = "labels") -> Labels:
    """Items of `train`, `val` or `test` over all cities, sorted by id, as `aachen_000000_000019`.

    Args:
        truth: which masks are the annotations. `labels`: labelTrainIds where every image has them, else the owner's
            labelIds, which `label_map` translates. `instances`: instanceIds, 16-bit, id * 1000 + number for objects.

    Raises:
        InputError: no such split, or an image has no mask.
    """
    images = folder / "leftImg8bit" / split
    cities = class_folders(images)
    if not cities:
        raise InputError(
            f"{folder} has no split {split}: expected leftImg8bit/{split}/<city>/*{_IMAGE}, found {contents(folder)}; "
            f"unpack what {OWNER} publishes there"
        )
    names = sorted(
        f"{city}/{file.name}" for city in cities for file in (images / city).iterdir() if file.name.endswith(_IMAGE)
    )
    if not names:
        raise InputError(f"{images} has no *{_IMAGE} in its cities; unpack leftImg8bit_trainvaltest.zip again")
    ids = tuple(name.rpartition("/")[2].removesuffix(_IMAGE) for name in names)
    masks = folder / "gtFine" / split
    kinds = ("instanceIds",) if truth == "instances" else ("labelTrainIds", "labelIds")
    stems = [name.removesuffix(_IMAGE) for name in names]
    for kind in kinds:
        files = [f"{stem}_gtFine_{kind}.png" for stem in stems]
        if kind != kinds[-1] and not (masks / files[0]).is_file():
            continue
        require(masks, files, f"the masks of leftImg8bit/{split}", "unpack gtFine_trainvaltest.zip again")
        break
    classes = THINGS if truth == "instances" else tuple(LABEL_IDS)
    targets = np.zeros((len(ids), 0), dtype=np.int8)
    return Labels(ids, Below(images, names), classes, targets, read_groups(folder, ids), tuple(Below(masks, files)))


def label_map(labels: Labels) -> dict[int, int] | None:
    """What turns the masks' values into class indices, 255 for what is ignored; None where they are class indices."""
    if not labels.annotations or not labels.annotations[0].name.endswith("_labelIds.png"):
        return None
    index = {label_id: number for number, label_id in enumerate(LABEL_IDS.values())}
    return {value: index.get(value, IGNORED) for value in range(256)}
