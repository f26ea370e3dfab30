"""What can be wrong with the splits that an SVM is given, said in one sentence before any time is spent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.contract import InputError, Split
from benchmarks.svm.settings import SvmParams

_CHUNK_ROWS = 4096


def usable_outputs(params: SvmParams, train: Split, test: Split) -> tuple[str, ...]:
    """The outputs of the protocol that both splits have, in the protocol's order.

    Raises:
        InputError: an empty split, splits of different classes, none of the outputs, or features of the wrong shape
            or not finite.
    """
    for split, name in ((train, "train"), (test, "test")):
        if len(split.labels) == 0:
            raise InputError(f"the {name} split is empty: an SVM needs images in both splits")
    if train.labels.classes != test.labels.classes:
        raise InputError(
            f"train and test differ in their classes ({_some(train.labels.classes)} against "
            f"{_some(test.labels.classes)}): use two splits of one data set"
        )
    names = tuple(name for name in params.outputs if name in train.features and name in test.features)
    if not names:
        raise InputError(
            f"none of {', '.join(params.outputs)} is among the features of both splits "
            f"({', '.join(train.features) or 'none'}): choose a protocol that reads what the encoder gives"
        )
    for name in names:
        _check(name, train, "train")
        _check(name, test, "test")
        dims = train.features[name].shape[1], test.features[name].shape[1]
        if dims[0] != dims[1]:
            raise InputError(f"{name} has {dims[0]} numbers per image in train and {dims[1]} in test: extract it again")
    return names


def _check(name: str, split: Split, which: str) -> None:
    features, ids = split.features[name], split.labels.ids
    if features.ndim != 2 or len(features) != len(ids):
        raise InputError(f"{name} of {which} has shape {features.shape} for {len(ids)} images: extract it again")
    bad = np.flatnonzero(~finite_rows(features))
    if len(bad):
        raise InputError(
            f"{name} of {which} is NaN or infinite for {len(bad)} of {len(ids)} images "
            f"({_some([ids[i] for i in bad])}): check these images and the encoder's weights"
        )


def finite_rows(features: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(N,) whether a row is free of NaN and infinity, read in blocks."""
    starts = range(0, len(features), _CHUNK_ROWS)
    return np.concatenate([np.isfinite(features[start : start + _CHUNK_ROWS]).all(axis=1) for start in starts])


def one_hot(targets: NDArray[np.integer], classes: int) -> NDArray[np.int8]:
    """(N, C) int8 of 1 present, 0 absent, -1 ignored, from that or from (N,) class indices."""
    if targets.ndim == 2:
        return targets.astype(np.int8)
    return (targets[:, None] == np.arange(classes)).astype(np.int8)


def refuse_unmeasurable(targets: NDArray[np.int8], classes: Sequence[str]) -> None:
    """Average precision over test images needs a positive of every class.

    Raises:
        InputError: a class has none.
    """
    without = [name for name, has in zip(classes, (targets == 1).any(0), strict=True) if not has]
    if without:
        raise InputError(
            f"the test split has no image with {_some(without)}, whose average precision is therefore undefined: "
            "leave the class out of the data set or use a larger split"
        )


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
