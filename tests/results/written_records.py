"""A record in a folder: written, what then lies there, and read again; tables of a folder, and their cells by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from results.formats import Cell, Table
from results.rows import EMBEDDED, FULL
from results.schema import EncoderCard, Protocol, Score
from results.store import StoredRecord, read_record, read_records, write_record
from results.tables import Section, section_tables
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


FOLDED = "random init (resnet18-w32-k3-nopool), mean of 5 initialisations"


def section(root: Path, *, embedded: bool = True) -> Section:
    return Section(read_records(root)[0], EMBEDDED if embedded else FULL)


def table(root: Path, title: str, **which: Any) -> Table:
    return titled(section_tables(section(root, **which)), title)


def titled(tables: list[Table], title: str) -> Table:
    return next(t for t in tables if t.title.startswith(title))


def cell(found: Table, row: str, column: str) -> Cell:
    return next(r for r in found.rows if r.label == row).cells[found.columns.index(column) - 1]


def write(root: Path, encoder: EncoderCard, value: float, asked: Protocol = KNN, **fields: Any) -> Path:
    scores = {asked.primary: Score(value=value, n=220, selection="fixed")}
    return write_record(root, record(encoder, asked, scores=scores, **fields))
