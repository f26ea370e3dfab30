"""A record in a folder: written, what then lies there, and read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from results.store import StoredRecord, read_record, write_record
from tests.results.factory_records import KNN, KNN_COLUMNS, accuracy_outcomes, moco_card, record

OUTCOMES = accuracy_outcomes(KNN_COLUMNS, 0.4, 0)


def written(root: Path, **fields: Any) -> Path:
    return write_record(root, record(moco_card(0), KNN, OUTCOMES, **fields), OUTCOMES)


def contents(root: Path) -> dict[str, bytes]:
    return {
        p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != ".lock"
    }


def stored(path: Path) -> StoredRecord:
    found = read_record(path)
    assert isinstance(found, StoredRecord)
    return found
