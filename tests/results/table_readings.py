"""Tables of a folder of records, and their cells by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from results.schema import EncoderCard, Protocol, Score
from results.store import read_records, write_record
from results.tables.cells import Cell, Table
from results.tables.model_zoo import section_tables
from results.tables.sections import Section
from tests.results.factory_records import (
    KNN,
    record,
)

FOLDED = "random init (resnet18-w32-k3-nopool), mean of 5 initialisations"


def section(root: Path, *, embedded: bool = True) -> Section:
    return Section(read_records(root)[0], embedded=embedded)


def table(root: Path, title: str, **which: Any) -> Table:
    return titled(section_tables(section(root, **which)), title)


def titled(tables: list[Table], title: str) -> Table:
    return next(t for t in tables if t.title.startswith(title))


def cell(found: Table, row: str, column: str) -> Cell:
    return next(r for r in found.rows if r.label == row).cells[found.columns.index(column) - 1]


def write(root: Path, encoder: EncoderCard, value: float, asked: Protocol = KNN, **fields: Any) -> Path:
    scores = {asked.primary: Score(value=value, n=220, selection="fixed")}
    return write_record(root, record(encoder, asked, scores=scores, **fields))
