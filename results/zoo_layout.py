"""The layout of a model-zoo page (zoo_layout.toml), and published figures as rows of its tables."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results.formats import Cell, Row, Table
from results.published import Figure

CONFIG = "Self-Supervised Config"  # heads the first column, as on the published pages


@dataclass(frozen=True)
class Method:
    """What a page says about a pretraining method."""

    description: str
    paper: str
    link: str
    bibtex: str


# ---- the tables of a page


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


def _table(entry: dict[str, Any]) -> TableLayout:
    """A table as zoo_layout.toml has it: `benchmark` and `dataset` are those of its columns."""
    shared = {name: entry.pop(name) for name in ("benchmark", "dataset") if name in entry}
    columns = [{"column": column} if isinstance(column, str) else column for column in entry.pop("columns")]
    of_all = tuple(LayoutColumn(**{"title": column["column"], **shared, **column}) for column in columns)
    return TableLayout(columns=of_all, **entry)


_PAGE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
PAGE_TABLES = tuple(_table(entry) for entry in _PAGE["tables"])
# Keyed by `EncoderCard.method`, which is also the part of a published model's name before the slash.
PAGE_METHODS = {name: Method(**about) for name, about in _PAGE["methods"].items()}


# ---- published figures in these tables


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
        return Cell(figure.number, text=figure.text + (f" (std {std.text})" if std else ""))


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
