"""Which images a low-shot SVM may see: drawn here from a seed, or read from the published label files.

The published set-up (Goyal et al. 2019, section 6.2) draws every (set, k) anew, not nested over k. Of a multi-label
data set each class has its own k positives and (classes - 1) k negatives; of a single-label one, k images of every
class are drawn, and each class has the others as its negatives.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.contract import InputError, Labels
from benchmarks.svm.settings import LowShotParams

NOT_DRAWN = -1


@dataclass(frozen=True)
class Draw:
    """The images of one (set, k).

    Attributes:
        index: of the set, from 0.
        k: positives per class.
        rows: (R,) int64 ascending, the images that any class uses.
        labels: (R, C) int8: 1 positive, 0 negative, -1 not drawn for this class.
    """

    index: int
    k: int
    rows: NDArray[np.int64]
    labels: NDArray[np.int8]


def draw_sets(labels: Labels, params: LowShotParams, files: Path | None = None) -> list[Draw]:
    """All draws, sets outermost.

    Args:
        files: folder of `train_targets_sample{set}_k{k}.npy`, for `index_sets = files`.

    Raises:
        InputError: a class has too few positives or negatives, or files are missing or do not fit the labels.
    """
    if params.index_sets == "files":
        if files is None:
            raise InputError(
                "this protocol trains on the published label files train_targets_sample1_k1.npy …: name their folder "
                "with --index-files, or choose a protocol with seeded sets"
            )
        return [read_draw(files, index, k, labels) for index in range(params.sets) for k in params.k]
    _refuse_too_few(labels, params)
    draw = _draw_single_label if labels.targets.ndim == 1 else _draw_multi_label
    return [draw(labels, params.seed, index, k) for index in range(params.sets) for k in params.k]


def sets_sha256(draws: list[Draw]) -> str:
    """SHA-256 over set, k, rows and labels of every draw."""
    digest = hashlib.sha256()
    for draw in draws:
        digest.update(np.array([draw.index, draw.k, *draw.labels.shape], "<i8").tobytes())
        digest.update(draw.rows.astype("<i8").tobytes())
        digest.update(np.ascontiguousarray(draw.labels).tobytes())
    return digest.hexdigest()


def read_draw(folder: Path, index: int, k: int, labels: Labels) -> Draw:
    """One published file: an (N, C) array of 1, 0 and -1 whose rows are the images in the order of their ids.

    Raises:
        InputError: the file is missing, malformed, or contradicts the data set's labels.
    """
    file = folder / f"train_targets_sample{index + 1}_k{k}.npy"
    if not file.is_file():
        raise InputError(f"{file} is missing: copy all published label files, or choose a protocol with seeded sets")
    try:
        matrix = np.load(file)
    except (ValueError, EOFError) as error:
        raise InputError(f"{file} is no NumPy array ({error}): copy it again") from error
    count, classes = len(labels), len(labels.classes)
    if matrix.shape != (count, classes) or not np.isin(matrix, (-1, 0, 1)).all():
        raise InputError(
            f"{file} holds {matrix.shape} values, and {count} images of {classes} classes need ({count}, {classes}) "
            "of 1, 0 and -1: use the files of this data set's training split"
        )
    matrix = matrix.astype(np.int8)
    positives, negatives = (matrix == 1).sum(0), (matrix == 0).sum(0)
    wrong = np.flatnonzero((positives != k) | (negatives != (classes - 1) * k))
    if len(wrong):
        raise InputError(
            f"{file} gives {labels.classes[wrong[0]]} {positives[wrong[0]]} positives and {negatives[wrong[0]]} "
            f"negatives instead of {k} and {(classes - 1) * k}: copy it again"
        )
    disagreeing = np.flatnonzero(((matrix != NOT_DRAWN) & (matrix != labels.targets)).any(1))
    if len(disagreeing):
        raise InputError(
            f"{file} contradicts the labels of {len(disagreeing)} images, first {labels.ids[disagreeing[0]]}: its rows "
            "are the images of trainval in the order of their ids; use the original data set and files"
        )
    return _draw(index, k, matrix)


def _draw(index: int, k: int, matrix: NDArray[np.int8]) -> Draw:
    rows = np.flatnonzero((matrix != NOT_DRAWN).any(1))
    return Draw(index, k, rows, matrix[rows])


def _draw_multi_label(labels: Labels, seed: int, index: int, k: int) -> Draw:
    classes = len(labels.classes)
    matrix = np.full((len(labels), classes), NOT_DRAWN, np.int8)
    for c in range(classes):
        for mark, count in ((1, k), (0, (classes - 1) * k)):
            matrix[_choose(labels.targets[:, c] == mark, count, (seed, index, k, c)), c] = mark
    return _draw(index, k, matrix)


def _draw_single_label(labels: Labels, seed: int, index: int, k: int) -> Draw:
    classes = len(labels.classes)
    chosen = [_choose(labels.targets == c, k, (seed, index, k, c)) for c in range(classes)]
    rows = np.sort(np.concatenate(chosen))
    return Draw(index, k, rows, (labels.targets[rows, None] == np.arange(classes)).astype(np.int8))


def _choose(eligible: NDArray[np.bool_], count: int, key: tuple[int, ...]) -> NDArray[np.int64]:
    """`count` of the eligible items without replacement. One uniform number an item, which no release has changed."""
    places = np.flatnonzero(eligible)
    numbers = np.random.Generator(np.random.PCG64(key)).random(len(eligible))[places]
    return places[np.argsort(numbers, kind="stable")[:count]]


def _refuse_too_few(labels: Labels, params: LowShotParams) -> None:
    classes, k = len(labels.classes), params.k[-1]
    if labels.targets.ndim == 1:
        positives = np.bincount(labels.targets, minlength=classes)
        needed = [(positives, k, "positive")]
    else:
        needed = [
            ((labels.targets == 1).sum(0), k, "positive"),
            ((labels.targets == 0).sum(0), (classes - 1) * k, "negative"),
        ]
    for counts, least, what in needed:
        worst = int(counts.argmin())
        if counts[worst] < least:
            raise InputError(
                f"{labels.classes[worst]} has {counts[worst]} {what} training images, and k={k} needs {least}: "
                f"choose smaller k, or leave the class out"
            )
