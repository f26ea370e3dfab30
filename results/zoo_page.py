"""The page that a model zoo shows for an encoder: its records and published figures, or published figures alone.

A measured score is compared with a published figure only under the same protocol, as published_map.csv says. Other
published figures in the same column are marked as not comparable.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from results.bootstrap import CONFIDENCE
from results.errors import InputError
from results.families import family_of, suite_of
from results.formats import Cell, Row, Table, escape_latex, escape_markdown, latex, markdown, sourced_table
from results.noise import NOISE_LINE, TWO_SIDED, Ranking, ReplicateCache, rank_rows, ranking_line
from results.published import Figure
from results.published_tables import (
    CONFIG,
    PAGE_METHODS,
    PAGE_TABLES,
    LayoutColumn,
    Method,
    PublishedRow,
    TableLayout,
    published_rows,
    published_std,
    published_table,
)
from results.rows import FULL, Entry, Group, architecture_text, current, data_kind, data_kinds, suite_groups, table_rows
from results.schema import EncoderCard
from results.store import StoredRecord
from results.tables import MARK, SPREAD_LINE, Section, best_layer_cell, score_cell

WITHIN_NOISE = "≈"
NOT_COMPARABLE = "not comparable"
DIFFERENCE_LINE = (
    f"Differences are measured minus published, under the same protocol only. {WITHIN_NOISE} marks a difference within "
    f"the {CONFIDENCE:.0%} noise of the test sample and of the runs."
)
FIRST_VARIANTS = ("mmselfsup", "moco", "mocov1")  # the protocols of the published pages come first


@dataclass(frozen=True)
class PagePart:
    """Tables under a heading."""

    title: str
    lines: tuple[str, ...]
    tables: tuple[Table, ...]


@dataclass(frozen=True)
class Page:
    """A page, independent of its file format."""

    title: str
    lines: tuple[str, ...]
    parts: tuple[PagePart, ...]
    methods: tuple[Method, ...]

    @property
    def tables(self) -> list[Table]:
        return [table for part in self.parts for table in part.tables]


def published_page(figures: Sequence[Figure]) -> Page:
    """The page of one source's figures.

    Raises:
        InputError: none of the figures belongs on a page.
    """
    parts = []
    for title in dict.fromkeys(layout.part for layout in PAGE_TABLES):
        found = [published_table(layout, figures) for layout in PAGE_TABLES if layout.part == title]
        if tables := tuple(table for table in found if table is not None):
            parts.append(PagePart(title, (), tables))
    if not parts:
        raise InputError("none of the chosen published figures has a place on a model-zoo page")
    methods = list(dict.fromkeys(figure.model.partition("/")[0] for figure in figures))
    sources = list(dict.fromkeys(figure.source for figure in figures))
    return Page(
        title=methods[0] if len(methods) == 1 else sources[0],
        lines=(f"Published figures as printed by {'; '.join(sources)}. Tables without a figure are left out.",),
        parts=tuple(parts),
        methods=tuple(PAGE_METHODS[name] for name in methods if name in PAGE_METHODS),
    )


def measured_page(records: Sequence[StoredRecord], figures: Sequence[Figure], weights: Path | None = None) -> Page:
    """The page of the records, with published figures beside the measured scores.

    Args:
        records: of one encoder, or of several that become rows of the same tables.
        figures: published figures for comparison.
        weights: the checkpoint that the page offers; its size and hash are shown.

    Raises:
        InputError: no record succeeded.
    """
    entries = table_rows(current(records)[0])
    if not entries:
        raise InputError("none of the chosen records succeeded, so the page would be empty")
    parts = [PagePart("Encoder", (), (_about(entries, weights),))]
    for kind in sorted(data_kinds(records), key=lambda kind: kind != FULL):
        parts += _section_parts(Section(records, kind), figures if kind == FULL else [])
    if costs := _costs(figures):
        parts.append(PagePart("Pretraining cost", (), (costs,)))
    cards = [card for entry in entries for card in entry.cards]
    names = dict.fromkeys(method for card in cards if (method := card.method))
    compared = any(row.label.endswith("difference") for part in parts for table in part.tables for row in table.rows)
    return Page(
        title=entries[0].label if len(entries) == 1 else ", ".join(dict.fromkeys(card.name for card in cards)),
        lines=(SPREAD_LINE, *([DIFFERENCE_LINE] if compared else []), *([NOISE_LINE] if len(entries) > 1 else [])),
        parts=tuple(parts),
        methods=tuple(PAGE_METHODS[name] for name in names if name in PAGE_METHODS),
    )


def _section_parts(section: Section, figures: Sequence[Figure]) -> list[PagePart]:
    """The parts of one kind of data: by task, then other protocols, then failures."""
    kind = section.kind

    def part(title: str, lines: tuple[str, ...], tables: Sequence[Table]) -> PagePart:
        which = f"{kind.title[0].lower()}{kind.title[1:]}"
        return PagePart(title if kind == FULL else f"{title}: {which}", lines, tuple(tables))

    parts = []
    own = [stored for group in section.groups for stored in group.records]
    for name in dict.fromkeys(layout.part for layout in PAGE_TABLES):
        tables = [
            table
            for layout in PAGE_TABLES
            if layout.part == name
            and (table := compared_table(layout, measured_rows(layout, section.entries, own), figures, section.cache))
        ]
        if tables:
            parts.append(part(name, (kind.line,) if kind.line else (), tables))
    others = [
        table
        for group in section.groups
        if group.records
        and suite_of(group.protocol.benchmark) is None
        and not any(_belongs(layout, stored) for stored in group.records for layout in PAGE_TABLES)
        for table in section.group_tables(group)
    ]
    others += [table for suite in suite_groups(section.groups) for table in section.suite_tables(suite)]
    if others:
        line = "Protocols with overrides (+) and other benchmarks, which have no place in the tables above."
        parts.append(part("Other protocols", (line,), others))
    failures = tuple(
        f"{stored.record.encoder.name}: {stored.record.protocol.id} on {stored.record.dataset.shown_name}: "
        f"{stored.record.error or 'no error was recorded'}"
        for group in section.groups
        for stored in group.failures
    )
    if failures:
        parts.append(part("Failed", (), [Table("", (), ("",), (), notes=failures)]))
    return parts


# ---- measured rows with the published rows below them


@dataclass(frozen=True)
class MeasuredRow:
    """The records of one encoder in one table, by benchmark."""

    label: str
    records: dict[str, list[StoredRecord]]

    def of(self, column: LayoutColumn) -> list[StoredRecord]:
        return self.records.get(column.benchmark, [])

    @property
    def all(self) -> list[StoredRecord]:
        return [stored for records in self.records.values() for stored in records]


def measured_rows(layout: TableLayout, entries: Sequence[Entry], records: Sequence[StoredRecord]) -> list[MeasuredRow]:
    """A row per encoder and protocol variant, without overrides and other data sets than the table's.

    Variants that fill different columns share a row, as on the published pages; the row names its protocols.
    """
    rows = []
    for entry in entries:
        own = [stored for stored in entry.records(records) if _belongs(layout, stored)]
        variants = {stored.record.protocol.resolved.variant for stored in own}
        of_entry: list[MeasuredRow] = []
        for variant in sorted(variants, key=_variant_order):
            by_benchmark: dict[str, list[StoredRecord]] = {}
            for stored in own:
                protocol = stored.record.protocol.resolved
                if protocol.variant == variant:
                    by_benchmark.setdefault(protocol.benchmark, []).append(stored)
            found = {benchmark: _newest_data(same) for benchmark, same in by_benchmark.items()}
            room = next((row for row in of_entry if not row.records.keys() & found.keys()), None)
            if room is None:
                of_entry.append(MeasuredRow(entry.label, found))
            else:
                room.records.update(found)
        rows += of_entry
    return rows


def _belongs(layout: TableLayout, stored: StoredRecord) -> bool:
    protocol, dataset = stored.record.protocol.resolved, stored.record.dataset
    return not protocol.overrides and any(
        column.benchmark == protocol.benchmark
        and (data_kind(stored.record) != FULL or column.dataset in ("", dataset.id))
        for column in layout.columns
    )


def _variant_order(name: str) -> tuple[int, str]:
    return FIRST_VARIANTS.index(name) if name in FIRST_VARIANTS else len(FIRST_VARIANTS), name


def _newest_data(records: list[StoredRecord]) -> list[StoredRecord]:
    """The records on the version of the data that was measured last; two versions never share a cell."""
    last = max(records, key=lambda stored: stored.record.created).record.dataset.fingerprint
    return [stored for stored in records if stored.record.dataset.fingerprint == last]


def compared_table(
    layout: TableLayout, measured: Sequence[MeasuredRow], figures: Sequence[Figure], cache: ReplicateCache
) -> Table | None:
    """Measured rows, published rows and their differences; None without a measured row."""
    if not measured:
        return None
    records = [stored for row in measured for stored in row.all]
    full = all(data_kind(stored.record) == FULL for stored in records)
    published = published_rows(layout, figures) if full else []
    if not full:  # only some of the columns exist there
        layout = replace(layout, columns=tuple(c for c in layout.columns if any(row.of(c) for row in measured)))
    decimals = layout.decimals if full else 1
    rankings = _measured_columns(layout, measured, cache)
    filled = list(zip(*(ranking.cells for ranking in rankings.values()), strict=True))
    rows = [
        Row(
            f"{row.label}, measured" + ("" if all(stored.intact for stored in row.all) else f" {MARK}"),
            (*cells, Cell(text=_protocols(row)), Cell(text=_size(row))),
        )
        for row, cells in zip(measured, filled, strict=True)
    ]
    sources = list(dict.fromkeys(source for their in published for source in their.sources))
    for their in published:
        numbers = tuple(sources.index(source) + 1 for source in their.sources)
        gaps = [_differences(layout, row, own, their, figures) for row, own in zip(measured, filled, strict=True)]
        differences = [
            Row("difference" if len(measured) == 1 else f"{row.label}, difference", gap, numbers)
            for row, gap in zip(measured, gaps, strict=True)
            if any(cell.value is not None for cell in gap)
        ]
        label = their.config + ("" if differences else f", {NOT_COMPARABLE}")
        texts = tuple(their.cell(column, figures) for column in layout.columns)
        rows += [Row(label, (*texts, Cell(text=their.protocols), Cell(text=their.runs)), numbers), *differences]
    datasets = sorted({stored.record.dataset.shown_name for stored in records})
    faults = [
        f"{MARK} {row.label}: {stored.record.protocol.id}: {'; '.join(stored.faults)}"
        for row in measured
        for stored in row.all
        if stored.faults
    ]
    protocol_line = layout.protocol if full else ""
    return Table(
        layout.title if full else f"{layout.task}: {', '.join(datasets)}",
        tuple(line for line in (layout.line, protocol_line, ranking_line(rankings)) if line),
        (CONFIG, *(column.title for column in layout.columns), "Protocol", "n"),
        tuple(rows),
        decimals,
        notes=(*dict.fromkeys(Group((stored,), ()).line for stored in records), *faults),
        sources=tuple(f"{source}; {_selections(source, published)}" for source in sources),
    )


def _measured_columns(
    layout: TableLayout, measured: Sequence[MeasuredRow], cache: ReplicateCache
) -> dict[str, Ranking]:
    """Column title -> one cell per measured row, the best and all tied with it in bold."""
    columns = {}
    for column in layout.columns:
        own = [row.of(column) for row in measured]
        if column.layer:
            columns[column.title] = Ranking(tuple(_best_layer(records, cache) for records in own))
            continue
        cells = tuple(score_cell(cache, records, column.column) if records else Cell() for records in own)
        # Scores under different protocols may share a column, but none of them is marked as better than another.
        protocols = [stored.record.protocol for records in own for stored in records]
        if len({protocol.sha256 for protocol in protocols}) == 1:
            higher = protocols[0].resolved.higher_is_better
            opposite = family_of(protocols[0].resolved.benchmark).opposite
            ranked = rank_rows(cache, own, {column.column: cells}, higher_is_better=higher, opposite=opposite)
            columns[column.title] = ranked[column.column]
        else:
            columns[column.title] = Ranking(cells)
    return columns


def _best_layer(records: Sequence[StoredRecord], cache: ReplicateCache) -> Cell:
    if not records:
        return Cell()
    layers = [c for c in records[0].record.protocol.resolved.columns if c.lower().startswith("feature")]
    return best_layer_cell(layers, {layer: score_cell(cache, records, layer) for layer in layers})


def _differences(
    layout: TableLayout, row: MeasuredRow, own: Sequence[Cell], their: PublishedRow, figures: Sequence[Figure]
) -> tuple[Cell, ...]:
    """The difference in each column, or a text where measured and published protocol differ."""
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
            noise = _noise(cell, _runs(records, column.column), figure, published_std(figure, figures))
            within = noise is not None and abs(cell.value - number) <= TWO_SIDED * noise
            text = f"{gap:+.{figure.decimals}f}"
            cells.append(Cell(gap, text=f"{WITHIN_NOISE} {text}" if within else text))
    return (*cells, Cell(), Cell())


def _same_protocol(figure: Figure, records: Sequence[StoredRecord]) -> bool:
    """Whether intact records are under the figure's protocol, on its own full data set."""
    return all(
        figure.comparable(stored.record.protocol.id) and data_kind(stored.record) == FULL and stored.intact
        for stored in records
    )


