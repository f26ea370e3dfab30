"""The tables that published figures fill: of a model-zoo page (zoo_layout.toml) and of the MoCo papers (papers.toml).

A cell is empty if no source establishes its figure: the MoCo v2 note prints its Tables 1 and 2 as images, six detection
figures of its Table 1 are known from nowhere else, and the curves over K are images too.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from results.formats import Cell, Row, Table
from results.published import Figure
from results.rows import FULL, Entry
from results.store import StoredRecord
from results.tables import SPREAD_LINE, Section, score_cell

CONFIG = "Self-Supervised Config"  # heads the first column, as on the published pages


@dataclass(frozen=True)
class Method:
    """What a page says about a pretraining method."""

    description: str
    paper: str
    link: str
    bibtex: str


@dataclass(frozen=True)
class LayoutColumn:
    """A column of a page, and the measured and published figures that belong in it.

    Attributes:
        benchmark: protocol id without variant and revision.
        column: column of these protocols.
        dataset: full data set; empty where the benchmark implies it.
        layer: the cell names the layer that gave `column`, instead of the figure.
    """

    title: str
    benchmark: str
    column: str
    dataset: str = ""
    layer: bool = False


@dataclass(frozen=True)
class TableLayout:
    """A table of a page.

    Attributes:
        part: heading above it.
        task: title for other data than the full data sets.
        line: how to read the columns.
        protocol: the protocol on the full data sets, in one sentence.
    """

    part: str
    title: str
    task: str
    columns: tuple[LayoutColumn, ...]
    line: str = ""
    protocol: str = ""
    decimals: int = 2


def _zoo_table(entry: dict[str, Any]) -> TableLayout:
    """A table as zoo_layout.toml has it: `benchmark` and `dataset` are those of its columns."""
    shared = {name: entry.pop(name) for name in ("benchmark", "dataset") if name in entry}
    columns = [{"column": column} if isinstance(column, str) else column for column in entry.pop("columns")]
    of_all = tuple(LayoutColumn(**{"title": column["column"], **shared, **column}) for column in columns)
    return TableLayout(columns=of_all, **entry)


_PAGE = tomllib.loads(Path(__file__).with_name("zoo_layout.toml").read_text(encoding="utf-8"))
PAGE_TABLES = tuple(_zoo_table(entry) for entry in _PAGE["tables"])
# Keyed by `EncoderCard.method`, which is also the part of a published model's name before the slash.
PAGE_METHODS = {name: Method(**about) for name, about in _PAGE["methods"].items()}


@dataclass(frozen=True)
class PublishedRow:
    """The figures of one model, by column title, and every source that prints the same figures."""

    model: str
    epochs: float | None
    figures: dict[str, Figure]
    sources: tuple[str, ...]

    @property
    def config(self) -> str:
        """The configuration without its method; for a model without one, its name and epochs."""
        return self.model.partition("/")[2] or self.name

    @property
    def name(self) -> str:
        return self.model + (f", {self.epochs:g} epochs" if self.epochs else "")

    @property
    def protocols(self) -> str:
        return ", ".join(dict.fromkeys(f.place.protocol for f in self.figures.values() if f.place))

    @property
    def runs(self) -> str:
        """As `5 runs`; empty if the sources do not say."""
        counts = dict.fromkeys(f.place.runs for f in self.figures.values() if f.place and f.place.statistic != "layer")
        return ", ".join(f"{n} run{'s' if n > 1 else ''}" for n in counts if n)

    def cell(self, column: LayoutColumn, others: Sequence[Figure] = ()) -> Cell:
        """The figure as it was printed, with the standard deviation if `others` hold it."""
        figure = self.figures.get(column.title)
        if figure is None:
            return Cell()
        std = published_std(figure, others)
        return replace(figure.cell, text=f"{figure.text} (std {std.text})") if std else figure.cell


def published_rows(layout: TableLayout, figures: Sequence[Figure]) -> list[PublishedRow]:
    """The models with a figure in at least one column, in the order of the figures."""
    found: dict[tuple[str, str, float | None], dict[str, Figure]] = {}
    for figure in figures:
        for column in layout.columns:
            if figure.fills(column.benchmark, column.column, layer=column.layer):
                found.setdefault((figure.source, figure.model, figure.epochs), {}).setdefault(column.title, figure)
    rows: dict[tuple[object, ...], PublishedRow] = {}
    for (source, model, epochs), own in found.items():
        printed = model, epochs, tuple((title, figure.text, figure.place) for title, figure in own.items())
        before = rows.get(printed)
        rows[printed] = PublishedRow(model, epochs, own, (*(before.sources if before else ()), source))
    return list(rows.values())


def filled_columns(layout: TableLayout, rows: Sequence[PublishedRow]) -> list[LayoutColumn]:
    """The columns in which at least one row has a figure."""
    return [column for column in layout.columns if any(column.title in row.figures for row in rows)]


def published_table(layout: TableLayout, figures: Sequence[Figure]) -> Table | None:
    """A table of a published page, cell by cell; None if no figure belongs in it."""
    rows = published_rows(layout, figures)
    if not rows:
        return None
    columns = filled_columns(layout, rows)
    several = len({row.model.partition("/")[0] for row in rows}) > 1
    return Table(
        layout.title,
        tuple(line for line in (layout.line, layout.protocol) if line),
        (CONFIG, *(column.title for column in columns)),
        tuple(Row(row.model if several else row.config, tuple(row.cell(column) for column in columns)) for row in rows),
        layout.decimals,
    )


def published_std(mean: Figure, others: Sequence[Figure]) -> Figure | None:
    """The published standard deviation that belongs to a published mean."""
    if mean.place is None or mean.place.statistic != "mean":
        return None
    wanted = mean.source, mean.model, mean.epochs, mean.place.protocol, mean.place.column
    return next(
        (
            f
            for f in others
            if f.place is not None
            and f.place.statistic == "std"
            and (f.source, f.model, f.epochs, f.place.protocol, f.place.column) == wanted
        ),
        None,
    )


@dataclass(frozen=True)
class PaperColumn:
    """A column: the figures of a benchmark and metric, from the first source that has them.

    `key` replaces `{}` in the model names of the rows.
    """

    title: str
    benchmark: str
    metrics: Sequence[str]
    sources: Sequence[str]
    dataset: str = ""
    key: str = ""


@dataclass(frozen=True)
class PaperRow:
    """A row: its label, the names of its model in the sources, and the texts of the descriptive columns."""

    label: str
    models: Sequence[str]
    about: Sequence[str] = ()
    epochs: float | None = None


@dataclass(frozen=True)
class PaperLayout:
    """A table. `about` are the titles of the descriptive columns; the first one is the title of the labels."""

    name: str
    title: str
    about: Sequence[str]
    columns: Sequence[PaperColumn]
    rows: Sequence[PaperRow]
    lines: Sequence[str] = ()
    decimals: int = 1


@cache
def _paper_layouts() -> tuple[PaperLayout, ...]:
    content = tomllib.loads(Path(__file__).with_name("papers.toml").read_text(encoding="utf-8"))
    return tuple(_paper_layout(entry, content["sources"]) for entry in content["tables"])


def _paper_layout(entry: dict[str, Any], sources: dict[str, str]) -> PaperLayout:
    """A table as papers.toml has it, with its own `benchmark`, `epochs` and so on in every column and row."""
    shared = {name: entry.pop(name) for name in ("benchmark", "sources", "metrics", "dataset") if name in entry}
    epochs = {"epochs": entry.pop("epochs")} if "epochs" in entry else {}
    columns = []
    for given in entry.pop("columns"):
        column = {**shared, **({"title": given, "metrics": [given]} if isinstance(given, str) else given)}
        columns.append(PaperColumn(**{**column, "sources": [sources[name] for name in column["sources"]]}))
    rows = [{"label": row} if isinstance(row, str) else row for row in entry.pop("rows")]
    of_table = [PaperRow(**{"models": [row["label"]], **epochs, **row}) for row in rows]
    return PaperLayout(columns=columns, rows=of_table, **entry)


def paper_tables(figures: Sequence[Figure], records: Sequence[StoredRecord] = ()) -> dict[str, Table]:
    """The tables with at least one figure, by name, with measured rows below the published ones.

    Args:
        figures: published figures, of all sources or of some.
        records: an encoder gets a row in a table if one of its records has the protocol of a column, on the full data
            set and without overrides.
    """
    section = Section(records, FULL)
    tables = {}
    for layout in _paper_layouts():
        table = _paper_table(layout, figures, section)
        if table is not None:
            tables[layout.name] = table
    return tables


def _paper_table(layout: PaperLayout, figures: Sequence[Figure], section: Section) -> Table | None:
    found = [{column.title: _paper_figure(column, row, figures) for column in layout.columns} for row in layout.rows]
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
        printed = (figure.cell if figure else Cell() for figure in cells.values())
        rows.append(Row(row.label, (*about, *printed), tuple(sorted(numbers))))
    measured = [own for entry in section.entries if (own := _measured_row(layout, entry, found, section)) is not None]
    return Table(
        layout.title,
        (*layout.lines, *([SPREAD_LINE] if measured else [])),
        (*layout.about, *(column.title for column in layout.columns)),
        (*rows, *measured),
        layout.decimals,
        sources=tuple(sources),
    )


def _paper_figure(column: PaperColumn, row: PaperRow, figures: Sequence[Figure]) -> Figure | None:
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


def _measured_row(
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
    """Intact records comparable with the figures of a column, of one protocol."""
    fit = [
        stored
        for stored in records
        if stored.intact
        and stored.record.dataset.id == stored.record.protocol.resolved.dataset
        and any(figure.comparable(stored.record.protocol.id) for figure in figures)
    ]
    return [stored for stored in fit if stored.record.protocol.id == fit[0].record.protocol.id]
