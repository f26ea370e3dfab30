"""The ImageFolder layout: `<root>/<split>/<class>/<image>`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from benchmarks.datasets.lists import LazyPaths, read_groups
from benchmarks.task import InputError, Labels

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")


def read_image_folder(root: Path, split: str) -> Labels:
    """Items of one split, sorted by class and file; an id is the path below `root`.

    Class indices are those of `train` if there is such a folder, so that a split may lack a class.

    Raises:
        InputError: a folder is missing or empty, or the split has a class that `train` does not have.
    """
    folder = root / split
    found = _require_class_folders(folder)
    classes = _require_class_folders(root / "train") if split != "train" and (root / "train").is_dir() else found
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
            raise InputError(f"{folder / name} contains no image ({', '.join(SUFFIXES)}); fill or remove the folder")
        prefix = f"{split}/{name}/"
        ids += [prefix + image for image in images]
        counts.append(len(images))
    targets = np.repeat(np.array([index[name] for name in found], dtype=np.int64), counts)
    names = tuple(ids)
    return Labels(names, LazyPaths(root, names), tuple(classes), targets, read_groups(root, names))


def class_folders(folder: Path) -> list[str]:
    """Sorted names of the subfolders that may be classes; empty if `folder` does not exist."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())


def has_classes(folder: Path) -> bool:
    """Whether a subfolder directly contains an image. Those of Places, which are sorted by initial, do not."""
    for name in class_folders(folder):
        with os.scandir(folder / name) as entries:
            if any(entry.name.lower().endswith(SUFFIXES) for entry in entries):
                return True
    return False


def _require_class_folders(folder: Path) -> list[str]:
    names = class_folders(folder)
    if not names:
        fault = "has no class folders" if folder.is_dir() else "is missing"
        raise InputError(f"{folder} {fault}: an image folder has the layout <root>/<split>/<class>/<image>")
    return names


def _images(folder: Path) -> list[str]:
    """Images below `folder`, at any depth, in the order of their paths' parts.

    Raises:
        InputError: a link points to a folder that contains it.
    """
    found: list[str] = []
    pending = [""]
    while pending:
        below = pending.pop()
        with os.scandir(folder / below) as entries:
            for entry in entries:
                name = entry.name
                if name.lower().endswith(SUFFIXES) and not name.startswith(".") and not entry.is_dir():
                    found.append(below + name)
                elif entry.is_dir():
                    if entry.is_symlink() and (folder / below).resolve().is_relative_to(Path(entry.path).resolve()):
                        raise InputError(f"{entry.path} is a link to a folder that contains it; remove the link")
                    pending.append(f"{below}{name}/")
    nested = any("/" in name for name in found)
    return sorted(found, key=lambda name: name.split("/")) if nested else sorted(found)
