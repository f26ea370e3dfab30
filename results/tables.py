"""Tables from records, in the layout of a model-zoo page, and the pages and README block that hold them.

A table holds one protocol on one version of one data set, so that its rows can be compared. The embedded data, the full
data sets, and each data set of the user's own have sections of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from results.bootstrap import CONFIDENCE, Gain, drop
from results.errors import InputError
from results.families import SUMMARY, family_of, suite_of
from results.formats import Cell, Row, Table, escape_latex, escape_markdown, latex, markdown, with_interval
from results.noise import NOISE_LINE, Ranking, ReplicateCache, rank_rows, ranking_line
from results.rows import (
    DataKind,
    Entry,
    Group,
    SuiteGroups,
    architecture_text,
    current,
    data_kind,
    data_kinds,
    grouped,
    newest,
    records_by_row,
    suite_groups,
    table_rows,
    without_cells,
)
from results.schema import EncoderCard
from results.store import BadRecord, StoredRecord

MARK = "†"
SPREAD_LINE = (
    "±: standard error of the test sample, from a bootstrap over the sources of the test items. std: standard "
    "deviation over initialisations or trials."
)
PAIRED_LINE = (
    f"Percentage points, with the {CONFIDENCE:.0%} interval of a paired bootstrap over the sources of the test items: "
    "both sides are compared on the same resamples. Initialisations are averaged; the interval does not include their "
    "spread."
)
DROP_LINE = (
    f"Percentage points, with the {CONFIDENCE:.0%} interval of a bootstrap over the sources of the test items: paired "
    "where both sets hold the same images, unpaired elsewhere. Of several initialisations the mean, with no interval."
)
GAIN_TITLE = "Gain over random initialisation"
POSITIVES = "Positives"
TOLERANCE = 1e-3  # points by which a score may differ from what its outcomes give
MEAN_OF = ", mean of "  # between a row's label and the number of its encoders
BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"
NO_RECORDS = "No records yet."


class Section:
    """The tables of one kind of data: the embedded data, the full data sets, or one data set of the user's own."""

    def __init__(self, records: Iterable[StoredRecord], kind: DataKind) -> None:
        successes, failures = current(without_cells([s for s in records if data_kind(s.record) == kind]))
        self.kind = kind
        self.entries = table_rows(successes)
        self.groups = grouped(successes, failures)
        self.cache = ReplicateCache()

    def tables(self) -> list[Table]:
        """One per protocol and data, those of the suites, then one of the encoders."""
        alone = [
            table
            for group in self.groups
            if suite_of(group.protocol.benchmark) is None
            for table in self.group_tables(group)
        ]
        together = [table for suite in suite_groups(self.groups) for table in self.suite_tables(suite)]
        return alone + together + self.encoder_table()

    def suite_tables(self, suite: SuiteGroups) -> list[Table]:
        """A table for each column of a suite's protocols, with a column per data set, and the drop."""
        return [self._suite_table(suite, column) for column in suite.columns()] + self._drop_table(suite)

    def _suite_table(self, suite: SuiteGroups, column: str) -> Table:
        groups = {name: group for name, group in suite.groups.items() if column in group.protocol.columns}
        by_row = {name: records_by_row(self.entries, group.records) for name, group in groups.items()}
        shown = [i for i in range(len(self.entries)) if any(of[i] for of in by_row.values())]
        rankings = {
            name: self._ranked(group, [by_row[name][i] for i in shown], [column])[column]
            for name, group in groups.items()
        }
        averaged = suite.suite.mean_over if set(suite.suite.mean_over) <= set(groups) else ()
        rows = []
        for place, i in enumerate(shown):
            cells = [ranking.cells[place] for ranking in rankings.values()]
            if averaged:
                values = [rankings[name].cells[place].value for name in averaged]
                whole = [value for value in values if value is not None]
                cells.append(Cell(float(np.mean(whole)) if len(whole) == len(averaged) else None))
            rows.append(Row(_row_label(self.entries[i], [of[i] for of in by_row.values()]), tuple(cells)))
        mean_line = f"Mean: over {len(averaged)} sets, only where an encoder has all of them." if averaged else ""
        lines = [f"{suite.title_of(name)}: {group.line}" for name, group in groups.items()]
        return Table(
            title=f"{suite.title}: {column}",
            lines=tuple(line for line in (*lines, mean_line) if line),
            columns=("Encoder", *(suite.title_of(name) for name in groups), *(["Mean"] if averaged else [])),
            rows=tuple(rows),
            decimals=max(group.decimals for group in groups.values()),
            notes=tuple(note for group in groups.values()
                        for note in (*_failure_notes(group.failures), *self._fault_notes(group.records))),
        )  # fmt: skip

    def _drop_table(self, suite: SuiteGroups) -> list[Table]:
        """Each data set's primary column minus that of the baseline; nothing without a baseline and another set."""
        baseline = suite.groups.get(suite.suite.baseline)
        others = {name: group for name, group in suite.groups.items() if group is not baseline}
        if baseline is None or not others:
            return []
        column = baseline.protocol.primary
        first = records_by_row(self.entries, baseline.records)
        seconds = {name: records_by_row(self.entries, group.records) for name, group in others.items()}
        rows = []
        for i, entry in enumerate(self.entries):
            if first[i] and any(of[i] for of in seconds.values()):
                cells = [_drop_cell(first[i], seconds[name][i], column, group) for name, group in others.items()]
                own = [first[i], *(of[i] for of in seconds.values())]
                rows.append(Row(_row_label(entry, own), tuple(cells)))
        return [
            Table(
                title=f"{suite.title}: change of {column} from {suite.title_of(suite.suite.baseline)}",
                lines=(DROP_LINE,),
                columns=("Encoder", *(suite.title_of(name) for name in others)),
                rows=tuple(rows),
            )
        ]

    def summary(self) -> Table | None:
        """One row per encoder, the primary column of each headline group; None without any."""
        groups = self.headline_groups()
        if not groups:
            return None
        titles = tuple(headline(group) for group in groups)
        by_row = [records_by_row(self.entries, group.records) for group in groups]
        shown = [i for i in range(len(self.entries)) if any(of_group[i] for of_group in by_row)]
        rankings = [
            self._ranked(group, [of_group[i] for i in shown], [group.protocol.primary])[group.protocol.primary]
            for group, of_group in zip(groups, by_row, strict=True)
        ]
        rows = []
        for i, cells in zip(shown, zip(*(ranking.cells for ranking in rankings), strict=True), strict=True):
            rows.append(Row(_row_label(self.entries[i], [of_group[i] for of_group in by_row]), cells))
        lines = [f"{title}: {group.line}" for title, group in zip(titles, groups, strict=True)]
        lines += [SPREAD_LINE, NOISE_LINE, ranking_line(dict(zip(titles, rankings, strict=True)))]
        return Table(
            title="Summary",
            lines=tuple(line for line in lines if line),
            columns=("Encoder", *titles),
            rows=tuple(rows),
            decimals=max(group.decimals for group in groups),
            notes=self._fault_notes([stored for group in groups for stored in group.records]),
        )

    def headline_groups(self) -> list[Group]:
        """One group per benchmark of the summary: of several protocols the one with the most records."""
        candidates = ([g for g in self.groups if g.protocol.benchmark == name and g.records] for name in SUMMARY)
        return [max(groups, key=lambda g: len(g.records)) for groups in candidates if groups]

    def group_tables(self, group: Group) -> list[Table]:
        """The table of a group, or one per part of a wide group; all of them have the same rows."""
        layers = [column for column in group.columns if column.lower().startswith("feature")]
        best_layer = group.family.best_layer and len(layers) > 1
        by_row = records_by_row(self.entries, group.records)
        shown = [(entry, own) for entry, own in zip(self.entries, by_row, strict=True) if own]
        in_summary = any(group is other for other in self.headline_groups())
        controls = [(entry, own) for entry, own in shown if entry.random and in_summary]

        def compared(i: int) -> None:
            """Computes the row's gains, which a table further down shows, while its outcomes are held."""
            entry, own = shown[i]
            for control, of_control in controls:
                if not entry.random and control.architecture == entry.architecture:
                    self.cache.gain(own, of_control, group.protocol.primary)

        rankings = self._ranked(group, [own for _, own in shown], group.columns, compared)
        notes = (*_failure_notes(group.failures), *self._fault_notes(group.records))
        tables: list[Table] = []
        for part, columns in group.parts.items():
            directed = {column: rankings[column] for column in columns if column not in group.family.undirected}
            rows = []
            for i, (entry, own) in enumerate(shown):
                cells = {column: rankings[column].cells[i] for column in columns}
                first = [best_layer_cell(layers, cells)] if best_layer else []
                rows.append(Row(_row_label(entry, [own]), (*first, *cells.values())))
            about = [group.line, group.family.line]
            if tables:
                selection = f"; selection: {part.selection}" if part.selection else ""
                about = [f"{group.protocol.id}, as above{selection}."]
            table = Table(
                title=group.title_of(part),
                lines=tuple(line for line in (*about, ranking_line(directed)) if line),
                columns=("Encoder", *(["Best Layer"] if best_layer else []), *columns),
                rows=tuple(rows),
                decimals=group.decimals,
                notes=() if tables else notes,
            )
            tables.append(table)
        return tables

    def _ranked(
        self,
        group: Group,
        rows: Sequence[Sequence[StoredRecord]],
        columns: Sequence[str],
        compared: Callable[[int], object] = lambda row: None,
    ) -> dict[str, Ranking]:
        """One cell per row in each column, the best and all tied with it in bold."""
        cells = {column: [score_cell(self.cache, records, column) for records in rows] for column in columns}
        family, better = group.family, group.protocol.higher_is_better
        ranked = {column: own for column, own in cells.items() if column not in family.undirected}
        found = rank_rows(
            self.cache, rows, ranked, higher_is_better=better, opposite=family.opposite, compared=compared
        )
        return {column: found.get(column, Ranking(tuple(own))) for column, own in cells.items()}

    def _fault_notes(self, records: Sequence[StoredRecord]) -> tuple[str, ...]:
        return tuple(
            f"{MARK} {entry.label}: {stored.record.protocol.id}: {'; '.join(stored.faults)}"
            for entry, own in zip(self.entries, records_by_row(self.entries, records), strict=True)
            for stored in own
            if stored.faults
        )

    def encoder_table(self) -> list[Table]:
        """What the encoders are and what they cost; nothing without encoders."""
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
    """Title of a group's primary column in the summary: `kNN (k=20)`."""
    return f"{family_of(group.protocol.benchmark).short} ({group.protocol.primary})"


