"""Write, find and read records and their outcomes files on disk.

A record is `<root>/<encoder>/<weights-sha8>/<dataset>/<protocol-id>-<key8>.json`. Its outcomes file
`<protocol-id>-<key8>.<sha16>.npz` in the same folder holds what happened to each test item. It is named after its own
hash, so a rewrite takes effect at the one moment when the JSON is replaced, and the record's hash covers it too.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import math
import os
import platform
import re
import resource
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from pydantic import ValidationError

from results.bootstrap import COLUMN_PREFIXES, measured_columns, replicates
from results.errors import InputError, without_control
from results.files import make_folder, remove_partials, write_file, write_pair
from results.schema import (
    LONGEST_NAME,
    SCHEMA_VERSION,
    DatasetRef,
    EncoderCard,
    Hardware,
    Protocol,
    Record,
    asked_key,
    canonical_sha256,
    record_key,
)

LOCK_TIMEOUT_SECONDS = 120.0  # a write takes milliseconds
MAX_OUTCOMES, MAX_MEMBERS = 1 << 29, 10_000  # bytes and arrays of an outcomes file; ours have less than 2**27
MAX_RECORD = 1 << 24  # bytes of a record's JSON; ours have less than 2**17
MAX_DEPTH = 64  # of a record's JSON; ours are 5 deep
REFERENCE = "same/"  # prefix of an array that names the array with the same content


@dataclass(frozen=True)
class StoredRecord:
    """A record that could be read, and the faults for which it cannot be trusted."""

    path: Path
    record: Record
    faults: tuple[str, ...] = ()

    @property
    def intact(self) -> bool:
        """Whether record, protocol, file name and outcomes file still match their hashes."""
        return not self.faults

    def outcomes(self) -> dict[str, NDArray[Any]] | None:
        """The arrays that `write_record` stored; None if there are none or they cannot be trusted."""
        if self.record.outcomes_file is None or not self.intact:
            return None
        try:
            return unpacked(self.path.with_name(self.record.outcomes_file))
        except Exception:  # not an .npz file, although its hash is right: numpy raises nearly anything
            return None


@dataclass(frozen=True)
class BadRecord:
    """A file in a records folder that is not a record, and why."""

    path: Path
    reason: str

    def name(self, root: Path | None = None) -> str:
        """The path as printable text, relative to `root` if given."""
        path = self.path if root is None else self.path.relative_to(root)
        return without_control(printable_path(path.as_posix()))


def printable_path(text: str) -> str:
    """A file name with the bytes that are not UTF-8 written as escapes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def record_path(root: Path, card: EncoderCard, protocol: Protocol, dataset: DatasetRef, seeds: tuple[int, ...]) -> Path:
    """Where the record of this encoder, protocol, data and seeds belongs."""
    key = record_key(protocol, card, dataset.fingerprint, seeds)
    weights = (card.weights_sha256 or "unloaded")[:8]
    return root / slug(card.name) / weights / slug(dataset.id) / f"{slug(protocol.id)}-{key}.json"


