"""Sets of image retrieval: revisited Oxford and Paris, Copydays, and copies of the embedded drawings.

The split `database` is searched, `queries` are looked for. In Oxford and Paris the answers are in a pickle of the
owner, which is read without running what it holds. In the others an image and its copies have the same target.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.imagenet_variants import read_drawings_c
from benchmarks.datasets.lists import folder_contents, images_below, labels_below, require_files
from benchmarks.datasets.safe_readers import pickled_array, read_pickle
from benchmarks.task import InputError, Labels

DATABASE, QUERIES = "database", "queries"
WITH_OTHERS = "database+others"  # of Copydays: also distractors, and images to learn a whitening of
DISTRACTORS, WHITENING = "distractors", "whitening"  # their folders
OTHER = "other"  # class of what is no original
_MAX_PICKLE = 2**25  # bytes; the owner's have less than one million
_MAX_NAMES = 100_000  # of images or queries
_MAX_ROWS = 2_000_000  # of all answers together


@dataclass(frozen=True)
class Answers:
    """What is right for one query: rows of the database, and the box of the object in the query's image."""

    box: tuple[float, float, float, float]
    easy: NDArray[np.int64]
    hard: NDArray[np.int64]
    junk: NDArray[np.int64]


@dataclass(frozen=True)
class GroundTruth:
    """Names of the database's images, names of the queries, and the answers of each."""

    database: tuple[str, ...]
    queries: tuple[str, ...]
    answers: tuple[Answers, ...]


# ---- revisited Oxford and Paris --------------------------------------------------------------------------------------


def read_revisited(folder: Path, split: str) -> Labels:
    """Images of a split in the owner's order. The answers are in `Labels.annotations`: see `read_ground_truth`.

    Raises:
        InputError: the split is unknown, `gnd_NAME.pkl` is missing or malformed, or an image is missing.
    """
    if split not in (DATABASE, QUERIES):
        raise InputError(f"{folder.name} has no split {split}; it has {DATABASE} and {QUERIES}")
    file = folder / f"gnd_{folder.name}.pkl"
    truth = read_ground_truth(file)
    names = [f"jpg/{name}.jpg" for name in (truth.database if split == DATABASE else truth.queries)]
    require_files(folder, names, file.name, "unpack the images again")
    return labels_below(folder, names, annotations=(file,))


def read_ground_truth(file: Path) -> GroundTruth:
    """The owner's `gnd_NAME.pkl`: `imlist`, `qimlist`, and for each query `bbx`, `easy`, `hard` and `junk`.

    Raises:
        InputError: the file is missing, asks for anything but containers and numbers, or is malformed.
    """
    what, remedy = "the ground truth of revisited Oxford and Paris", "take it from github.com/filipradenovic/revisitop"
    found = read_pickle(file, _MAX_PICKLE, what, remedy)
    try:
        database, queries = (_names(found[name]) for name in ("imlist", "qimlist"))
        if len(found["gnd"]) != len(queries) or not database or not queries:
            raise ValueError(f"{len(found['gnd'])} answers for {len(queries)} queries")
        answers: list[Answers] = []
        left = _MAX_ROWS
        for each in found["gnd"]:
            answers.append(_answers(each, len(database)))
            left -= sum(map(len, (answers[-1].easy, answers[-1].hard, answers[-1].junk)))
            if left < 0:
                raise ValueError(f"it has more than {_MAX_ROWS:,} answers")
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file} cannot be read ({reason}): the file is not {what}; {remedy}") from error
    return GroundTruth(database, queries, tuple(answers))


def _names(listed: object) -> tuple[str, ...]:
    """Texts only: a short pickle can hold lists of lists that are endless when they are written out."""
    if not isinstance(listed, list) or len(listed) > _MAX_NAMES or not all(isinstance(each, str) for each in listed):
        raise ValueError("a list of images holds something else, or too many")
    return tuple(listed)


