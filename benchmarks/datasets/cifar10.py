"""CIFAR-10 as its owner publishes it: batch files of 10,000 images, pickled for Python or binary for C.

The path of an image is `<batch file>#<number>`, which `benchmarks.datasets.images.decode` reads.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from functools import lru_cache, partial
from operator import itemgetter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.lists import FolderLayout, FolderLayouts, labels_below
from benchmarks.task import InputError, Labels
from results.files import require_regular

_OWNER = "the CIFAR-10 page of Alex Krizhevsky (cs.toronto.edu)"
_SIDE = 32
_CLASSES, _CLASSES_100 = 10, 100
_BATCHES = {
    "train": ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"),
    "test": ("test_batch",),
}

_PIXELS = 3 * _SIDE * _SIDE
_RECORD = 1 + _PIXELS  # bytes of an image in the binary version: a label, then the planes
_MAX_BATCH = 2**26  # bytes of a pickled batch; the owner's have 31 MB
_MAX_BATCH_100 = 2**28  # of CIFAR-100, where train is one file of 155 MB
_MAX_OPERATIONS = 1_000_000  # of a pickle; CIFAR-100's train, with 50,000 names and two labels of each, has 250,000
_FILES_100 = ("train", "test")
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
    if not file.is_file():
        raise InputError(f"{file} is missing; unpack {_OWNER} again")
    changed = file.stat().st_mtime_ns
    rows = _load(file, changed)[0]
    if index >= len(rows):
        raise InputError(f"{file} has {len(rows)} images and no number {index}; unpack {_OWNER} again")
    planes: NDArray[np.uint8] = rows[index].reshape(3, _SIDE, _SIDE)
    return np.ascontiguousarray(planes.transpose(1, 2, 0))


class _Dtype:
    """A numpy dtype in a pickle, by its name. What follows it in the file is not needed for bytes."""

    def __init__(self, name: object, *_: object) -> None:
        self.name = name.decode("latin1") if isinstance(name, bytes) else name

    def __setstate__(self, state: object) -> None:
        pass


class _Array:
    """A numpy array in a pickle. Only bytes become one: other types could hold pointers."""

    def __init__(self, *_: object) -> None:
        self.pixels: NDArray[np.uint8] = np.zeros((0, 0), np.uint8)

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("the state of an array does not have five parts")
        _, shape, dtype, by_column, content = state
        if not isinstance(dtype, _Dtype) or dtype.name not in ("u1", "uint8"):
            raise pickle.UnpicklingError("an array is not of type uint8")
        if not isinstance(content, bytes) or not isinstance(shape, tuple) or not all(type(n) is int for n in shape):
            raise pickle.UnpicklingError("an array has no bytes or no shape")
        self.pixels = np.frombuffer(content, np.uint8).reshape(shape, order="F" if by_column is True else "C")


def _encode(text: object, encoding: object = "latin1") -> bytes:
    """Bytes as Python 3 writes them for Python 2."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError("it has bytes in a strange encoding")
    return text.encode("latin1")


class _Counted(dict[int, Callable[..., None]]):
    """The operations of an unpickler, of which one pickle may use so many: a byte of a file can make an object."""

    left = _MAX_OPERATIONS

    def __getitem__(self, code: int) -> Callable[..., None]:
        self.left -= 1
        if self.left < 0:
            raise pickle.UnpicklingError(f"it has more than {_MAX_OPERATIONS:,} operations")
        return super().__getitem__(code)


class RestrictedUnpickler(pickle._Unpickler):
    """Reads dicts, lists, numbers, texts and arrays of bytes. A batch file runs no code, whatever it holds.

    Pickle's version in Python, with the opcodes that such files need and no other: numpy's own functions, which follow
    pointers that they find in the file, are never called, and nothing that is hashed can be nested.
    """

    _NEEDED = (
        pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.POP, pickle.POP_MARK, pickle.NONE, pickle.NEWTRUE,
        pickle.NEWFALSE, pickle.INT, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINSTRING,
        pickle.SHORT_BINSTRING, pickle.STRING, pickle.BINBYTES, pickle.SHORT_BINBYTES, pickle.UNICODE,
        pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.EMPTY_LIST, pickle.LIST, pickle.APPEND, pickle.APPENDS,
        pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_DICT, pickle.DICT,
        pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.GET, pickle.BINGET, pickle.LONG_BINGET,
        pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.REDUCE,
    )  # fmt: skip
    _CODES = tuple(map(itemgetter(0), _NEEDED))
    dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(
        zip(_CODES, map(pickle._Unpickler.dispatch.__getitem__, _CODES), strict=True)
    )
    _KNOWN: ClassVar[dict[tuple[str, str], Callable[..., object]]] = {
        ("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Dtype, ("_codecs", "encode"): _encode,
        ("numpy.core.multiarray", "_reconstruct"): _Array, ("numpy._core.multiarray", "_reconstruct"): _Array,
    }  # fmt: skip

    _BUILT: ClassVar[tuple[type[Any], ...]] = (_Array, _Dtype)

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, content: bytes, encoding: str) -> None:
        super().__init__(io.BytesIO(content), encoding=encoding)
        vars(self)["dispatch"] = _Counted(type(self).dispatch)

    def find_class(self, module: str, name: str) -> Any:
        if not isinstance(module, str) or not isinstance(name, str) or (module, name) not in self._KNOWN:
            raise pickle.UnpicklingError(f"it asks for {str(module)[:80]}.{str(name)[:80]}")
        return self._KNOWN[module, name]

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set(key, value)

    def load_setitems(self) -> None:
        items = self.pop_mark()
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._set(key, value)

    def _set(self, key: object, value: object) -> None:
        if not isinstance(key, bytes | str) or not isinstance(self.stack[-1], dict):
            raise pickle.UnpicklingError("it has a dict whose keys are not texts")
        self.stack[-1][key] = value

    def load_build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], self._BUILT):
            raise pickle.UnpicklingError("it changes an object that is not an array")
        self.stack[-1].__setstate__(state)

    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.BUILD[0]] = load_build