def write_record(
    root: Path,
    record: Record,
    outcomes: Mapping[str, NDArray[Any]] | None = None,
    companions: Mapping[str, bytes] | None = None,
) -> Path:
    """Seal a record and write it with its outcomes file, replacing one of the same key.

    The record is written last, so that every record on disk is complete.

    A failed record never replaces a successful one: it is written next to it with the suffix `.failed`, which tables do
    not read, and removed by the next success.

    If the outcomes have groups, scores without a standard error get theirs. Decisions are stored as ranks within their
    class (equal decisions share one), which is all that ranking metrics need and a fraction of the size.

    Args:
        outcomes: `ids` (N,), `targets` (N,) or (N, C); per column `correct/<column>` (N,) bool, `decision/<column>`
            (N, C), `iou/<column>` (N, 3, C) or `pseudo_value/<column>` (N,), see `results.bootstrap`; and
            the source ids of item i as `group_members[group_offsets[i]:group_offsets[i + 1]]`.
        companions: contents of further files beside the record (heads, pictures), by suffix.

    Returns:
        The file that was written.

    Raises:
        InputError: a newer version of this program has written a record of this key.
        ValueError: a score or decision is not a finite number, or an array holds Python objects.
        OSError: the disk is full, read-only, or locked by another writer for minutes; nothing has changed then.
    """
    payload = None
    if outcomes:
        record = with_standard_errors(record, outcomes)
        payload = packed(outcomes)
    path = record_path(root, record.encoder, record.protocol.resolved, record.dataset, record.seeds)
    outcomes_name = None if payload is None else _outcomes_name(path, payload)
    sealed = record.model_copy(update={"outcomes_file": outcomes_name}).sealed()
    text = json.dumps(sealed.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with _locked(root):
        refuse_newer(path)
        failure = path.with_suffix(".failed")
        before = read_record(path) if record.status == "failed" and path.is_file() else None
        if isinstance(before, StoredRecord) and before.intact and before.record.status == "ok":
            write_file(failure, text)
            return failure
        for suffix, content in (companions or {}).items():
            companion = path.with_suffix(suffix)
            remove_partials(path.parent, companion)  # of a killed writer; a living one would hold the lock
            write_file(companion, content)
        write_pair(path, text.encode(), outcomes_name, payload)
        failure.unlink(missing_ok=True)
    return path


def refuse_newer(path: Path) -> None:
    """Check, before a measurement, that its record would not replace one of a newer schema.

    Raises:
        InputError: it would.
    """
    version = _schema_version(path) if path.is_file() else None
    if version is not None and version > SCHEMA_VERSION:
        raise InputError(
            f"{path} was written by a newer version of this program (schema {version}, this one writes "
            f"{SCHEMA_VERSION}) and is not overwritten; update, or write to another folder"
        )


def _schema_version(path: Path) -> int | None:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    return version if isinstance(version, int) else None


def find_record(
    root: Path, card: EncoderCard, protocol: Protocol, dataset: DatasetRef, seeds: tuple[int, ...]
) -> Record | None:
    """The record that makes a new run unnecessary: same encoder name and key, status ok, intact."""
    path = record_path(root, card, protocol, dataset, seeds)
    key = record_key(protocol, card, dataset.fingerprint, seeds)
    # Older schemas used other file names for the same key, so all records of this protocol are read.
    others = sorted(path.parent.glob(f"{glob.escape(slug(protocol.id))}-*.json"), reverse=True)
    for place in (path, *(other for other in others if other != path)):
        found = read_record(place) if place.is_file() else None
        if not isinstance(found, StoredRecord) or not found.intact or found.record.status != "ok":
            continue
        if found.record.key == key and found.record.encoder.name == card.name:
            return found.record
    return None


def read_records(root: Path) -> tuple[list[StoredRecord], list[BadRecord]]:
    """Every record below a folder, sorted by path, and every .json file there that is not a record."""
    records: list[StoredRecord] = []
    bad: list[BadRecord] = []
    for path in sorted(root.rglob("*.json")):
        place = path.relative_to(root).as_posix()
        named = printable_path(place) == place
        found = read_record(path) if named else BadRecord(path, "its name is not UTF-8; rename the file or its folder")
        if isinstance(found, BadRecord):
            bad.append(found)
        else:
            records.append(found)
    return records, bad


def record_files(given: Sequence[Path]) -> list[StoredRecord | BadRecord]:
    """The records that files and folders hold.

    Raises:
        InputError: a path does not exist, or nothing there is a record.
    """
    found: list[StoredRecord | BadRecord] = []
    for path in given:
        if path.is_dir():
            records, bad = read_records(path)
            found += [*records, *bad]
        elif path.suffix == ".npz":  # of a shell's pattern: the record's .json names it
            continue
        elif path.exists():
            found.append(read_record(path))
        else:
            raise InputError(f"record not found: {path}; name a record's .json file, or a folder of records")
    if not found:
        raise InputError(f"no records in {', '.join(map(str, given))}")
    return found


def read_record(path: Path) -> StoredRecord | BadRecord:
    """Read one record of this or an older schema version. Never raises: a fault of the file is in the result."""
    while True:
        before = _stamp(path)
        found = _read(path)
        # A writer may have replaced the record, and its outcomes file, while it was being read.
        if (isinstance(found, StoredRecord) and found.intact) or _stamp(path) == before:
            return found


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _read(path: Path) -> StoredRecord | BadRecord:
    if path.exists() and not path.is_file():  # a pipe would be waited for
        return BadRecord(path, "cannot be read: not a regular file")
    try:
        if path.stat().st_size > MAX_RECORD:
            return BadRecord(path, f"not a record: it has {path.stat().st_size:,} bytes, more than {MAX_RECORD:,}")
        raw = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        if _deeper_than(raw, MAX_DEPTH):
            return BadRecord(path, f"not a record: its JSON is nested more than {MAX_DEPTH} deep")
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if not isinstance(version, int):
            return BadRecord(path, "not a record: it has no schema_version")
        if version > SCHEMA_VERSION:
            return BadRecord(
                path, f"written by a newer version (schema {version}; this one reads up to {SCHEMA_VERSION}): update"
            )
        record = Record.model_validate(raw)
        if len(record.encoder.name) > LONGEST_NAME:
            return BadRecord(path, f"the encoder's name has more than {LONGEST_NAME} characters")
        return StoredRecord(path, record, tuple(_faults(path, raw, record)))
    except ValidationError as error:
        first = error.errors()[0]
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        return BadRecord(path, f"{'.'.join(map(str, first['loc'])) or 'record'}: {first['msg']}{more}")
    except (OSError, ValueError, RecursionError) as error:
        return BadRecord(path, f"cannot be read: {error}")


def copy_record(stored: StoredRecord, source_root: Path, target_root: Path) -> None:
    """Copy a record with its outcomes file, byte for byte, to the same place below another folder."""
    outcomes_name = stored.record.outcomes_file
    payload = None if outcomes_name is None else stored.path.with_name(outcomes_name).read_bytes()
    write_pair(target_root / stored.path.relative_to(source_root), stored.path.read_bytes(), outcomes_name, payload)


def is_copied(stored: StoredRecord, source_root: Path, target_root: Path) -> bool:
    """Whether `copy_record` would change nothing."""
    target = target_root / stored.path.relative_to(source_root)
    if not target.is_file() or target.read_bytes() != stored.path.read_bytes():
        return False
    there = read_record(target)
    return isinstance(there, StoredRecord) and there.intact


def slug(name: str) -> str:
    """A file name that every system accepts, and no shell or command takes for a flag or a hidden file.

    A long one is cut: the record's key tells long ids apart.
    """
    return re.sub(r"[^\w.@+=,-]+", "_", name, flags=re.ASCII).rstrip("._").lstrip("._-")[:120] or "unnamed"


def _outcomes_name(path: Path, payload: bytes) -> str:
    return f"{path.stem}.{hashlib.sha256(payload).hexdigest()[:16]}.npz"


def _deeper_than(value: Any, depth: int) -> bool:
    """Whether JSON is nested deeper, in which case recursive code may fail on it."""
    level = [value]
    for _ in range(depth):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def _refuse_constant(constant: str) -> float:
    raise ValueError(f"{constant} is not a JSON number")


def _faults(path: Path, raw: dict[str, Any], record: Record) -> Iterator[str]:
    """Check the JSON as it is in the file, so that fields added by a later schema do not look like edits."""
    if canonical_sha256({k: v for k, v in raw.items() if k != "sha256"}) != record.sha256:
        yield "edited after it was written"
    if canonical_sha256(raw["protocol"]["resolved"]) != record.protocol.sha256:
        yield "its protocol does not match its hash"
    if record.protocol.resolved.id != record.protocol.id:
        yield f"its protocol is {record.protocol.resolved.id}, not {record.protocol.id}"
    if not path.stem.endswith(f"-{_key(raw, record)}"):
        yield "its encoder, protocol, data or seeds do not match its file name"
    if record.outcomes_file is not None:
        outcomes_path = path.with_name(record.outcomes_file)
        if outcomes_path.parent != path.parent or not outcomes_path.is_file():
            yield "its outcomes file is missing"
        elif outcomes_path.stat().st_size > MAX_OUTCOMES:
            yield "its outcomes file is larger than any benchmark's"
        elif outcomes_path.name != _outcomes_name(path, outcomes_path.read_bytes()):
            yield "its outcomes file was changed after it was written"


def _key(raw: dict[str, Any], record: Record) -> str:
    """The key by the rules of the schema that the record was written under."""
    protocol, card = raw["protocol"]["resolved"], raw["encoder"]
    if record.schema_version == 1:
        return canonical_sha256([protocol, card, record.dataset.fingerprint, list(record.seeds)])[:8]
    return asked_key(protocol, card, record.dataset.fingerprint, record.seeds)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    make_folder(root)
    with FileLock(root / ".lock", timeout=LOCK_TIMEOUT_SECONDS):
        yield


def measured_column(record: Record, column: str, measured: Sequence[str]) -> str | None:
    """The column whose outcomes belong to `column`: itself, or the one that it was chosen from (a best layer)."""
    if column in measured:
        return column
    value = record.value(column)
    return None if value is None else next((name for name in measured if record.value(name) == value), None)


def with_standard_errors(record: Record, outcomes: Mapping[str, NDArray[Any]]) -> Record:
    """Return the record with standard errors from its outcomes, for the scores that have none yet."""
    measured = measured_columns(outcomes)
    behind = {
        column: source
        for column, score in record.filled_scores.items()
        if score.standard_error is None and (source := measured_column(record, column, measured)) is not None
    }
    if not behind or "group_offsets" not in outcomes:
        return record
    found = replicates(outcomes, sorted(set(behind.values())))
    scores = dict(record.scores)
    for column, source in behind.items():
        error = found[source].standard_error * (100 if scores[column].unit == "%" else 1)
        scores[column] = scores[column].model_copy(update={"standard_error": error})
    return record.model_copy(update={"scores": scores})


def packed(outcomes: Mapping[str, NDArray[Any]]) -> bytes:
    """Outcomes as an .npz whose bytes depend on the arrays alone: names are sorted, and numpy dates members 1980.

    Decisions become ranks within their class; equal ones share a rank. A column with the same outcomes as another (a
    best layer and its layer) is stored as a reference to it.

    Raises:
        ValueError: a decision is not a number, or an array holds Python objects.
    """
    arrays = {}
    for name in sorted(outcomes):
        array = np.asarray(outcomes[name])
        if array.dtype.hasobject:
            raise ValueError(f"the outcome {name!r} holds Python objects instead of numbers or text")
        arrays[name] = _ranks(name, array) if name.startswith("decision/") else array
    columns = [name for name in arrays if name.startswith(COLUMN_PREFIXES)]
    for name in reversed(columns):
        # Itself by name: an array with nan does not equal itself.
        same = next(other for other in columns if other == name or np.array_equal(arrays[other], arrays[name]))
        if same != name:
            del arrays[name]
            columns.remove(name)
            arrays[REFERENCE + name] = np.array(same)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # the stub takes a name for allow_pickle
    return buffer.getvalue()


def unpacked(path: Path) -> dict[str, NDArray[Any]]:
    """Read what `packed` wrote; decisions are ranks.

    Raises:
        ValueError: the arrays unfold to more than `MAX_OUTCOMES`, are not whole, or have impossible groups.
    """
    with ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) > MAX_MEMBERS or sum(member.file_size for member in members) > MAX_OUTCOMES:
            raise ValueError(f"{path} unfolds to more than any benchmark's outcomes")
        for member in members:
            with archive.open(member) as stream:
                version = np.lib.format.read_magic(stream)
                read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                shape, _, dtype = read[version](stream)
            if math.prod(shape) * dtype.itemsize > member.file_size:  # before numpy takes the memory
                raise ValueError(f"{path} is cut short: {member.filename}")
    with np.load(path, allow_pickle=False) as stored:
        arrays: dict[str, NDArray[Any]] = {k: v for k, v in stored.items() if not k.startswith(REFERENCE)}
        references = {k.removeprefix(REFERENCE): str(v) for k, v in stored.items() if k.startswith(REFERENCE)}
    if "group_offsets" in arrays:
        _check_groups(path, arrays["group_offsets"], arrays["group_members"])
    return arrays | {name: arrays[same] for name, same in references.items()}


