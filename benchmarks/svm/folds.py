"""Which fold of the cross-validation an image is in, for each class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold

from benchmarks.contract import InputError

NO_FOLD = -1


def assign_folds(
    targets: NDArray[np.int8], classes: Sequence[str], folds: int, *, drop_ignored: bool
) -> NDArray[np.int8]:
    """(C, N) int8, the fold in which an image is held out; `NO_FOLD` where it takes no part.

    Stratified per class and not shuffled, scikit-learn's rule.

    Args:
        targets: (N, C) of 1, 0 and -1 (ignored).
        drop_ignored: ignored images take no part; else they are negatives.

    Raises:
        InputError: a class has fewer positives or negatives than folds.
    """
    assignment = np.full(targets.T.shape, NO_FOLD, np.int8)
    for c, name in enumerate(classes):
        images = np.flatnonzero(targets[:, c] >= 0) if drop_ignored else np.arange(len(targets))
        positive = targets[images, c] == 1
        for count, what in ((positive.sum(), "positive"), ((~positive).sum(), "negative")):
            if count < folds:
                raise InputError(
                    f"{name} has {count} {what} training images, and {folds}-fold cross-validation needs {folds}: "
                    "use a larger training split or leave the class out"
                )
        for fold, (_, held_out) in enumerate(StratifiedKFold(folds).split(images, positive)):
            assignment[c, images[held_out]] = fold
    return assignment
