"""The on-disk format of one address of the feature store: complete outputs, and outputs filled shard by shard.

    meta.json              description of the address; its modification time is that of the last use
    ids.json               the image ids, row by row
    embed.npy              a complete output
    embed.json             the images without a row in embed.npy, because they could not be read: id -> reason
    embed.sums.json        CRC-32 of every shard of embed.npy, and of the lists of images that say what its rows are
    lock, claims           locks of the processes at work; the system frees them when a process dies
    partial/embed.npy      an output that is being filled, at its full (sparse) size from the start
    partial/embed.00012    says that shard 12 of it is on disk; its CRC-32, and its unreadable rows: row -> reason

A shard's mark is written after its rows were synced to disk, so it is true even after a kill. Checksums are compared
when an output is completed, and when a process first reads it.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import zlib
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast
from uuid import uuid4

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from benchmarks.task import InputError

log = logging.getLogger(__name__)

SHARD_ROWS = 512
_COPIED_ROWS = 4096
_verified: set[tuple[object, ...]] = set()  # outputs whose checksums this process has compared


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
        dtype: float32, float16 or bfloat16.
    """

    def __init__(self, folder: Path, key: str, rows: int, width: int, dtype: str = "float32") -> None:
        self.folder, self.key, self.rows, self.width = folder, key, rows, width
        self.dtype = np.dtype(np.uint16 if dtype == "bfloat16" else dtype)  # bfloat16 by its bits: see `widened`
        self._row_bytes = width * self.dtype.itemsize
        self.shards = -(-rows // SHARD_ROWS)
        self.path = folder / "partial" / f"{key}.npy"
        self.final = folder / f"{key}.npy"
        self._file = self._offset = -1
        self._sums: dict[int, int] = {}  # of the shards that are being written

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
            try:
                stored = open_rows(self.path)
            except (OSError, ValueError) as error:
                raise InputError(f"{self.path} is damaged ({error}); remove {self.path.parent}") from error
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

    def encoded(self, vectors: NDArray[np.float32]) -> NDArray[Any]:
        """The vectors as they are stored; what float16 cannot hold becomes infinite."""
        if self.dtype == np.uint16:
            return narrowed(vectors)
        with np.errstate(over="ignore"):
            return vectors.astype(self.dtype, copy=False)

    def write(self, start: int, vectors: NDArray[Any]) -> None:
        """Write encoded rows from `start` on, those of a shard in order.

        Not through a memory map: there a full disk would kill the process.

        Raises:
            OSError: the disk is full.
        """
        content = memoryview(vectors.tobytes())
        at, shard = self._offset + start * self._row_bytes, shard_of(start)
        self._sums[shard] = zlib.crc32(content, self._sums[shard] if start % SHARD_ROWS else 0)
        while content:
            written = os.pwrite(self._file, content, at)
            content, at = content[written:], at + written

    def finish(self, shard: int, unreadable: dict[int, str]) -> None:
        """Mark a shard whose rows are all written."""
        os.fsync(self._file)
        write_json(self._mark(shard), {"crc32": self._sums.pop(shard), "unreadable": unreadable})

    def complete(self, ids: Sequence[str]) -> None:
        """Move the finished output to its place, without the rows of unreadable images.

        Raises:
            InputError: a shard is not what was written. It will be computed again.
        """
        self.close()
        with FileLock(self.folder / "lock"):
            if self.final.is_file():
                return
            marks = [self._mark(shard) for shard in range(self.shards)]
            unreadable: dict[int, str] = {}
            for mark, found in zip(marks, shard_sums(open_rows(self.path)), strict=True):
                try:
                    unreadable |= _unreadable(read_json(mark), found)
                except (OSError, ValueError, TypeError, AttributeError) as error:
                    mark.unlink(missing_ok=True)
                    raise InputError(
                        f"a part of {self.path} is not what was written ({error}); run the same command again, which "
                        "computes that part again"
                    ) from error
            source = self._copy_without(unreadable) if unreadable else self.path
            reasons = {ids[row]: reason for row, reason in sorted(unreadable.items())}
            write_json(self.folder / f"{self.key}.json", reasons)
            write_json(self.folder / f"{self.key}.sums.json", checksums(open_rows(source), ids, reasons))
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


def _unreadable(mark: dict[str, Any], found: int) -> dict[int, str]:
    """The unreadable rows of a shard. Marks of older versions hold nothing else.

    Raises:
        ValueError: the mark does not go with the shard's rows.
    """
    rows: dict[str, str] = mark
    if "crc32" in mark:
        rows = mark["unreadable"]
        if mark["crc32"] != found:
            raise ValueError("its checksum is wrong")
    return {int(row): str(reason) for row, reason in rows.items()}


# ---- complete outputs ------------------------------------------------------------------------------------------------


def narrowed(rows: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of the nearest bfloat16 numbers, ties to even: the upper half of float32."""
    bits = np.ascontiguousarray(rows, np.float32).view(np.uint32)
    upper = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(rows), np.uint16(0x7FC0), upper)


def widened(rows: NDArray[Any]) -> NDArray[np.floating[Any]]:
    """float32 rows of bfloat16's bits; rows in float32 and float16 as they are."""
    if rows.dtype != np.uint16:
        return rows
    return (rows.astype(np.uint32) << 16).view(np.float32)


class WidenedRows:
    """(N, D) float32 rows of bfloat16's bits, maybe memory-mapped, which become float32 where they are read.

    A read-only array in all that benchmarks do with stored features: shape, length, rows by any index of NumPy's, the
    same numbers in rows of another width, and conversion to an array, which widens everything.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, bits: NDArray[np.uint16]) -> None:
        self.bits, self.shape, self.ndim = bits, bits.shape, bits.ndim

    def __len__(self) -> int:
        return len(self.bits)

    def __getitem__(self, index: Any) -> NDArray[np.floating[Any]]:
        return widened(self.bits[index])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return widened(self.bits[:]).astype(dtype or self.dtype, copy=False)

    def astype(self, dtype: Any) -> NDArray[Any]:
        return self.__array__(dtype)

    def reshape(self, *shape: int) -> WidenedRows:
        return WidenedRows(self.bits.reshape(*shape))


def as_float_rows(rows: NDArray[Any]) -> NDArray[np.floating[Any]]:
    """Stored rows for benchmarks: float32 and float16 as they are, bfloat16's bits as `WidenedRows`."""
    return cast("NDArray[np.floating[Any]]", WidenedRows(rows)) if rows.dtype == np.uint16 else rows


def open_rows(path: Path) -> np.memmap[Any, np.dtype[Any]]:
    """A memory map (N, D) of a file.

    Raises:
        OSError, ValueError: it cannot be read, or is not such an array.
    """
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except EOFError as error:
        raise ValueError(f"{path.name} is empty") from error
    except (OSError, ValueError):
        raise
    except Exception as error:  # numpy raises nearly anything at a malformed header
        raise ValueError(f"{path.name} has a malformed header ({type(error).__name__})") from error
    if not isinstance(rows, np.memmap) or rows.dtype not in (np.float32, np.float16, np.uint16) or rows.ndim != 2:
        raise ValueError(f"{path.name} is not an array of vectors")
    return rows


def shard_sums(rows: NDArray[np.floating[Any]]) -> list[int]:
    """The CRC-32 of every shard, about 1 GB/s on each core."""
    parts = [rows[start : start + SHARD_ROWS] for start in range(0, len(rows), SHARD_ROWS)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(zlib.crc32, parts))


def checksums(rows: NDArray[np.floating[Any]], ids: Sequence[str], absent: Mapping[str, str]) -> dict[str, Any]:
    """What `embed.sums.json` holds."""
    return {"shard_rows": SHARD_ROWS, "crc32": shard_sums(rows), "lists": _lists_sum(ids, absent)}


def _lists_sum(ids: Sequence[str], absent: Mapping[str, str]) -> int:
    return zlib.crc32(json.dumps([list(ids), list(absent)]).encode())


def read_ids(folder: Path) -> list[str]:
    """The ids of an address.

    Raises:
        OSError, ValueError: the file cannot be read, or holds something else.
    """
    ids = read_json(folder / "ids.json")
    if not isinstance(ids, list) or not all(isinstance(id, str) for id in ids):
        raise ValueError("ids.json is not a list of names")
    return ids


def read_absent(folder: Path, key: str) -> dict[str, str]:
    """The images without a row in an output: id -> reason.

    Raises:
        OSError, ValueError: the file cannot be read, or holds something else.
    """
    absent = read_json(folder / f"{key}.json")
    if not isinstance(absent, dict) or not all(isinstance(reason, str) for reason in absent.values()):
        raise ValueError(f"{key}.json is not a list of names and reasons")
    return absent


def read_output(folder: Path, key: str, ids: Sequence[str], absent: Mapping[str, str]) -> NDArray[np.floating[Any]]:
    """A memory map of a complete output, whose checksums are compared when this process first reads it.

    Outputs of older versions get checksums now.

    Raises:
        OSError, ValueError: it cannot be read, or is not what was written.
    """
    path, sums = folder / f"{key}.npy", folder / f"{key}.sums.json"
    rows = open_rows(path)
    lists = _lists_sum(ids, absent)
    stat = path.stat()
    seen = (path.resolve(), stat.st_mtime_ns, stat.st_size, stat.st_ino, lists)
    if seen in _verified:
        return rows
    if not sums.is_file():
        log.info("%s has no checksums yet and gets them now", path)
        with suppress(OSError):  # a read-only store will do
            write_json(sums, checksums(rows, ids, absent))
    else:
        stored = read_json(sums)
        if not isinstance(stored, dict) or stored.get("shard_rows") != SHARD_ROWS:
            raise ValueError(f"{sums.name} is not a list of checksums")
        if stored.get("lists") != lists:
            raise ValueError("the lists of its images are not those that were written")
        found = shard_sums(rows)
        if stored.get("crc32") != found:
            expected = stored.get("crc32")
            wrong = [n for n, sum in enumerate(found) if not isinstance(expected, list) or expected[n : n + 1] != [sum]]
            raise ValueError(
                f"{len(wrong)} of {len(found)} parts of {path.name} have another checksum than when written"
            )
    _verified.add(seen)
    return rows


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically. Not synced: an interrupted pass starts its shard again."""
    temporary = path.with_name(f"{path.name}.{uuid4().hex[:6]}.new")
    temporary.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    temporary.replace(path)


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path.name} is nested too deep") from error
