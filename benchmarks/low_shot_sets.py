"""Low-shot training sets, k positives per class from a seed or the published label files, and the problems on them.

Every (set, k) is drawn anew, not nested over k (Goyal et al. 2019, section 6.2). In a multi-label data set each class
has its own k positives and (classes - 1) k negatives; in a single-label one, k images of every class are drawn, and
those of the other classes are the negatives.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.safe_readers import read_npy
from benchmarks.svm_common import leave_out
from benchmarks.task import InputError, Labels

NOT_DRAWN = -1
STACK_VALUES = 1 << 23  # numbers in the Gram matrices that are worked on at once: 32 MB, as large as a cache


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

    @classmethod
    def of(cls, index: int, k: int, matrix: NDArray[np.int8]) -> Draw:
        """From the (N, C) labels of the whole training split, `NOT_DRAWN` where an image is not drawn."""
        rows = np.flatnonzero((matrix != NOT_DRAWN).any(1))
        return cls(index, k, rows, matrix[rows])


def sets_sha256(draws: Sequence[Draw]) -> str:
    """SHA-256 over set, k, rows and labels of every draw."""
    digest = hashlib.sha256()
    for draw in draws:
        digest.update(np.array([draw.index, draw.k, *draw.labels.shape], "<i8").tobytes())
        digest.update(draw.rows.astype("<i8").tobytes())
        digest.update(np.ascontiguousarray(draw.labels).tobytes())
    return digest.hexdigest()


def draw_sets(labels: Labels, *, k: Sequence[int], sets: int, seed: int) -> list[Draw]:
    """All draws, sets outermost, each a function of seed, set, k and class.

    Raises:
        InputError: a class has too few positives or negatives.
    """
    check_counts(labels, max(k))
    draw = _draw_single_label if labels.targets.ndim == 1 else _draw_multi_label
    return [draw(labels, seed, index, each) for index in range(sets) for each in k]


def check_counts(labels: Labels, k: int) -> None:
    """Refuse a k for which a class has too few images.

    Raises:
        InputError: a class has fewer than k positives, or, in a multi-label set, than (classes - 1) k negatives.
    """
    classes = len(labels.classes)
    if labels.targets.ndim == 1:
        needed = [(np.bincount(labels.targets, minlength=classes), k, "positive")]
    else:
        needed = [
            ((labels.targets == 1).sum(0), k, "positive"),
            ((labels.targets == 0).sum(0), (classes - 1) * k, "negative"),
        ]
    for counts, least, what in needed:
        worst = int(counts.argmin())
        if counts[worst] < least:
            raise InputError(
                f"{labels.classes[worst]} has {counts[worst]} {what} training images, but k={k} needs {least}: "
                f"choose a smaller k with --set k=…{leave_out(labels)}"
            )


def _draw_multi_label(labels: Labels, seed: int, index: int, k: int) -> Draw:
    classes = len(labels.classes)
    matrix = np.full((len(labels), classes), NOT_DRAWN, np.int8)
    for c in range(classes):
        for label, count in ((1, k), (0, (classes - 1) * k)):
            matrix[_choose(labels.targets[:, c] == label, count, (seed, index, k, c)), c] = label
    return Draw.of(index, k, matrix)


def _draw_single_label(labels: Labels, seed: int, index: int, k: int) -> Draw:
    classes = len(labels.classes)
    chosen = [_choose(labels.targets == c, k, (seed, index, k, c)) for c in range(classes)]
    rows = np.sort(np.concatenate(chosen))
    return Draw(index, k, rows, (labels.targets[rows, None] == np.arange(classes)).astype(np.int8))


def _choose(eligible: NDArray[np.bool_], count: int, key: tuple[int, ...]) -> NDArray[np.int64]:
    """`count` of the eligible items without replacement, by one uniform number per item (stable across releases)."""
    places = np.flatnonzero(eligible)
    numbers = np.random.Generator(np.random.PCG64(key)).random(len(eligible))[places]
    return places[np.argsort(numbers, kind="stable")[:count]]


def read_sets(labels: Labels, folder: Path, *, k: Sequence[int], sets: int) -> list[Draw]:
    """All draws, sets outermost, from published files `train_targets_sample{set}_k{k}.npy`.

    Raises:
        InputError: a file is missing, malformed, or contradicts the data set's labels.
    """
    return [_read_draw(folder, index, each, labels) for index in range(sets) for each in k]


def _read_draw(folder: Path, index: int, k: int, labels: Labels) -> Draw:
    """One published file: an (N, C) array of 1, 0 and -1 whose rows are the images in the order of their ids."""
    file = folder / f"train_targets_sample{index + 1}_k{k}.npy"
    matrix = read_npy(file, "copy all published label files as .npy, or choose a protocol with seeded sets")
    count, classes = len(labels), len(labels.classes)
    if matrix.shape != (count, classes) or matrix.dtype.kind not in "iuf" or not np.isin(matrix, (-1, 0, 1)).all():
        raise InputError(
            f"{file} holds {matrix.shape} values, but {count} images of {classes} classes need ({count}, {classes}) "
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
    return Draw.of(index, k, matrix)


# ---- the problems on the sets ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problems:
    """Binary problems of one draw that are solved together: g Gram matrices of n images, m classes on each.

    Attributes:
        draw: the draw that they belong to.
        classes: (g, m) the class of the positives.
        images: (g, n) rows of the training split.
        positive: (g, m, n).
        compared: (O,) training images on which costs may be compared.
        compared_labels: (g, m, O) of 1, 0 and -1 (drawn, or ignored in the data set).
    """

    draw: Draw
    classes: NDArray[np.int64]
    images: NDArray[np.int64]
    positive: NDArray[np.bool_]
    compared: NDArray[np.int64]
    compared_labels: NDArray[np.int8]


def stacked_problems(
    targets: NDArray[np.integer], draws: Sequence[Draw], most: int = STACK_VALUES
) -> Iterator[Problems]:
    """All problems of the draws, in stacks of about `most` numbers in their Gram matrices.

    In a multi-label data set every class has images of its own, and costs are compared on all others. In a single-label
    data set the classes share the images; costs are compared on the other sets' images at the same k, since all others
    would be the whole data set.
    """
    for draw in draws:
        count = draw.labels.shape[1]
        if targets.ndim == 1:
            same_k = np.concatenate([other.rows for other in draws if other.k == draw.k])
            compared = np.setdiff1d(same_k, draw.rows)
            classes = np.arange(count)[None]
            labels = (targets[compared] == classes[..., None]).astype(np.int8)
            yield Problems(draw, classes, draw.rows[None], draw.labels.T[None] == 1, compared, labels)
            continue
        images = np.stack([draw.rows[draw.labels[:, c] != NOT_DRAWN] for c in range(count)])
        for classes in np.array_split(np.arange(count), min(count, -(-count * images.shape[1] ** 2 // most))):
            drawn = images[classes]
            labels = targets.T[classes].astype(np.int8)
            positive = np.take_along_axis(labels, drawn, 1) == 1
            np.put_along_axis(labels, drawn, np.int8(-1), 1)
            yield Problems(draw, classes[:, None], drawn, positive[:, None], np.arange(len(targets)), labels[:, None])
