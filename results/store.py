"""Where records live on disk, and how they get there: whole or not at all.

A record is `<root>/<encoder>/<weights-sha8>/<dataset>/<protocol-id>-<key8>.json`. What happened to each test item lies
beside it in `<protocol-id>-<key8>.<sha16>.npz`, named after its own hash: so replacing the JSON is the one moment in
which a rewrite takes effect, and the record's hash covers the side file too.
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from filelock import FileLock
from numpy.typing import NDArray
from pydantic import ValidationError

from results.atomic import make_folder, write_pair
from results.schema import (
    SCHEMA_VERSION,
    DatasetRef,
    EncoderCard,
    Protocol,
    Record,
    asked_key,
    canonical_sha256,
    record_key,
)
from results.side_file import packed, unpacked, with_standard_errors

LOCK_TIMEOUT_SECONDS = 120.0  # a write takes milliseconds


@dataclass(frozen=True)
class StoredRecord:
    """A record that could be read, and what about it cannot be believed."""

    path: Path
    record: Record
    faults: tuple[str, ...] = ()

    @property
    def intact(self) -> bool:
        """Whether record, protocol, place and side file all still hash to what they say."""
        return not self.faults

    def outcomes(self) -> dict[str, NDArray[Any]] | None:
        """The side file's arrays, as `write_record` stored them; None where there are none that can be believed."""
        if self.record.outcomes_file is None or not self.intact:
            return None
        try:
            return unpacked(self.path.with_name(self.record.outcomes_file))
        except (OSError, ValueError, BadZipFile):  # no .npz, whatever its hash says
            return None


@dataclass(frozen=True)
class BadRecord:
    """A file in a records folder that is no record, and why."""

    path: Path
    reason: str


def record_path(root: Path, card: EncoderCard, protocol: Protocol, dataset: DatasetRef, seeds: tuple[int, ...]) -> Path:
    """Where the record of this encoder, protocol, data and seeds belongs."""
    key = record_key(protocol, card, dataset.fingerprint, seeds)
    weights = (card.weights_sha256 or "unloaded")[:8]
    return root / slug(card.name) / weights / slug(dataset.id) / f"{slug(protocol.id)}-{key}.json"


