"""The ImageFolder layout: `<root>/<split>/<class>/<image>`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from benchmarks.contract import InputError, Labels
from benchmarks.datasets.groups import read_groups
from benchmarks.datasets.paths import Below

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
    index = {name: number for number, name in enumerate(classes)}
    ids: list[str] = []
    counts: list[int] = []
    for name in found:
        images = _images(folder / name)
        if not images:
            raise InputError(f"{folder / name} holds no image ({', '.join(SUFFIXES)}); fill or remove the folder")
        prefix = f"{split}/{name}/"
        ids += [prefix + image for image in images]
        counts.append(len(images))
    targets = np.repeat(np.array([index[name] for name in found], dtype=np.int64), counts)
    names = tuple(ids)
    return Labels(names, Below(root, names), tuple(classes), targets, read_groups(root, names))


def class_folders(folder: Path) -> list[str]:
    """Names of the folders that may be classes, sorted; none where `folder` is no folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())


def has_classes(folder: Path) -> bool:
    """Whether a folder in `folder` has an image right inside; those of Places, sorted by initial, have none."""
    for name in class_folders(folder):
        with os.scandir(folder / name) as entries:
            if any(entry.name.lower().endswith(SUFFIXES) for entry in entries):
                return True
    return False


def _class_folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise InputError(f"{folder} is missing: an image folder is laid out as <root>/<split>/<class>/<image>")
    names = class_folders(folder)
    if not names:
        raise InputError(
            f"{folder} has no class folders: an image folder is laid out as <root>/<split>/<class>/<image>"
        )
    return names


def _images(folder: Path) -> list[str]:
    """Images below `folder`, at any depth, in the order of their paths' parts.

    Raises:
        InputError: a link leads back to a folder that it lies in.
    """
    found: list[str] = []
    waiting = [""]
    while waiting:
        below = waiting.pop()
        with os.scandir(folder / below) as entries:
            for entry in entries:
                name = entry.name
                if name.lower().endswith(SUFFIXES) and not name.startswith(".") and not entry.is_dir():
                    found.append(below + name)
                elif entry.is_dir():
                    if entry.is_symlink() and (folder / below).resolve().is_relative_to(Path(entry.path).resolve()):
                        raise InputError(f"{entry.path} is a link to a folder that it lies in; remove the link")
                    waiting.append(f"{below}{name}/")
    nested = any("/" in name for name in found)
    return sorted(found, key=lambda name: name.split("/")) if nested else sorted(found)