def _row_label(entry: Entry, cells: Iterable[Sequence[StoredRecord]]) -> str:
    """The row's label with the number of initialisations behind its cells, `3 to 5` where they differ."""
    own = [records for records in cells if records]
    mark = f" {MARK}" if any(stored.faults for records in own for stored in records) else ""
    counts = sorted({len(records) for records in own})
    several = f"{MEAN_OF}{' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} initialisations"
    return entry.label + (several if counts[-1] > 1 else "") + mark


def score_cell(cache: ReplicateCache, records: Sequence[StoredRecord], column: str) -> Cell:
    """One record's score, or the mean over initialisations; empty unless all of them have the column."""
    values = [value for stored in records if (value := stored.record.value(column)) is not None]
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


def _drop_cell(first: Sequence[StoredRecord], second: Sequence[StoredRecord], column: str, group: Group) -> Cell:
    """The change of a row's encoder; of several initialisations the mean change, without an interval."""
    cells = [score_cell(ReplicateCache(), records, column).value if records else None for records in (first, second)]
    if cells[0] is None or cells[1] is None:
        return Cell()
    value = cells[1] - cells[0]
    low = high = None
    outcomes = [records[0].outcomes() if len(records) == 1 else None for records in (first, second)]
    gain = drop(outcomes[0], outcomes[1], column) if outcomes[0] is not None and outcomes[1] is not None else None
    if gain is not None and abs(100 * gain.value - value) < TOLERANCE:  # else they are not the outcomes of the scores
        low, high = 100 * gain.low, 100 * gain.high
    return Cell(value, text=with_interval(value, low, high, group.decimals))