def _numbers(value: object, count: int) -> NDArray[np.float64]:
    """At most so many numbers, of an array or a list without lists in it."""
    array = pickled_array(value)
    listed: Any = value if array is None else array.reshape(-1)
    if not isinstance(listed, list | np.ndarray) or len(listed) > count:
        raise ValueError(f"a list has more than {count} numbers, or is not a list")
    if isinstance(listed, list) and not all(isinstance(each, int | float) for each in listed):
        raise ValueError("a list of numbers holds something else")
    return np.asarray(listed, np.float64)


def _answers(entry: Mapping[str, Any], count: int) -> Answers:
    def rows(name: str) -> NDArray[np.int64]:
        listed = _numbers(entry[name], count)
        whole = listed.astype(np.int64)
        if (whole != listed).any() or (whole < 0).any() or (whole >= count).any():
            raise ValueError(f"{name} has rows beyond the database")
        return whole

    corners = _numbers(entry["bbx"], 4).tolist()
    if len(corners) != 4:
        raise ValueError("a box does not have four corners")
    return Answers((corners[0], corners[1], corners[2], corners[3]), rows("easy"), rows("hard"), rows("junk"))


# ---- copies ----------------------------------------------------------------------------------------------------------


def read_copydays(folder: Path, split: str) -> Labels:
    """Copydays: `original` is the database, `strong` the queries; the first four characters name the photograph.

    The split `database+others` goes on with the images of `distractors` and `whitening`, whose class is the last one.

    Raises:
        InputError: the split is unknown, a folder is missing or empty, or a query has no original.
    """
    if split not in (DATABASE, WITH_OTHERS, QUERIES):
        raise InputError(f"Copydays has no split {split}; it has {DATABASE}, {WITH_OTHERS} and {QUERIES}")
    originals = _block(folder, "original")
    photographs = sorted({name[:4] for name in originals})
    block, files = ("strong", _block(folder, "strong")) if split == QUERIES else ("original", originals)
    index = {name: number for number, name in enumerate(photographs)}
    strange = [name for name in files if name[:4] not in index]
    if strange:
        raise InputError(f"{folder / block / strange[0]} has no original; unpack Copydays again")
    ids = [f"{block}/{name}" for name in files]
    targets = [index[name[:4]] for name in files]
    if split == WITH_OTHERS:
        others = [f"{name}/{file}" for name in (DISTRACTORS, WHITENING) for file in _others(folder, name)]
        ids, targets = ids + others, targets + [len(photographs)] * len(others)
        photographs = [*photographs, OTHER]
    return labels_below(folder, ids, photographs, np.array(targets, np.int64))


def _others(folder: Path, name: str) -> list[str]:
    found = images_below(folder / name) if (folder / name).is_dir() else []
    if not found:
        raise InputError(
            f"{folder / name} has no images: put random photographs there (DINO took 10,000 of YFCC100M as "
            f"{DISTRACTORS} and 20,000 as {WHITENING}), or use retrieval_copydays.standard, which needs none"
        )
    return found


def _block(folder: Path, name: str) -> list[str]:
    found = images_below(folder / name) if (folder / name).is_dir() else []
    if not found:
        raise InputError(f"{folder / name} has no images; found {folder_contents(folder)}; unpack Copydays there")
    return found


def read_drawing_copies(folder: Path, split: str) -> Labels:
    """Copies of the drawings: the severest corruptions are the queries, the drawings that they are of the database.

    Raises:
        InputError: see `benchmarks.datasets.imagenet_variants.read_drawings_c`.
    """
    if split not in (DATABASE, QUERIES):
        raise InputError(f"{folder.name} has no split {split}; it has {DATABASE} and {QUERIES}")
    corrupted = read_drawings_c(folder, "val")
    rows = [row for row, id in enumerate(corrupted.ids) if id.split("/")[1] == "5"]
    queries = corrupted.rows(rows)
    names = [id.split("/", 2)[2].rpartition(".")[0] for id in queries.ids]
    drawings = tuple(sorted(set(names)))
    index = {name: number for number, name in enumerate(drawings)}
    if split == QUERIES:
        return replace(queries, classes=drawings, targets=np.array([index[name] for name in names], np.int64))
    originals = [f"val/{name}.png" for name in drawings]
    return labels_below(folder.parent / "drawings", originals, drawings, np.arange(len(originals)))
