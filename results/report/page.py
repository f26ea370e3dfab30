"""The contents of the report, in order, and how they become one HTML file."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from results.compare.correlations import (
    MIN_ENCODERS,
    correlation_table,
    correlations,
    headlines,
    measured_values,
    page_order,
    published_values,
    remark,
    together,
)
from results.compare.explain import Explanation, Question, explanations
from results.errors import InputError
from results.formats import Row, Table
from results.noise import NOISE_LINE
from results.plots import (
    PretrainingLog,
    draw_heat_map,
    draw_pretraining,
    draw_waterfall,
    record_figures,
)
from results.published import Figure
from results.report.parts import SCORE_COLUMNS, Chart, ReportPart, TableMaker, chart, saved_images
from results.rows import FULL, DataKind, current, data_kind, data_kinds, matching
from results.store import BadRecord, StoredRecord
from results.tables import SPREAD_LINE, Section, per_class_tables
from results.zoo_layout import CONFIG, LAYOUTS, filled_columns, published_rows

TITLE = "Benchmark report"
FOLDER = Path(__file__).parent
ORIGIN_LINE = "Click a number with a dotted underline to see the record that it comes from."
LEGEND = "The legend gives the colour, marker and dashes of each line; the tables hold the numbers."
FOLD_FROM = 12  # rows of a table of correlations


def report_html(
    records: Sequence[StoredRecord],
    bad: Sequence[BadRecord],
    logs: Sequence[PretrainingLog],
    figures: Sequence[Figure],
    questions: Sequence[Question] = (),
) -> str:
    """The whole page. It loads nothing, and its only script sorts the tables.

    Args:
        questions: differences between protocols to explain.
    """
    maker = TableMaker()
    explained, unanswered = _answers(records, questions)
    shown = _without_steps(records, explained)
    parts = [
        *(_section(shown, maker, kind) for kind in sorted(data_kinds(shown), key=lambda kind: kind != FULL)),
        _differences(explained, maker),
        *_correlations(shown, figures, maker),
        _pretraining(logs),
        _published(figures, maker),
        _left_out(bad, unanswered, maker),
    ]
    script = (FOLDER / "sortable.min.js").read_text(encoding="utf-8").strip()
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        title=TITLE,
        lines=(SPREAD_LINE, NOISE_LINE, ORIGIN_LINE),
        parts=[part for part in parts if not part.empty],
        origins=maker.origins,
        score_columns=SCORE_COLUMNS,
        style=(FOLDER / "style.css").read_text(encoding="utf-8"),
        script=script,
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


# ---- the measured data sets


def _section(records: Sequence[StoredRecord], maker: TableMaker, kind: DataKind) -> ReportPart:
    own = [stored for stored in records if data_kind(stored.record) == kind]
    identifier = f"own-{kind.fingerprint[:12]}" if kind.kind == "own" else kind.kind
    part = ReportPart(identifier, kind.title, (kind.line,) if kind.line else ())
    if own:
        part.tables = maker.section(Section(records, kind))
        part.tables += [maker.plain(table) for table in per_class_tables(own)]
        part.charts = _charts(own, part.id)
        part.images = saved_images(current(own)[0])
    return part


def _charts(records: Sequence[StoredRecord], part: str) -> list[Chart]:
    made = [
        chart(f"{part}-{re.sub(r'[^a-z0-9]+', '-', one.name)}", one.title, f"{one.caption} {LEGEND}".strip(), one.draw)
        for one in record_figures(records)
    ]
    return [one for one in made if one is not None]


# ---- explained differences


def _answers(
    records: Sequence[StoredRecord], questions: Sequence[Question]
) -> tuple[list[Explanation], tuple[str, ...]]:
    """The explanations, and a sentence for each question that the records do not answer."""
    explained: list[Explanation] = []
    unanswered: list[str] = []
    for question in questions:
        try:
            own = matching(records, encoder=question.encoder)
            explained += explanations(own, question.a, question.b, question.column)
        except InputError as error:
            unanswered.append(f"{question.a} against {question.b}: {error}")
    return explained, tuple(unanswered)


def _without_steps(records: Sequence[StoredRecord], explained: Sequence[Explanation]) -> list[StoredRecord]:
    """The records except those measured only as steps between two protocols."""
    ends = {stored.path for one in explained for stored in (one.records[0], one.records[-1])}
    steps = {stored.path for one in explained for stored in one.records} - ends
    return [stored for stored in records if stored.path not in steps]


def _differences(explained: Sequence[Explanation], maker: TableMaker) -> ReportPart:
    line = "The intermediate protocols that were measured for these explanations appear only here."
    part = ReportPart("differences", "Why two protocols differ", (line,))
    for i, one in enumerate(explained):
        part.tables.append(maker.explanation(one))
        form = f".{one.decimals}f"
        steps = ", ".join(f"{switch.field} {switch.share:+{form}}" for switch in one.switches)
        description = (
            f"{one.encoder}, {one.column} on {one.dataset}: from {one.score_a:{form}} by {steps} to "
            f"{one.score_b:{form}}. Bars of fields that lower the score are hatched."
        )
        drawn = chart(f"difference-{i}", f"From {one.a} to {one.b}", description, partial(draw_waterfall, [one]))
        part.charts += [] if drawn is None else [drawn]
    return part


# ---- correlations


def _correlations(records: Sequence[StoredRecord], figures: Sequence[Figure], maker: TableMaker) -> list[ReportPart]:
    full = together(published_values(figures), measured_values(records, embedded=False))
    small = measured_values(records, embedded=True)
    description = (
        f"Spearman's coefficient of every two columns that at least {MIN_ENCODERS} encoders have, one column per "
        "protocol; n is the number of encoders. The table gives the intervals."
    )
    parts = []
    for name, title, values, every_column in (
        ("predicts", "Which cheap number predicts transfer?", full, True),
        ("predicts-embedded", "Which number predicts which on the embedded data?", small, False),
    ):
        found = correlations(values, headlines(values))
        said = remark(values)
        part = ReportPart(name, title, (said,) if said else (), folded=len(found) > FOLD_FROM)
        drawn = [one for one in found if len(one.encoders) >= MIN_ENCODERS]
        heat_map = chart(f"{name}-heat", "Rank correlations", description, partial(draw_heat_map, drawn))
        part.charts = [] if heat_map is None else [heat_map]
        part.tables = [maker.plain(correlation_table(found))] if found else []
        every = correlations(values, sorted(values, key=page_order)) if every_column else []
        if len(every) > len(found):
            part.tables.append(maker.plain(correlation_table(every, "Rank correlations of all columns")))
        parts.append(part)
    return parts


# ---- pretraining, published figures, and what was left out


def _pretraining(logs: Sequence[PretrainingLog]) -> ReportPart:
    description = f"One line per run. Dotted: the loss at chance. {LEGEND}"
    drawn = chart("pretraining-curves", "Pretraining curves", description, partial(draw_pretraining, logs))
    return ReportPart("pretraining", "Pretraining", charts=[] if drawn is None else [drawn])


def _published(figures: Sequence[Figure], maker: TableMaker) -> ReportPart:
    """Every published figure that has a place on a model-zoo page, with its source."""
    line = "Figures as their sources print them. Protocols differ between sources. This project measured none of them."
    part = ReportPart("published", "Published figures", (line,), folded=True)
    for layout in LAYOUTS:
        found = published_rows(layout, figures)
        if not found:
            continue
        columns = filled_columns(layout, found)
        sources = list(dict.fromkeys(source for row in found for source in row.sources))
        rows = [
            Row(
                row.name,
                tuple(row.cell(column, figures) for column in columns),
                tuple(sources.index(source) + 1 for source in row.sources),
            )
            for row in found
        ]
        table = Table(
            layout.title,
            (layout.line,) if layout.line else (),
            (CONFIG, *(column.title for column in columns)),
            tuple(rows),
            layout.decimals,
            sources=tuple(sources),
        )
        part.tables.append(maker.plain(table))
    return part


def _left_out(bad: Sequence[BadRecord], unanswered: tuple[str, ...], maker: TableMaker) -> ReportPart:
    files = tuple(f"{found.name(found.path.parent)}: {found.reason}" for found in bad)
    lists = {"Files that are not records": files, "Differences that these records do not explain": unanswered}
    tables = [maker.plain(Table(title, (), ("",), (), notes=notes)) for title, notes in lists.items() if notes]
    return ReportPart("left-out", "Left out", tables=tables)
