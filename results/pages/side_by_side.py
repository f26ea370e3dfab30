"""Tables of a model-zoo page: measured figures, with the published ones beside them.

A measured figure is set against a published one only where both are under the same protocol, which the published map
says; whatever else stands in the same column is marked as not comparable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from results.pages.page_layout import CONFIG, PageColumn, PageTable
from results.pages.published_rows import Published, deviation, published_rows, selections
from results.published.figures import Figure
from results.resampling.bootstrap import CONFIDENCE
from results.store import StoredRecord
from results.tables.cells import Cell, Row, Table
from results.tables.groups import Group
from results.tables.noise import TWO_SIDED, detectable_line, mark_best
from results.tables.replicates import ReplicateCache
from results.tables.roster import Entry
from results.tables.sections import MARK, best_layer_cell, score_cell

WITHIN = "≈"
NOT_COMPARABLE = "not comparable"
PARITY = ("mmselfsup", "moco", "mocov1")  # the variants of the published pages come first
DIFFERENCE_LINE = (
    f"Differences are measured minus published, under the same protocol only. {WITHIN} marks one that is within the "
    f"noise of the test sample and of the runs ({CONFIDENCE:.0%})."
)


@dataclass(frozen=True)
class Measured:
    """One encoder's records of one variant of the protocols, by benchmark."""

    label: str
    records: dict[str, list[StoredRecord]]

    def of(self, column: PageColumn) -> list[StoredRecord]:
        return self.records.get(column.benchmark, [])

    @property
    def all(self) -> list[StoredRecord]:
        return [stored for records in self.records.values() for stored in records]


def measured_rows(layout: PageTable, entries: Sequence[Entry], records: Sequence[StoredRecord]) -> list[Measured]:
    """A row per encoder and variant; overridden protocols and other data sets than the table's are left out.

    Variants that fill different columns share a row, as in the published tables; the protocols are named in it.
    """
    rows = []
    for entry in entries:
        own = [stored for stored in entry.records(records) if belongs(layout, stored)]
        variants = {stored.record.protocol.resolved.variant for stored in own}
        of_entry: list[Measured] = []
        for variant in sorted(variants, key=lambda name: (PARITY.index(name) if name in PARITY else len(PARITY), name)):
            by_benchmark: dict[str, list[StoredRecord]] = {}
            for stored in own:
                protocol = stored.record.protocol.resolved
                if protocol.variant == variant:
                    by_benchmark.setdefault(protocol.benchmark, []).append(stored)
            found = {benchmark: _of_one_set(same) for benchmark, same in by_benchmark.items()}
            room = next((row for row in of_entry if not row.records.keys() & found.keys()), None)
            if room is None:
                of_entry.append(Measured(entry.label, found))
            else:
                room.records.update(found)
        rows += of_entry
    return rows


def belongs(layout: PageTable, stored: StoredRecord) -> bool:
    """Whether a record's figures may stand in a table's columns."""
    protocol, dataset = stored.record.protocol.resolved, stored.record.dataset
    return not protocol.overrides and any(
        column.benchmark == protocol.benchmark and (dataset.embedded or column.dataset in ("", dataset.id))
        for column in layout.columns
    )


def compared_table(
    layout: PageTable, measured: Sequence[Measured], figures: Sequence[Figure], cache: ReplicateCache
) -> Table | None:
    """Measured rows, published rows and their differences; None without a measured row."""
    if not measured:
        return None
    embedded = any(stored.record.dataset.embedded for row in measured for stored in row.all)
    published = [] if embedded else published_rows(layout, figures)
    if embedded:  # only a few of the columns exist there
        layout = replace(layout, columns=tuple(c for c in layout.columns if any(row.of(c) for row in measured)))
    decimals = 1 if embedded else layout.decimals
    filled = _measured_cells(layout, measured, cache)
    rows = [
        Row(
            f"{row.label}, measured" + ("" if all(stored.intact for stored in row.all) else f" {MARK}"),
            (*cells, Cell(text=_protocols(row)), Cell(text=_items(row))),
        )
        for row, cells in zip(measured, filled, strict=True)
    ]
    sources = list(dict.fromkeys(source for their in published for source in their.sources))
    for their in published:
        numbers = tuple(sources.index(source) + 1 for source in their.sources)
        gaps = [_differences(layout, row, own, their, figures) for row, own in zip(measured, filled, strict=True)]
        differences = [
            Row("difference" if len(measured) == 1 else f"{row.label}, difference", tuple(gap), numbers)
            for row, gap in zip(measured, gaps, strict=True)
            if any(cell.value is not None for cell in gap)
        ]
        label = their.config + ("" if differences else f", {NOT_COMPARABLE}")
        texts = tuple(their.cell(column, figures) for column in layout.columns)
        about = (Cell(text=their.protocols), Cell(text=their.runs))
        rows += [Row(label, (*texts, *about), numbers), *differences]
    data = sorted({stored.record.dataset.id for row in measured for stored in row.all})
    return Table(
        f"{layout.task}: {', '.join(data)}" if embedded else layout.title,
        (
            *layout.lines,
            *([layout.protocol] if layout.protocol and not embedded else []),
            _detectable(layout, measured, cache, decimals),
        ),
        (CONFIG, *(column.title for column in layout.columns), "Protocol", "n"),
        tuple(rows),
        decimals,
        notes=(*_measured_notes(measured), *_faults(measured)),
        sources=tuple(f"{source}; {selections(source, published)}" for source in sources),
    )


