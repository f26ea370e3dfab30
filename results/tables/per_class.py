"""Average precision class by class, the encoders side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from results.store import StoredRecord
from results.tables.cells import Cell, Row, Table
from results.tables.groups import grouped
from results.tables.render import markdown
from results.tables.roster import current, roster

POSITIVES = "Positives"
MEAN_OF = ", mean of "  # between a row's label and the number of its encoders


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
        positives = _positives(own, shown, len(classes))
        rows = []
        for i, name in enumerate(classes):
            values = [[stored.record.per_class[shown].get(name) for stored in found] for _, found in filled]
            cells = [
                Cell(None if None in of or not of else float(np.mean([v for v in of if v is not None])))
                for of in values
            ]
            counted = [] if positives is None else [Cell(text=str(positives[i]))]
            rows.append(Row(name, (*counted, *cells)))
        labels = [entry.label + (f"{MEAN_OF}{len(found)}" if len(found) > 1 else "") for entry, found in filled]
        about = [] if positives is None else ["Positives: test images with the class, ignored ones not counted."]
        tables.append(
            Table(
                title=f"{group.title}, {', '.join((shown, *group.protocol.overrides))}, per class",
                lines=(group.line, *about),
                columns=("Class", *([] if positives is None else [POSITIVES]), *labels),
                rows=tuple(rows),
                decimals=group.decimals,
            )
        )
    return tables


def per_class_markdown(records: Sequence[StoredRecord], column: str | None = None) -> str:
    """`per_class_tables` as one markdown text; empty where no record has values per class."""
    return "\n".join(markdown(table) for table in per_class_tables(records, column))


def _positives(records: Sequence[StoredRecord], column: str, classes: int) -> NDArray[np.int64] | None:
    """(C,) test images with each class, from the first side file that tells."""
    for stored in records:
        outcomes = stored.outcomes() or {}
        areas, targets = outcomes.get(f"iou/{column}"), outcomes.get("targets")
        if areas is not None:
            counts = (areas[:, 2] > 0).sum(0)  # pixels of the truth
        elif targets is None:
            continue
        else:
            counts = np.bincount(targets, minlength=classes) if targets.ndim == 1 else (targets == 1).sum(0)
        if counts.shape == (classes,):
            return counts.astype(np.int64)
    return None
