"""Published figures as rows of a page's tables, as they were printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from results.pages.page_layout import CONFIG, PageColumn, PageTable
from results.published.figures import Figure
from results.tables.cells import Cell, Row, Table


@dataclass(frozen=True)
class Published:
    """One model as far as it fills the columns of a table, of all sources that print the same of it."""

    model: str
    epochs: float | None
    figures: dict[str, Figure]
    sources: tuple[str, ...]

    @property
    def config(self) -> str:
        """The model without its method; the epochs where no configuration says them."""
        config = self.model.partition("/")[2]
        return config or self.model + (f", {self.epochs:g} epochs" if self.epochs else "")

    @property
    def protocols(self) -> str:
        """Their ids."""
        return ", ".join(dict.fromkeys(f.place.protocol for f in self.figures.values() if f.place))

    @property
    def runs(self) -> str:
        """As `5 runs`, where the sources say it."""
        counts = dict.fromkeys(f.place.runs for f in self.figures.values() if f.place and f.place.statistic != "layer")
        return ", ".join(f"{n} run{'s' if n > 1 else ''}" for n in counts if n)

    def cell(self, column: PageColumn, among: Sequence[Figure] = ()) -> Cell:
        """The figure as it was printed, with the deviation that `among` holds of it."""
        figure = self.figures.get(column.title)
        if figure is None:
            return Cell()
        std = deviation(figure, among)
        return Cell(figure.number, text=figure.text + (f" (std {std.text})" if std else ""))


def published_rows(layout: PageTable, figures: Sequence[Figure]) -> list[Published]:
    """The models that have a figure in at least one column, in the order of their figures."""
    found: dict[tuple[str, str, float | None], dict[str, Figure]] = {}
    for figure in figures:
        for column in layout.columns:
            if _fills(figure, column):
                found.setdefault((figure.source, figure.model, figure.epochs), {}).setdefault(column.title, figure)
    rows: dict[tuple[object, ...], Published] = {}
    for (source, model, epochs), own in found.items():
        printed = model, epochs, tuple((title, figure.text, figure.place) for title, figure in own.items())
        before = rows.get(printed)
        rows[printed] = Published(model, epochs, own, (*(before.sources if before else ()), source))
    return list(rows.values())


def published_table(layout: PageTable, figures: Sequence[Figure]) -> Table | None:
    """A table of a published page, cell by cell; None where no figure belongs in it."""
    found = published_rows(layout, figures)
    if not found:
        return None
    columns = [column for column in layout.columns if any(column.title in row.figures for row in found)]
    several = len({row.model.partition("/")[0] for row in found}) > 1
    rows = [Row(row.model if several else row.config, tuple(row.cell(column) for column in columns)) for row in found]
    lines = (*layout.lines, *([layout.protocol] if layout.protocol else []))
    return Table(layout.title, lines, (CONFIG, *(c.title for c in columns)), tuple(rows), layout.decimals)


def _fills(figure: Figure, column: PageColumn) -> bool:
    place = figure.place
    if place is None or place.benchmark != column.benchmark or place.column != column.column:
        return False
    return place.statistic == "layer" if column.layer else place.statistic in ("value", "mean")


def deviation(mean: Figure, among: Sequence[Figure]) -> Figure | None:
    """The published standard deviation that belongs to a published mean."""
    if mean.place is None or mean.place.statistic != "mean":
        return None
    wanted = mean.source, mean.model, mean.epochs, mean.place.protocol, mean.place.column
    return next(
        (
            f
            for f in among
            if f.place is not None
            and f.place.statistic == "std"
            and (f.source, f.model, f.epochs, f.place.protocol, f.place.column) == wanted
        ),
        None,
    )


def selections(source: str, published: Sequence[Published]) -> str:
    """How a source chose the figures of these rows, for its footnote."""
    found = dict.fromkeys(
        f"{figure.place.protocol}: {figure.place.selection}"
        for row in published
        if source in row.sources
        for figure in row.figures.values()
        if figure.place
    )
    return "selection: " + "; ".join(found)
