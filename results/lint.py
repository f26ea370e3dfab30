"""Check the figures of a model-zoo page, a markdown file, against the records and published.csv.

Every table of the page is parsed, its columns and rows are recognised, and each cell is compared with what the sources
say of it. A source that prints another figure is a conflict.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from statistics import fmean

from markdown_it import MarkdownIt
from markdown_it.token import Token

from results.errors import InputError
from results.families import SUMMARY
from results.published import Figure, ModelKey, bare_config, figures, letters, model_key
from results.rows import Entry, data_kinds
from results.store import StoredRecord
from results.tables import Section, headline
from results.zoo_layout import LAYOUTS

RECORD_DECIMALS = 4  # of a record's score as a claim: more than any page prints


@dataclass(frozen=True)
class PageCell:
    """A cell of a page, and what the sources say about it.

    Attributes:
        claims: the sources' values of this cell.
        elsewhere: sources with the same figure in another column.
    """

    line: int
    table: str
    row: str
    column: str
    printed: str
    claims: tuple[Claim, ...] = ()
    elsewhere: tuple[Claim, ...] = ()

    @property
    def agreeing(self) -> tuple[Claim, ...]:
        return tuple(claim for claim in self.claims if claim.agrees(self.printed))

    @property
    def contradicting(self) -> tuple[Claim, ...]:
        """Other values under the page's protocol, which is that of the agreeing claims; under any if none agrees."""
        agreeing = self.agreeing
        protocols = frozenset[str]().union(*(claim.protocols for claim in agreeing))
        return tuple(c for c in self.claims if c not in agreeing and (not agreeing or c.protocols & protocols))


@dataclass(frozen=True)
class Conflict:
    """A cell, the claims against it (another figure, or the same figure in another column), and a possible cause."""

    cell: PageCell
    against: tuple[Claim, ...]
    note: str = ""


@dataclass
class Verdict:
    """Result of checking a page.

    Attributes:
        checked: number of cells with at least one claim.
        unknown: tables and rows that were not recognised, one sentence each.
        unsupported: number of cells in recognised tables and rows without any claim.
    """

    checked: int = 0
    conflicts: list[Conflict] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    unsupported: int = 0


