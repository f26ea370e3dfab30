"""Check the figures of a model-zoo page against the records and published.csv.

The page is markdown, HTML, or plain text whose columns are separated by tabs or blanks. Every table of it is parsed,
its columns and rows are recognised, and each cell is compared with what the sources say of it. A source that prints
another figure is a conflict.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import takewhile
from pathlib import Path
from statistics import fmean

from markdown_it import MarkdownIt
from markdown_it.token import Token

from results.errors import InputError
from results.families import SUMMARY
from results.files import MAX_PAGE, read_text
from results.published import Figure, ModelKey, bare_config, figures, letters, model_key
from results.published_tables import PAGE_TABLES
from results.rows import Entry, data_kinds
from results.store import StoredRecord
from results.tables import GAIN_TITLE, Section, headline

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
    """Check a page.

    Raises:
        InputError: the file is not text with a table.
    """
    try:
        tables = page_tables(read_text(page, MAX_PAGE))
    except FileNotFoundError as error:
        raise InputError(f"page not found: {page}; name a file with tables in markdown, HTML or plain text") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{page} is not UTF-8 text; give the page as markdown, HTML or plain text") from error
    if not tables:
        raise InputError(
            f"{page} has no table\n"
            "tables are read from markdown, HTML, and plain text with tabs or two or more blanks between the columns"
        )
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
    if not verdict.checked:
        lines.append(f"{page}: FAILED: no figure of the page belongs to a known table and a known model or encoder")
    return "\n".join(lines) + "\n"


def _claim_line(word: str, claim: Claim) -> str:
    protocols = ", ".join(sorted(claim.protocols))
    return f"    {word:<4} {claim.text} in {claim.source}" + (f" ({protocols})" if protocols else "")


# ---- the tables of a page


@dataclass(frozen=True)
class PageRow:
    """The plain text of a row's cells, and the row's line in the file, counted from 1."""

    line: int
    cells: tuple[str, ...]


@dataclass(frozen=True)
class PageTable:
    """A table.

    Attributes:
        headings: the headings above it, from the page's title to the nearest.
        context: the paragraphs between the nearest heading and the table.
        titles: what may be its title, the likeliest first.
    """

    headings: tuple[str, ...]
    context: str
    columns: tuple[str, ...]
    rows: tuple[PageRow, ...]
    titles: tuple[str, ...]

    @property
    def title(self) -> str:
        return self.titles[0] if self.titles else ""


def page_tables(text: str) -> list[PageTable]:
    """The tables of a markdown page and those in HTML; without either, those in plain text."""
    is_html = re.match(r"\s*(<!doctype html|<html)", text, re.IGNORECASE) is not None
    found = [] if is_html else markdown_tables(text)
    if "<table" in text.lower():
        found += html_tables(text)
    return found or text_tables(text)


def markdown_tables(text: str) -> list[PageTable]:
    """The markdown tables in their order. An entirely bold paragraph is the lowest heading, as zoo pages use it."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    headings: dict[int, str] = {}
    paragraphs: list[str] = []
    found: list[PageTable] = []
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
            found.append(PageTable(above, "\n".join(paragraphs), header.cells, tuple(rows), above[-1:]))
    return found


def _markdown_rows(tokens: Sequence[Token]) -> Iterator[PageRow]:
    for start, token in enumerate(tokens):
        if token.type == "tr_open":
            row = takewhile(lambda t: t.type != "tr_close", tokens[start:])
            cells = tuple(_plain_text(part) for part in row if part.type == "inline")
            yield PageRow(token.map[0] + 1 if token.map else 0, cells)


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


def html_tables(text: str) -> list[PageTable]:
    """The tables of a web page, or of HTML within markdown, in their order."""
    reader = _HtmlReader()
    reader.feed(text)
    reader.close()
    return reader.tables


