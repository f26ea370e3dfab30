"""Tables of the report: those of the pages, with the records behind each cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from results.comparison.explain import Explanation, explanation_table
from results.pages.page_layout import CONFIG, PAGE
from results.pages.published_rows import published_rows
from results.published.figures import Figure
from results.report.provenance import Provenance, provenance
from results.store import StoredRecord
from results.tables.cells import Cell, Row, Table, cell_text
from results.tables.gains import gain_over_random
from results.tables.render import numeric_columns
from results.tables.roster import Entry
from results.tables.sections import Section


@dataclass(frozen=True)
class ReportCell:
    """A cell as it is shown and sorted; `origin` is the id of what tells where it comes from."""

    text: str
    sort: str
    bold: bool = False
    origin: str = ""


@dataclass(frozen=True)
class ReportRow:
    label: str
    cells: tuple[ReportCell, ...]
    sources: tuple[int, ...] = ()


@dataclass(frozen=True)
class ReportTable:
    """A table with an id of its own. `numeric` says of every column whether it holds numbers."""

    id: str
    table: Table
    numeric: tuple[bool, ...]
    rows: tuple[ReportRow, ...]


@dataclass
class TableMaker:
    """Gives tables their ids, and collects the provenance that their cells point to."""

    origins: dict[str, list[Provenance]] = field(default_factory=dict)
    _ids: count[int] = field(default_factory=count)
    _of_records: dict[tuple[Path, ...], str] = field(default_factory=dict)

    def plain(self, table: Table) -> ReportTable:
        """A table whose cells have no record of their own."""
        return self._table(table, [[()] * len(row.cells) for row in table.rows])

    def explanation(self, one: Explanation) -> ReportTable:
        """A difference taken apart: the two scores rest on a record each, the shares on all."""
        table = explanation_table(one)
        shares = [(), (), *([one.records] * (len(table.columns) - 3))]
        whole = [one.records[:1], one.records[-1:], *shares[2:]]
        return self._table(table, [*([shares] * len(one.switches)), whole])

    def section(self, section: Section) -> list[ReportTable]:
        """The summary and every table of a section."""
        made = []
        if (summary := section.summary()) is not None:
            groups = section.headline_groups()
            every = [stored for group in groups for stored in group.records]
            entries = [entry for entry in section.entries if entry.records(every)]
            made.append(self._table(summary, [[_own(e, g.records) for g in groups] for e in entries]))
        for group in section.groups:
            table = section.group_table(group)
            entries = [entry for entry in section.entries if entry.records(group.records)]
            made.append(self._table(table, [[_own(e, group.records)] * (len(table.columns) - 1) for e in entries]))
        if (gains := gain_over_random(section)) is not None:
            made.append(self.plain(gains))
        if section.entries:
            made.append(self.plain(section.tables()[-1]))
        return made

    def _table(self, table: Table, records: Sequence[Sequence[tuple[StoredRecord, ...]]]) -> ReportTable:
        rows = []
        for row, of_row in zip(table.rows, records, strict=True):
            cells = tuple(self._cell(c, table, own) for c, own in zip(row.cells, of_row, strict=True))
            rows.append(ReportRow(row.label, cells, row.sources))
        return ReportTable(f"table-{next(self._ids)}", table, tuple(numeric_columns(table)), tuple(rows))

    def _cell(self, cell: Cell, table: Table, records: tuple[StoredRecord, ...]) -> ReportCell:
        text = cell_text(cell, table.decimals)
        sort = text if cell.value is None else repr(cell.value)
        return ReportCell(text, sort, cell.bold, self._origin(records) if text and records else "")

    def _origin(self, records: tuple[StoredRecord, ...]) -> str:
        paths = tuple(stored.path for stored in records)
        if paths not in self._of_records:
            self._of_records[paths] = f"origin-{len(self._of_records)}"
            self.origins[self._of_records[paths]] = [provenance(stored) for stored in records]
        return self._of_records[paths]


def published_tables(figures: Sequence[Figure]) -> list[Table]:
    """Every published figure that has a place on a model-zoo page, with its source."""
    tables = []
    for layout in PAGE:
        found = published_rows(layout, figures)
        if not found:
            continue
        sources = list(dict.fromkeys(source for row in found for source in row.sources))
        columns = [column for column in layout.columns if any(column.title in row.figures for row in found)]
        rows = [
            Row(row.model + (f", {row.epochs:g} epochs" if row.epochs else ""),
                       tuple(row.cell(column, figures) for column in columns),
                       tuple(sources.index(source) + 1 for source in row.sources))
            for row in found
        ]  # fmt: skip
        tables.append(
            Table(layout.title, layout.lines, (CONFIG, *(column.title for column in columns)), tuple(rows),
                  layout.decimals, sources=tuple(sources))
        )  # fmt: skip
    return tables


def _own(entry: Entry, among: Sequence[StoredRecord]) -> tuple[StoredRecord, ...]:
    return tuple(entry.records(among))