def _runs(records: Sequence[StoredRecord], column: str) -> int | None:
    """How many initialisations, or else trials, a measured figure is the mean of; None where that is not known."""
    runs = len(records) if len(records) > 1 else len(records[0].record.trials(column))
    return runs if runs > 1 else None


def _noise(cell: Cell, own_runs: int | None, figure: Figure, published: Figure | None) -> float | None:
    """Standard error of a difference: of the test sample, and of the runs if the figure is a mean of several.

    Published runs of unknown spread are assumed to spread as the measured ones do, and measured runs of unknown
    number to be as many as the published ones.
    """
    variances = [] if cell.error is None else [cell.error**2]
    runs = figure.place.runs if figure.place else None
    if runs is not None and runs > 1:
        theirs = cell.std if published is None or published.number is None else published.number
        variances += [] if theirs is None else [theirs**2 / runs]
        variances += [] if cell.std is None else [cell.std**2 / (own_runs or runs)]
    return sum(variances) ** 0.5 if variances else None


def _protocols(row: MeasuredRow) -> str:
    return ", ".join(dict.fromkeys(stored.record.protocol.id for stored in row.all))


def _size(row: MeasuredRow) -> str:
    """As `50,000 items`; several sizes if the benchmarks differ, and the number of initialisations."""
    sizes = dict.fromkeys(f"{stored.record.dataset.test_items:,} items" for stored in row.all)
    initialisations = max(map(len, row.records.values()))
    return ", ".join([*sizes, *([f"{initialisations} initialisations"] if initialisations > 1 else [])])