class _HtmlReader(HTMLParser):
    """Collects tables with the headings (also markdown's) and paragraphs above them."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[PageTable] = []
        self._headings: dict[int, str] = {}
        self._paragraphs: list[str] = []
        self._caption = ""
        self._rows: list[PageRow] | None = None
        self._cells: list[str] = []
        self._line = 0
        self._text: list[str] | None = None  # of the heading, paragraph, caption or cell that is open
        self._hidden = 0  # open elements whose text is no part of a cell

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in ("sup", "script", "style"):
            self._hidden += 1
        elif tag == "table":
            self._rows, self._caption = [], ""
        elif tag == "tr":
            self._end_cell()
            self._end_row()
            self._line = self.getpos()[0]
        elif tag in ("td", "th"):
            self._end_cell()
            self._text = []
        elif re.fullmatch(r"h[1-6]|p|caption", tag) and self._text is None:
            self._text = []
        elif tag == "br" and self._text is not None:
            self._text.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("sup", "script", "style"):
            self._hidden = max(0, self._hidden - 1)
        elif tag in ("td", "th"):
            self._end_cell()
        elif tag in ("tr", "table"):
            self._end_cell()
            self._end_row()
            if tag == "table":
                self._end_table()
        elif re.fullmatch(r"h[1-6]|p|caption", tag) and self._text is not None and not (self._in_row and tag == "p"):
            words, self._text = _words(self._text), None
            if tag == "p":
                self._paragraphs.append(words)
            elif tag == "caption":
                self._caption = words
            else:
                self._heading(int(tag[1]), words)

    def handle_data(self, data: str) -> None:
        if self._hidden:
            return
        if self._text is not None:
            self._text.append(data)
        elif self._rows is None:
            for heading in re.finditer(r"^(#{1,6}) +(.+?)[ #]*$", data, re.MULTILINE):
                self._heading(len(heading[1]), heading[2])

    @property
    def _in_row(self) -> bool:
        return self._rows is not None and self._line > 0

    def _heading(self, level: int, words: str) -> None:
        self._headings = {depth: title for depth, title in self._headings.items() if depth < level}
        self._headings[level], self._paragraphs = words, []

    def _end_cell(self) -> None:
        if self._in_row and self._text is not None:
            self._cells.append(_words(self._text))
            self._text = None

    def _end_row(self) -> None:
        if self._rows is not None and self._cells:
            self._rows.append(PageRow(self._line, tuple(self._cells)))
        self._cells, self._line = [], 0

    def _end_table(self) -> None:
        rows, self._rows = self._rows or [], None
        above = tuple(title for _, title in sorted(self._headings.items()))
        if len(rows) > 1:
            titles = tuple(title for title in (self._caption, *above[-1:]) if title)
            self.tables.append(PageTable(above, "\n".join(self._paragraphs), rows[0].cells, tuple(rows[1:]), titles))


def _words(parts: Sequence[str]) -> str:
    return " ".join("".join(parts).split())


def text_tables(text: str) -> list[PageTable]:
    """The tables of plain text: neighbouring lines with the same columns, the first of which names them.

    Columns are separated by tabs or by two or more blanks; where the lines then differ in the number of columns, by
    the places at which every line has a blank. Any line above may be a heading.
    """
    found: list[PageTable] = []
    lines_above: list[str] = []
    since_table: list[str] = []
    numbered = [*enumerate(text.splitlines(), start=1), (0, "")]
    block: list[tuple[int, str]] = []
    for number, line in numbered:
        if len(re.split(r"\t| {2,}", line.strip(" "))) > 1:
            block.append((number, line))
            continue
        rows = _text_rows(block)
        if rows:
            titles = tuple(reversed(since_table))
            found.append(PageTable(tuple(lines_above), "\n".join(since_table), rows[0].cells, tuple(rows[1:]), titles))
            since_table = []
        block = []
        if words := " ".join(line.strip("#*= ").split()):
            lines_above.append(words)
            since_table.append(words)
    return found


def _text_rows(block: Sequence[tuple[int, str]]) -> list[PageRow]:
    """The rows of neighbouring lines; none where they have no common columns."""
    if len(block) < 2:
        return []
    lines = [line.rstrip() for _, line in block]
    if any("\t" in line for line in lines):
        cells = [[cell.strip() for cell in line.split("\t")] for line in lines]
    else:
        cells = [re.split(r" {2,}", line.strip()) for line in lines]
    width = len(cells[0])
    if "\t" not in "".join(lines) and any(len(row) != width for row in cells):
        longest = max(map(len, lines))
        blank = [all(line.ljust(longest)[i] == " " for line in lines) for i in range(longest)]
        starts = [i for i in range(longest) if not blank[i] and (i == 0 or blank[i - 1])]
        cells = [
            [line[start:end].strip() for start, end in zip(starts, [*starts[1:], longest], strict=True)]
            for line in lines
        ]
    return [PageRow(number, tuple(row)) for (number, _), row in zip(block, cells, strict=True)]


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
    if figure.place is None or (meaning.protocol and meaning.protocol not in figure.place.protocols):
        return False
    return figure.fills(meaning.benchmark, meaning.column, layer=meaning.layer)


def _published_claim(figure: Figure, about: str = "") -> Claim:
    protocols = frozenset(figure.place.protocols) if figure.place else frozenset()
    return Claim(f"{figure.source}{about}", figure.text, protocols, figure.decimals)


class RecordClaims:
    """The scores of the records, by the row labels of this project's tables."""

    def __init__(self, sections: Sequence[Section]) -> None:
        self.groups = [group for section in sections for group in section.groups if group.records]
        self._entries = [entry for section in sections for entry in section.entries]

    def entries(self, labels: Sequence[str], models: Sequence[ModelKey]) -> list[Entry]:
        """The encoders that a row names, and those whose card says that they are one of the published models."""
        bare = {re.sub(r"(, measured| †|, mean of (\d+ to )?\d+ initialisations)+$", "", label) for label in labels}
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
            values = [value for stored in own if (value := stored.record.value(meaning.column)) is not None]
            if not values or len(values) < len(own):
                continue
            files = own[0].path.name if len(own) == 1 else f"{len(own)} records"
            source = f"{files}: {example.protocol.id} on {data}"
            text = f"{fmean(values):.{RECORD_DECIMALS}f}"
            found.append(Claim(source, text, frozenset((example.protocol.id,)), RECORD_DECIMALS))
        return found


