"""A hash of what was read of a split, so that a record says which data it stands on."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from benchmarks.contract import InputError, Labels
from benchmarks.datasets.cifar10 import container
from benchmarks.datasets.paths import strings


def fingerprint(labels: Labels) -> str:
    """SHA-256 over ids, classes, targets and file sizes, in the order of the items.

    Image files are not opened: their sizes stand for them. Where there are annotations (masks, boxes), and where images
    lie together in batch files, the contents of these few files are hashed too.

    Raises:
        InputError: a listed file is missing.
    """
    digest = hashlib.sha256()
    for names in (labels.ids, labels.classes):
        digest.update(f"{len(names)}\n".encode())
        digest.update("\n".join(names).encode())
    targets = np.ascontiguousarray(labels.targets)
    digest.update(f"{targets.dtype.str}{targets.shape}".encode())
    digest.update(targets.tobytes())
    containers: dict[str, int] = {}
    sizes = np.empty(len(labels), dtype="<i8")
    try:
        for row, path in enumerate(strings(labels.paths)):
            file = container(path) if "#" in path else None
            if file is None:
                sizes[row] = os.stat(path).st_size  # noqa: PTH116 - a million Paths are slow
            else:
                sizes[row] = containers[file] if file in containers else containers.setdefault(file, _size(file))
        digest.update(sizes.tobytes())
        for content in (*map(Path, containers), *labels.annotations):
            with content.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    except FileNotFoundError as error:
        raise InputError(f"{error.filename} does not exist; restore it or leave it out of the lists") from error
    return digest.hexdigest()


def _size(file: str) -> int:
    return Path(file).stat().st_size
