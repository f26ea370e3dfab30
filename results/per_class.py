"""Average precision class by class, the encoders side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from results.cells import Cell, Row, Table
from results.groups import grouped
from results.render import markdown
from results.roster import current, roster
from results.store import StoredRecord


def per_class_tables(records: Sequence[StoredRecord], column: str | None = None) -> list[Table]:
    """One table for every protocol and data whose records have values per class; encoders in columns.

    Random initialisations of one architecture share a column, which is their mean.

    Args:
        column: the protocol's column to show; its primary one where this is None.
    """
    newest = [stored for stored in current(records)[0] if stored.intact]
    tables = []
    for group in grouped(newest, []):
        shown = column or group.protocol.primary
        own = [stored for stored in group.records if shown in stored.record.per_class]
        if not own:
            continue
        entries = [(entry, entry.records(own)) for entry in roster(newest)]
        filled = [(entry, found) for entry, found in entries if found]
        classes = tuple(own[0].record.per_class[shown])
        positives = _positives(own, classes)
        rows = []
        for i, name in enumerate(classes):
            values = [[stored.record.per_class[shown].get(name) for stored in found] for _, found in filled]
            cells = [
                Cell(None if None in of or not of else float(np.mean([v for v in of if v is not None])))
                for of in values
            ]
            first = Cell(text="" if positives is None else str(positives[i]))
            rows.append(Row(name, (first, *cells)))
        labels = [entry.label + (f", mean of {len(found)}" if len(found) > 1 else "") for entry, found in filled]
        tables.append(
            Table(
                title=f"{group.title}, {shown}, per class",
                lines=(group.line, "Positives: test images with the class, ignored ones not counted."),
                columns=("Class", "Positives", *labels),
                rows=tuple(rows),
                decimals=group.decimals,
            )
        )
    return tables


def per_class_markdown(records: Sequence[StoredRecord], column: str | None = None) -> str:
    """`per_class_tables` as one markdown text; empty where no record has values per class."""
    return "\n".join(markdown(table) for table in per_class_tables(records, column))


def _positives(records: Sequence[StoredRecord], classes: Sequence[str]) -> NDArray[np.int64] | None:
    """(C,) test items with each class, from the first side file that is there."""
    for stored in records:
        outcomes = stored.outcomes()
        if outcomes is not None and "targets" in outcomes:
            targets = outcomes["targets"]
            if targets.ndim == 1:
                return np.bincount(targets, minlength=len(classes)).astype(np.int64)
            return (targets == 1).sum(0).astype(np.int64)
    return None
