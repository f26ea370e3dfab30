"""From records to tables in the layout of a model-zoo page. Nothing here is typed by hand, and no cell is guessed.

A table holds one protocol on one version of one data set, so that what stands below each other can be compared; the
embedded data's tables are a section of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from results.schema import EncoderCard
from results.store import StoredRecord
from results.tables.cells import Cell, Row, Table
from results.tables.groups import SUMMARY, Group, grouped, without_cells
from results.tables.noise import NOISE_LINE, detectable_line, mark_best
from results.tables.replicates import ReplicateCache
from results.tables.roster import Entry, architecture_text, current, roster

MARK = "†"
SPREAD_LINE = (
    "± is the standard error of the test sample: a bootstrap over the sources of the test items, not over the items. "
    "std is over initialisations or trials."
)


class Section:
    """The tables of the embedded data, or those of the full data sets. Never both."""

    def __init__(self, records: Iterable[StoredRecord], *, embedded: bool) -> None:
        successes, failures = current(without_cells([s for s in records if s.record.dataset.embedded == embedded]))
        self.embedded = embedded
        self.entries = roster(successes)
        self.groups = grouped(successes, failures)
        self.cache = ReplicateCache()

    def tables(self) -> list[Table]:
        """One per protocol and data, then one of the encoders."""
        return [self.group_table(group) for group in self.groups] + self._encoder_table()

    def summary(self) -> Table | None:
        """One row per encoder, the primary column of each headline group; None without any."""
        groups = self.headline_groups()
        records = [stored for group in groups for stored in group.records]
        if not records:
            return None
        columns = tuple(headline(group) for group in groups)
        entries = [entry for entry in self.entries if entry.records(records)]
        filled = [self._column(entries, group, group.protocol.primary) for group in groups]
        rows = [
            Row(_row_label(entry, entry.records(records), len(entry.cards)), cells)
            for entry, cells in zip(entries, zip(*filled, strict=True), strict=True)
        ]
        lines = [f"{column}: {group.line}" for column, group in zip(columns, groups, strict=True)]
        decimals = max(group.decimals for group in groups)
        asked = {
            column: (_own(entries, group), group.protocol.primary)
            for column, group in zip(columns, groups, strict=True)
        }
        return Table(
            title="Summary",
            lines=(*lines, SPREAD_LINE, detectable_line(self.cache, asked, decimals), NOISE_LINE),
            columns=("Encoder", *columns),
            rows=tuple(rows),
            decimals=decimals,
            notes=self._fault_notes(records),
        )

    def headline_groups(self) -> list[Group]:
        """One group per benchmark of the summary: of several protocols the one with the most records."""
        candidates = ([g for g in self.groups if g.protocol.benchmark == name and g.records] for name in SUMMARY)
        return [max(groups, key=lambda g: len(g.records)) for groups in candidates if groups]

    def group_table(self, group: Group) -> Table:
        layers = [column for column in group.columns if column.lower().startswith("feature")]
        best_layer = group.family.best_layer and len(layers) > 1
        entries = [entry for entry in self.entries if entry.records(group.records)]
        filled = {column: self._column(entries, group, column) for column in group.columns}
        rows = []
        for i, entry in enumerate(entries):
            own = entry.records(group.records)
            cells = {column: filled[column][i] for column in group.columns}
            first = [best_layer_cell(layers, cells)] if best_layer else []
            rows.append(Row(_row_label(entry, own, len(own)), (*first, *cells.values())))
        lines = [group.line, *([group.family.line] if group.family.line else [])]
        if entries:
            asked = {column: (_own(entries, group), column) for column in group.columns}
            lines.append(detectable_line(self.cache, asked, group.decimals))
        return Table(
            title=group.title,
            lines=tuple(lines),
            columns=("Encoder", *(["Best Layer"] if best_layer else []), *group.columns),
            rows=tuple(rows),
            decimals=group.decimals,
            notes=(*_failure_notes(group.failures), *self._fault_notes(group.records)),
        )

    def _column(self, entries: Sequence[Entry], group: Group, column: str) -> list[Cell]:
        """One cell per row, the best in bold where the noise allows it."""
        own = [entry.records(group.records) for entry in entries]
        cells = [score_cell(self.cache, records, column) for records in own]
        return mark_best(self.cache, own, cells, column, higher_is_better=group.protocol.higher_is_better)

    def _fault_notes(self, records: Sequence[StoredRecord]) -> tuple[str, ...]:
        return tuple(
            f"{MARK} {entry.label}: {stored.record.protocol.id}: {'; '.join(stored.faults)}"
            for entry in self.entries
            for stored in entry.records(records)
            if stored.faults
        )

    def _encoder_table(self) -> list[Table]:
        if not self.entries:
            return []
        columns = (
            "Encoder",
            "Architecture",
            "Method",
            "Pretraining data",
            "Epochs",
            "Pretraining time",
            "Weights (sha256)",
        )
        rows = [Row(entry.label, tuple(Cell(text=text) for text in _about(entry.cards))) for entry in self.entries]
        return [Table("Encoders and pretraining cost", (), columns, tuple(rows))]


def headline(group: Group) -> str:
    """How the summary calls a group's primary column: `kNN (k=20)`."""
    return f"{SUMMARY[group.protocol.benchmark]} ({group.protocol.primary})"


def _own(entries: Sequence[Entry], group: Group) -> list[list[StoredRecord]]:
    """The records of each row."""
    return [records for entry in entries if (records := list(entry.records(group.records)))]


def _row_label(entry: Entry, own: Sequence[StoredRecord], encoders: int) -> str:
    mark = f" {MARK}" if any(stored.faults for stored in own) else ""
    return entry.label + (f", mean of {encoders} initialisations" if encoders > 1 else "") + mark


def score_cell(cache: ReplicateCache, records: Sequence[StoredRecord], column: str) -> Cell:
    """One record's score, or the mean over initialisations; empty unless each of them has the column."""
    scores = [stored.record.scores.get(column) for stored in records]
    values = [score.value for score in scores if score is not None and score.value is not None]
    if not values or len(values) < len(records):
        return Cell()
    if len(records) == 1:
        score = records[0].record.scores[column]
        return Cell(score.value, score.standard_error, score.std)
    mean = cache.mean(records, column)
    scale = 100.0 if records[0].record.protocol.resolved.unit == "%" else 1.0
    return Cell(
        value=float(np.mean(values)),
        error=None if mean is None else scale * mean.standard_error,
        std=float(np.std(values)),
    )


def best_layer_cell(layers: Sequence[str], cells: Mapping[str, Cell]) -> Cell:
    """The name of the layer with the highest figure."""
    values = {layer: value for layer in layers if (value := cells[layer].value) is not None}
    return Cell(text=max(values, key=lambda layer: values[layer])) if values else Cell()


def _failure_notes(failures: Sequence[StoredRecord]) -> tuple[str, ...]:
    return tuple(f"Failed: {s.record.encoder.name}: {s.record.error or 'no error was recorded'}" for s in failures)


def _about(cards: Sequence[EncoderCard]) -> tuple[str, ...]:
    """What a row's encoders have in common, and what only one encoder can have."""
    card, alone = cards[0], len(cards) == 1
    return (
        architecture_text(card.architecture),
        card.method or "",
        card.pretrain_data or "",
        f"{card.epochs:g}" if card.epochs else "",
        _duration(card.pretrain_seconds) if alone and card.pretrain_seconds is not None else "",
        (card.weights_sha256 or "")[:8] if alone else "",
    )


def _duration(seconds: float) -> str:
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{seconds / 3600:.1f} h"
