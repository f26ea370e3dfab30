"""ImageNet-1k (ILSVRC 2012): class folders, mm's lists or VISSL's; and the labelled 1 % and 10 % of SimCLR."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.contract import InputError, Labels
from benchmarks.datasets.imagefolder import class_folders, has_classes, read_image_folder
from benchmarks.datasets.layout import Layout, first_file, recognise
from benchmarks.datasets.lists import class_names, labels_of, read_arrays, read_lines, read_list, unique
from benchmarks.datasets.paths import Below, require

OWNER = "image-net.org (ILSVRC 2012)"
# The semi-supervised lists as SimCLR and SwAV (file names alone) and mm (path and label) name them.
SUBSETS = {
    f"train-{percent}pct": tuple(
        below + name
        for name in (f"{percent}percent.txt", f"train_{percent}percent.txt", f"train_labeled_{percent}percent.txt")
        for below in ("imagenet_subsets/", "", "meta/", "semi_files/")
    )
    for percent in (1, 10)
}


def generic_layouts(lists: Sequence[str] = ()) -> tuple[Layout, ...]:
    """Class folders, mm's text list, VISSL's arrays."""
    texts = (*lists, "meta/{split}.txt", "{split}.txt", "{split}_list.txt")
    return (
        Layout("{split}/<class>/<image>", lambda folder, split: has_classes(folder / split), read_image_folder),
        Layout(
            "a list meta/{split}.txt of `path label` and the images in {split}/",
            lambda folder, split: _text(folder, split, texts) is not None,
            partial(_read_text, texts=texts),
        ),
        Layout(
            "{split}_images.npy with {split}_labels.npy",
            lambda folder, split: (folder / f"{split}_images.npy").is_file(),
            _read_arrays,
        ),
    )


def read_imagenet(folder: Path, split: str) -> Labels:
    """Items of `train` or `val`, sorted by id: the path below the folder, as `train/n01440764/n01440764_26.JPEG`.

    Raises:
        InputError: no such split, a malformed list, a missing image, or a label that is no class.
    """
    return recognise(folder, split, LAYOUTS, OWNER).read(folder, split)


def read_subset(folder: Path, split: str) -> Labels:
    """`train-1pct` or `train-10pct`: listed images of train, with the classes and the ids of train.

    Raises:
        InputError: no list, no class folders, or the list names what train does not have.
    """
    file = first_file(folder, SUBSETS[split])
    if file is None:
        raise InputError(
            f"{folder} has no list for {split}: expected one of {', '.join(SUBSETS[split][:4])}, …; take it from "
            "SimCLR's imagenet_subsets"
        )
    classes = class_folders(folder / "train")
    if not classes:
        raise InputError(f"{folder / 'train'} has no class folders, which {file.name} refers to; unpack {OWNER} there")
    index = {name: number for number, name in enumerate(classes)}
    names: list[str] = []
    for number, line in enumerate(read_lines(file), start=1):
        fields = line.split()
        name = fields[0] if "/" in fields[0] else f"{fields[0].partition('_')[0]}/{fields[0]}"
        target = index.get(name.partition("/")[0])
        if target is None:
            raise InputError(f"{file} line {number}: {folder / 'train'} has no class folder for {fields[0]}")
        if len(fields) > 1 and fields[1] != str(target):
            raise InputError(
                f"{file} line {number}: label {fields[1]} for {name}, whose folder is class {target} of "
                f"{len(classes)} in alphabetical order; restore the list or the folders"
            )
        names.append(name)
    unique(file, names)
    require(folder / "train", names, file.name, f"unpack the whole train part of {OWNER}")
    targets = np.array([index[name.partition("/")[0]] for name in names], dtype=np.int64)
    ids = [f"train/{name}" for name in names]
    return labels_of(file, folder, ids, ids, targets, classes)


def read_listed(
    source: Path, folder: Path, split: str, names: Sequence[str], targets: np.ndarray, classes: list[str]
) -> Labels:
    """Listed images below `folder`/`split`, or below `folder` where their names say the split; ids say it always.

    Raises:
        InputError: an image is missing, or a label is no class.
    """
    whole = all(name.startswith(f"{split}/") for name in names)
    ids = list(names) if whole else [f"{split}/{name}" for name in names]
    require(folder, ids, source.name, "complete the images or restore the list")
    return labels_of(source, folder, ids, ids, targets, classes)


def _text(folder: Path, split: str, names: Sequence[str]) -> Path | None:
    return first_file(folder, [name.replace("{split}", split) for name in names])


def _read_text(folder: Path, split: str, texts: Sequence[str]) -> Labels:
    file = _text(folder, split, texts)
    assert file is not None
    names, targets = read_list(file)
    return read_listed(file, folder, split, names, targets, _classes(folder, split, texts, file, names, targets))


def _classes(
    folder: Path, split: str, texts: Sequence[str], file: Path, names: Sequence[str], targets: np.ndarray
) -> list[str]:
    """Those of train where there is one: a flat val has no names, and a val that lacks a class keeps the indices."""
    train = _text(folder, "train", texts)
    if split != "train" and has_classes(folder / "train"):
        return class_folders(folder / "train")
    if split == "train" or train is None:
        return _short(class_names(file, names, targets), split)
    return _short(class_names(train, *read_list(train)), "train")


def _short(classes: list[str], split: str) -> list[str]:
    """Without the folder of the split, where the list's names have it."""
    return [name.removeprefix(f"{split}/") for name in classes]


def _read_arrays(folder: Path, split: str) -> Labels:
    """The paths may be absolute and from another machine: what follows `/<split>/` in them is looked for here."""
    file = folder / f"{split}_images.npy"
    names, targets = read_arrays(file, folder / f"{split}_labels.npy")
    classes = class_names(file, [_after(name, split) for name in names], targets)
    train = folder / "train_images.npy"
    if split != "train" and train.is_file():
        listed, train_targets = read_arrays(train, folder / "train_labels.npy")
        classes = class_names(train, [_after(name, "train") for name in listed], train_targets)
    short = [_after(name, split) for name in names]
    if not (folder / split / short[0]).is_file() and Path(names[0]).is_absolute() and Path(names[0]).is_file():
        return _read_elsewhere(file, split, names, short, targets, classes)
    return read_listed(file, folder, split, short, targets, classes)


def _read_elsewhere(
    file: Path, split: str, names: list[str], short: list[str], targets: np.ndarray, classes: list[str]
) -> Labels:
    """Images that lie where the list's absolute paths say, outside of the data root."""
    top = Path(os.path.commonpath(names))
    below = [os.path.relpath(name, top) for name in names]
    require(top, below, file.name, "complete the images or write the list again")
    ids = [f"{split}/{name}" for name in short]
    labels = labels_of(file, file.parent, ids, ids, targets, classes)
    name_of = dict(zip(ids, below, strict=True))
    paths = Below(top, tuple(name_of[id] for id in labels.ids))
    return Labels(labels.ids, paths, labels.classes, labels.targets, labels.groups)


def _after(name: str, split: str) -> str:
    """The part of a path that follows the folder of its split."""
    return f"/{name}".rpartition(f"/{split}/")[2].lstrip("/")


LAYOUTS = generic_layouts()