def _unpickle(file: Path) -> dict[bytes, Any]:
    try:
        require_regular(file)
        if file.stat().st_size > (_MAX_BATCH_100 if file.name in _FILES_100 else _MAX_BATCH):
            raise InputError(f"{file} has {file.stat().st_size:,} bytes: {_NOT_A_BATCH}")
        found = RestrictedUnpickler(file.read_bytes(), "bytes").load()
    except FileNotFoundError as error:
        raise InputError(f"{file} is missing; unpack {_OWNER} again") from error
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"{file} cannot be read (opcode {error}): {_NOT_A_BATCH}") from error
    except Exception as error:  # a broken pickle raises nearly anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{file} cannot be read ({reason}): {_NOT_A_BATCH}") from error
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
        key = b"fine_labels" if file.name in _FILES_100 else b"labels"
        array, listed = batch.get(b"data"), batch.get(key, [])
        if not isinstance(listed, list) or not all(type(label) is int and 0 <= label < 256 for label in listed):
            raise InputError(f"{file} has labels that are not numbers from 0 to {_CLASSES - 1}: {_NOT_A_BATCH}")
        pixels = array.pixels if isinstance(array, _Array) else np.zeros((0, 0), np.uint8)
        labels = np.array(listed, dtype=np.int64)
    if pixels.shape != (len(labels), _PIXELS):
        raise InputError(f"{file} has no image of {_PIXELS} bytes for every label: {_NOT_A_BATCH}")
    classes = _CLASSES_100 if file.name in _FILES_100 else _CLASSES
    if not len(labels) or labels.min() < 0 or labels.max() >= classes:
        raise InputError(f"{file} has no labels, or some outside of 0 to {classes - 1}: {_NOT_A_BATCH}")
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
    return labels_below(where, names, _names(where), np.concatenate(targets), ids=ids, groups_in=folder)


def _names(where: Path) -> tuple[str, ...]:
    text = where / "batches.meta.txt"
    if text.is_file():
        names = text.read_text(encoding="utf-8", errors="replace").split()
    else:
        listed = _unpickle(where / "batches.meta").get(b"label_names")
        listed = listed if isinstance(listed, list) else []
        names = [name.decode("utf-8", "replace") for name in listed if isinstance(name, bytes)]
    if len(names) != _CLASSES:
        raise InputError(f"{where} names {len(names)} classes in batches.meta, not {_CLASSES}; unpack {_OWNER} again")
    return tuple(names)


def read_cifar100(folder: Path, split: str) -> Labels:
    """Items of CIFAR-100's `train` or `test` with the 100 fine classes, in the order of the file.

    Args:
        folder: `cifar-100-python`, with the files train, test and meta.

    Raises:
        InputError: the split or a file does not exist, or a file is not a batch.
    """
    if split not in _FILES_100:
        raise InputError(f"CIFAR-100 has no split {split}; it has {' and '.join(_FILES_100)}")
    file = folder / split
    if not file.is_file():
        raise InputError(f"{file} is missing; unpack {_OWNER} again")
    labels = _load(file, file.stat().st_mtime_ns)[1]
    listed = _unpickle(folder / "meta").get(b"fine_label_names")
    names = [name.decode("utf-8", "replace") for name in listed or () if isinstance(name, bytes)]
    if len(names) != _CLASSES_100:
        raise InputError(
            f"{folder / 'meta'} names {len(names)} fine classes, expected {_CLASSES_100}; unpack the archive again"
        )
    return labels_below(folder, [f"{split}#{number}" for number in range(len(labels))], names, labels)


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