def _check_groups(path: Path, offsets: NDArray[Any], members: NDArray[Any]) -> None:
    """Raise ValueError where the sources of the items cannot be told, which what reads outcomes takes for granted."""
    if offsets.ndim != 1 or members.ndim != 1 or offsets.dtype.kind not in "iu" or not len(offsets):
        raise ValueError(f"{path} has groups that are not lists")
    whole = offsets.astype(np.int64)
    if whole[0] != 0 or whole[-1] != len(members) or (np.diff(whole) < 1).any():
        raise ValueError(f"{path} has groups that do not match its items")


def _ranks(name: str, decisions: NDArray[Any]) -> NDArray[np.unsignedinteger[Any]]:
    if decisions.ndim != 2:
        raise ValueError(f"the outcome {name!r} has shape {decisions.shape}, not (items, classes)")
    if np.isnan(decisions).any():
        raise ValueError(f"the outcome {name!r} is NaN for some items")
    ranks = [np.unique(scores, return_inverse=True)[1] for scores in decisions.T]
    return np.stack(ranks, axis=1).astype(np.uint16 if len(decisions) <= 2**16 else np.uint32)


# ---- where a number comes from: library versions, commit, hardware; no host name, no path ----------------------------

_LIBRARIES = ("torch", "torchvision", "numpy", "scikit-learn", "faiss-cpu", "timm", "pillow")


@cache
def versions() -> dict[str, str]:
    """Python's and the installed libraries'."""
    found = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def commit() -> str | None:
    """The checkout's commit, with `+changes` where tracked files differ from it; None outside a git checkout."""
    root = Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603

    try:
        revision = git("rev-parse", "HEAD")
        return revision + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def machine(gpu: str | None = None, float32: str | None = None) -> Hardware:
    """This machine's processor and memory, with the GPU that a run used and what float32 was on it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Hardware(cpu=_cpu(), cores=cores, memory_gib=round(memory, 1), gpu=gpu, float32=float32)


@cache
def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_memory_gib() -> float:
    """The largest resident set that this process has had.

    Linux hands what getrusage says on to the programs that a process starts; the high-water mark in /proc begins anew.
    """
    status = Path("/proc/self/status")
    for line in status.read_text(encoding="ascii").splitlines() if status.is_file() else ():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 2**20, 3)
    unit = 1 if platform.system() == "Darwin" else 1024  # bytes there, KiB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 3)
