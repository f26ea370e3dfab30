"""Paired comparisons: pretrained encoders against their own random initialisation, or any two."""

from __future__ import annotations

from fnmatch import fnmatchcase

from results.bootstrap import CONFIDENCE, Gain
from results.groups import Group
from results.store import RecordsError, StoredRecord
from results.tables import Cell, Row, Section, Table, headline

PAIRED_LINE = (
    f"In percentage points, with the {CONFIDENCE:.0%} interval of a paired bootstrap over the sources of the test "
    "items: both sides see the same resamples. Initialisations are averaged; their spread is not in the interval."
)


def gain_over_random(section: Section) -> Table | None:
    """Every trained encoder against the random initialisations of its architecture; None without such a pair."""
    groups = section.headline_groups()
    rows, sizes = [], [""] * len(groups)
    for entry in section.entries:
        for control in section.entries:
            if entry.random or not control.random or control.architecture != entry.architecture:
                continue
            gains = [
                section.cache.gain(entry.records(group.records), control.records(group.records), group.protocol.primary)
                for group in groups
            ]
            for i, gain in enumerate(gains):
                if gain is not None:
                    sizes[i] = f"{headline(groups[i])}: {gain.n_items:,} items from {gain.n_sources:,} sources"
            if any(gain is not None for gain in gains):
                texts = [_gain_text(gain, group) for gain, group in zip(gains, groups, strict=True)]
                rows.append(Row(entry.label, tuple(Cell(text=text) for text in (control.label, *texts))))
    if not rows:
        return None
    return Table(
        title="Gain over random initialisation",
        lines=(PAIRED_LINE, "; ".join(size for size in sizes if size) + "."),
        columns=("Encoder", "Control", *(headline(group) for group in groups)),
        rows=tuple(rows),
    )


def gain_between(section: Section, a: str, b: str) -> Table | None:
    """One row per protocol and column that both encoders have outcomes for; None where there is none.

    Args:
        a, b: encoder names or row labels, or shell patterns of them. A pattern of several stands for their mean.
    """
    rows = []
    for group in section.groups:
        first, second = (_matching(section, group, pattern) for pattern in (a, b))
        for column in group.columns:
            gain = section.cache.gain(first, second, column)
            if gain is not None:
                text = _gain_text(gain, group)
                size = (Cell(text=str(gain.n_items)), Cell(text=str(gain.n_sources)))
                rows.append(Row(group.example.protocol.id, (Cell(text=column), Cell(text=text), *size)))
    if not rows:
        return None
    return Table(
        title=f"Gain of {a} over {b}",
        lines=(PAIRED_LINE,),
        columns=("Protocol", "Column", "Gain", "Items", "Sources"),
        rows=tuple(rows),
    )


def require_known(sections: list[Section], pattern: str) -> None:
    """Raises RecordsError where no encoder of any section matches."""
    if not any(_matching(section, group, pattern) for section in sections for group in section.groups):
        known = ", ".join(sorted({entry.label for section in sections for entry in section.entries})) or "none"
        raise RecordsError(f"no encoder matches {pattern!r}; the records hold {known}")


def _matching(section: Section, group: Group, pattern: str) -> list[StoredRecord]:
    found = []
    for entry in section.entries:
        for stored in entry.records(group.records):
            names = entry.label, stored.record.encoder.name
            if pattern in names or any(fnmatchcase(name, pattern) for name in names):
                found.append(stored)
    return found


def _gain_text(gain: Gain | None, group: Group) -> str:
    if gain is None:
        return ""
    scale = 100.0 if group.protocol.unit == "%" else 1.0
    value, low, high = (f"{scale * number:+.{group.decimals}f}" for number in (gain.value, gain.low, gain.high))
    return f"{value} [{low}, {high}]"