def best_layer_cell(layers: Sequence[str], cells: Mapping[str, Cell]) -> Cell:
    """The name of the layer with the highest figure."""
    values = {layer: value for layer in layers if (value := cells[layer].value) is not None}
    return Cell(text=max(values, key=lambda layer: values[layer])) if values else Cell()


def _failure_notes(failures: Sequence[StoredRecord]) -> tuple[str, ...]:
    return tuple(f"Failed: {s.record.encoder.name}: {s.record.error or 'no error was recorded'}" for s in failures)


def _about(cards: Sequence[EncoderCard]) -> tuple[str, ...]:
    """What a row's encoders share; time and weights only of a single encoder."""
    card, alone = cards[0], len(cards) == 1
    return (
        architecture_text(card.architecture),
        card.method or "",
        card.pretrain_data or "",
        f"{card.epochs:g}" if card.epochs else "",
        duration(card.pretrain_seconds) if alone and card.pretrain_seconds is not None else "",
        (card.weights_sha256 or "")[:8] if alone else "",
    )


def duration(seconds: float) -> str:
    """As `7 s`, `5 min 02 s` or `1.5 h`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{seconds / 3600:.1f} h"


def gain_over_random(section: Section) -> Table | None:
    """Gain of each trained encoder over random initialisations of its architecture; None without such a pair."""
    groups = section.headline_groups()
    rows, sizes = [], [""] * len(groups)
    by_row = [records_by_row(section.entries, group.records) for group in groups]
    controls = [i for i, entry in enumerate(section.entries) if entry.random]
    for i, entry in enumerate(section.entries):
        for control in controls:
            if entry.random or section.entries[control].architecture != entry.architecture:
                continue
            gains = [
                section.cache.gain(own[i], own[control], group.protocol.primary) if own[i] and own[control] else None
                for group, own in zip(groups, by_row, strict=True)
            ]
            for column, gain in enumerate(gains):
                if gain is not None:
                    size = f"{gain.n_items:,} items from {gain.n_sources:,} sources"
                    sizes[column] = f"{headline(groups[column])}: {size}"
            if any(gain is not None for gain in gains):
                texts = [_gain_text(gain, group) for gain, group in zip(gains, groups, strict=True)]
                label = section.entries[control].label
                rows.append(Row(entry.label, tuple(Cell(text=text) for text in (label, *texts))))
    if not rows:
        return None
    return Table(
        title=GAIN_TITLE,
        lines=(PAIRED_LINE, "; ".join(size for size in sizes if size) + "."),
        columns=("Encoder", "Control", *(headline(group) for group in groups)),
        rows=tuple(rows),
    )


def _gain_text(gain: Gain | None, group: Group) -> str:
    if gain is None:
        return ""
    scale = 100.0 if group.protocol.unit == "%" else 1.0
    return with_interval(scale * gain.value, scale * gain.low, scale * gain.high, group.decimals)


def per_class_tables(
    records: Sequence[StoredRecord], column: str | None = None, entries: Sequence[Entry] | None = None
) -> list[Table]:
    """One table for each protocol and data set whose records have values per class; encoders in columns.

    Random initialisations of one architecture share a column, which is their mean.

    Args:
        column: the protocol's column to show; its primary one where this is None.
        entries: rows of the page around the table, for encoders to have the names that they have there.
    """
    among = newest(records)
    tables = []
    for group in grouped(among, []):
        shown = column or group.protocol.primary
        own = [stored for stored in group.records if shown in stored.record.per_class]
        if not own:
            continue
        named = table_rows(among) if entries is None else entries
        filled = [(e, found) for e, found in zip(named, records_by_row(named, own), strict=True) if found]
        classes = tuple(own[0].record.per_class[shown])
        positives = _positives([s for s in own if tuple(s.record.per_class[shown]) == classes], shown, len(classes))
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
    """(C,) number of test images with each class, from the first outcomes file that says.

    Args:
        records: of which each has values of the same classes, in the same order.
    """
    for stored in records:
        outcomes = stored.outcomes() or {}
        areas, targets = outcomes.get(f"iou/{column}"), outcomes.get("targets")
        if areas is not None:
            if areas.ndim != 3 or areas.shape[1] != 3 or areas.dtype.kind not in "iuf":
                continue
            counts = (areas[:, 2] > 0).sum(0)  # pixels of the truth
        elif targets is None or targets.dtype.kind not in "biu" or targets.ndim not in (1, 2):
            continue
        elif targets.ndim == 2:
            counts = (targets == 1).sum(0)
        elif targets.min(initial=0) < 0 or targets.max(initial=0) >= classes:
            continue
        else:
            counts = np.bincount(targets.astype(np.int64), minlength=classes)
        if counts.shape == (classes,):
            return counts.astype(np.int64)
    return None


def sections(records: Sequence[StoredRecord]) -> list[Section]:
    """The embedded data's, the full data sets', then one for each data set of the user's own."""
    return [Section(records, kind) for kind in data_kinds(records)]


