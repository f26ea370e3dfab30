"""Sets whose owners publish many images in one file: CIFAR-10, CIFAR-100, STL-10, SVHN and PatchCamelyon.

The path of an image is `<file>#<number>`, which `benchmarks.datasets.images.decode` reads. CIFAR's batches are pickled
for Python or binary for C; the other files are those of torchvision, whose readers check the MD5 of the whole file each
time: here its size, shape and labels are checked.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Mapping
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.lists import FolderLayout, FolderLayouts, labels_below, read_lines
from benchmarks.datasets.safe_readers import pickled_array, read_mat, read_pickle
from benchmarks.task import InputError, Labels
from results.files import require_regular

ListedImages = tuple[list[str], list[int], list[str]]  # files, class numbers, class names

_CIFAR_PAGE = "the CIFAR-10 page of Alex Krizhevsky (cs.toronto.edu)"
_CIFAR_SHAPE = (3, 32, 32)  # planes, rows, columns
_CLASSES, _CLASSES_100 = 10, 100
_BATCHES = {
    "train": ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"),
    "test": ("test_batch",),
}
_FILES_100 = ("train", "test")
_MAX_BATCH = 2**28  # bytes of a pickled batch; CIFAR-100's train has 155 MB
_KEPT_BATCHES = 6  # all of them: 180 MB in a process that shuffles the pickled version
_BATCH, _AGAIN = "a batch of CIFAR-10", "take it from the owner's archive again"
_NOT_A_BATCH = f"the file is not {_BATCH}; {_AGAIN}"
_STL_SHAPE = (3, 96, 96)  # planes, columns, rows
_SVHN_SIDE, _SVHN_CLASSES = 32, 10
_PCAM_SIDE = 96
_MAX_MAT = 2**28  # bytes, unpacked; the owner's train has 226 million
_MAX_PCAM = 2**20  # images; the owner's train has 2**18
_MAX_CHUNK = 2**28  # bytes that are unpacked to read one image
_MAX_PARTS = 4096  # in which one image lies
# HDF5's filters: how many times its bytes a part can unfold to at most. gzip, shuffle, fletcher32 and h5py's lzf.
_UNFOLDING = {1: 1032, 2: 1, 3: 1, 32000: 100}


def read_batch_image(path: Path) -> NDArray[np.uint8]:
    """The image `<file>#<number>`, (H, W, 3) RGB.

    Raises:
        InputError: the file is missing or malformed, or has fewer images.
    """
    name, _, number = path.name.partition("#")
    file, index = path.with_name(name), int(number)
    try:
        if name.endswith("_X.bin"):
            images: Any = _stl_images(file, file.stat().st_mtime_ns)
        elif file.suffix == ".mat":
            images = _svhn(file, file.stat().st_mtime_ns)[0]
        elif file.suffix == ".h5":
            images = _h5(file, "x")
            _check_packed(file, images, index)
        else:
            images = _cifar_batch(file)[0]
        if index >= len(images):
            raise InputError(f"{file} has {len(images)} images and no number {index}; unpack it again")
        pixels = np.asarray(images[index])
    except (OSError, KeyError) as error:
        raise InputError(f"{file} cannot be read ({' '.join(str(error).split())}); unpack it again") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise InputError(f"{file} holds {pixels.dtype} images of shape {pixels.shape}, not RGB bytes; unpack it again")
    return np.ascontiguousarray(pixels)


def _numbered(name: str, count: int) -> list[str]:
    """Names of the images, which sort in the order of the file."""
    return [f"{name}#{number:06d}" for number in range(count)]


def read_cifar10(folder: Path, split: str) -> Labels:
    """Items of `train` or `test` in the order of the batches; an id is the batch and the number in it.

    Raises:
        InputError: the split or a file does not exist, or a file is not a batch.
    """
    if split not in _BATCHES:
        raise InputError(f"CIFAR-10 has no split {split}; it has {' and '.join(_BATCHES)}")
    return CIFAR10.read(folder, split)


def _fits(folder: Path, split: str, below: str, suffix: str) -> bool:
    return (folder / below / (_BATCHES[split][0] + suffix)).is_file()


def _read(folder: Path, split: str, below: str, suffix: str) -> Labels:
    where = folder / below
    ids: list[str] = []
    names: list[str] = []
    targets: list[NDArray[np.int64]] = []
    for batch in _BATCHES[split]:
        file = where / (batch + suffix)
        labels = _cifar_batch(file)[1]
        ids += [f"{batch}#{number}" for number in range(len(labels))]
        names += [f"{file.name}#{number}" for number in range(len(labels))]
        targets.append(labels)
    text = where / "batches.meta.txt"
    if text.is_file():
        classes = text.read_text(encoding="utf-8", errors="replace").split()
    else:
        classes = _class_names(where / "batches.meta", "label_names")
    if len(classes) != _CLASSES:
        raise InputError(
            f"{where} names {len(classes)} classes in batches.meta, not {_CLASSES}; unpack {_CIFAR_PAGE} again"
        )
    return labels_below(where, names, classes, np.concatenate(targets), ids=ids, groups_in=folder)


CIFAR10 = FolderLayouts(
    _CIFAR_PAGE,
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


def read_cifar100(folder: Path, split: str) -> Labels:
    """Items of CIFAR-100's `train` or `test` with the 100 fine classes, in the order of the file.

    Args:
        folder: `cifar-100-python`, with the files train, test and meta.

    Raises:
        InputError: the split or a file does not exist, or a file is not a batch.
    """
    if split not in _FILES_100:
        raise InputError(f"CIFAR-100 has no split {split}; it has {' and '.join(_FILES_100)}")
    labels = _cifar_batch(folder / split)[1]
    classes = _class_names(folder / "meta", "fine_label_names")
    if len(classes) != _CLASSES_100:
        raise InputError(
            f"{folder / 'meta'} names {len(classes)} fine classes, expected {_CLASSES_100}; unpack the archive again"
        )
    return labels_below(folder, [f"{split}#{number}" for number in range(len(labels))], classes, labels)


def _class_names(file: Path, key: str) -> list[str]:
    listed = _unpickled(file).get(key)
    names = listed if isinstance(listed, list) else []
    texts = (name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names)
    return [name for name in texts if isinstance(name, str)]


def _cifar_batch(file: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(N, 32, 32, 3) images and (N,) labels of a batch."""
    if not file.is_file():
        raise InputError(f"{file} is missing; unpack {_CIFAR_PAGE} again")
    return _loaded(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=_KEPT_BATCHES)
