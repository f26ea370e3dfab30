"""Pascal VOC: image labels (`ImageSets/Main`), boxes (`Annotations`) and masks, with the augmented 2012 set of SBD."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.coco import REMEDY, read_box, require_in_image
from benchmarks.datasets.lists import (
    first_file,
    folder_contents,
    labels_below,
    read_groups,
    read_lines,
    require_files,
    require_unique,
)
from benchmarks.task import InputError, Labels
from results.files import PathList, read_text, require_regular

# In the order of the label images: 0 is the background, 255 ignored.
CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

# In the class lists: 1 present, -1 absent, 0 when every instance of the class in the image is difficult.
_VALUES = {"1": 1, "-1": 0, "0": -1}
# The parts of the joint detection set (MoCo's detection/: trainval07+12, test07).
_JOINT = {"trainval": (("2007", "trainval"), ("2012", "trainval")), "test": (("2007", "test"),)}
_TRAIN_AUG = ("train_aug", "train")


def read_voc_classification(devkit: Path, year: str, split: str) -> Labels:
    """Items of one split, ordered by image id, with (N, C) int8 targets: 1 present, 0 absent, -1 ignored.

    Classes are those with a file `<class>_<split>.txt`, in alphabetical order. Each of these files is joined with
    `<split>.txt` on the image id, not on the order of lines.

    Args:
        devkit: the folder `VOCdevkit`.
        year: as "2007".

    Raises:
        InputError: a file is missing, or a line is malformed, repeated, missing or about an unknown image.
    """
    folder = devkit / f"VOC{year}"
    lists = folder / "ImageSets" / "Main"
    ids = sorted(_read_ids(lists / f"{split}.txt"))
    classes = _listed_classes(lists, split)
    if not classes:
        raise InputError(f"{lists} has no <class>_{split}.txt with the labels; unpack the whole devkit")
    targets = np.stack([_read_class(lists / f"{name}_{split}.txt", ids) for name in classes], axis=1)
    images = folder / "JPEGImages"
    present = {file.stem for file in images.glob("*.jpg")}
    missing = [id for id in ids if id not in present]
    if missing:
        raise InputError(
            f"{images} lacks {len(missing)} of the {len(ids)} images of {split}.txt, first {missing[0]}.jpg; "
            "unpack the devkit again"
        )
    paths = tuple(images / f"{id}.jpg" for id in ids)
    return Labels(tuple(ids), paths, tuple(classes), targets, read_groups(folder, ids))


def _listed_classes(lists: Path, split: str) -> list[str]:
    """The classes that have a list in `ImageSets/Main`, in alphabetical order, which is VOC's own."""
    suffix = f"_{split}"
    return sorted(file.stem.removesuffix(suffix) for file in lists.glob(f"?*{suffix}.txt"))


def _read_fields(file: Path) -> list[list[str]]:
    """The fields of every line, blank lines included, so that line numbers are right."""
    try:
        text = read_text(file)
    except FileNotFoundError as error:
        raise InputError(f"{file} is missing; unpack the devkit below VOCdevkit") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not a text file; unpack the devkit again") from error
    return [line.split() for line in text.splitlines()]


def _read_ids(file: Path) -> list[str]:
    seen: set[str] = set()
    for number, fields in enumerate(_read_fields(file), start=1):
        if len(fields) != 1:
            raise InputError(
                f"{file} line {number}: expected one image id, found {len(fields)} fields; restore the file"
            )
        if fields[0] in seen:
            raise InputError(f"{file} line {number}: {fields[0]} occurs twice; restore the file")
        seen.add(fields[0])
    if not seen:
        raise InputError(f"{file} lists no image; restore the file")
    return list(seen)


def _read_class(file: Path, ids: list[str]) -> NDArray[np.int8]:
    """(N,) targets of one class in the order of `ids`."""
    known = set(ids)
    values: dict[str, int] = {}
    for number, fields in enumerate(_read_fields(file), start=1):
        if len(fields) != 2 or fields[1] not in _VALUES:
            found = " ".join(fields)[:200]
            raise InputError(
                f"{file} line {number}: expected an image id and 1, 0 or -1, found {found!r}; restore the file"
            )
        id = fields[0]
        if id not in known:
            raise InputError(f"{file} line {number}: image {id} is not in the split's list; restore the file")
        if id in values:
            raise InputError(f"{file} line {number}: image {id} occurs twice; restore the file")
        values[id] = _VALUES[fields[1]]
    lacking = [id for id in ids if id not in values]
    if lacking:
        raise InputError(f"{file} has no line for image {lacking[0]} ({len(lacking)} missing); restore the file")
    return np.array([values[id] for id in ids], dtype=np.int8)