def _measured_notes(measured: Sequence[Measured]) -> tuple[str, ...]:
    """What the measured protocols are, each once."""
    lines = dict.fromkeys(Group((stored,), ()).line for row in measured for stored in row.all)
    return tuple(lines)


def _faults(measured: Sequence[Measured]) -> tuple[str, ...]:
    return tuple(
        f"{MARK} {row.label}: {stored.record.protocol.id}: {'; '.join(stored.faults)}"
        for row in measured
        for stored in row.all
        if stored.faults
    )


def _of_one_set(records: list[StoredRecord]) -> list[StoredRecord]:
    """Those on the version of the data that was measured last: versions never share a cell."""
    last = max(records, key=lambda stored: stored.record.created).record.dataset.fingerprint
    return [stored for stored in records if stored.record.dataset.fingerprint == last]


def _measured_cells(layout: PageTable, measured: Sequence[Measured], cache: ReplicateCache) -> list[tuple[Cell, ...]]:
    columns = []
    for column in layout.columns:
        own = [row.of(column) for row in measured]
        if column.layer:
            columns.append([_layer(records, cache) for records in own])
            continue
        cells = [score_cell(cache, records, column.column) if records else Cell() for records in own]
        # rows of several protocols share a column, but none of them is better than another
        if len({stored.record.protocol.sha256 for records in own for stored in records}) == 1:
            higher = own[0][0].record.protocol.resolved.higher_is_better if own[0] else True
            cells = mark_best(cache, own, cells, column.column, higher_is_better=higher)
        columns.append(cells)
    return list(zip(*columns, strict=True))


def _layer(records: Sequence[StoredRecord], cache: ReplicateCache) -> Cell:
    if not records:
        return Cell()
    layers = [c for c in records[0].record.protocol.resolved.columns if c.lower().startswith("feature")]
    return best_layer_cell(layers, {layer: score_cell(cache, records, layer) for layer in layers})


def _differences(
    layout: PageTable, row: Measured, own: Sequence[Cell], their: Published, among: Sequence[Figure]
) -> list[Cell]:
    """Per column the difference; a text where there are two figures under two protocols."""
    cells = []
    for column, cell in zip(layout.columns, own, strict=True):
        figure, records = their.figures.get(column.title), row.of(column)
        number = None if figure is None or column.layer else figure.number
        if figure is None or number is None or cell.value is None or not records:
            cells.append(Cell())
        elif not _same_protocol(figure, records):
            cells.append(Cell(text=NOT_COMPARABLE))
        else:
            gap = round(cell.value, figure.decimals) - number  # both as they are printed
            noise = _noise(cell, figure, deviation(figure, among))
            within = noise is not None and abs(cell.value - number) <= TWO_SIDED * noise
            text = f"{gap:+.{figure.decimals}f}"
            cells.append(Cell(gap, text=f"{WITHIN} {text}" if within else text))
    return [*cells, Cell(), Cell()]


def _noise(cell: Cell, figure: Figure, published: Figure | None) -> float | None:
    """Standard error of a difference: of the test sample, and of the runs where the figure is a mean of some.

    Published runs whose spread is not known are taken to spread as ours do.
    """
    variances = [] if cell.error is None else [cell.error**2]
    runs = figure.place.runs if figure.place else None
    if cell.std is not None and runs is not None and runs > 1:
        theirs = cell.std if published is None or published.number is None else published.number
        variances.append((cell.std**2 + theirs**2) / runs)
    return sum(variances) ** 0.5 if variances else None


def _same_protocol(figure: Figure, records: Sequence[StoredRecord]) -> bool:
    """Under the same id, on the protocol's own full data, and believed."""
    return all(
        figure.comparable(stored.record.protocol.id) and not stored.record.dataset.embedded and stored.intact
        for stored in records
    )


def _detectable(layout: PageTable, measured: Sequence[Measured], cache: ReplicateCache, decimals: int) -> str:
    asked = {
        column.title: ([records for row in measured if (records := row.of(column))], column.column)
        for column in layout.columns
        if not column.layer
    }
    return detectable_line(cache, asked, decimals)


def _protocols(row: Measured) -> str:
    return ", ".join(dict.fromkeys(stored.record.protocol.id for stored in row.all))


def _items(row: Measured) -> str:
    """As `50,000 items`, per protocol where they differ."""
    sizes = dict.fromkeys(f"{stored.record.dataset.test_items:,} items" for stored in row.all)
    initialisations = max(map(len, row.records.values()))
    return ", ".join([*sizes, *([f"{initialisations} initialisations"] if initialisations > 1 else [])])
