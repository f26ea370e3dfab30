"""CIFAR-10 as its owner publishes it: batch files of 10,000 images, pickled for Python or binary for C.

The path of an image is `<batch file>#<number>`, which `benchmarks.datasets.images.decode` reads.
"""

from __future__ import annotations

import pickle
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.lists import FolderLayout, FolderLayouts, LazyPaths, read_groups
from benchmarks.task import InputError, Labels

_OWNER = "the CIFAR-10 page of Alex Krizhevsky (cs.toronto.edu)"
_SIDE = 32
_CLASSES = 10
_BATCHES = {
    "train": ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"),
    "test": ("test_batch",),
}

_PIXELS = 3 * _SIDE * _SIDE
_RECORD = 1 + _PIXELS  # bytes of an image in the binary version: a label, then the planes
_KEPT_BATCHES = 6  # all of them: 180 MB in a process that shuffles the pickled version
_NOT_A_BATCH = "the file is not a batch of CIFAR-10; take it from the owner's archive again"


def read_cifar10(folder: Path, split: str) -> Labels:
    """Items of `train` or `test` in the order of the batches; an id is the batch and the number in it.

    Raises:
        InputError: the split or a file does not exist, or a file is not a batch.
    """
    if split not in _BATCHES:
        raise InputError(f"CIFAR-10 has no split {split}; it has {' and '.join(_BATCHES)}")
    return CIFAR10.read(folder, split)


def read_batch_image(path: Path) -> NDArray[np.uint8]:
    """The image `<batch file>#<number>`, (32, 32, 3) RGB.

    Raises:
        InputError: the file does not exist, is not a batch, or has fewer images.
    """
    name, _, number = path.name.partition("#")
    file, index = path.with_name(name), int(number)
    try:
        changed = file.stat().st_mtime_ns
    except FileNotFoundError as error:
        raise InputError(f"{file} is missing; unpack {_OWNER} again") from error
    rows = _load(file, changed)[0]
    if index >= len(rows):
        raise InputError(f"{file} has {len(rows)} images and no number {index}; unpack {_OWNER} again")
    planes: NDArray[np.uint8] = rows[index].reshape(3, _SIDE, _SIDE)
    return np.ascontiguousarray(planes.transpose(1, 2, 0))


class _Unpickler(pickle.Unpickler):
    """Reads numpy arrays and refuses everything else, so that a batch file cannot run code."""

    _KNOWN = frozenset(
        {
            ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"),
            ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
        }
    )  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        if name == "_reconstruct":
            from numpy._core import multiarray

            return multiarray._reconstruct
        return super().find_class(module, name)


def _unpickle(file: Path) -> dict[bytes, Any]:
    try:
        with file.open("rb") as opened:
            found = _Unpickler(opened, encoding="bytes").load()
    except FileNotFoundError as error:
        raise InputError(f"{file} is missing; unpack {_OWNER} again") from error
    except IsADirectoryError as error:
        raise InputError(f"{file} is a folder; unpack {_OWNER} again") from error
    except Exception as error:  # a broken pickle raises nearly anything
        raise InputError(f"{file} cannot be read ({error}): {_NOT_A_BATCH}") from error
    if not isinstance(found, dict):
        raise InputError(f"{file} holds a {type(found).__name__}: {_NOT_A_BATCH}")
    return found


@lru_cache(maxsize=_KEPT_BATCHES)
def _load(file: Path, changed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(N, 3072) pixels and (N,) labels of a batch. `changed`, the file's time, is only part of the cache key."""
    if file.suffix == ".bin":
        content = np.memmap(file, np.uint8, mode="r") if file.stat().st_size else np.zeros(0, np.uint8)
        if not len(content) or len(content) % _RECORD:
            raise InputError(f"{file} has {len(content)} bytes, which is not a multiple of {_RECORD}: {_NOT_A_BATCH}")
        records = content.reshape(-1, _RECORD)
        pixels, labels = records[:, 1:], records[:, 0].astype(np.int64)
    else:
        batch = _unpickle(file)
        pixels = batch.get(b"data", np.zeros(0))
        try:
            labels = np.array(batch.get(b"labels", ()), dtype=np.int64)
        except (TypeError, ValueError) as error:
            raise InputError(f"{file} has labels that are not numbers: {_NOT_A_BATCH}") from error
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != (len(labels), _PIXELS):
        raise InputError(f"{file} has no image of {_PIXELS} bytes for every label: {_NOT_A_BATCH}")
    if not len(labels) or labels.min() < 0 or labels.max() >= _CLASSES:
        raise InputError(f"{file} has no labels, or some outside of 0 to {_CLASSES - 1}: {_NOT_A_BATCH}")
    return pixels, labels


def _fits(folder: Path, split: str, below: str, suffix: str) -> bool:
    return (folder / below / (_BATCHES[split][0] + suffix)).is_file()


def _read(folder: Path, split: str, below: str, suffix: str) -> Labels:
    where = folder / below
    ids: list[str] = []
    names: list[str] = []
    targets: list[NDArray[np.int64]] = []
    for batch in _BATCHES[split]:
        file = where / (batch + suffix)
        if not file.is_file():
            raise InputError(f"{file} is missing; unpack {_OWNER} again")
        labels = _load(file, file.stat().st_mtime_ns)[1]
        ids += [f"{batch}#{number}" for number in range(len(labels))]
        names += [f"{file.name}#{number}" for number in range(len(labels))]
        targets.append(labels)
    fixed = tuple(ids)
    return Labels(fixed, LazyPaths(where, names), _names(where), np.concatenate(targets), read_groups(folder, fixed))


def _names(where: Path) -> tuple[str, ...]:
    text = where / "batches.meta.txt"
    if text.is_file():
        names = text.read_text(encoding="utf-8").split()
    else:
        names = [bytes(name).decode() for name in _unpickle(where / "batches.meta").get(b"label_names", ())]
    if len(names) != _CLASSES:
        raise InputError(f"{where} names {len(names)} classes in batches.meta, not {_CLASSES}; unpack {_OWNER} again")
    return tuple(names)


CIFAR10 = FolderLayouts(
    _OWNER,
    (
        FolderLayout(
            "cifar-10-batches-py/test_batch",
            partial(_fits, below="cifar-10-batches-py", suffix=""),
            partial(_read, below="cifar-10-batches-py", suffix=""),
        ),
        FolderLayout(
            "./test_batch",
            partial(_fits, below="", suffix=""),
            partial(_read, below="", suffix=""),
        ),
        FolderLayout(
            "cifar-10-batches-bin/test_batch.bin",
            partial(_fits, below="cifar-10-batches-bin", suffix=".bin"),
            partial(_read, below="cifar-10-batches-bin", suffix=".bin"),
        ),
        FolderLayout(
            "./test_batch.bin",
            partial(_fits, below="", suffix=".bin"),
            partial(_read, below="", suffix=".bin"),
        ),
    ),
)
