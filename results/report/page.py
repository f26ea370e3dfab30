"""The report: what it holds, in which order, and how it becomes one file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from results.cells import Table
from results.correlation import (
    FEWEST,
    Correlation,
    correlation_table,
    correlations,
    headlines,
    measured_values,
    published_values,
    remark,
    together,
)
from results.model_zoo import HEADINGS
from results.noise import NOISE_LINE
from results.per_class import per_class_tables
from results.pictures.heat_map import draw_heat_map
from results.pictures.knn_k import draw_knn_k
from results.pictures.low_shot import draw_low_shot
from results.pictures.per_class import draw_per_class
from results.pictures.per_layer import draw_per_layer
from results.pictures.pretraining import RunLog, draw_pretraining
from results.published import Figure
from results.report.charts import Chart, chart
from results.report.sheets import Sheet, sheets
from results.report.tables import ReportTable, TableMaker, published_tables
from results.roster import current
from results.store import BadRecord, StoredRecord
from results.tables import SPREAD_LINE, Section

TITLE = "Benchmark report"
FOLDER = Path(__file__).parent
LEGEND = "Each line's colour, mark and dashes are those of its legend; the numbers stand in the tables."


@dataclass
class Part:
    """What stands under one heading; `folded` tables open on a click."""

    id: str
    title: str
    lines: tuple[str, ...] = ()
    charts: list[Chart] = field(default_factory=list)
    tables: list[ReportTable] = field(default_factory=list)
    sheets: list[Sheet] = field(default_factory=list)
    folded: bool = False

    @property
    def empty(self) -> bool:
        return not (self.charts or self.tables or self.sheets)


def report_html(
    records: Sequence[StoredRecord], bad: Sequence[BadRecord], logs: Sequence[RunLog], figures: Sequence[Figure]
) -> str:
    """The whole page; it loads nothing, and no script runs in it but the one that sorts its tables."""
    maker = TableMaker()
    parts = [
        *(_section(records, maker, embedded) for embedded in (False, True)),
        *_correlation_parts(records, figures, maker),
        _pretraining(logs),
        _published(figures, maker),
        _left_out(bad, maker),
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
    wanted: list[tuple[str, str, str, Callable[[Path], None]]] = [
        ("layers", "Score by layer", LEGEND, lambda out: draw_per_layer(records, out)),
        ("neighbours", "kNN accuracy against the number of neighbours", LEGEND, lambda out: draw_knn_k(records, out)),
        ("classes", "Class by class", LEGEND, lambda out: draw_per_class(records, out)),
    ]
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
                _low_shot(group),
            )
        )
    found = [chart(f"{name}-{key}", title, says, draw) for key, title, says, draw in wanted]
    return [one for one in found if one is not None]


def _low_shot(group: Sequence[StoredRecord]) -> Callable[[Path], None]:
    return lambda out: draw_low_shot(group, out)


def _correlation_parts(records: Sequence[StoredRecord], figures: Sequence[Figure], maker: TableMaker) -> list[Part]:
    full = together(published_values(figures), measured_values(records, embedded=False))
    small = measured_values(records, embedded=True)
    parts = []
    for name, title, values in (
        ("predicts", "Which cheap number predicts transfer?", full),
        ("predicts-embedded", "Which number predicts which on the embedded data?", small),
    ):
        found = correlations(values, headlines(values))
        drawn = [one for one in found if len(one.encoders) >= FEWEST]
        said = remark(values)
        part = Part(name, title, (said,) if said else (), folded=len(found) > 12)
        part.charts = [c for c in [_heat_map(f"{name}-heat", drawn)] if c is not None]
        part.tables = [maker.plain(correlation_table(found))] if found else []
        parts.append(part)
    return parts


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


def _left_out(bad: Sequence[BadRecord], maker: TableMaker) -> Part:
    notes = tuple(f"{found.path.name}: {found.reason}" for found in bad)
    tables = [maker.plain(Table("Files that are not records", (), ("",), (), notes=notes))] if notes else []
    return Part("left-out", "Left out", tables=tables)