def read_voc_detection(devkit: Path, parts: Sequence[tuple[str, str]]) -> Labels:
    """Images of one or several (year, split) with their xml files as annotations, part by part, each ordered by id.

    Targets are those of classification.

    Raises:
        InputError: as for classification; also an image without xml, or parts with different classes.
    """
    read = [read_voc_classification(devkit, year, split) for year, split in parts]
    if len({labels.classes for labels in read}) > 1:
        raise InputError(
            f"{devkit}: the years have different classes in ImageSets/Main; unpack the "
            "archives of host.robots.ox.ac.uk/pascal/VOC again"
        )
    annotations: list[Path] = []
    for (year, split), labels in zip(parts, read, strict=True):
        folder = devkit / f"VOC{year}" / "Annotations"
        names = [f"{id}.xml" for id in labels.ids]
        require_files(folder, names, f"{split}.txt", "unpack the whole devkit")
        annotations += PathList(folder, names)
    found = joined(read)
    require_unique(devkit, found.ids)
    return replace(found, annotations=tuple(annotations))


def joined(parts: Sequence[Labels]) -> Labels:
    """The items of several splits with the same classes, without annotations."""
    return Labels(
        tuple(id for labels in parts for id in labels.ids),
        tuple(path for labels in parts for path in labels.paths),
        parts[0].classes,
        np.concatenate([labels.targets for labels in parts]),
        tuple(group for labels in parts for group in labels.groups),
    )


def read_voc_joint(devkit: Path, split: str) -> Labels:
    """VOC 07+12 for detection: `trainval` of both years, `test` of 2007."""
    if split not in _JOINT:
        raise InputError(f"VOC 07+12 has no split {split}; it has {' and '.join(_JOINT)}")
    return read_voc_detection(devkit, _JOINT[split])


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


def read_voc_segmentation(folder: Path, split: str) -> Labels:
    """Images of `ImageSets/Segmentation/<split>.txt` with their masks of SegmentationClass as annotations.

    Args:
        folder: VOCdevkit/VOC<year>.

    Raises:
        InputError: the list, an image or a mask is missing.
    """
    file = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
    ids = sorted(read_lines(file))
    require_unique(file, ids)
    require_files(folder / "SegmentationClass", [f"{id}.png" for id in ids], file.name, "unpack the whole devkit")
    return _with_masks(folder, file, ids, ["SegmentationClass"] * len(ids))


def read_voc12aug(folder: Path, split: str) -> Labels:
    """VOC 2012 with SBD's masks: `val`, or `train_aug` (or `train`), the 10,582 images of train and SBD without val.

    As in mmsegmentation, images of VOC's own train keep their masks of SegmentationClass, whose outlines are ignored;
    the others have the masks of SegmentationClassAug.

    Args:
        folder: VOCdevkit/VOC2012.

    Raises:
        InputError: the split does not exist, SBD was not prepared, or an image or a mask is missing.
    """
    if split == "val":
        return read_voc_segmentation(folder, split)
    if split not in _TRAIN_AUG:
        raise InputError(f"VOC 2012 aug has no split {split}; it has {_TRAIN_AUG[0]} and val")
    lists = folder / "ImageSets" / "Segmentation"
    masks = folder / "SegmentationClassAug"
    own = read_lines(lists / "train.txt")
    both = first_file(lists, ("trainaug.txt", "train_aug.txt"))
    file = both or lists / "aug.txt"
    if not file.is_file() or not masks.is_dir():
        raise InputError(
            f"{folder} has no {'list aug.txt' if masks.is_dir() else masks.name}, only {folder_contents(folder)}; "
            "unpack the Semantic Boundaries Dataset (Hariharan et al. 2011) below VOCdevkit/VOCaug and run "
            "encoder-bench prepare-voc12aug"
        )
    # DeepLab's list has pairs of paths, mm's has ids.
    listed = [Path(line.split()[0]).stem for line in read_lines(file)]
    require_unique(file, listed)
    ids = sorted(listed if both else {*listed, *own})
    held_out = set(ids) & set(read_lines(lists / "val.txt"))
    if held_out:
        raise InputError(
            f"{file} lists {len(held_out)} images of val.txt, such as {min(held_out)}; take mmsegmentation's list"
        )
    train = set(own)
    where = ["SegmentationClass" if id in train else masks.name for id in ids]
    names = [f"{below}/{id}.png" for below, id in zip(where, ids, strict=True)]
    require_files(folder, names, file.name, "run encoder-bench prepare-voc12aug")
    return _with_masks(folder, file, ids, where)


def _with_masks(folder: Path, source: Path, ids: Sequence[str], where: Sequence[str]) -> Labels:
    images = folder / "JPEGImages"
    names = [f"{id}.jpg" for id in ids]
    require_files(images, names, source.name, "unpack the whole devkit")
    masks = [folder / below / f"{id}.png" for below, id in zip(where, ids, strict=True)]
    # Another data set in VOC's layout has its own classes, in alphabetical order as in VOC's masks.
    listed = _listed_classes(folder / "ImageSets" / "Main", "trainval")
    classes = CLASSES if set(listed) <= set(CLASSES) else ("background", *listed)
    return labels_below(images, names, classes, ids=ids, groups_in=folder, annotations=masks)
