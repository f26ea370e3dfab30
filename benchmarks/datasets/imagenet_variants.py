"""Other test sets for a classifier of ImageNet: ReaL, V2, A, R, Sketch, ObjectNet, C, and the corrupted drawings.

The train split of each is that of ImageNet, so that one classifier serves all. In the test split, `Labels.classes` are
the classes that a prediction may name, as WordNet ids; where an image has several right answers, `Labels.targets` is
(N, 1000) with 1 for each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.classification import read_imagenet
from benchmarks.datasets.lists import (
    SUFFIXES,
    class_folders,
    folder_contents,
    images_below,
    labels_below,
    read_image_folder,
)
from benchmarks.task import InputError, Labels
from results.files import PathList, read_text, require_regular

CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
SEVERITIES = (1, 2, 3, 4, 5)

_VAL_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})")
_VAL_IMAGES = 50_000
_MAX_JSON = 2**26  # bytes; the largest, the labels of ReaL, has less than one million


@cache
def _shipped() -> Mapping[str, Any]:
    content: Mapping[str, Any] = json.loads(Path(__file__).with_name("imagenet_classes.json").read_bytes())
    return content


def wordnet_ids() -> tuple[str, ...]:
    """The 1000 classes in the order of their indices, which is alphabetical."""
    return tuple(_shipped()["wnids"])


def classes_of(name: str) -> tuple[str, ...]:
    """WordNet ids of the 200 classes of `imagenet-a` or `imagenet-r`, in the order of their indices."""
    every = wordnet_ids()
    return tuple(every[index] for index in _shipped()[name])


def objectnet_classes() -> dict[str, list[int]]:
    """Folder of ObjectNet -> indices of the classes of ImageNet that it is, for the 113 folders that are any."""
    return dict(_shipped()["objectnet"])


def alexnet_errors() -> dict[str, float]:
    """AlexNet's error in percent by corruption, mean over the severities: the unit of the corruption error."""
    return dict(_shipped()["alexnet_errors"])


def _train(folder: Path, split: str) -> Labels:
    if split != "train":
        raise InputError(f"{folder.name} has no split {split}; it has val, and ImageNet's train")
    return read_imagenet(folder.parent / "imagenet", split)


# ---- one right class -------------------------------------------------------------------------------------------------


def read_v2(folder: Path, split: str) -> Labels:
    """ImageNet V2, whose folders are the numbers of the classes. Sorted as text, only 12 of 1000 would be right.

    Raises:
        InputError: the folder is missing or empty, or a folder's name is not a number from 0 to 999.
    """
    if split != "val":
        return _train(folder, split)
    every = wordnet_ids()

    def number(name: str) -> int:
        if not (name.isascii() and name.isdecimal() and int(name) < len(every)):
            raise InputError(
                f"{folder / name} is not a number from 0 to {len(every) - 1}, "
                "as class folders of ImageNet V2 must be; rename or remove it"
            )
        return int(name)

    found = class_folders(folder)
    return _from_folders(folder, {name: number(name) for name in sorted(found, key=number)}, every)


def read_subset(folder: Path, split: str, classes: str = "") -> Labels:
    """A folder per WordNet id: ImageNet-A and -R, whose predictions are among their own 200 classes, and Sketch.

    Args:
        classes: the name of the list of classes; all 1000 where it is empty.

    Raises:
        InputError: the folder is missing or empty, or has a class that the list does not have.
    """
    if split != "val":
        return _train(folder, split)
    known = classes_of(classes) if classes else wordnet_ids()
    return _from_folders(folder, _indexed(folder, known), known)


def _indexed(folder: Path, classes: Sequence[str]) -> dict[str, int]:
    index = {name: number for number, name in enumerate(classes)}
    found = class_folders(folder)
    unknown = [name for name in found if name not in index]
    if unknown:
        raise InputError(
            f"{folder / unknown[0]} is not one of the {len(classes)} classes of this data set ({len(unknown)} such "
            "folders); remove it"
        )
    return {name: index[name] for name in found}


def _from_folders(folder: Path, target_of: Mapping[str, int], classes: tuple[str, ...]) -> Labels:
    ids: list[str] = []
    targets: list[int] = []
    for name, target in target_of.items():
        images = images_below(folder / name)
        ids += [f"{name}/{image}" for image in images]
        targets += [target] * len(images)
    if not ids:
        raise InputError(
            f"{folder} has no class folder with images ({', '.join(SUFFIXES)}): found {folder_contents(folder)}"
        )
    return labels_below(folder, ids, classes, np.array(targets, np.int64))


# ---- several right classes -------------------------------------------------------------------------------------------


def read_real(folder: Path, split: str) -> Labels:
    """ImageNet's val with the labels of `real.json` (Beyer et al. 2020); images without any are left out.

    The images are val's, so that val's features serve for them.

    Raises:
        InputError: `real.json` is missing or malformed, or an image of val does not carry its number.
    """
    if split != "val":
        return read_imagenet(folder, split)
    labels, every = read_imagenet(folder, split), wordnet_ids()
    listed = _read_json(folder / "real.json", "a list of 50,000 lists, as google-research/reassessed-imagenet has it")
    if not isinstance(listed, list) or len(listed) != _VAL_IMAGES:
        raise InputError(f"{folder / 'real.json'} is not a list of {_VAL_IMAGES} lists of labels; restore it")
    rows: list[int] = []
    targets = np.zeros((len(labels), len(every)), np.int8)
    for row, id in enumerate(labels.ids):
        match = _VAL_NUMBER.search(id)
        if match is None or not 1 <= int(match[1]) <= _VAL_IMAGES:
            raise InputError(f"{id} of {folder} must be named ILSVRC2012_val_…: the number there selects ReaL's labels")
        own = listed[int(match[1]) - 1]
        if not isinstance(own, list) or not all(type(n) is int and 0 <= n < len(every) for n in own):
            raise InputError(f"{folder / 'real.json'} has invalid class numbers for {match[0]}; restore the file")
        if own:
            targets[row, own] = 1
            rows.append(row)
    kept = labels.rows(rows)
    return Labels(kept.ids, kept.paths, every, targets[rows], kept.groups, stored_as=labels)