def _loaded(file: Path, changed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """As `_cifar_batch`. `changed`, the file's time, is only part of the cache's key."""
    size, classes = math.prod(_CIFAR_SHAPE), _CLASSES_100 if file.name in _FILES_100 else _CLASSES
    if file.suffix == ".bin":
        content = np.memmap(file, np.uint8, mode="r") if file.stat().st_size else np.zeros(0, np.uint8)
        if not len(content) or len(content) % (1 + size):  # a label, then the planes
            raise InputError(f"{file} has {len(content)} bytes, which is not a multiple of {1 + size}: {_NOT_A_BATCH}")
        records = content.reshape(-1, 1 + size)
        pixels, labels = records[:, 1:], records[:, 0].astype(np.int64)
    else:
        batch = _unpickled(file)
        listed = batch.get("fine_labels" if file.name in _FILES_100 else "labels", [])
        if not isinstance(listed, list) or not all(type(label) is int and 0 <= label < 256 for label in listed):
            raise InputError(f"{file} has labels that are not numbers from 0 to {classes - 1}: {_NOT_A_BATCH}")
        array, labels = pickled_array(batch.get("data")), np.array(listed, np.int64)
        pixels = np.zeros((0, 0), np.uint8) if array is None else array
    if pixels.dtype != np.uint8 or pixels.shape != (len(labels), size):
        raise InputError(f"{file} has no image of {size} bytes for every label: {_NOT_A_BATCH}")
    if not len(labels) or labels.min() < 0 or labels.max() >= classes:
        raise InputError(f"{file} has no labels, or some outside of 0 to {classes - 1}: {_NOT_A_BATCH}")
    return pixels.reshape(-1, *_CIFAR_SHAPE).transpose(0, 2, 3, 1), labels


def _unpickled(file: Path) -> Mapping[str, Any]:
    """The mapping in a pickle. Its keys are bytes where Python 3 wrote it."""
    found = read_pickle(file, _MAX_BATCH, _BATCH, _AGAIN)
    if not isinstance(found, dict):
        raise InputError(f"{file} holds a {type(found).__name__}: {_NOT_A_BATCH}")
    return {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in found.items()}


def stl10(folder: Path, part: str) -> ListedImages:
    """`{train,test}_X.bin` and `_y.bin`. Train is all labelled images, not one of the ten folds.

    Raises:
        InputError: a file is missing or malformed.
    """
    file, labels_file = folder / f"{part}_X.bin", folder / f"{part}_y.bin"
    for each in (file, labels_file):
        require_regular(each)
    count = len(_stl_images(file, file.stat().st_mtime_ns))
    found = labels_file.stat().st_size
    if found != count:
        raise InputError(f"{labels_file} has {found:,} labels for {count:,} images; unpack STL-10 again")
    labels = np.fromfile(labels_file, np.uint8)
    return _numbered(file.name, count), [int(label) - 1 for label in labels], read_lines(folder / "class_names.txt")


@lru_cache(maxsize=2)
def _stl_images(file: Path, changed: int) -> NDArray[np.uint8]:
    """(N, 96, 96, 3), not read yet. `changed`, the file's time, is only part of the cache's key."""
    size, image = file.stat().st_size, math.prod(_STL_SHAPE)
    if not size or size % image:
        raise InputError(f"{file} has {size:,} bytes, not a multiple of the {image:,} of an image; unpack STL-10 again")
    return np.memmap(file, np.uint8, mode="r").reshape(-1, *_STL_SHAPE).transpose(0, 3, 2, 1)


def svhn(folder: Path, part: str) -> ListedImages:
    """Cropped digits, `{train,test}_32x32.mat`. The owner's label 10 is the digit 0; `extra` is not read.

    Raises:
        InputError: a file is missing or malformed.
    """
    file = folder / f"{part}_32x32.mat"
    require_regular(file)
    images, labels = _svhn(file, file.stat().st_mtime_ns)
    return _numbered(file.name, len(images)), labels.tolist(), [str(digit) for digit in range(_SVHN_CLASSES)]


@lru_cache(maxsize=2)
def _svhn(file: Path, changed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(N, 32, 32, 3) and (N,) digits."""
    found = read_mat(file, ("X", "y"), _MAX_MAT)
    pixels, digits = found["X"], found["y"]
    if not isinstance(pixels, np.ndarray) or not isinstance(digits, np.ndarray):
        raise InputError(f"{file} has no numbers as images and labels; unpack it again")
    labels = digits.reshape(-1).astype(np.int64)
    if pixels.dtype != np.uint8 or pixels.shape != (_SVHN_SIDE, _SVHN_SIDE, 3, len(labels)):
        raise InputError(f"{file} has no image of {_SVHN_SIDE} x {_SVHN_SIDE} pixels for each label; unpack it again")
    return pixels.transpose(3, 0, 1, 2), np.where(labels == _SVHN_CLASSES, 0, labels)


def pcam(folder: Path, part: str) -> ListedImages:
    """`camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5`; class 1 is a patch with a tumour in its middle.

    Raises:
        InputError: h5py is not installed, or a file is missing or malformed.
    """
    file, labels_file = (folder / f"camelyonpatch_level_2_split_{part}_{kind}.h5" for kind in "xy")
    for each in (file, labels_file):
        require_regular(each)
    shape, labels = _h5(file, "x").shape, _h5(labels_file, "y")
    if labels.size > _MAX_PCAM:
        raise InputError(f"{labels_file} has {labels.size:,} labels, too many for PatchCamelyon; unpack it again")
    _check_packed(labels_file, labels)
    labels = np.asarray(labels).reshape(-1)
    if tuple(shape) != (len(labels), _PCAM_SIDE, _PCAM_SIDE, 3):
        raise InputError(f"{file} has images of shape {tuple(shape)} for {len(labels)} labels; unpack both again")
    return _numbered(file.name, len(labels)), [int(label) for label in labels], ["0", "1"]


def _h5(file: Path, name: str) -> Any:
    """An array of an HDF5 file, not read yet.

    Raises:
        InputError: h5py is not installed, or the file has no such array.
    """
    try:
        return _opened(file, name, file.stat().st_mtime_ns, os.getpid())
    except ImportError as error:
        raise InputError(f"{file} needs h5py, which is not installed: pip install h5py, or the extra [pcam]") from error
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{file} cannot be read ({' '.join(str(error).split())}); unpack it again") from error


@lru_cache(maxsize=4)
def _opened(file: Path, name: str, changed: int, process: int) -> Any:
    """An array of an open file. A handle must not be shared with a loader's process: `process` is in the cache's key.

    HDF5 can take an array from other files and write numbers that no byte of the file stands for; neither is accepted.
    """
    import h5py

    opened = h5py.File(file, "r")
    if not isinstance(opened.get(name, getlink=True), h5py.HardLink) or not isinstance(opened[name], h5py.Dataset):
        raise KeyError(f"it has no array {name} of its own")
    found = opened[name]
    if found.is_virtual or found.external:
        raise ValueError(f"its {name} lies in another file")
    if found.dtype.kind not in "iu" or not found.shape or len(found) > _MAX_PCAM:
        raise ValueError(f"its {name} has {found.dtype} numbers of shape {found.shape}")
    if math.prod(found.chunks or ()) * found.dtype.itemsize > _MAX_CHUNK:
        raise ValueError(f"its {name} is packed in parts of {found.chunks}")
    pipeline = found.id.get_create_plist()
    filters = [pipeline.get_filter(number)[0] for number in range(pipeline.get_nfilters())]
    if not set(filters) <= _UNFOLDING.keys() or len(set(filters)) < len(filters):
        raise ValueError(
            f"its {name} is packed by the filters {filters}, which are not gzip, lzf, shuffle or fletcher32"
        )
    return found


def _check_packed(file: Path, found: Any, index: int | None = None) -> None:
    """Refuse parts that unfold to far more bytes than they declare; HDF5 takes whatever memory they ask for.

    Args:
        index: of an image, whose parts are looked at; None for all of them together.

    Raises:
        InputError: they may.
    """
    if found.chunks is None:
        return
    pipeline = found.id.get_create_plist()
    unfolding = math.prod(_UNFOLDING[pipeline.get_filter(number)[0]] for number in range(pipeline.get_nfilters()))
    if unfolding == 1:
        return
    if index is None:
        if found.id.get_storage_size() * unfolding > _MAX_CHUNK:
            raise InputError(f"{file} may unfold to more than {_MAX_CHUNK:,} bytes; unpack it again")
        return
    ranges = [range(0, size, part) for size, part in zip(found.shape[1:], found.chunks[1:], strict=True)]
    if math.prod(map(len, ranges)) > _MAX_PARTS:
        raise InputError(f"{file} has images in more than {_MAX_PARTS:,} parts; unpack it again")
    declared = math.prod(found.chunks) * found.dtype.itemsize
    first = index // found.chunks[0] * found.chunks[0]
    for rest in product(*ranges):
        size = found.id.get_chunk_info_by_coord((first, *rest)).size
        if size and size * unfolding > _MAX_CHUNK and _unfolds_beyond(found, (first, *rest), declared):
            raise InputError(f"{file} has a part that unfolds to more than the {declared:,} bytes that it declares; "
                             "unpack it again")  # fmt: skip


def _unfolds_beyond(found: Any, place: tuple[int, ...], declared: int) -> bool:
    """Whether a packed part has more bytes than it should; a part packed by anything but gzip counts as one."""
    packed = found.id.read_direct_chunk(place)[1]
    try:
        return len(zlib.decompressobj().decompress(packed, declared + 1)) > declared
    except zlib.error:
        return True
