"""Pretrained encoders against the random initialisations of their own architecture."""

from __future__ import annotations

from results.resampling.bootstrap import CONFIDENCE, Gain
from results.tables.cells import Cell, Row, Table
from results.tables.groups import Group
from results.tables.sections import Section, headline

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


def _gain_text(gain: Gain | None, group: Group) -> str:
    if gain is None:
        return ""
    scale = 100.0 if group.protocol.unit == "%" else 1.0
    value, low, high = (f"{scale * number:+.{group.decimals}f}" for number in (gain.value, gain.low, gain.high))
    return f"{value} [{low}, {high}]"
