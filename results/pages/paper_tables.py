"""The papers' tables from published.csv, with what was measured under the same protocols below."""

from __future__ import annotations

from collections.abc import Sequence

from results.pages.paper_layout import PAPERS, PaperColumn, PaperRow, PaperTable
from results.published.figures import Figure
from results.store import StoredRecord
from results.tables.cells import Cell, Row, Table
from results.tables.roster import Entry
from results.tables.sections import SPREAD_LINE, Section, score_cell


def paper_tables(figures: Sequence[Figure], records: Sequence[StoredRecord] = ()) -> dict[str, Table]:
    """Every table by its name, without those that no figure is left for.

    Args:
        figures: the published ones, or those of some sources.
        records: measured ones; a row of theirs stands in a table where one is under a column's protocol, on the full
            data set. Embedded data and overrides never do.
    """
    section = Section(records, embedded=False)
    tables = {}
    for layout in PAPERS:
        table = _table(layout, figures, section)
        if table is not None:
            tables[layout.name] = table
    return tables


def _table(layout: PaperTable, figures: Sequence[Figure], section: Section) -> Table | None:
    found = [{column.title: _figure(column, row, figures) for column in layout.columns} for row in layout.rows]
    used = [figure for cells in found for figure in cells.values() if figure is not None]
    if not used:
        return None
    sources = list(dict.fromkeys(figure.source for figure in used))
    rows = []
    for row, cells in zip(layout.rows, found, strict=True):
        if not any(cells.values()):
            continue
        about = tuple(Cell(text=text) for text in row.about)
        numbers = dict.fromkeys(sources.index(figure.source) + 1 for figure in cells.values() if figure)
        rows.append(Row(row.label, (*about, *(_printed(figure) for figure in cells.values())), tuple(sorted(numbers))))
    measured = [own for entry in section.entries if (own := _measured(layout, entry, found, section)) is not None]
    return Table(
        layout.title,
        (*layout.lines, *([SPREAD_LINE] if measured else [])),
        (*layout.about, *(column.title for column in layout.columns)),
        (*rows, *measured),
        layout.decimals,
        sources=tuple(sources),
    )


def _figure(column: PaperColumn, row: PaperRow, figures: Sequence[Figure]) -> Figure | None:
    models = [model.replace("{}", column.key) for model in row.models]
    for source in column.sources:
        for figure in figures:
            if (
                figure.source == source
                and figure.model in models
                and figure.benchmark == column.benchmark
                and figure.metric in column.metrics
                and (row.epochs is None or figure.epochs in (None, row.epochs))
                and column.dataset in ("", figure.dataset)
            ):
                return figure
    return None


def _printed(figure: Figure | None) -> Cell:
    return Cell() if figure is None else Cell(figure.number, text=figure.text)


def _measured(
    layout: PaperTable, entry: Entry, found: Sequence[dict[str, Figure | None]], section: Section
) -> Row | None:
    """One encoder under the protocols of the columns."""
    records = [stored for group in section.groups for stored in entry.records(group.records)]
    cells, protocols = [], []
    for column in layout.columns:
        figures = [figure for cells_of_row in found if (figure := cells_of_row[column.title]) is not None]
        own = _under(records, figures)
        place = next((figure.place for figure in figures if figure.place), None)
        cells.append(score_cell(section.cache, own, place.column) if own and place else Cell())
        protocols += [stored.record.protocol.id for stored in own]
    if all(cell.value is None for cell in cells):
        return None
    about = (", ".join(dict.fromkeys(protocols)), *[""] * len(layout.about))[: len(layout.about) - 1]
    label = f"{entry.label}, measured" + ("" if about else f" under {', '.join(dict.fromkeys(protocols))}")
    return Row(label, (*(Cell(text=text) for text in about), *cells))


def _under(records: Sequence[StoredRecord], figures: Sequence[Figure]) -> list[StoredRecord]:
    """Records that may stand in a column with these figures, of the first protocol that there is one of."""
    fit = [
        stored
        for stored in records
        if stored.record.dataset.id == stored.record.protocol.resolved.dataset
        and any(figure.comparable(stored.record.protocol.id) for figure in figures)
    ]
    return [stored for stored in fit if stored.record.protocol.id == fit[0].record.protocol.id]
