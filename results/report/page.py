"""The report: what it holds, in which order, and how it becomes one file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from results.comparison.correlation import (
    FEWEST,
    Correlation,
    Values,
    correlation_table,
    correlations,
    headlines,
    measured_values,
    page_order,
    published_values,
    remark,
    together,
)
from results.comparison.explained import Question
from results.pictures.heat_map import draw_heat_map
from results.pictures.knn_k import draw_knn_k
from results.pictures.low_shot import draw_low_shot
from results.pictures.per_class import draw_per_class
from results.pictures.per_layer import draw_per_layer
from results.pictures.pretraining import RunLog, draw_pretraining
from results.pictures.score_against_epoch import draw_score_against_epoch
from results.pictures.styles import Styles
from results.published.figures import Figure
from results.report.charts import Chart, chart
from results.report.differences import answers, differences_part
from results.report.part import Part
from results.report.sheets import sheets
from results.report.tables import TableMaker, published_tables
from results.store import BadRecord, StoredRecord
from results.tables.cells import Table
from results.tables.model_zoo import HEADINGS
from results.tables.noise import NOISE_LINE
from results.tables.per_class import per_class_tables
from results.tables.roster import current
from results.tables.sections import SPREAD_LINE, Section

TITLE = "Benchmark report"
FOLDER = Path(__file__).parent
LEGEND = "Each line's colour, mark and dashes are those of its legend; the numbers stand in the tables."


def report_html(
    records: Sequence[StoredRecord],
    bad: Sequence[BadRecord],
    logs: Sequence[RunLog],
    figures: Sequence[Figure],
    asked: Sequence[Question] = (),
) -> str:
    """The whole page; it loads nothing, and no script runs in it but the one that sorts its tables.

    Args:
        asked: which differences between protocols it explains.
    """
    maker = TableMaker()
    answered = answers(records, asked)
    shown = answered.others(records)
    parts = [
        *(_section(shown, maker, embedded) for embedded in (False, True)),
        differences_part(answered.explained, maker),
        *_correlation_parts(shown, figures, maker),
        _pretraining(logs),
        _published(figures, maker),
        _left_out(bad, answered.unanswered, maker),
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
        lines=(SPREAD_LINE, NOISE_LINE, "A number with a dotted line tells where it comes from when it is pressed."),
        parts=[part for part in parts if not part.empty],
        origins=maker.origins,
        style=(FOLDER / "style.css").read_text(encoding="utf-8"),
        script=script,
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _section(records: Sequence[StoredRecord], maker: TableMaker, embedded: bool) -> Part:
    own = [stored for stored in records if stored.record.dataset.embedded == embedded]
    title, line = HEADINGS[embedded]
    name = "embedded" if embedded else "full"
    part = Part(name, title, (line,) if line else ())
    if own:
        part.tables = maker.section(Section(records, embedded=embedded))
        part.tables += [maker.plain(table) for table in per_class_tables(own)]
        part.charts = _charts(own, name)
        part.sheets = sheets(current(own)[0])
    return part


def _charts(records: Sequence[StoredRecord], name: str) -> list[Chart]:
    styles = Styles(records)
    wanted: list[tuple[str, str, str, Callable[[Path], None]]] = [
        ("layers", "Score by layer", LEGEND, partial(draw_per_layer, records, styles=styles)),
        ("neighbours", "kNN accuracy against the number of neighbours", LEGEND, partial(draw_knn_k, records,
                                                                                       styles=styles)),
        ("classes", "Class by class", LEGEND, partial(draw_per_class, records, styles=styles)),
        ("epochs", "Score against pretraining epochs", LEGEND, partial(draw_score_against_epoch, records)),
    ]  # fmt: skip
    low_shot: dict[tuple[str, str, str], list[StoredRecord]] = {}
    for stored in records:
        record = stored.record
        if record.protocol.resolved.benchmark.endswith("low_shot_svm"):
            asked = record.protocol.id, record.protocol.sha256, record.dataset.fingerprint
            low_shot.setdefault(asked, []).append(stored)
    for i, (asked, group) in enumerate(low_shot.items()):
        wanted.append(
            (
                f"few-{i}",
                f"Low-shot mAP against k, {asked[0]}",
                "Lines: mean over the sets; bands: lowest to highest set. " + LEGEND,
                partial(draw_low_shot, group, styles=styles),
            )
        )
    found = [chart(f"{name}-{key}", title, says, draw) for key, title, says, draw in wanted]
    return [one for one in found if one is not None]


def _correlation_parts(records: Sequence[StoredRecord], figures: Sequence[Figure], maker: TableMaker) -> list[Part]:
    full = together(published_values(figures), measured_values(records, embedded=False))
    small = measured_values(records, embedded=True)
    parts = []
    for name, title, values, every in (
        ("predicts", "Which cheap number predicts transfer?", full, _of_all_columns(full)),
        ("predicts-embedded", "Which number predicts which on the embedded data?", small, []),
    ):
        found = correlations(values, headlines(values))
        drawn = [one for one in found if len(one.encoders) >= FEWEST]
        said = remark(values)
        part = Part(name, title, (said,) if said else (), folded=len(found) > 12)
        part.charts = [c for c in [_heat_map(f"{name}-heat", drawn)] if c is not None]
        part.tables = [maker.plain(correlation_table(found))] if found else []
        if len(every) > len(found):
            part.tables.append(maker.plain(correlation_table(every, "Rank correlations of all columns")))
        parts.append(part)
    return parts


def _of_all_columns(values: Values) -> list[Correlation]:
    return correlations(values, sorted(values, key=page_order))


def _heat_map(name: str, drawn: Sequence[Correlation]) -> Chart | None:
    says = (
        f"Spearman's coefficient of every two columns that at least {FEWEST} encoders have, one column per protocol; n "
        "is the number of encoders. The table says the same with intervals."
    )
    return chart(name, "Rank correlations", says, lambda out: draw_heat_map(drawn, out))


def _pretraining(logs: Sequence[RunLog]) -> Part:
    part = Part("pretraining", "Pretraining")
    says = "By epoch, a line per run; dotted: the loss of chance. " + LEGEND
    drawn = chart("pretraining-curves", "Pretraining curves", says, lambda out: draw_pretraining(logs, out))
    part.charts = [] if drawn is None else [drawn]
    return part


def _published(figures: Sequence[Figure], maker: TableMaker) -> Part:
    tables = [maker.plain(table) for table in published_tables(figures)]
    line = "As their sources print them. Protocols differ between sources; nothing here was measured by this project."
    return Part("published", "Published figures", (line,), tables=tables, folded=True)


def _left_out(bad: Sequence[BadRecord], unanswered: Sequence[str], maker: TableMaker) -> Part:
    files = tuple(f"{found.path.name}: {found.reason}" for found in bad)
    lists = {"Files that are not records": files, "Differences that these records do not explain": tuple(unanswered)}
    tables = [maker.plain(Table(title, (), ("",), (), notes=notes)) for title, notes in lists.items() if notes]
    return Part("left-out", "Left out", tables=tables)
