"""Compare two encoders, or one encoder at two commits, column by column, with intervals and verdicts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from results.bootstrap import CONFIDENCE
from results.errors import InputError
from results.families import family_of
from results.formats import Cell, Row, Table, with_interval
from results.noise import Difference, ReplicateCache, difference
from results.rows import (
    DataKind,
    Group,
    architecture_text,
    data_kind,
    data_kinds,
    encoder_names,
    grouped,
    identity,
    refuse_ambiguous,
)
from results.store import StoredRecord
from results.tables import score_cell

DIFF_LINE = (
    f"A minus B, with the {CONFIDENCE:.0%} interval of a paired bootstrap over the sources of the test items: both "
    "sides are compared on the same resamples. Where both sides have several runs or drawn sets of labels, the "
    "interval includes their spread. Several encoders on one side are averaged."
)
COLUMNS = ("Protocol", "Data", "Column", "A", "B", "A - B", "Verdict", "Items", "Sources")


@dataclass(frozen=True)
class Side:
    """The records that `NAME` or `NAME@COMMIT` stands for: the newest of each encoder, protocol and data set."""

    text: str
    records: tuple[StoredRecord, ...]


def side(records: Sequence[StoredRecord], text: str) -> Side:
    """Select the successful records of the encoders that match a name, a row label or a pattern.

    Args:
        text: `NAME`, or `NAME@COMMIT` for the records of one commit only.

    Raises:
        InputError: no record matches, or those that match are of encoders that must not be averaged.
    """
    successes = [stored for stored in records if stored.record.status == "ok"]
    name, commit = _split(text, successes)
    among = [stored for stored in successes if (stored.record.commit or "").startswith(commit)]
    names = encoder_names(among)
    newest: dict[tuple[object, ...], StoredRecord] = {}
    for stored in sorted(among, key=lambda s: (s.record.created, s.path)):
        record = stored.record
        own = names[identity(record.encoder)]
        if name not in own and not any(fnmatchcase(known, name) for known in own):
            continue
        asked = record.protocol.id, record.protocol.sha256, record.dataset.id, record.dataset.fingerprint
        newest[*identity(record.encoder), *asked] = stored
    if not newest:
        known = ", ".join(sorted({of[-1] for of in encoder_names(successes).values()})) or "none"
        at = f" at commit {commit}" if commit else ""
        raise InputError(f"no encoder matches {name!r}{at}; the records hold {known}")
    refuse_ambiguous(among, [name])
    found = {stored.record.encoder.architecture for stored in newest.values()}
    if len(found) > 1:
        texts = ", ".join(sorted(map(architecture_text, found)))
        raise InputError(f"{name!r} matches encoders of several architectures, which are never averaged: {texts}")
    return Side(text, tuple(newest.values()))


def _split(text: str, records: Iterable[StoredRecord]) -> tuple[str, str]:
    """Split `NAME@COMMIT` where a record has this commit; elsewhere the @ belongs to the name."""
    name, at, commit = text.rpartition("@")
    known = any((stored.record.commit or "").startswith(commit) for stored in records)
    if at and re.fullmatch(r"[0-9a-f]{4,40}", commit) and known:
        return name, commit
    return text, ""


def diff(a: Side, b: Side, benchmarks: Sequence[str] = ("*",)) -> list[tuple[DataKind, Table]]:
    """One table for each kind of data on which both sides share a protocol.

    Scores are compared only under the same protocol on the same version of the data.

    Args:
        benchmarks: patterns of benchmark names or protocol ids.
    """
    tables = []
    for kind in data_kinds([*a.records, *b.records]):
        ours, theirs = (_groups(one.records, kind, benchmarks) for one in (a, b))
        cache = ReplicateCache()
        rows = [row for key in ours if key in theirs for row in _rows(cache, ours[key], theirs[key])]
        notes = [
            f"Only {text}: {one[key].example.protocol.id} on {one[key].example.dataset.shown_name}"
            for text, one, other in ((a.text, ours, theirs), (b.text, theirs, ours))
            for key in one
            if key not in other
        ]
        if rows:
            title = f"A: {a.text}, B: {b.text}"
            tables.append((kind, Table(title, (DIFF_LINE,), COLUMNS, tuple(rows), notes=tuple(notes))))
    return tables


def _groups(records: Sequence[StoredRecord], kind: DataKind, benchmarks: Sequence[str]) -> dict[tuple[str, ...], Group]:
    selected = [
        stored
        for stored in records
        if data_kind(stored.record) == kind
        and any(
            fnmatchcase(name, pattern)
            for name in (stored.record.protocol.id, stored.record.protocol.resolved.benchmark)
            for pattern in benchmarks
        )
    ]
    return {
        (g.example.protocol.id, g.protocol.content_sha256(), g.example.dataset.fingerprint): g
        for g in grouped(selected, [])
    }


def _rows(cache: ReplicateCache, ours: Group, theirs: Group) -> list[Row]:
    rows, decimals = [], ours.decimals
    opposite = family_of(ours.protocol.benchmark).opposite
    for column in ours.columns:
        a, b = (score_cell(cache, group.records, column).value for group in (ours, theirs))
        if a is None or b is None:
            continue
        found = difference(cache, ours.records, theirs.records, column)
        low, high = (None, None) if found is None else (found.low, found.high)
        gap = with_interval(a - b if found is None else found.value, low, high, decimals)
        cells = (
            Cell(text=ours.example.dataset.shown_name),
            Cell(text=column),
            Cell(a, text=f"{a:.{decimals}f}"),
            Cell(b, text=f"{b:.{decimals}f}"),
            Cell(a - b, text=gap),
            Cell(text=verdict(found, higher_is_better=ours.protocol.higher_is_better != (column in opposite))),
            Cell(text=f"{found.items:,}" if found and found.items else ""),
            Cell(text=f"{found.sources:,}" if found and found.sources else ""),
        )
        rows.append(Row(ours.example.protocol.id, cells))
    return rows


def verdict(found: Difference | None, *, higher_is_better: bool) -> str:
    """Which side is better beyond the noise, in words."""
    if found is None:
        return "unknown: no outcomes per item in common, and no repeated runs"
    if not found.beyond_noise:
        return "within the noise"
    return "A is better" if (found.value > 0) == higher_is_better else "B is better"