def write_record(root: Path, record: Record, outcomes: Mapping[str, NDArray[Any]] | None = None) -> Path:
    """Seals a record and writes it with its side file, replacing one of the same key.

    Where the outcomes have groups, scores without a standard error get theirs. Decisions are stored as ranks within
    their class (equal decisions share one), which is all that ranking metrics use and a fraction of the size.

    Args:
        outcomes: `ids` (N,), `targets` (N,) or (N, C); per column `correct/<column>` (N,) bool, `decision/<column>`
            (N, C), `iou/<column>` (N, 3, C) or `pseudo_value/<column>` (N,), see `results.resampling.bootstrap`; and
            the source ids of item i as `group_members[group_offsets[i]:group_offsets[i + 1]]`.

    Raises:
        ValueError: a score or decision is not a finite number, or an array holds Python objects.
        OSError: the disk is full, read-only, or locked by another writer for minutes; nothing has changed then.
    """
    payload = None
    if outcomes:
        record = with_standard_errors(record, outcomes)
        payload = packed(outcomes)
    path = record_path(root, record.encoder, record.protocol.resolved, record.dataset, record.seeds)
    side_name = None if payload is None else _side_name(path, payload)
    sealed = record.model_copy(update={"outcomes_file": side_name}).sealed()
    text = json.dumps(sealed.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with _locked(root):
        write_pair(path, text.encode(), side_name, payload)
    return path


def find_record(
    root: Path, card: EncoderCard, protocol: Protocol, dataset: DatasetRef, seeds: tuple[int, ...]
) -> Record | None:
    """The record that makes a new run needless: same name and key, status ok, intact. Anything else is run again."""
    path = record_path(root, card, protocol, dataset, seeds)
    key = record_key(protocol, card, dataset.fingerprint, seeds)
    # Older schemas gave the same question other file names, so the folder's records of this protocol are asked too.
    others = sorted(path.parent.glob(f"{glob.escape(slug(protocol.id))}-*.json"), reverse=True)
    for place in (path, *(other for other in others if other != path)):
        found = read_record(place) if place.is_file() else None
        if not isinstance(found, StoredRecord) or not found.intact or found.record.status != "ok":
            continue
        if found.record.key == key and found.record.encoder.name == card.name:
            return found.record
    return None


def read_records(root: Path) -> tuple[list[StoredRecord], list[BadRecord]]:
    """Every record below a folder in the order of their paths, and every file that should be one and is not."""
    records: list[StoredRecord] = []
    bad: list[BadRecord] = []
    for path in sorted(root.rglob("*.json")):
        found = read_record(path)
        if isinstance(found, BadRecord):
            bad.append(found)
        else:
            records.append(found)
    return records, bad


def read_record(path: Path) -> StoredRecord | BadRecord:
    """One record of this or an older schema version. Never raises: what is wrong with the file is in the answer."""
    while True:
        before = _stamp(path)
        found = _read(path)
        # A writer may have put another record in place, whose side file took that of the one that was being read.
        if (isinstance(found, StoredRecord) and found.intact) or _stamp(path) == before:
            return found


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _read(path: Path) -> StoredRecord | BadRecord:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if not isinstance(version, int):
            return BadRecord(path, "not a record: it has no schema_version")
        if version > SCHEMA_VERSION:
            return BadRecord(
                path, f"written by a newer version (schema {version}; this one reads up to {SCHEMA_VERSION}): update"
            )
        record = Record.model_validate(raw)
        return StoredRecord(path, record, tuple(_faults(path, raw, record)))
    except ValidationError as error:
        first = error.errors()[0]
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        return BadRecord(path, f"{'.'.join(map(str, first['loc'])) or 'record'}: {first['msg']}{more}")
    except (OSError, ValueError, RecursionError) as error:
        return BadRecord(path, f"cannot be read: {error}")


def copy_record(stored: StoredRecord, source_root: Path, target_root: Path) -> None:
    """Copies a record with its side file, byte for byte, to the same place below another folder."""
    side_name = stored.record.outcomes_file
    side = None if side_name is None else stored.path.with_name(side_name).read_bytes()
    write_pair(target_root / stored.path.relative_to(source_root), stored.path.read_bytes(), side_name, side)


def is_copied(stored: StoredRecord, source_root: Path, target_root: Path) -> bool:
    """Whether `copy_record` would change nothing."""
    target = target_root / stored.path.relative_to(source_root)
    if not target.is_file() or target.read_bytes() != stored.path.read_bytes():
        return False
    there = read_record(target)
    return isinstance(there, StoredRecord) and there.intact


def slug(name: str) -> str:
    """A file name that every system takes, cut where it is long: the key behind it tells long ids apart.

    Two encoders may share one; of the same weights the last run stands.
    """
    return re.sub(r"[^\w.@+=,-]+", "_", name, flags=re.ASCII).strip("._")[:120] or "unnamed"


def _side_name(path: Path, payload: bytes) -> str:
    return f"{path.stem}.{hashlib.sha256(payload).hexdigest()[:16]}.npz"


def _refuse_constant(constant: str) -> float:
    raise ValueError(f"{constant} is not a number that JSON knows")


def _faults(path: Path, raw: dict[str, Any], record: Record) -> Iterator[str]:
    """Looks at the JSON as it stands: fields that a later schema adds do not make an old record look edited."""
    if canonical_sha256({k: v for k, v in raw.items() if k != "sha256"}) != record.sha256:
        yield "edited after it was written"
    if canonical_sha256(raw["protocol"]["resolved"]) != record.protocol.sha256:
        yield "its protocol does not hash to what it says"
    if record.protocol.resolved.id != record.protocol.id:
        yield f"its protocol is not {record.protocol.id} but {record.protocol.resolved.id}"
    if not path.stem.endswith(f"-{_key(raw, record)}"):
        yield "its encoder, protocol, data or seeds are not those that its file name stands for"
    if record.outcomes_file is not None:
        side = path.with_name(record.outcomes_file)
        if side.parent != path.parent or not side.is_file():
            yield "its side file is missing"
        elif side.name != _side_name(path, side.read_bytes()):
            yield "its side file was changed after it was written"


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
