"""The binary problems of the drawn sets, stacked so that many are solved in one go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.svm.costs import solve_costs
from benchmarks.svm.gram import Gram
from benchmarks.svm.index_sets import NOT_DRAWN, Draw
from benchmarks.svm.preconditioner import Preconditioner
from benchmarks.svm.settings import LowShotParams

STACK_VALUES = 1 << 23  # numbers in the Gram matrices that are worked on at once: 32 MB, as large as a cache


@dataclass(frozen=True)
class Problems:
    """Binary problems of one draw that are solved together: g Gram matrices of n images, m classes on each.

    Attributes:
        draw: what they belong to.
        classes: (g, m) the class that is told from the rest.
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
    one the classes share the images; costs are compared on what the other sets drew at the same k, since all others
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


def fit(
    part: Gram,
    leading: Preconditioner | None,
    problems: Problems,
    costs: Sequence[float],
    params: LowShotParams,
    device: str,
) -> Iterator[tuple[int, Tensor]]:
    """Yields (index into `costs`, (g, m, n) coefficients)."""
    positive = torch.from_numpy(problems.positive).to(device)
    yield from solve_costs(
        part,
        torch.where(positive, 1.0, -1.0).double(),
        torch.where(positive, params.positive_weight, params.negative_weight).double(),
        costs,
        tolerance=params.tolerance,
        leading=leading,
    )
