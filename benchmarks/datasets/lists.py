"""Lists of images and labels: text lines `path label` as mm and Places have them, and VISSL's pairs of .npy files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.contract import InputError, Labels
from benchmarks.datasets.groups import read_groups
from benchmarks.datasets.paths import Below

Listed = tuple[list[str], NDArray[np.int64]]  # names with forward slashes, labels


def read_list(file: Path) -> Listed:
    """Lines of a name and a label, separated by white space or a comma, in the order of the file.

    Raises:
        InputError: no such file, no line, a malformed line, or a name that occurs twice.
    """
    lines = read_lines(file)
    separator = "," if "," in lines[0] else None
    names: list[str] = []
    targets = np.empty(len(lines), dtype=np.int64)
    for row, line in enumerate(lines):  # zip(*…) over a million lines keeps the garbage collector busy for seconds
        try:
            name, label = line.rsplit(separator, 1)
            targets[row] = int(label)
        except (ValueError, OverflowError) as error:
            raise InputError(
                f"{file} line {row + 1}: expected a path and a label, found {line!r}; restore the list"
            ) from error
        names.append(name)
    if separator or lines[0][0] == "/":
        names = [name.strip().lstrip("/") for name in names]
    unique(file, names)
    return names, targets


def read_lines(file: Path) -> list[str]:
    """The lines that are not blank, stripped.

    Raises:
        InputError: no such file, not text, or no line.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"{file} is missing; put the list there") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not a text file; restore the list") from error
    lines = [stripped for line in text.split("\n") if (stripped := line.strip())]
    if not lines:
        raise InputError(f"{file} lists no image; restore it")
    return lines


def read_arrays(images: Path, labels: Path) -> Listed:
    """VISSL's pair: an array of paths and one of labels. Both are read without pickle.

    Raises:
        InputError: one is missing, no such array, an array of Python objects, or they do not match.
    """
    names, targets = _array(images), _array(labels)
    if names.dtype.kind == "S":
        names = np.char.decode(names, "utf-8")
    if names.dtype.kind != "U" or names.ndim != 1 or not len(names):
        raise InputError(f"{images} is no list of paths ({names.dtype}, {names.shape}); write it as an array of text")
    if targets.dtype.kind not in "iu" or targets.size != len(names):
        raise InputError(
            f"{labels} holds {targets.size} labels of type {targets.dtype} for the {len(names)} paths of "
            f"{images.name}; write one whole number per path"
        )
    listed = names.tolist()
    unique(images, listed)
    return listed, targets.reshape(-1).astype(np.int64)


def labels_of(
    source: Path, folder: Path, ids: Sequence[str], names: Sequence[str], targets: NDArray[np.int64], classes: list[str]
) -> Labels:
    """The items sorted by id, after a check of their labels. `names` are below `folder`, where `groups.json` lies too.

    Raises:
        InputError: a label that is no class.
    """
    outside = np.flatnonzero((targets < 0) | (targets >= len(classes)))
    if len(outside):
        raise InputError(
            f"{source} gives {names[outside[0]]} the label {targets[outside[0]]} ({len(outside)} such), but there are "
            f"{len(classes)} classes, numbered from 0; restore the list"
        )
    sorted_ids = tuple(sorted(ids))
    sorted_names: Sequence[str] = sorted_ids if names is ids else names
    if list(ids) != list(sorted_ids):
        order = sorted(range(len(ids)), key=ids.__getitem__)
        targets = targets[np.array(order)]
        sorted_names = sorted_ids if names is ids else [names[row] for row in order]
    groups = read_groups(folder, sorted_ids)
    return Labels(sorted_ids, Below(folder, sorted_names), tuple(classes), targets, groups)


def class_names(source: Path, names: Sequence[str], targets: NDArray[np.int64]) -> list[str]:
    """Class names of a list: the folder that the images of a label lie in, or the number where they lie in none.

    Raises:
        InputError: a label has images in two folders, or a folder images of two labels.
    """
    folder_of: dict[int, str] = {}
    for name, target in zip(names, targets.tolist(), strict=True):
        where = name.rpartition("/")[0]
        if folder_of.setdefault(target, where) != where:
            raise InputError(
                f"{source} gives images of {folder_of[target]} and of {where} the label {target}; restore the list"
            )
    folders = sorted(set(folder_of.values()))
    if folders == [""]:
        return [str(number) for number in range(max(folder_of) + 1)]
    if len(folders) < len(folder_of):
        twice = next(name for name in folders if list(folder_of.values()).count(name) > 1)
        raise InputError(f"{source} gives images of {twice} several labels; restore the list")
    return [folder_of.get(number, str(number)) for number in range(max(folder_of) + 1)]


def unique(source: Path, names: Sequence[str]) -> None:
    """Raises InputError where a name occurs twice."""
    if len(set(names)) == len(names):
        return
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"{source} lists {name} twice; restore the list")
        seen.add(name)


def _array(file: Path) -> NDArray[Any]:
    try:
        with file.open("rb") as opened:
            found = np.load(opened, allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError(f"{file} is missing; VISSL's lists are a pair of files of paths and labels") from error
    except ValueError as error:
        if "Object arrays" in str(error):
            raise InputError(
                f"{file} holds Python objects, which only pickle reads, and a pickle can run anything; write it again "
                f"where you trust it: numpy.save(file, numpy.array(old.tolist()))"
            ) from error
        raise InputError(f"{file} is no .npy file ({error}); write it again with numpy.save") from error
    if not isinstance(found, np.ndarray):
        raise InputError(f"{file} is an .npz archive; VISSL's lists are a pair of .npy files")
    return found