def section_tables(section: Section) -> list[Table]:
    """The tables of one section in the order of the page."""
    tables, gains = section.tables(), gain_over_random(section)
    return tables if gains is None else [*tables[:-1], gains, tables[-1]]


def markdown_page(records: Sequence[StoredRecord], bad: Sequence[BadRecord], root: Path, *, rows: str = "all") -> str:
    """Every table, failures, and files that could not be read. The same records give the same bytes.

    Args:
        rows: the kind of data that was asked for; a page of all kinds also says which of them has no records.
    """
    parts = [
        "# Model zoo\n",
        "`python -m results tables` writes this page from records and overwrites edits. Each table holds one protocol "
        "on one version of one data set. An empty cell was not measured.\n",
        f"{SPREAD_LINE} {NOISE_LINE}\n",
    ]
    for section in sections(records):
        if rows not in ("all", section.kind.kind):
            continue
        parts += [
            f"## {escape_markdown(section.kind.title)}\n",
            *([section.kind.line + "\n"] if section.kind.line else []),
        ]
        parts += [markdown(table) for table in section_tables(section)] or [NO_RECORDS + "\n"]
    if bad:
        lines = [f"- {escape_markdown(f'{found.name(root)}: {found.reason}')}\n" for found in bad]
        parts += ["## Files that are not records\n", "".join(lines)]
    return "\n".join(parts)


