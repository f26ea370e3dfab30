"""Copy records from the git-ignored folder of local runs to the committed records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from results.errors import InputError
from results.schema import Record
from results.store import StoredRecord, copy_record, is_copied, read_records


@dataclass(frozen=True)
class Publication:
    """What `publish` did; paths are relative to the folder of their records."""

    copied: tuple[Path, ...]
    unchanged: tuple[Path, ...]
    replaced: tuple[Path, ...]
    left_out: tuple[tuple[Path, str], ...]


def publish(
    local_root: Path, published_root: Path, encoders: Sequence[str] = ("*",), *, dry_run: bool = False
) -> Publication:
    """Copy records with their outcomes files, byte for byte.

    A newer record replaces the published one of the same encoder (name, initialisation and architecture), data set and
    protocol.
    Failed, edited and unreadable records are left out.

    Args:
        encoders: shell patterns of encoder names.
        dry_run: only report what would be done.

    Raises:
        InputError: one of the folders contains the other.
    """
    here, there_root = local_root.resolve(), published_root.resolve()
    if here.is_relative_to(there_root) or there_root.is_relative_to(here):
        raise InputError(
            f"{published_root} and {local_root} overlap, one contains the other; publish to a separate folder"
        )
    records, bad = read_records(local_root)
    left_out = [(b.path.relative_to(local_root), b.reason) for b in bad]
    newest: dict[tuple[object, ...], StoredRecord] = {}
    for stored in sorted(records, key=lambda s: (s.record.created, s.path)):
        record, place = stored.record, stored.path.relative_to(local_root)
        if not any(fnmatchcase(record.encoder.name, pattern) for pattern in encoders):
            continue
        if record.status == "failed":
            left_out.append((place, f"it failed: {record.error}"))
        elif not stored.intact:
            left_out.append((place, "; ".join(stored.faults)))
        else:
            older = newest.get(_row(record))
            if older is not None:
                left_out.append(
                    (
                        older.path.relative_to(local_root),
                        "a newer record has the same encoder, data and protocol",
                    )
                )
            newest[_row(record)] = stored

    copied: list[Path] = []
    unchanged: list[Path] = []
    for stored in newest.values():
        place = stored.path.relative_to(local_root)
        there = is_copied(stored, local_root, published_root)
        (unchanged if there else copied).append(place)
        if not there and not dry_run:
            copy_record(stored, local_root, published_root)
    replaced = [
        stored
        for stored in read_records(published_root)[0]
        if (new := newest.get(_row(stored.record))) is not None
        and stored.path.relative_to(published_root) != new.path.relative_to(local_root)
    ]
    gone = tuple(stored.path.relative_to(published_root) for stored in replaced)
    if not dry_run:
        for stored in replaced:
            _remove(stored, published_root)
    return Publication(tuple(sorted(copied)), tuple(sorted(unchanged)), gone, tuple(sorted(left_out)))


def _row(record: Record) -> tuple[object, ...]:
    """What identifies a published record."""
    card, dataset = record.encoder, record.dataset
    return card.name, card.init, card.architecture, dataset.id, dataset.own and dataset.fingerprint, record.protocol.id


def _remove(stored: StoredRecord, root: Path) -> None:
    stored.path.unlink()
    if stored.record.outcomes_file is not None:
        stored.path.with_name(stored.record.outcomes_file).unlink(missing_ok=True)
    for folder in list(stored.path.parents)[:3]:  # data set, weights, encoder
        if folder == root or any(folder.iterdir()):
            break
        folder.rmdir()
