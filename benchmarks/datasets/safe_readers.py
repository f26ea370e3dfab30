"""Read .npy files, pickles and MATLAB files (version 5) from untrusted sources: nothing runs, and memory is bounded.

scipy's reader of MATLAB files takes what a file declares: a few kilobytes can unfold to all memory, and cells nested a
few thousand deep end the process. Here numbers, text, cells and structures are read by MathWorks' "MAT-File Format".
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.task import InputError
from results.files import require_regular, require_size

# Numbers, text, the values of a cell array, or the values of each field of an array of structures. None stands for a
# sparse matrix in a cell or a structure, which is passed over.
MatValue = NDArray[Any] | str | list["MatValue"] | dict[str, list["MatValue"]] | None

MAX_VARIABLES = 1000
MAX_MATRICES = 500_000  # of all cells and structures; Stanford Cars has 49,000
MAX_DEPTH = 8  # of cells and structures; SBD has 2
_HEADER = 128  # bytes: 116 of text, 8 of an offset, the version, and the byte order
_MATRIX, _COMPRESSED = 14, 15
_CELL, _STRUCTURE, _TEXT, _SPARSE = 1, 2, 4, 5
_NUMBERS = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}  # classes
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}  # element types
_ENCODINGS = {1: "latin1", 2: "latin1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_PEEKED = 4096  # unpacked bytes in which the name of a variable lies


def read_npy(file: Path, remedy: str) -> NDArray[Any]:
    """The array of an .npy file, read without pickle.

    Args:
        remedy: what to do where there is no such file or it is an archive.

    Raises:
        InputError: it is missing or not such an array.
    """
    try:
        require_regular(file)
        with file.open("rb") as opened:
            found = np.load(opened, allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError(f"{file} is missing; {remedy}") from error
    except ValueError as error:
        if "Object arrays" in str(error):
            raise InputError(
                f"{file} holds Python objects, and reading them could run code of the file; convert it on a machine "
                "where you trust it: numpy.save(file, numpy.array(old.tolist()))"
            ) from error
        raise InputError(f"{file} is not a .npy file ({error}); write it again with numpy.save") from error
    except OSError:
        raise
    except (MemoryError, EOFError) as error:
        raise InputError(f"{file} has fewer entries than its header says; write it again with numpy.save") from error
    except Exception as error:  # numpy raises nearly anything at a malformed header or archive
        raise InputError(
            f"{file} is not a .npy file ({type(error).__name__}); write it again with numpy.save"
        ) from error
    if not isinstance(found, np.ndarray):
        raise InputError(f"{file} is an .npz archive; {remedy}")
    return found


def read_pickle(file: Path, limit: int, what: str, remedy: str) -> Any:
    """What a pickle holds: containers, numbers, texts, and arrays (see `pickled_array`). Nothing in it is run.

    What Python 2 wrote as text or bytes is text.

    Args:
        limit: bytes that the file may have.
        what: it should be, for the message.

    Raises:
        InputError: the file is missing or larger, or holds anything else.
    """
    from pretrain.safe_pickle import NotAllowedError, Unpickler  # imports torch

    try:
        require_size(file, limit)
        with file.open("rb") as opened:
            return Unpickler(opened, file.stat().st_size).load()
    except FileNotFoundError as error:
        raise InputError(f"{file} is missing; {remedy}") from error
    except Exception as error:  # a broken pickle raises nearly anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        reason = f"it {reason}" if isinstance(error, NotAllowedError) else reason
        raise InputError(f"{file} cannot be read ({reason}): the file is not {what}; {remedy}") from error


def pickled_array(value: object) -> NDArray[Any] | None:
    """The array that `read_pickle` found; None for another value."""
    from pretrain.safe_pickle import NumpyArray

    return value.value if isinstance(value, NumpyArray) else None


def read_mat(file: Path, names: Sequence[str], limit: int) -> dict[str, MatValue]:
    """The variables of these names.

    Args:
        limit: bytes that they may have together, unpacked.

    Raises:
        InputError: the file is missing, damaged or of another version, unfolds to more bytes, or lacks a variable.
    """
    try:
        require_regular(file)
        if file.stat().st_size > limit + _HEADER:
            raise ValueError(f"it has {file.stat().st_size:,} bytes, more than {limit:,}")
        found = _variables(file.read_bytes(), names, limit)
        lacking = [name for name in names if name not in found]
        if lacking:
            raise ValueError(f"it has no variable {lacking[0]}")
    except FileNotFoundError as error:
        raise InputError(f"{file} is missing; unpack the data set again") from error
    except (ValueError, LookupError, OSError, struct.error, zlib.error, OverflowError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{file} cannot be read as a MATLAB file ({reason}); unpack the data set again") from error
    return found


def _variables(content: bytes, names: Sequence[str], limit: int) -> dict[str, MatValue]:
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None:
        raise ValueError("it is not of version 5")
    found: dict[str, MatValue] = {}
    left, at = limit, _HEADER
    for _ in range(MAX_VARIABLES):
        if at + 8 > len(content):
            return found
        kind, size = struct.unpack_from(f"{order}II", content, at)
        at += 8 + size
        if at > len(content):
            raise ValueError("it is cut short")
        element = memoryview(content)[at - size : at]
        if kind == _COMPRESSED:
            start = zlib.decompressobj().decompress(element[:_PEEKED], _PEEKED)
            kind, size = struct.unpack_from(f"{order}II", start)
            name = _Reader(start[8:], order, 0).name() if kind == _MATRIX else ""
            if name in names and size <= left:
                element = memoryview(zlib.decompressobj().decompress(element, size + 8))[8:]
        else:
            name = _Reader(element, order, 0).name() if kind == _MATRIX else ""
        if name not in names:
            continue
        if name in found:
            raise ValueError(f"it has two variables {name}")
        if size > left:
            raise ValueError(f"it unfolds to more than {limit:,} bytes")
        reader = _Reader(element, order, left)
        reader.name()
        found[name] = reader.value()
        left -= size
    raise ValueError(f"it has more than {MAX_VARIABLES:,} variables")


class _Reader:
    """Reads the parts of one matrix in their order. Its numbers may have `limit` bytes together."""

    def __init__(self, content: bytes | memoryview, order: str, limit: int) -> None:
        self.content, self.order, self.left = memoryview(content), order, limit
        self.at, self.matrices, self.flags = 0, 0, 0
        self.shape: tuple[int, ...] = ()

    def part(self) -> tuple[int, memoryview]:
        """Type and bytes of the next element. One of up to four bytes lies in the element's own tag."""
        kind, size = struct.unpack_from(f"{self.order}II", self.content, self.at)
        if kind >> 16:
            kind, size = kind & 0xFFFF, kind >> 16
            start, end = self.at + 4, self.at + 8
            if size > 4:
                raise ValueError("a part is too long for its place")
        else:
            start = self.at + 8
            end = start + -(-size // 8) * 8
        if start + size > len(self.content):
            raise ValueError("a part is cut short")
        self.at = end
        return kind, self.content[start : start + size]

    def array(self) -> NDArray[Any]:
        kind, content = self.part()
        if kind not in _STORED:
            raise ValueError(f"a part is of type {kind}")
        return np.frombuffer(content, self.order + _STORED[kind])

    def name(self) -> str:
        """The name of the matrix at whose beginning this is, after which its value follows."""
        flags = self.array()
        self.flags = int(flags[0]) if len(flags) else 0
        self.shape = tuple(int(n) for n in self.array())
        if any(n < 0 for n in self.shape) or not 2 <= len(self.shape) <= 8:
            raise ValueError(f"an array has the shape {self.shape}"[:100])
        return bytes(self.part()[1]).decode("latin1")

    def value(self, depth: int = 0) -> MatValue:
        kind, shape = self.flags & 0xFF, self.shape
        count = math.prod(shape)
        if kind in _NUMBERS:
            found = self.array()
            if self.flags & 0x0800:
                raise ValueError("an array is of complex numbers")
            self.left -= count * np.dtype(_NUMBERS[kind]).itemsize  # in the file they may have fewer bytes
            if self.left < 0:
                raise ValueError("its numbers have too many bytes")
            return found.astype(_NUMBERS[kind], copy=False).reshape(shape, order="F")
        if kind == _TEXT:
            return self._text()
        if kind == _CELL:
            return list(self._matrices(count, depth))
        if kind == _STRUCTURE:
            length = int(self.array()[0])
            names = bytes(self.part()[1])
            if not 0 < length <= 64 or len(names) % length or len(names) > 64 * length:
                raise ValueError("a structure has no names of fields")
            fields = [names[i : i + length].split(b"\0")[0].decode("latin1") for i in range(0, len(names), length)]
            values = list(self._matrices(count * len(fields), depth))
            return {field: values[row :: len(fields)] for row, field in enumerate(fields)}
        raise ValueError(f"an array is of class {kind}")

    def _text(self) -> str:
        kind, content = self.part()
        if kind not in _ENCODINGS:
            raise ValueError(f"a text is of type {kind}")
        little = "-le" if self.order == "<" else "-be"
        return bytes(content).decode(_ENCODINGS[kind] + (little if _ENCODINGS[kind] in ("utf-16", "utf-32") else ""))

    def _matrices(self, count: int, depth: int) -> Iterator[MatValue]:
        self.matrices += count
        if self.matrices > MAX_MATRICES or depth == MAX_DEPTH:
            raise ValueError(f"it has more than {MAX_MATRICES:,} cells, or cells deeper than {MAX_DEPTH}")
        for _ in range(count):
            kind, size = struct.unpack_from(f"{self.order}II", self.content, self.at)
            if kind != _MATRIX:
                raise ValueError(f"a cell is of type {kind}")
            self.at += 8
            if not size:  # MATLAB's empty array
                yield np.zeros((0, 0))
                continue
            end = self.at + size
            self.name()
            if self.flags & 0xFF == _SPARSE:
                if end < self.at:
                    raise ValueError("a sparse matrix is cut short")
                self.at = end
                yield None
            else:
                yield self.value(depth + 1)
