"""The on-disk format of one address of the feature store: complete outputs, and outputs filled shard by shard.

    meta.json              description of the address; its modification time is that of the last use
    ids.json               the image ids, row by row
    embed.npy              a complete output
    embed.json             the images without a row in embed.npy, because they could not be read: id -> reason
    lock, claims           locks of the processes at work; the system frees them when a process dies
    partial/embed.npy      an output that is being filled, at its full (sparse) size from the start
    partial/embed.00012    says that shard 12 of it is on disk; holds its unreadable rows: row -> reason

A shard's mark is written after its rows were synced to disk, so it is true even after a kill.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from benchmarks.task import InputError

SHARD_ROWS = 512
_COPIED_ROWS = 4096


def shard_rows(shard: int, rows: int) -> range:
    """The rows of one shard of a split of `rows`."""
    return range(shard * SHARD_ROWS, min(rows, (shard + 1) * SHARD_ROWS))


def shard_of(row: int) -> int:
    """The shard that a row lies in."""
    return row // SHARD_ROWS


class ShardClaims:
    """The shards of an address that this process works on: a lock on byte `shard` of the file `claims` for each.

    Byte-range locks belong to the process. Forked loader workers do not inherit them, and the system frees them when
    the process dies.
    """

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / "claims", os.O_RDWR | os.O_CREAT, 0o666)

    def take(self, shard: int) -> bool:
        """Claim a shard. False while another process has it."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, shard)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def take_all(self) -> bool:
        """Claim all shards, so that no other process can start. False while another process has one."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def release(self, shard: int) -> None:
        """Give a shard back."""
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, shard)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        os.close(self._file)


class PartialOutput:
    """An output that one or several processes are filling.

    Args:
        folder: folder of the address.
        key: file name of the output, without suffix.
        rows, width: shape of the output.
        dtype: float32 or float16.
    """

    def __init__(self, folder: Path, key: str, rows: int, width: int, dtype: str = "float32") -> None:
        self.folder, self.key, self.rows, self.width, self.dtype = folder, key, rows, width, np.dtype(dtype)
        self._row_bytes = width * self.dtype.itemsize
        self.shards = -(-rows // SHARD_ROWS)
        self.path = folder / "partial" / f"{key}.npy"
        self.final = folder / f"{key}.npy"
        self._file = self._offset = -1

    def bytes_to_write(self) -> int:
        """Disk space of the missing shards. Unfinished shards count as missing."""
        if self.final.is_file():
            return 0
        return sum(len(shard_rows(s, self.rows)) for s in range(self.shards) if not self.done(s)) * self._row_bytes

    def allocate(self) -> None:
        """Create the file unless it exists.

        Raises:
            InputError: the existing file has another shape.
        """
        with FileLock(self.folder / "lock"):
            if self.final.is_file():
                return
            if not self.path.is_file():
                self.path.parent.mkdir(exist_ok=True)
                temporary = self.path.with_suffix(f".{uuid4().hex[:6]}.new")
                np.lib.format.open_memmap(temporary, "w+", self.dtype, (self.rows, self.width))
                temporary.replace(self.path)
            stored = np.load(self.path, mmap_mode="r")
            if stored.shape != (self.rows, self.width):
                raise InputError(f"{self.path} has shape {stored.shape}, expected {(self.rows, self.width)}; remove it")
            self._offset = stored.offset
            self._file = os.open(self.path, os.O_RDWR)

    def done(self, shard: int) -> bool:
        """Whether the shard is on the disk."""
        return self._mark(shard).is_file() or self.final.is_file()

    @property
    def started(self) -> bool:
        """Whether any shard is on the disk."""
        return any(self.done(shard) for shard in range(self.shards))

    def write(self, start: int, vectors: NDArray[np.float32]) -> None:
        """Write rows from `start` on. Not through a memory map: there a full disk would kill the process.

        Raises:
            OSError: the disk is full.
        """
        content = memoryview(vectors.astype(self.dtype, copy=False).tobytes())
        at = self._offset + start * self._row_bytes
        while content:
            written = os.pwrite(self._file, content, at)
            content, at = content[written:], at + written

    def finish(self, shard: int, unreadable: dict[int, str]) -> None:
        """Mark a shard whose rows are all written."""
        os.fsync(self._file)
        write_json(self._mark(shard), unreadable)

    def complete(self, ids: Sequence[str]) -> None:
        """Move the finished output to its place, without the rows of unreadable images."""
        self.close()
        with FileLock(self.folder / "lock"):
            if self.final.is_file():
                return
            marks = [self._mark(shard) for shard in range(self.shards)]
            unreadable = {int(row): reason for mark in marks for row, reason in read_json(mark).items()}
            source = self._copy_without(unreadable) if unreadable else self.path
            reasons = {ids[row]: reason for row, reason in sorted(unreadable.items())}
            write_json(self.folder / f"{self.key}.json", reasons)
            source.replace(self.final)
            for leftover in (self.path, *marks):
                leftover.unlink(missing_ok=True)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _mark(self, shard: int) -> Path:
        return self.path.with_suffix(f".{shard:05}")

    def _copy_without(self, unreadable: Collection[int]) -> Path:
        keep = np.ones(self.rows, dtype=bool)
        keep[list(unreadable)] = False
        source = np.load(self.path, mmap_mode="r")
        copy = self.path.with_suffix(".readable")
        with copy.open("wb") as file:
            header = {"descr": self.dtype.str, "fortran_order": False, "shape": (int(keep.sum()), self.width)}
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, self.rows, _COPIED_ROWS):
                part = slice(start, start + _COPIED_ROWS)
                file.write(source[part][keep[part]].tobytes())
            os.fsync(file.fileno())
        return copy


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically. Not synced: an interrupted pass starts its shard again."""
    temporary = path.with_name(f"{path.name}.{uuid4().hex[:6]}.new")
    temporary.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    temporary.replace(path)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