# ---- the cells of a page and the claims about them


def _claimed_cells(
    table: PageTable, published: PublishedClaims, measured: RecordClaims, verdict: Verdict
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


def _column_meanings(table: PageTable, measured: RecordClaims) -> list[list[ColumnMeaning]]:
    """The possible meanings of each column; empty for a column of labels and for every column of an unknown table."""
    for title in table.titles or ("",):
        found = _meanings_under(title, table.columns, measured)
        if any(found):
            return found
    return [[] for _ in table.columns]


def _meanings_under(title: str, columns: Sequence[str], measured: RecordClaims) -> list[list[ColumnMeaning]]:
    """The possible meanings of each column of a table of this title."""
    known: dict[str, list[ColumnMeaning]] = {}
    title = letters(title)
    for group in measured.groups:
        benchmark, data, protocol = (
            group.protocol.benchmark,
            group.example.dataset.shown_name,
            group.example.protocol.id,
        )
        if title in {letters(group.title), *(letters(group.title_of(part)) for part in group.parts)}:
            for column in group.columns:
                known.setdefault(letters(column), []).append(ColumnMeaning(benchmark, column, data, protocol))
        # The columns of the summary name their benchmark, so it may have any title.
        if benchmark in SUMMARY and title != letters(GAIN_TITLE):
            meaning = ColumnMeaning(benchmark, group.protocol.primary, data, protocol)
            known.setdefault(letters(headline(group)), []).append(meaning)
    datasets = {group.example.dataset.shown_name for group in measured.groups}
    for layout in PAGE_TABLES:
        embedded = [dataset for dataset in datasets if letters(f"{layout.task}: {dataset}") == title]
        if letters(layout.title) == title or embedded:
            for shown in layout.columns:
                meaning = ColumnMeaning(
                    shown.benchmark, shown.column, embedded[0] if embedded else "", layer=shown.layer
                )
                known.setdefault(letters(shown.title), []).append(meaning)
    return [known.get(letters(column), []) for column in columns]


def _narrowed(meanings: Sequence[ColumnMeaning], table: PageTable, labels: Sequence[str]) -> Sequence[ColumnMeaning]:
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
