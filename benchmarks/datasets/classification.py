"""ImageNet-1k with the labelled 1 % and 10 % of SimCLR, Places205, and iNaturalist 2018.

They are found as class folders, as mm's text lists or as VISSL's pairs of arrays, Places205 and iNaturalist also as
their owners publish them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.lists import (
    FolderLayout,
    FolderLayouts,
    class_folders,
    class_names,
    first_file,
    first_folder,
    folder_contents,
    has_classes,
    read_arrays,
    read_image_folder,
    read_lines,
    read_list,
    require_files,
    require_unique,
    sorted_labels,
)
from benchmarks.task import InputError, Labels
from results.files import PathList, read_bytes

# The semi-supervised lists as SimCLR and SwAV (file names alone) and mm (path and label) name them, and their folders.
IMAGENET_SUBSETS = {
    "train-1pct": ("1percent.txt", "train_1percent.txt", "train_labeled_1percent.txt"),
    "train-10pct": ("10percent.txt", "train_10percent.txt", "train_labeled_10percent.txt"),
}
_SUBSET_FOLDERS = ("imagenet_subsets/", "", "meta/", "semi_files/")
_LISTS = ("meta/{split}.txt", "{split}.txt", "{split}_list.txt")  # of mm
_PLACES_LISTS_OF_MM = ("meta/{split}_places205.txt", "meta/{split}_places205.csv", *_LISTS)
_PLACES_LISTS = "trainvalsplit_places205/{split}_places205.csv"
# Where imagesPlaces205_resize.tar.gz unpacks to, and shorter folders that people use.
_PLACES_IMAGES = ("data/vision/torralba/deeplearning/images256", "images256", "images")
_INAT_JSON = ("{split}2018.json", "annotations/{split}2018.json")


# ---- layouts of any classification set -------------------------------------------------------------------------------


def _split_file(folder: Path, split: str, names: Sequence[str]) -> Path | None:
    return first_file(folder, [name.replace("{split}", split) for name in names])


def _has_list(folder: Path, split: str, texts: Sequence[str]) -> bool:
    return _split_file(folder, split, texts) is not None


def _read_text(folder: Path, split: str, texts: Sequence[str]) -> Labels:
    file = _split_file(folder, split, texts)
    assert file is not None
    names, targets = read_list(file)
    train = _split_file(folder, "train", texts)
    # Classes are those of train: a val without class folders has no names, and one may lack a class.
    if split != "train" and has_classes(folder / "train"):
        classes = class_folders(folder / "train")
    elif split != "train" and train is not None:
        classes = [name.removeprefix("train/") for name in class_names(train, *read_list(train))]
    else:
        classes = [name.removeprefix(f"{split}/") for name in class_names(file, names, targets)]
    return _listed_below_split(file, folder, split, names, targets, classes)


def _read_arrays(folder: Path, split: str) -> Labels:
    """Paths may be absolute and of another machine: the part after `/<split>/` is looked for here."""
    file = folder / f"{split}_images.npy"
    names, targets = read_arrays(file, folder / f"{split}_labels.npy")
    short = [_after_split(name, split) for name in names]
    train = folder / "train_images.npy"
    if split != "train" and train.is_file():
        listed, train_targets = read_arrays(train, folder / "train_labels.npy")
        classes = class_names(train, [_after_split(name, "train") for name in listed], train_targets)
    else:
        classes = class_names(file, short, targets)
    if not (folder / split / short[0]).is_file() and Path(names[0]).is_absolute() and Path(names[0]).is_file():
        return _listed_elsewhere(file, split, names, short, targets, classes)
    return _listed_below_split(file, folder, split, short, targets, classes)


def _after_split(name: str, split: str) -> str:
    """The part of a path that follows the folder of its split."""
    return f"/{name}".rpartition(f"/{split}/")[2].lstrip("/")


def _listed_below_split(
    source: Path, folder: Path, split: str, names: Sequence[str], targets: NDArray[np.int64], classes: list[str]
) -> Labels:
    """Listed images below `folder/split`, or below `folder` if all names start with the split. Ids always do."""
    if not all(name.startswith(f"{split}/") for name in names):
        names = [f"{split}/{name}" for name in names]
    require_files(folder, names, source.name, "complete the images or restore the list")
    return sorted_labels(source, folder, names, names, targets, classes)


def _listed_elsewhere(
    source: Path, split: str, names: list[str], short: list[str], targets: NDArray[np.int64], classes: list[str]
) -> Labels:
    """Images at the absolute paths of the list, outside of the data root."""
    top = Path(os.path.commonpath(names))
    below = [os.path.relpath(name, top) for name in names]
    require_files(top, below, source.name, "complete the images or write the list again")
    ids = [f"{split}/{name}" for name in short]
    labels = sorted_labels(source, source.parent, ids, ids, targets, classes)
    name_of = dict(zip(ids, below, strict=True))
    paths = PathList(top, tuple(name_of[id] for id in labels.ids))
    return Labels(labels.ids, paths, labels.classes, labels.targets, labels.groups)


CLASS_FOLDERS = FolderLayout(
    "{split}/<class>/<image>", lambda folder, split: has_classes(folder / split), read_image_folder
)
TEXT_LISTS = FolderLayout(
    "a list meta/{split}.txt of `path label` and the images in {split}/",
    partial(_has_list, texts=_LISTS),
    partial(_read_text, texts=_LISTS),
)
ARRAYS = FolderLayout(
    "{split}_images.npy with {split}_labels.npy",
    lambda folder, split: (folder / f"{split}_images.npy").is_file(),
    _read_arrays,
)


# ---- ImageNet-1k (ILSVRC 2012) ---------------------------------------------------------------------------------------

IMAGENET = FolderLayouts("image-net.org (ILSVRC 2012)", (CLASS_FOLDERS, TEXT_LISTS, ARRAYS))


def read_imagenet(folder: Path, split: str) -> Labels:
    """Items of a split, sorted by id: the path below the folder, such as `train/n01440764/n01440764_26.JPEG`.

    Args:
        split: `train`, `val`, or `train-1pct` and `train-10pct`, which have the ids and classes of train.

    Raises:
        InputError: the split does not exist, a list is malformed, or an image is missing.
    """
    if split not in IMAGENET_SUBSETS:
        return IMAGENET.read(folder, split)
    train = folder / "train"
    lists = [below + name for name in IMAGENET_SUBSETS[split] for below in _SUBSET_FOLDERS]
    file = first_file(folder, lists)
    if file is None:
        raise InputError(
            f"{folder} has no list for {split}: expected one of {', '.join(lists[:4])}, …; take it from SimCLR's "
            "imagenet_subsets"
        )
    classes = class_folders(train)
    if not classes:
        raise InputError(f"{train} has no class folders, which {file.name} refers to; unpack {IMAGENET.owner} there")
    index = {name: number for number, name in enumerate(classes)}
    names: list[str] = []
    for number, line in enumerate(read_lines(file), start=1):
        fields = line.split()
        name = fields[0] if "/" in fields[0] else f"{fields[0].partition('_')[0]}/{fields[0]}"
        target = index.get(name.partition("/")[0])
        if target is None:
            raise InputError(f"{file} line {number}: {train} has no class folder for {fields[0]}")
        if len(fields) > 1 and fields[1] != str(target):
            raise InputError(
                f"{file} line {number}: label {fields[1]} for {name}, whose folder is class {target} of "
                f"{len(classes)} in alphabetical order; restore the list or the folders"
            )
        names.append(name)
    require_unique(file, names)
    require_files(train, names, file.name, f"unpack the whole train part of {IMAGENET.owner}")
    targets = np.array([index[name.partition("/")[0]] for name in names], dtype=np.int64)
    ids = [f"train/{name}" for name in names]
    return sorted_labels(file, folder, ids, ids, targets, classes)


# ---- Places205 -------------------------------------------------------------------------------------------------------


def _places_list(folder: Path, split: str) -> Path:
    return folder / _PLACES_LISTS.format(split=split)


def _read_places(folder: Path, split: str) -> Labels:
    """As the owner publishes it. An id is the name in the list, such as `a/abbey/gsun_….jpg`."""
    file, train = _places_list(folder, split), _places_list(folder, "train")
    names, targets = read_list(file)
    # Both lists name images by their class folder, and a val that lacks a class keeps the indices of train.
    classes = class_names(train, *read_list(train)) if train.is_file() else class_names(file, names, targets)
    images = first_folder(folder, _PLACES_IMAGES)
    if images is None:
        raise InputError(
            f"{folder} has {file.name} but no images: expected {_PLACES_IMAGES[0]}, found {folder_contents(folder)}; "
            "unpack imagesPlaces205_resize.tar.gz there"
        )
    require_files(images, names, file.name, "unpack imagesPlaces205_resize.tar.gz again")
    return sorted_labels(file, images, names, names, targets, classes)


PLACES205 = FolderLayouts(
    "the Places page of MIT (places.csail.mit.edu)",
    (
        FolderLayout(
            f"{_PLACES_LISTS} and the images in {_PLACES_IMAGES[0]}",
            lambda folder, split: _places_list(folder, split).is_file(),
            _read_places,
        ),
        CLASS_FOLDERS,
        replace(
            TEXT_LISTS,
            fits=partial(_has_list, texts=_PLACES_LISTS_OF_MM),
            read=partial(_read_text, texts=_PLACES_LISTS_OF_MM),
        ),
        ARRAYS,
    ),
)


# ---- iNaturalist 2018 ------------------------------------------------------------------------------------------------


def _read_inat(folder: Path, split: str) -> Labels:
    """As the owner publishes it. An id is the file name, such as `train_val2018/Plantae/7477/….jpg`.

    Classes are the categories in the order of their ids; labels are joined on the image id.
    """
    file, owner = _split_file(folder, split, _INAT_JSON), INAT18.owner
    assert file is not None
    try:
        content: dict[str, Any] = json.loads(read_bytes(file))
        categories = sorted((int(c["id"]), str(c["name"])) for c in content["categories"])
        category_of = {a["image_id"]: int(a["category_id"]) for a in content["annotations"]}
        ids = [image["id"] for image in content["images"]]
        names = [str(image["file_name"]) for image in content["images"]]
    except RecursionError as error:
        raise InputError(f"{file} is nested too deeply; take it from {owner}") from error
    except (ValueError, KeyError, TypeError, OverflowError, AttributeError) as error:
        raise InputError(
            f"{file} is not the competition's json ({type(error).__name__}: {error}); take it from {owner}"
        ) from error
    if not names:
        raise InputError(f"{file} lists no image; take it from {owner}")
    require_unique(file, names)
    if len(category_of) < len(content["annotations"]):
        raise InputError(f"{file} has several annotations of one image; take it from {owner}")
    lacking = [name for id, name in zip(ids, names, strict=True) if id not in category_of]
    if lacking:
        raise InputError(f"{file} has no annotation for {lacking[0]} ({len(lacking)} such); take it from {owner}")
    index = {id: number for number, (id, _) in enumerate(categories)}
    targets = np.array([index.get(category_of[id], category_of[id] + len(index)) for id in ids], dtype=np.int64)
    require_files(folder, names, file.name, "unpack the images of the competition there")
    return sorted_labels(file, folder, names, names, targets, [name for _, name in categories])


INAT18 = FolderLayouts(
    "the iNaturalist 2018 competition (github.com/visipedia/inat_comp)",
    (
        FolderLayout(
            "{split}2018.json and the images in train_val2018/",
            partial(_has_list, texts=_INAT_JSON),
            _read_inat,
        ),
        CLASS_FOLDERS,
        TEXT_LISTS,
        ARRAYS,
    ),
)
