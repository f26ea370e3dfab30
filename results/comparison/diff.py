"""Two encoders, or one under two commits, column by column: the difference, its interval, and what to think of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from results.errors import InputError
from results.resampling.bootstrap import CONFIDENCE
from results.store import StoredRecord
from results.tables.cells import Cell, Row, Table
from results.tables.groups import Group, grouped
from results.tables.noise import Difference, difference
from results.tables.replicates import ReplicateCache
from results.tables.roster import identity, roster
from results.tables.sections import score_cell

DIFF_LINE = (
    f"A minus B, with the {CONFIDENCE:.0%} interval of a paired bootstrap over the sources of the test items (both "
    "sides see the same resamples); where both have several runs or sets of labels, their spread is in it. Several "
    "encoders on one side count with their mean."
)


@dataclass(frozen=True)
class Side:
    """What `NAME` or `NAME@COMMIT` stands for: the newest record of each encoder, protocol and data set."""

    text: str
    records: tuple[StoredRecord, ...]


def side(records: Sequence[StoredRecord], text: str) -> Side:
    """The successful records of the encoders that a name, a label or a pattern means, of one commit if it says so.

    Raises:
        InputError: there are none.
    """
    successes = [stored for stored in records if stored.record.status == "ok"]
    labels = {identity(card): entry.label for entry in roster(successes) for card in entry.cards}
    name, commit = _split(text, successes)
    newest: dict[tuple[object, ...], StoredRecord] = {}
    for stored in sorted(successes, key=lambda s: (s.record.created, s.path)):
        record = stored.record
        names = {record.encoder.name, labels[identity(record.encoder)]}
        if name not in names and not any(fnmatchcase(known, name) for known in names):
            continue
        if commit and not (record.commit or "").startswith(commit):
            continue
        asked = record.protocol.id, record.protocol.sha256, record.dataset.id, record.dataset.fingerprint
        newest[*identity(record.encoder), *asked] = stored
    if not newest:
        known = ", ".join(sorted({*labels.values()})) or "none"
        at = f" at commit {commit}" if commit else ""
        raise InputError(f"no encoder matches {name!r}{at}; the records hold {known}")
    return Side(text, tuple(newest.values()))


def diff(a: Side, b: Side, benchmarks: Sequence[str] = ("*",)) -> list[tuple[bool, Table]]:
    """A table each of the embedded and the full data sets (True, False), where both sides have a protocol in common.

    A side's outcomes are paired with the other's item by item, and the rows of different protocols or versions of the
    data are never set against each other.
    """
    tables = []
    for embedded in (True, False):
        ours, theirs = (_groups(records.records, embedded, benchmarks) for records in (a, b))
        rows = [row for key in ours if key in theirs for row in _rows(ours[key], theirs[key])]
        alone = [
            f"Only {text}: {one[key].example.protocol.id} on {one[key].example.dataset.id}"
            for text, one, other in ((a.text, ours, theirs), (b.text, theirs, ours))
            for key in one
            if key not in other
        ]
        if rows:
            columns = ("Protocol", "Data", "Column", "A", "B", "A - B", "Verdict", "Items", "Sources")
            title = f"A: {a.text}, B: {b.text}"
            tables.append((embedded, Table(title, (DIFF_LINE,), columns, tuple(rows), notes=tuple(alone))))
    return tables


def verdict(found: Difference | None, *, higher_is_better: bool) -> str:
    """In a word."""
    if found is None:
        return "not known: no outcomes per item in common, and no runs"
    if not found.beyond_noise:
        return "within the noise"
    return "A is better" if (found.value > 0) == higher_is_better else "B is better"


def interval_text(found: Difference | None, decimals: int) -> str:
    """As `+15.9 [+9.5, +23.3]`."""
    if found is None:
        return ""
    value, low, high = (f"{number:+.{decimals}f}" for number in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]"


def _split(text: str, records: Iterable[StoredRecord]) -> tuple[str, str]:
    """`NAME@COMMIT` into its parts, where a record knows the commit; a name may have an @ in it."""
    name, at, commit = text.rpartition("@")
    known = any((stored.record.commit or "").startswith(commit) for stored in records)
    if at and re.fullmatch(r"[0-9a-f]{4,40}", commit) and known:
        return name, commit
    return text, ""


def _groups(records: Sequence[StoredRecord], embedded: bool, benchmarks: Sequence[str]) -> dict[tuple[str, ...], Group]:
    wanted = [
        stored
        for stored in records
        if stored.record.dataset.embedded == embedded
        and any(fnmatchcase(n, p) for n in _benchmark_names(stored) for p in benchmarks)
    ]
    found: dict[tuple[str, ...], Group] = {}
    for group in grouped(wanted, []):
        record = group.example
        found[record.protocol.id, record.protocol.resolved.content_sha256(), record.dataset.fingerprint] = group
    return found


def _benchmark_names(stored: StoredRecord) -> tuple[str, str]:
    return stored.record.protocol.id, stored.record.protocol.resolved.benchmark


def _rows(ours: Group, theirs: Group) -> list[Row]:
    cache, rows = ReplicateCache(), []
    for column in ours.columns:
        cells = [score_cell(cache, group.records, column) for group in (ours, theirs)]
        if any(cell.value is None for cell in cells):
            continue
        found = difference(cache, ours.records, theirs.records, column)
        decimals = ours.decimals
        gap_value = (cells[0].value or 0.0) - (cells[1].value or 0.0)
        gap = f"{gap_value:+.{decimals}f}" if found is None else interval_text(found, decimals)
        texts = (
            ours.example.dataset.id,
            column,
            *(f"{cell.value:.{decimals}f}" for cell in cells),
            gap,
            verdict(found, higher_is_better=ours.protocol.higher_is_better),
            f"{found.items:,}" if found and found.items else "",
            f"{found.sources:,}" if found and found.sources else "",
        )
        numbers = {2: cells[0].value, 3: cells[1].value, 4: gap_value}
        filled = tuple(Cell(numbers.get(i), text=text) for i, text in enumerate(texts))
        rows.append(Row(ours.example.protocol.id, filled))
    return rows
