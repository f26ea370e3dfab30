"""The Pascal VOC devkit layout: image-level labels from `ImageSets/Main`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.contract import InputError, Labels
from benchmarks.datasets.groups import read_groups

# In the file: 1 present, -1 absent, 0 when every instance of the class in the image is difficult.
_VALUES = {"1": 1, "-1": 0, "0": -1}


def read_voc_classification(devkit: Path, year: str, split: str) -> Labels:
    """Items of one split, ordered by image id, with (N, C) int8 targets: 1 present, 0 absent, -1 ignored.

    Classes are those with a file `<class>_<split>.txt`, in alphabetical order. Each of these files is joined to
    `<split>.txt` on the image id, never on the order of lines.

    Args:
        devkit: the folder `VOCdevkit`.
        year: as "2007".

    Raises:
        InputError: a file is missing, or a line is malformed, repeated, unknown or lacking.
    """
    folder = devkit / f"VOC{year}"
    lists = folder / "ImageSets" / "Main"
    ids = sorted(_read_ids(lists / f"{split}.txt"))
    suffix = f"_{split}"
    classes = class_names(lists, split)
    if not classes:
        raise InputError(f"{lists} has no <class>{suffix}.txt, which hold the labels; unpack the whole devkit")
    targets = np.stack([_read_class(lists / f"{name}{suffix}.txt", ids) for name in classes], axis=1)
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


def class_names(lists: Path, split: str) -> list[str]:
    """The classes that `ImageSets/Main` has a list of, in alphabetical order, which is VOC's own."""
    suffix = f"_{split}"
    return sorted(file.stem.removesuffix(suffix) for file in lists.glob(f"?*{suffix}.txt"))


def _read_lines(file: Path) -> list[list[str]]:
    """The lines, split at white space."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"{file} is missing; unpack the devkit below VOCdevkit") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not a text file; unpack the devkit again") from error
    return [line.split() for line in text.splitlines()]


def _read_ids(file: Path) -> list[str]:
    seen: set[str] = set()
    for number, fields in enumerate(_read_lines(file), start=1):
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
    for number, fields in enumerate(_read_lines(file), start=1):
        if len(fields) != 2 or fields[1] not in _VALUES:
            raise InputError(f"{file} line {number}: expected an image id and 1, 0 or -1, found {' '.join(fields)!r}")
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