def read_objectnet(folder: Path, split: str) -> Labels:
    """ObjectNet's images of the folders that are classes of ImageNet.

    A folder may be several classes of ImageNet; each of them is right. The mappings of the archive count if they are
    there, else the shipped ones.

    Raises:
        InputError: a mapping is incomplete or malformed, or no folder has an image.
    """
    if split != "val":
        return _train(folder, split)
    every, mappings = wordnet_ids(), folder / "mappings"
    answers = _objectnet_answers(mappings) if mappings.exists() else objectnet_classes()
    images = folder / "images"
    ids: list[str] = []
    rows: list[list[int]] = []
    for name in class_folders(images):
        if name in answers:
            found = images_below(images / name)
            ids += [f"{name}/{image}" for image in found]
            rows += [answers[name]] * len(found)
    if not ids:
        raise InputError(f"{images} has no image of a class that ImageNet also has; unpack ObjectNet again")
    targets = np.zeros((len(ids), len(every)), np.int8)
    for row, classes in enumerate(rows):
        targets[row, classes] = 1
    return labels_below(images, ids, every, targets, groups_in=folder)


def _objectnet_answers(folder: Path) -> dict[str, list[int]]:
    """Folder -> class numbers of ImageNet."""
    what = "a mapping as ObjectNet has it"
    label_of = _read_json(folder / "folder_to_objectnet_label.json", what)
    names_of = _read_json(folder / "objectnet_to_imagenet_1k.json", what)
    line_of = _read_json(folder / "pytorch_to_imagenet_2012_id.json", what)
    names = folder / "imagenet_to_label_2012_v2"
    try:
        lines = {line.strip(): number for number, line in enumerate(read_text(names).splitlines())}
        index_of = {int(line): int(index) for index, line in line_of.items()}
        answers = {
            where: [index_of[lines[name]] for name in names_of[label].split("; ")]
            for where, label in label_of.items()
            if label in names_of
        }
    except FileNotFoundError as error:
        raise InputError(f"{names} is missing; unpack ObjectNet's mappings again") from error
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"the mapping files in {folder} are inconsistent ({type(error).__name__}: {error}); unpack ObjectNet again"
        ) from error
    if any(not 0 <= index < len(wordnet_ids()) for of in answers.values() for index in of):
        raise InputError(
            f"the mapping files in {folder} name classes that ImageNet does not have; unpack ObjectNet again"
        )
    return answers


def _read_json(file: Path, what: str) -> Any:
    try:
        require_regular(file)
        if file.stat().st_size > _MAX_JSON:
            raise InputError(f"{file} has {file.stat().st_size:,} bytes; expected {what}")
        return json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{file} is missing; expected {what}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not JSON ({error}); expected {what}") from error


# ---- corruptions -----------------------------------------------------------------------------------------------------


def read_imagenet_c(folder: Path, split: str) -> Labels:
    """ImageNet-C: `<corruption>/<severity>/<WordNet id>/<image>` for the 15 corruptions of the benchmark.

    An id is that path, and an image's source is the one that was corrupted. Extra corruptions are not read.

    Raises:
        InputError: no corruption is there, or a class is unknown.
    """
    return _train(folder, split) if split != "val" else _corrupted(folder, wordnet_ids(), {})


def read_drawings_c(folder: Path, split: str) -> Labels:
    """Corrupted drawings, as `demo-data` writes them. The train split and the sources are those of the drawings.

    Raises:
        InputError: see `read_imagenet_c`.
    """
    drawings = folder.parent / "drawings"
    clean = read_image_folder(drawings, split)
    if split != "val":
        return clean
    groups = {id.rpartition(".")[0]: of for id, of in zip(clean.ids, clean.groups, strict=True)}
    return _corrupted(folder, clean.classes, groups)


def _corrupted(folder: Path, classes: tuple[str, ...], groups: Mapping[str, tuple[str, ...]]) -> Labels:
    """The items of all corruptions.

    Args:
        groups: sources of clean images, by their path without suffix; an image without an entry is its own source.
    """
    ids: list[str] = []
    targets: list[NDArray[np.int64]] = []
    sources: list[tuple[str, ...]] = []
    shared: dict[str, tuple[str, ...]] = {}  # one tuple for all corruptions of an image
    for where in _corrupted_folders(folder):
        for name, target in _indexed(folder / where, classes).items():
            images = images_below(folder / where / name)
            ids += [f"{where}/{name}/{image}" for image in images]
            targets.append(np.full(len(images), target, np.int64))
            for image in images:
                clean = f"val/{name}/{image}".rpartition(".")[0]
                sources.append(shared.setdefault(clean, groups.get(clean, (clean,))))
    if not ids:
        raise InputError(
            f"{folder} has no corrupted images: expected {CORRUPTIONS[0]}/1/<class>/<image>, found "
            f"{folder_contents(folder)}"
        )
    names = tuple(ids)
    return Labels(names, PathList(folder, names), classes, np.concatenate(targets), tuple(sources))


def _corrupted_folders(folder: Path) -> Iterator[str]:
    for corruption in CORRUPTIONS:
        for severity in SEVERITIES:
            if (folder / corruption / str(severity)).is_dir():
                yield f"{corruption}/{severity}"