def latex_page(records: Sequence[StoredRecord]) -> str:
    """Every table for LaTeX with booktabs, each section under a comment."""
    parts = []
    for section in sections(records):
        parts += [f"% {escape_latex(section.kind.title)}\n", *(latex(table) for table in section_tables(section))]
    return "\n".join(parts)


def readme_block(records: Sequence[StoredRecord]) -> str:
    """The summaries, one per section that has records, with the markers around them."""
    parts = []
    for section in sections(records):
        summary = section.summary()
        if summary is not None:
            heading = f"**{escape_markdown(section.kind.title)}.** {section.kind.line}"
            parts += [heading.strip() + "\n", _table_first(summary)]
    return "\n".join([BEGIN, "", *(parts or [NO_RECORDS + "\n"]), END])


def with_block(text: str, block: str, name: str) -> str:
    """Replace everything between the table markers of a text.

    Raises:
        InputError: there is not exactly one pair of markers, in order.
    """
    begin, end = text.find(BEGIN), text.find(END)
    if text.count(BEGIN) != 1 or text.count(END) != 1 or end < begin:
        raise InputError(f"{name} must contain one line {BEGIN} and then one line {END}: the table goes between them")
    return text[:begin] + block + text[end + len(END) :]


def _table_first(table: Table) -> str:
    """Markdown of a table with its explanations below it, for the README."""
    bare = Table("", (), table.columns, table.rows, table.decimals)
    return markdown(bare) + "\n" + markdown(Table("", (), table.columns, (), notes=(*table.lines, *table.notes)))