def _selections(source: str, published: Sequence[PublishedRow]) -> str:
    """How a source chose the figures of these rows, for its footnote."""
    found = dict.fromkeys(
        f"{figure.place.protocol}: {figure.place.selection}"
        for row in published
        if source in row.sources
        for figure in row.figures.values()
        if figure.place
    )
    return "selection: " + "; ".join(found)


# ---- the encoder and its cost


def _about(entries: Sequence[Entry], weights: Path | None) -> Table:
    """What a reader must know to use the encoder, one column per encoder."""
    about = [_card_texts(entry.cards) for entry in entries]
    if weights is not None:
        with weights.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        text = f"{weights.name}, {weights.stat().st_size / 2**20:.1f} MiB, sha256 {digest}"
        about = [{**texts, "Weights file": text} for texts in about]
    names = [name for name in about[0] if any(texts[name] for texts in about)]
    rows = [Row(name, tuple(Cell(text=texts[name]) for texts in about)) for name in names]
    return Table("", (), ("", *(entry.label for entry in entries)), tuple(rows))


def _card_texts(cards: Sequence[EncoderCard]) -> dict[str, str]:
    """Label -> text; the distinct texts if several initialisations share a column."""
    texts = [
        {
            "Method": card.method or "",
            "Recipe": card.source,
            "Architecture": architecture_text(card.architecture),
            "Pretraining data": card.pretrain_data or "",
            "Pretraining epochs": f"{card.epochs:g}" if card.epochs else "",
            "Pretraining time": f"{card.pretrain_seconds / 3600:.2f} h" if card.pretrain_seconds else "",
            "Initialisation": card.init or "",
            "Embedding": card.embed,
            "Input": _input(card),
            "Assumed, not confirmed": ", ".join(card.assumed),
            "Not shown by the keys": ", ".join(card.not_shown),
            "Licence": card.licence or "",
            "Published as": card.published_as or "",
            "Backbone tensors (sha256)": card.weights_sha256 or "",
        }
        for card in cards
    ]
    return {name: ", ".join(dict.fromkeys(of[name] for of in texts if of[name])) for name in texts[0]}