def lint(page: Path, records: Sequence[StoredRecord]) -> Verdict:
    """Check a markdown page.

    Raises:
        InputError: the file is not markdown with a table.
    """
    try:
        tables = markdown_tables(page.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{page} is not UTF-8 text; give the markdown source of the page") from error
    if not tables:
        raise InputError(f"{page} has no markdown table; give the markdown source of the page, not its HTML")
    published = PublishedClaims(figures())
    measured = RecordClaims([Section(records, kind) for kind in data_kinds(records)])
    verdict = Verdict()
    cells = [cell for table in tables for cell in _claimed_cells(table, published, measured, verdict)]
    for cell in cells:
        if not cell.claims and not cell.elsewhere:
            verdict.unsupported += 1
            continue
        verdict.checked += 1
        if cell.contradicting:
            verdict.conflicts.append(Conflict(cell, cell.contradicting, _mixed_checkpoints(cell, cells)))
        elif cell.elsewhere and not cell.agreeing:
            verdict.conflicts.append(Conflict(cell, cell.elsewhere, "the source has this figure in another column"))
    return verdict


def verdict_text(page: Path, verdict: Verdict) -> str:
    """The conflicts with the claims of both sides, then what was not checked, then the totals."""
    lines = []
    for conflict in verdict.conflicts:
        cell = conflict.cell
        lines.append(f"{page}:{cell.line}: {cell.table}, {cell.row}, {cell.column}: the page says {cell.printed}")
        lines += [_claim_line("but", claim) for claim in conflict.against]
        lines += [_claim_line("also", claim) for claim in cell.agreeing]
        lines += [f"    note: {conflict.note}"] if conflict.note else []
    lines += [f"{page}: not checked: {unknown}" for unknown in verdict.unknown]
    total = f"{page}: {verdict.checked} figures checked, {len(verdict.conflicts)} in conflict"
    lines.append(total + (f", {verdict.unsupported} without any source" if verdict.unsupported else ""))
    return "\n".join(lines) + "\n"


def _claim_line(word: str, claim: Claim) -> str:
    protocols = ", ".join(sorted(claim.protocols))
    return f"    {word:<4} {claim.text} in {claim.source}" + (f" ({protocols})" if protocols else "")


# ---- the tables of a markdown page


@dataclass(frozen=True)
class MarkdownRow:
    """The plain text of a row's cells, and the row's line in the file, counted from 1."""

    line: int
    cells: tuple[str, ...]


@dataclass(frozen=True)
class MarkdownTable:
    """A table.

    Attributes:
        headings: the headings above it, from the page's title to the nearest.
        context: the paragraphs between the nearest heading and the table.
    """

    headings: tuple[str, ...]
    context: str
    columns: tuple[str, ...]
    rows: tuple[MarkdownRow, ...]

    @property
    def title(self) -> str:
        return self.headings[-1] if self.headings else ""


def markdown_tables(text: str) -> list[MarkdownTable]:
    """The tables in their order. An entirely bold paragraph counts as the lowest heading, as zoo pages use it."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    headings: dict[int, str] = {}
    paragraphs: list[str] = []
    found: list[MarkdownTable] = []
    for i, token in enumerate(tokens):
        if token.type == "heading_open":
            level = int(token.tag[1:])
            headings = {depth: title for depth, title in headings.items() if depth < level}
            headings[level], paragraphs = _plain_text(tokens[i + 1]), []
        elif token.type == "paragraph_open" and tokens[i + 1].type == "inline":
            words = _plain_text(tokens[i + 1])
            if _is_bold(tokens[i + 1]):
                headings[7], paragraphs = words, []
            else:
                paragraphs.append(words)
        elif token.type == "table_open":
            header, *rows = _markdown_rows(list(takewhile(lambda t: t.type != "table_close", tokens[i:])))
            above = tuple(title for _, title in sorted(headings.items()))
            found.append(MarkdownTable(above, "\n".join(paragraphs), header.cells, tuple(rows)))
    return found


def _markdown_rows(tokens: Sequence[Token]) -> Iterator[MarkdownRow]:
    for start, token in enumerate(tokens):
        if token.type == "tr_open":
            row = takewhile(lambda t: t.type != "tr_close", tokens[start:])
            cells = tuple(_plain_text(part) for part in row if part.type == "inline")
            yield MarkdownRow(token.map[0] + 1 if token.map else 0, cells)


def _plain_text(inline: Token) -> str:
    """Text without links, emphasis and footnote marks (`<sup>` and its content)."""
    words, raised = [], False
    for child in inline.children or ():
        if child.type == "html_inline" and child.content.startswith(("<sup", "</sup")):
            raised = child.content.startswith("<sup")
        elif not raised and child.type in ("text", "code_inline", "text_special"):
            words.append(child.content)
        elif child.type in ("softbreak", "hardbreak"):
            words.append(" ")
    return " ".join("".join(words).split())


def _is_bold(inline: Token) -> bool:
    kinds = [child.type for child in inline.children or () if child.content.strip() or child.type != "text"]
    return len(kinds) > 2 and kinds[0] == "strong_open" and kinds[-1] == "strong_close" and kinds.count(kinds[0]) == 1


# ---- what the sources claim


@dataclass(frozen=True)
class ColumnMeaning:
    """What a column of a page may hold: a column of a benchmark; data set and protocol if the page names them.

    Attributes:
        layer: the cells name the layer that gave the best score, not the score.
    """

    benchmark: str
    column: str
    dataset: str = ""
    protocol: str = ""
    layer: bool = False


@dataclass(frozen=True)
class Claim:
    """The value that one source has for a cell.

    Attributes:
        protocols: ids of the protocol it was measured under, and of those that differ from it only in their name.
        decimals: number of decimals to which the value is known.
    """

    source: str
    text: str
    protocols: frozenset[str]
    decimals: int

    def agrees(self, printed: str) -> bool:
        """Whether a printed value is the same, to the precision of the coarser of the two."""
        ours, theirs = first_number(self.text), first_number(printed)
        if ours is None or theirs is None:
            return letters(self.text).removeprefix("feature") == letters(printed).removeprefix("feature")
        printed_decimals = re.search(r"\d\.(\d+)", printed)
        coarser = min(self.decimals, len(printed_decimals[1]) if printed_decimals else 0)
        return abs(ours - theirs) <= 0.5 * 10.0**-coarser * (1 + 1e-9)


def first_number(text: str) -> float | None:
    """44.1 for the cell `**44.1 ± 3.3** (std 1.2)`; None for a text that does not start with a number."""
    found = re.match(r"[≈\s]*([-+]?\d+(?:\.\d+)?)(?=$|[\s±(%])", text.strip("* "))
    return float(found[1]) if found else None


class PublishedClaims:
    """The figures of published.csv, by model."""

    def __init__(self, published: Iterable[Figure]) -> None:
        self._by_model: dict[ModelKey, list[Figure]] = {}
        for figure in published:
            self._by_model.setdefault(model_key(figure.model), []).append(figure)
        self._methods = sorted({key.method for key in self._by_model}, key=len, reverse=True)  # the longest match wins

    def models(self, labels: Sequence[str], headings: Sequence[str]) -> list[ModelKey]:
        """The published models that the labels of a row may mean.

        A configuration without a method belongs to the method that the row names, or else to that of the nearest
        heading with one.
        """
        named = [key for label in labels if (key := model_key(label)) in self._by_model]
        if named:
            return named
        for text in (letters(text) for text in (*labels, *reversed(headings))):
            for method in self._methods:
                if not text.startswith(method):
                    continue
                keys = [ModelKey(method, bare_config(label, method)) for label in labels]
                if found := [key for key in keys if key.config and key in self._by_model]:
                    return found
        return []

    def of(self, model: ModelKey, meaning: ColumnMeaning) -> list[Claim]:
        """What the sources print for a model in a column."""
        return [_published_claim(figure) for figure in self._by_model[model] if _belongs(figure, meaning)]

    def elsewhere(self, model: ModelKey, meaning: ColumnMeaning, printed: str) -> list[Claim]:
        """Sources with the same text, of two decimals or more, in another column of a related benchmark."""
        family = meaning.benchmark.partition("_")[0]
        return [
            _published_claim(figure, f", {figure.place.column}")
            for figure in self._by_model[model]
            if figure.place is not None
            and figure.text == printed
            and figure.decimals > 1
            and figure.place.benchmark.startswith(family)
            and not _belongs(figure, meaning)
        ]


def _belongs(figure: Figure, meaning: ColumnMeaning) -> bool:
    place = figure.place
    if place is None or (place.benchmark, place.column) != (meaning.benchmark, meaning.column):
        return False
    if meaning.protocol and meaning.protocol not in (place.protocol, *place.same_as):
        return False
    return place.statistic == "layer" if meaning.layer else place.statistic in ("value", "mean")


def _published_claim(figure: Figure, about: str = "") -> Claim:
    place = figure.place
    protocols = frozenset((place.protocol, *place.same_as)) if place else frozenset()
    return Claim(f"{figure.source}{about}", figure.text, protocols, figure.decimals)


class RecordClaims:
    """The scores of the records, by the row labels of this project's tables."""

    def __init__(self, sections: Sequence[Section]) -> None:
        self.groups = [group for section in sections for group in section.groups if group.records]
        self._entries = [entry for section in sections for entry in section.entries]

    def entries(self, labels: Sequence[str], models: Sequence[ModelKey]) -> list[Entry]:
        """The encoders that a row names, and those whose card says that they are one of the published models."""
        bare = {re.sub(r"(, measured| †|, mean of \d+ initialisations)+$", "", label) for label in labels}
        return [
            entry
            for entry in self._entries
            if entry.label in bare
            or any(card.published_as and model_key(card.published_as) in models for card in entry.cards)
        ]

    def of(self, entry: Entry, meaning: ColumnMeaning) -> list[Claim]:
        """The encoder's scores in a column, under each protocol and data set that the page may mean."""
        found: list[Claim] = []
        for group in self.groups if not meaning.layer else ():
            example = group.example
            if example.protocol.resolved.benchmark != meaning.benchmark:
                continue
            data = example.dataset.shown_name
            if meaning.dataset not in ("", data) or meaning.protocol not in ("", example.protocol.id):
                continue
            own = [stored for stored in entry.records(group.records) if stored.intact]
            scores = [stored.record.scores.get(meaning.column) for stored in own]
            values = [score.value for score in scores if score is not None and score.value is not None]
            if not values or len(values) < len(own):
                continue
            files = own[0].path.name if len(own) == 1 else f"{len(own)} records"
            source = f"{files}: {example.protocol.id} on {data}"
            text = f"{fmean(values):.{RECORD_DECIMALS}f}"
            found.append(Claim(source, text, frozenset((example.protocol.id,)), RECORD_DECIMALS))
        return found


# ---- the cells of a page and the claims about them


def _claimed_cells(
    table: MarkdownTable, published: PublishedClaims, measured: RecordClaims, verdict: Verdict
) -> Iterator[PageCell]:
    """The cells of a table's recognised rows and columns; what is not recognised is noted in the verdict."""
    meanings = _column_meanings(table, measured)
    if not any(meanings):
        if any(first_number(cell) is not None for row in table.rows for cell in row.cells[1:]):
            line = table.rows[0].line
            verdict.unknown.append(f"line {line}: the table {table.title!r} has none of the columns that are known")
        return
    for row in table.rows:
        labels = [cell for cell, possible in zip(row.cells, meanings, strict=False) if not possible]
        if not labels or labels[0].endswith("difference"):  # the two rows it compares are checked themselves
            continue
        models = published.models(labels, table.headings)
        entries = measured.entries(labels, models)
        if not models and not entries:
            verdict.unknown.append(f"line {row.line}: {labels[0]!r} is not a known model or encoder")
            continue
        for column, printed, possible in zip(table.columns, row.cells, meanings, strict=False):
            if not printed or not possible:
                continue
            meant = _narrowed(possible, table, labels)
            claims = [claim for meaning in meant for model in models for claim in published.of(model, meaning)]
            claims += [claim for meaning in meant for entry in entries for claim in measured.of(entry, meaning)]
            elsewhere = [
                c for meaning in meant for model in models for c in published.elsewhere(model, meaning, printed)
            ]
            yield PageCell(
                row.line, table.title, labels[0], column, printed, tuple(dict.fromkeys(claims)), tuple(elsewhere)
            )


def _column_meanings(table: MarkdownTable, measured: RecordClaims) -> list[list[ColumnMeaning]]:
    """The possible meanings of each column; empty for a column of labels and for every column of an unknown table."""
    known: dict[str, list[ColumnMeaning]] = {}
    title = letters(table.title)
    for group in measured.groups:
        benchmark, data, protocol = (
            group.protocol.benchmark,
            group.example.dataset.shown_name,
            group.example.protocol.id,
        )
        if letters(group.title) == title:
            for column in group.columns:
                known.setdefault(letters(column), []).append(ColumnMeaning(benchmark, column, data, protocol))
        if title == "summary" and benchmark in SUMMARY:
            meaning = ColumnMeaning(benchmark, group.protocol.primary, data, protocol)
            known.setdefault(letters(headline(group)), []).append(meaning)
    datasets = {group.example.dataset.shown_name for group in measured.groups}
    for layout in LAYOUTS:
        embedded = [dataset for dataset in datasets if letters(f"{layout.task}: {dataset}") == title]
        if letters(layout.title) == title or embedded:
            for shown in layout.columns:
                meaning = ColumnMeaning(
                    shown.benchmark, shown.column, embedded[0] if embedded else "", layer=shown.layer
                )
                known.setdefault(letters(shown.title), []).append(meaning)
    return [known.get(letters(column), []) for column in table.columns]


def _narrowed(
    meanings: Sequence[ColumnMeaning], table: MarkdownTable, labels: Sequence[str]
) -> Sequence[ColumnMeaning]:
    """The meanings whose protocol is named in the row or above the table; all of them if none is named."""
    said = "\n".join((*labels, table.context))
    named = [meaning for meaning in meanings if meaning.protocol and f"{meaning.protocol} " in f"{said} "]
    return named or meanings


def _mixed_checkpoints(cell: PageCell, cells: Sequence[PageCell]) -> str:
    """A note if the contradicting source confirms the other figures of the row: two checkpoints, or a slip."""
    sources = {claim.source for claim in cell.contradicting}
    others = [other for other in cells if other is not cell and other.row == cell.row]
    same = sum(any(claim.source in sources for claim in other.agreeing) for other in others)
    if same < 2 or not cell.agreeing:
        return ""
    return f"{same} other figures of this row agree in both sources, so one of them may mix two checkpoints"
