"""A page's cells against the claims of all sources."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from results.lint.claims import Claim, Place, PublishedClaims, RecordClaims, headline_places, number
from results.lint.page_tables import PageRow, PageTable
from results.pages.page_layout import PAGE
from results.published.models import letters


@dataclass(frozen=True)
class Conflict:
    """One cell that a source contradicts.

    Attributes:
        against: sources that print another figure, or the same one in another column.
        agreeing: sources that print what the page prints.
        note: what else is known of it.
    """

    line: int
    table: str
    row: str
    column: str
    printed: str
    against: tuple[Claim, ...]
    agreeing: tuple[Claim, ...]
    note: str = ""


@dataclass
class Verdict:
    """What a page's check found.

    Attributes:
        unknown: tables and rows that nothing here knows, as one line each.
        unsupported: cells of known tables and rows that no source speaks of.
    """

    checked: int = 0
    conflicts: list[Conflict] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    unsupported: int = 0


@dataclass(frozen=True)
class _Cell:
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
    def against(self) -> tuple[Claim, ...]:
        """Those that say otherwise, of the protocol that the page's figure is under as far as that can be told."""
        agreeing = self.agreeing
        protocols = frozenset[str]().union(*(claim.protocols for claim in agreeing))
        return tuple(c for c in self.claims if c not in agreeing and (not agreeing or c.protocols & protocols))


def check(tables: Sequence[PageTable], published: PublishedClaims, records: RecordClaims) -> Verdict:
    """Every cell of the tables that can be recognised."""
    verdict = Verdict()
    cells: list[_Cell] = []
    for table in tables:
        places = _places(table, records)
        if any(places):
            for row in table.rows:
                cells += _of_row(table, row, places, published, records, verdict)
        elif any(number(cell) is not None for row in table.rows for cell in row.cells[1:]):
            verdict.unknown.append(
                f"line {table.rows[0].line}: no table {table.title!r} with such columns is known here"
            )
    for cell in cells:
        if not cell.claims and not cell.elsewhere:
            verdict.unsupported += 1
            continue
        verdict.checked += 1
        if cell.against:
            verdict.conflicts.append(_conflict(cell, cell.against, _mixed(cell, cells)))
        elif cell.elsewhere and not cell.agreeing:
            verdict.conflicts.append(_conflict(cell, cell.elsewhere, "the same figure stands in another column there"))
    return verdict


def _of_row(
    table: PageTable,
    row: PageRow,
    places: Sequence[Sequence[Place]],
    published: PublishedClaims,
    records: RecordClaims,
    verdict: Verdict,
) -> Iterator[_Cell]:
    labels = [cell for cell, place in zip(row.cells, places, strict=False) if not place]
    if not labels or labels[0].endswith("difference"):  # of two rows that are checked themselves
        return
    models = published.models(labels, table.headings)
    entries = records.entries(labels, models)
    if not models and not entries:
        verdict.unknown.append(f"line {row.line}: no model or encoder {labels[0]!r} is known here")
        return
    for column, printed, possible in zip(table.columns, row.cells, places, strict=False):
        if not printed or not possible:
            continue
        narrowed = _narrowed(possible, table, labels)
        claims = [claim for place in narrowed for model in models for claim in published.of(model, place)]
        claims += [claim for place in narrowed for entry in entries for claim in records.of(entry, place)]
        elsewhere = [c for place in narrowed for model in models for c in published.elsewhere(model, place, printed)]
        yield _Cell(row.line, table.title, labels[0], column, printed, tuple(dict.fromkeys(claims)), tuple(elsewhere))


def _places(table: PageTable, records: RecordClaims) -> list[list[Place]]:
    """What each column may hold; nothing for columns of labels, and for every column of a table that is not known."""
    known: dict[str, list[Place]] = {}
    title = letters(table.title)
    groups = [group for group in records.groups if letters(group.title) == title]
    for group in groups:
        for column in group.columns:
            place = Place(group.protocol.benchmark, column, group.example.dataset.id, group.example.protocol.id)
            known.setdefault(letters(column), []).append(place)
    if title == "summary":
        for name, places in headline_places(records.groups).items():
            known.setdefault(letters(name), []).extend(places)
    data = {group.example.dataset.id for group in records.groups}
    for layout in PAGE:
        small = [dataset for dataset in data if letters(f"{layout.task}: {dataset}") == title]
        if letters(layout.title) == title or small:
            for shown in layout.columns:
                held = Place(shown.benchmark, shown.column, small[0] if small else "", layer=shown.layer)
                known.setdefault(letters(shown.title), []).append(held)
    return [known.get(letters(column), []) for column in table.columns]


def _narrowed(places: Sequence[Place], table: PageTable, labels: Sequence[str]) -> list[Place]:
    """Those whose protocol the row or the lines above the table name, where they name one."""
    said = "\n".join((*labels, table.context))
    named = [place for place in places if place.protocol and f"{place.protocol} " in f"{said} "]
    return named or list(places)


def _conflict(cell: _Cell, against: tuple[Claim, ...], note: str) -> Conflict:
    return Conflict(cell.line, cell.table, cell.row, cell.column, cell.printed, against, cell.agreeing, note)


def _mixed(cell: _Cell, cells: Sequence[_Cell]) -> str:
    """A source that contradicts one figure and confirms the model's others tells of another checkpoint, or a slip."""
    sources = {claim.source for claim in cell.against}
    others = [other for other in cells if other is not cell and other.row == cell.row]
    same = sum(any(claim.source in sources for claim in other.agreeing) for other in others)
    if same < 2 or not cell.agreeing:
        return ""
    return f"{same} other figures of this row's model are the same in both: one table may mix two checkpoints"