def _input(card: EncoderCard) -> str:
    mean, std = (", ".join(f"{number:g}" for number in triple) for triple in (card.mean, card.std))
    return f"{card.channels}, white {card.value_range:g}, mean ({mean}), std ({std})"


def _costs(figures: Sequence[Figure]) -> Table | None:
    """Published pretraining costs of the models on this page."""
    prefix = "pretrain_cost"
    found = [figure for figure in figures if figure.benchmark.startswith(prefix)]
    if not found:
        return None
    rows = []
    for figure in found:
        texts = (figure.benchmark.removeprefix(f"{prefix}_"), figure.metric.replace("_", " "))
        cells = (*(Cell(text=text) for text in texts), figure.cell)
        rows.append((figure.model, cells, [figure.source]))
    return sourced_table("Published pretraining cost", ("Model", "Hardware", "Cost", "Value"), rows)


# ---- as a file


def zoo_markdown(page: Page) -> str:
    """As the README of a model zoo."""
    blocks = [f"# {escape_markdown(page.title)}\n"]
    for method in page.methods:
        blocks.append(f"> [{escape_markdown(method.paper)}]({method.link})\n\n{escape_markdown(method.description)}\n")
    blocks += [escape_markdown(line) + "\n" for line in page.lines]
    for part in page.parts:
        blocks.append(f"## {escape_markdown(part.title)}\n")
        blocks += [escape_markdown(line) + "\n" for line in part.lines]
        blocks += [markdown(table) for table in part.tables]
    if page.methods:
        blocks.append("## Citation\n")
        blocks += [f"```bibtex\n{method.bibtex}\n```\n" for method in page.methods]
    return "\n".join(blocks)


def zoo_latex(page: Page) -> str:
    """Every table for LaTeX with booktabs; headings become comments."""
    blocks = [f"% {escape_latex(page.title)}\n"]
    for part in page.parts:
        blocks += [f"% {escape_latex(part.title)}\n", *(latex(table) for table in part.tables)]
    return "\n".join(blocks)


def file_name(source: str) -> str:
    """As `MoCo_v2_page_A` for `MoCo v2 page A (mmselfsup v0.5 README)`."""
    return re.sub(r"[^\w.-]+", "_", source.partition(" (")[0], flags=re.ASCII).strip("._") or "page"
