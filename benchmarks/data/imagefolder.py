"""The ImageFolder layout: `<root>/<split>/<class>/<image>`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from benchmarks.contract import InputError, Labels
from benchmarks.data.groups import read_groups

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")


def read_image_folder(root: Path, split: str) -> Labels:
    """Items of one split, sorted by class and file; an id is the path below `root`.

    The classes are those of `train` where there is such a folder: a split that lacks a class keeps the indices.

    Raises:
        InputError: a folder is missing or empty, or the split has a class that `train` does not have.
    """
    folder = root / split
    found = _class_folders(folder)
    classes = _class_folders(root / "train") if split != "train" and (root / "train").is_dir() else found
    unknown = sorted(set(found) - set(classes))
    if unknown:
        raise InputError(
            f"{folder / unknown[0]} is a class that {root / 'train'} does not have; the folders must match"
        )
    files: list[Path] = []
    targets: list[int] = []
    for name in found:
        images = _images(folder / name)
        if not images:
            raise InputError(f"{folder / name} holds no image ({', '.join(SUFFIXES)}); fill or remove the folder")
        files += images
        targets += [classes.index(name)] * len(images)
    ids = tuple(file.relative_to(root).as_posix() for file in files)
    return Labels(ids, tuple(files), tuple(classes), np.array(targets, dtype=np.int64), read_groups(root, ids))


def _class_folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise InputError(f"{folder} is missing: an image folder is laid out as <root>/<split>/<class>/<image>")
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise InputError(
            f"{folder} has no class folders: an image folder is laid out as <root>/<split>/<class>/<image>"
        )
    return names


def _images(folder: Path) -> list[Path]:
    inside = (Path(where, name) for where, _, names in os.walk(folder, followlinks=True) for name in names)
    return sorted(file for file in inside if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))
