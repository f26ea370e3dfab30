"""CIFAR-10 as its owner publishes it: batches of 10,000 images, pickled for Python or binary for C.

An image is addressed as `<batch file>#<number>`, which `benchmarks.datasets.images.decode` reads.
"""

from __future__ import annotations

import pickle
import re
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.contract import InputError, Labels
from benchmarks.datasets.groups import read_groups
from benchmarks.datasets.layout import Layout, recognise
from benchmarks.datasets.paths import Below

OWNER = "the CIFAR-10 page of Alex Krizhevsky (cs.toronto.edu)"
SIDE = 32
CLASSES = 10
BATCHES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}

_PIXELS = 3 * SIDE * SIDE
_RECORD = 1 + _PIXELS  # of the binary version: a label, then the planes
_MEMBER = re.compile(r"((?:data|test)_batch(?:_\d)?(?:\.bin)?)#(\d+)")
_KEPT_BATCHES = 6  # all of them: 180 MB in a process that shuffles over the pickled version
_NO_UNPICKLING = "it is no batch of CIFAR-10; take it from the owner's archive again"


def read_cifar10(folder: Path, split: str) -> Labels:
    """Items of `train` or `test` in the order of the batches; an id is the batch and the number in it.

    The test split is read from test_batch alone.

    Raises:
        InputError: no such split or files, or a file is no batch.
    """
    if split not in BATCHES:
        raise InputError(f"CIFAR-10 has no split {split}; it has {' and '.join(BATCHES)}")
    return recognise(folder, split, LAYOUTS, OWNER).read(folder, split)


def is_member(path: Path) -> bool:
    """Whether the path addresses an image in a batch."""
    return "#" in path.name and _MEMBER.fullmatch(path.name) is not None


def container(path: str) -> str | None:
    """The batch file of an image in one, None for an image in a file of its own."""
    where, mark, _ = path.rpartition("#")
    return where if mark and is_member(Path(path)) else None


def read_member(path: Path) -> NDArray[np.uint8]:
    """(32, 32, 3) RGB.

    Raises:
        InputError: no such file, not a batch, or no such image in it.
    """
    name, _, number = path.name.partition("#")
    file, index = path.with_name(name), int(number)
    try:
        changed = file.stat().st_mtime_ns
    except FileNotFoundError as error:
        raise InputError(f"{file} is missing; unpack {OWNER} again") from error
    rows = _load(file, changed)[0]
    if index >= len(rows):
        raise InputError(f"{file} has {len(rows)} images and no number {index}; unpack {OWNER} again")
    planes: NDArray[np.uint8] = rows[index].reshape(3, SIDE, SIDE)
    return np.ascontiguousarray(planes.transpose(1, 2, 0))


class _Unpickler(pickle.Unpickler):
    """Knows numpy's arrays and nothing else, so that a batch file can run nothing."""

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
        raise InputError(f"{file} is missing; unpack {OWNER} again") from error
    except IsADirectoryError as error:
        raise InputError(f"{file} is a folder; unpack {OWNER} again") from error
    except Exception as error:  # a broken pickle raises nearly anything
        raise InputError(f"{file} cannot be read ({error}): {_NO_UNPICKLING}") from error
    if not isinstance(found, dict):
        raise InputError(f"{file} holds a {type(found).__name__}: {_NO_UNPICKLING}")
    return found


@lru_cache(maxsize=_KEPT_BATCHES)
def _load(file: Path, changed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(N, 3072) pixels and (N,) labels of a batch. `changed` is the file's time, part of the cache's key alone."""
    if file.suffix == ".bin":
        content = np.memmap(file, np.uint8, mode="r") if file.stat().st_size else np.zeros(0, np.uint8)
        if not len(content) or len(content) % _RECORD:
            raise InputError(f"{file} has {len(content)} bytes, no multiple of {_RECORD}: {_NO_UNPICKLING}")
        records = content.reshape(-1, _RECORD)
        pixels, labels = records[:, 1:], records[:, 0].astype(np.int64)
    else:
        batch = _unpickle(file)
        pixels = batch.get(b"data", np.zeros(0))
        try:
            labels = np.array(batch.get(b"labels", ()), dtype=np.int64)
        except (TypeError, ValueError) as error:
            raise InputError(f"{file} has labels that are no numbers: {_NO_UNPICKLING}") from error
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != (len(labels), _PIXELS):
        raise InputError(f"{file} has no image of {_PIXELS} bytes for every label: {_NO_UNPICKLING}")
    if not len(labels) or labels.min() < 0 or labels.max() >= CLASSES:
        raise InputError(f"{file} has no labels, or some outside of 0 to {CLASSES - 1}: {_NO_UNPICKLING}")
    return pixels, labels


def _read(folder: Path, split: str, below: str, suffix: str) -> Labels:
    where = folder / below
    ids: list[str] = []
    names: list[str] = []
    targets: list[NDArray[np.int64]] = []
    for batch in BATCHES[split]:
        file = where / (batch + suffix)
        if not file.is_file():
            raise InputError(f"{file} is missing; unpack {OWNER} again")
        labels = _load(file, file.stat().st_mtime_ns)[1]
        ids += [f"{batch}#{number}" for number in range(len(labels))]
        names += [f"{file.name}#{number}" for number in range(len(labels))]
        targets.append(labels)
    fixed = tuple(ids)
    return Labels(fixed, Below(where, names), _names(where), np.concatenate(targets), read_groups(folder, fixed))


def _names(where: Path) -> tuple[str, ...]:
    text = where / "batches.meta.txt"
    if text.is_file():
        names = text.read_text(encoding="utf-8").split()
    else:
        names = [bytes(name).decode() for name in _unpickle(where / "batches.meta").get(b"label_names", ())]
    if len(names) != CLASSES:
        raise InputError(f"{where} names {len(names)} classes in batches.meta, not {CLASSES}; unpack {OWNER} again")
    return tuple(names)


LAYOUTS = tuple(
    Layout(
        f"{below or '.'}/{'test_batch' + suffix}",
        lambda folder, split, below=below, suffix=suffix: (folder / below / (BATCHES[split][0] + suffix)).is_file(),  # type: ignore[misc]
        partial(_read, below=below, suffix=suffix),
    )
    for suffix, name in (("", "cifar-10-batches-py"), (".bin", "cifar-10-batches-bin"))
    for below in (name, "")
)
