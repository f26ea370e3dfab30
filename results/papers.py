"""The tables of the MoCo papers from published.csv, with records under the same protocols below the published rows.

papers.toml says which published figure belongs in which cell. A cell is empty if no source establishes its figure:
the MoCo v2 note prints its Tables 1 and 2 as images, six detection figures of its Table 1 are known from nowhere else,
and the curves over K are images too.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, with_config

from results.formats import Cell, Row, Table
from results.published import Figure
from results.rows import FULL, Entry
from results.store import StoredRecord
from results.tables import SPREAD_LINE, Section, score_cell


@with_config(extra="forbid")
@dataclass(frozen=True)
class PaperColumn:
    """A column: the figures of a benchmark and metric, from the first source that has them.

    `key` replaces `{}` in the model names of the rows.
    """

    title: str
    benchmark: str
    metrics: tuple[str, ...]
    sources: tuple[str, ...]
    dataset: str = ""
    key: str = ""


@with_config(extra="forbid")
@dataclass(frozen=True)
class PaperRow:
    """A row: its label, the names of its model in the sources, and the texts of the descriptive columns."""

    label: str
    models: tuple[str, ...]
    about: tuple[str, ...] = ()
    epochs: float | None = None


@with_config(extra="forbid")
@dataclass(frozen=True)
class PaperLayout:
    """A table. `about` are the titles of the descriptive columns; the first one is the title of the labels."""

    name: str
    title: str
    about: tuple[str, ...]
    columns: tuple[PaperColumn, ...]
    rows: tuple[PaperRow, ...]
    lines: tuple[str, ...] = ()
    decimals: int = 1


def _layout(entry: dict[str, Any], sources: dict[str, str]) -> PaperLayout:
    """A table as papers.toml has it, with its own `benchmark`, `epochs` and so on in every column and row."""
    shared = {name: entry.pop(name) for name in ("benchmark", "sources", "metrics", "dataset") if name in entry}
    epochs = {"epochs": entry.pop("epochs")} if "epochs" in entry else {}
    columns = [
        {**shared, **({"title": column, "metrics": [column]} if isinstance(column, str) else column)}
        for column in entry.pop("columns")
    ]
    for column in columns:
        column["sources"] = [sources[name] for name in column["sources"]]
    rows = [{"label": row} if isinstance(row, str) else row for row in entry.pop("rows")]
    rows = [{"models": [row["label"]], **epochs, **row} for row in rows]
    return TypeAdapter(PaperLayout).validate_python({**entry, "columns": columns, "rows": rows})


_FILE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
PAPERS = tuple(_layout(entry, _FILE["sources"]) for entry in _FILE["tables"])


# ---- the tables


def paper_tables(figures: Sequence[Figure], records: Sequence[StoredRecord] = ()) -> dict[str, Table]:
    """The tables with at least one figure, by name.

    Args:
        figures: published figures, of all sources or of some.
        records: an encoder gets a row in a table if one of its records has the protocol of a column, on the full data
            set and without overrides.
    """
    section = Section(records, FULL)
    tables = {}
    for layout in PAPERS:
        table = _table(layout, figures, section)
        if table is not None:
            tables[layout.name] = table
    return tables


def _table(layout: PaperLayout, figures: Sequence[Figure], section: Section) -> Table | None:
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
    layout: PaperLayout, entry: Entry, found: Sequence[dict[str, Figure | None]], section: Section
) -> Row | None:
    """The row of one encoder under the protocols of the columns; None if it has no score there."""
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
    """Records comparable with the figures of a column, of one protocol."""
    fit = [
        stored
        for stored in records
        if stored.record.dataset.id == stored.record.protocol.resolved.dataset
        and any(figure.comparable(stored.record.protocol.id) for figure in figures)
    ]
    return [stored for stored in fit if stored.record.protocol.id == fit[0].record.protocol.id]
