"""Pascal VOC for detection (boxes in Annotations) and segmentation (masks), and the augmented 2012 set of SBD."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.contract import InputError, Labels
from benchmarks.datasets.groups import read_groups
from benchmarks.datasets.layout import contents, first_file
from benchmarks.datasets.lists import read_lines, unique
from benchmarks.datasets.paths import Below, require
from benchmarks.datasets.voc import class_names, read_voc_classification

OWNER = "the Pascal VOC page (host.robots.ox.ac.uk/pascal/VOC)"
# In the order of the label images: 0 is the background, 255 ignored.
CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
# Which parts make a split of the joint detection set (MoCo's detection/: trainval07+12, test07).
JOINT = {"trainval": (("2007", "trainval"), ("2012", "trainval")), "test": (("2007", "test"),)}
_TRAIN_AUG = ("train_aug", "train")
_AUG_LISTS = ("trainaug.txt", "train_aug.txt")


def read_voc_detection(devkit: Path, parts: Sequence[tuple[str, str]]) -> Labels:
    """Images of one or several (year, split) with their xml as annotations, part by part, each ordered by id.

    Targets are those of classification.

    Raises:
        InputError: as for classification; an image has no xml, or the parts differ in their classes.
    """
    read = [read_voc_classification(devkit, year, split) for year, split in parts]
    if len({labels.classes for labels in read}) > 1:
        raise InputError(f"{devkit}: the years have different classes in ImageSets/Main; unpack what {OWNER} publishes")
    annotations: list[Path] = []
    for (year, split), labels in zip(parts, read, strict=True):
        folder = devkit / f"VOC{year}" / "Annotations"
        names = [f"{id}.xml" for id in labels.ids]
        require(folder, names, f"{split}.txt", "unpack the whole devkit")
        annotations += Below(folder, names)
    ids = tuple(id for labels in read for id in labels.ids)
    unique(devkit, ids)
    return Labels(
        ids,
        tuple(path for labels in read for path in labels.paths),
        read[0].classes,
        np.concatenate([labels.targets for labels in read]),
        tuple(group for labels in read for group in labels.groups),
        tuple(annotations),
    )


def read_voc_joint(devkit: Path, split: str) -> Labels:
    """VOC 07+12 for detection: `trainval` of both years, `test` of 2007."""
    if split not in JOINT:
        raise InputError(f"VOC 07+12 has no split {split}; it has {' and '.join(JOINT)}")
    return read_voc_detection(devkit, JOINT[split])


def read_voc_segmentation(folder: Path, split: str) -> Labels:
    """Images of `ImageSets/Segmentation/<split>.txt` with their masks of SegmentationClass as annotations.

    Args:
        folder: VOCdevkit/VOC<year>.

    Raises:
        InputError: no list, or an image or a mask is missing.
    """
    file = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
    ids = sorted(read_lines(file))
    unique(file, ids)
    require(folder / "SegmentationClass", [f"{id}.png" for id in ids], file.name, "unpack the whole devkit")
    return _with_masks(folder, file, ids, ["SegmentationClass"] * len(ids))


def read_voc12aug(folder: Path, split: str) -> Labels:
    """VOC 2012 with SBD's masks: `train_aug` (or `train`), the 10,582 images of train and of SBD without val; `val`.

    As mmsegmentation has it, images of VOC's own train keep their masks of SegmentationClass, whose outlines are
    ignored; the others have theirs of SegmentationClassAug.

    Args:
        folder: VOCdevkit/VOC2012.

    Raises:
        InputError: no such split, no list or masks of SBD, or an image or a mask is missing.
    """
    if split == "val":
        return read_voc_segmentation(folder, split)
    if split not in _TRAIN_AUG:
        raise InputError(f"VOC 2012 aug has no split {split}; it has {_TRAIN_AUG[0]} and val")
    lists = folder / "ImageSets" / "Segmentation"
    masks = folder / "SegmentationClassAug"
    own = read_lines(lists / "train.txt")
    both = first_file(lists, _AUG_LISTS)
    file = both or lists / "aug.txt"
    if not file.is_file() or not masks.is_dir():
        raise InputError(
            f"{folder} has no {'list aug.txt' if masks.is_dir() else masks.name}, only {contents(folder)}; unpack the "
            "Semantic Boundaries Dataset (Hariharan et al. 2011) below VOCdevkit/VOCaug and run "
            "python scripts/prepare_voc12aug.py"
        )
    # DeepLab's list has pairs of paths, mm's has ids.
    listed = [Path(line.split()[0]).stem for line in read_lines(file)]
    unique(file, listed)
    ids = sorted(listed if both else {*listed, *own})
    held_out = set(ids) & set(read_lines(lists / "val.txt"))
    if held_out:
        raise InputError(f"{file} lists {len(held_out)} images of val.txt, as {min(held_out)}; take mm's list")
    train = set(own)
    where = ["SegmentationClass" if id in train else masks.name for id in ids]
    names = [f"{below}/{id}.png" for below, id in zip(where, ids, strict=True)]
    require(folder, names, file.name, "run python scripts/prepare_voc12aug.py")
    return _with_masks(folder, file, ids, where)


def _with_masks(folder: Path, source: Path, ids: Sequence[str], where: Sequence[str]) -> Labels:
    images = folder / "JPEGImages"
    names = [f"{id}.jpg" for id in ids]
    require(images, names, source.name, "unpack the whole devkit")
    fixed = tuple(ids)
    masks = tuple(folder / below / f"{id}.png" for below, id in zip(where, ids, strict=True))
    targets = np.zeros((len(ids), 0), dtype=np.int8)
    # A set in VOC's layout may have classes of its own, in the alphabetical order that VOC's masks follow too.
    listed = class_names(folder / "ImageSets" / "Main", "trainval")
    classes = CLASSES if set(listed) <= set(CLASSES) else ("background", *listed)
    return Labels(fixed, Below(images, names), classes, targets, read_groups(folder, fixed), masks)
