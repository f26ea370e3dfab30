"""What the report and the board are made of: tables whose cells tell where they come from, SVG charts, and images."""

from __future__ import annotations

import base64
import glob
import hashlib
import io
import logging
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from results import formats
from results.errors import without_control
from results.explain import Explanation, explanation_table
from results.families import family_of
from results.files import open_image
from results.formats import Cell, Row, Table, cell_text, numeric_columns
from results.plots import (
    LABEL_WIDTH,
    EncoderStyles,
    NothingToDrawError,
    encoder_key,
    mark,
    plain_axes,
    save_figure,
    without_title,
)
from results.rows import Group, architecture_text, name_with_init, records_by_row, variant_text
from results.schema import Record
from results.store import StoredRecord
from results.tables import MARK, MEAN_OF, Section, gain_over_random

log = logging.getLogger(__name__)

WEB = Path(__file__).with_name("web")


@dataclass
class ReportPart:
    """What stands under one heading: lines, verdicts, tables, charts. The tables of a `folded` part open on a click.

    Attributes:
        tab: the tab of the report that it stands in.
        benchmark: title that the picker knows it by; empty where it belongs to none.
        closed: all of it is folded away until it is chosen.
    """

    id: str
    title: str
    lines: tuple[str, ...] = ()
    tab: str = "provenance"
    benchmark: str = ""
    closed: bool = False
    verdicts: list[VerdictCard] = field(default_factory=list)
    tables: list[ReportTable] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    images: list[SavedImage] = field(default_factory=list)
    folded: bool = False

    @property
    def empty(self) -> bool:
        return not (self.verdicts or self.tables or self.charts or self.images)


@dataclass(frozen=True)
class VerdictCard:
    """What one encoder came to: its headline scores, each with its distance from the best, and what that cost.

    Attributes:
        scores: title of a column, the score, and where it stands; `best` where it is the best or tied with it.
    """

    label: str
    key: str
    colour: str
    about: str
    scores: tuple[tuple[str, str, str, bool], ...]
    cost: str


# ---- the page


def rendered(template: str, scripts: Sequence[str], styles: Sequence[str], **values: Any) -> str:
    """A page from a template in `web/`: all text is escaped, and no control character is left.

    Args:
        scripts, styles: files of `web/` that become part of the page. It allows no other script, and loads nothing.
    """
    environment = Environment(
        loader=FileSystemLoader(WEB), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    script = "\n".join((WEB / name).read_text(encoding="utf-8").strip() for name in scripts)
    page = environment.get_template(template).render(
        style="".join((WEB / name).read_text(encoding="utf-8") for name in styles),
        script=script,
        script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
        **values,
    )
    return formats.without_control(page)


# ---- tables

NUMBERS = re.compile(r"[-+]?[\d,.]+( \[[-+\d,. ]+\])?")  # `1,600`, or a difference with its interval


@dataclass(frozen=True)
class ReportTable:
    """A table with its id on the page, and for every cell the id of the box with the records behind it (or "")."""

    id: str
    table: Table
    origins: tuple[tuple[str, ...], ...]

    @property
    def numeric(self) -> list[bool]:
        """For each column whether it holds numbers: it stands on the right, and no cell wraps."""
        texts = [[row.cells[i].text for row in self.table.rows] for i in range(len(self.table.columns) - 1)]
        numbers = [any(own) and all(NUMBERS.fullmatch(text) for text in own if text) for own in texts]
        return [a or b for a, b in zip(numeric_columns(self.table), [False, *numbers], strict=True)]

    @property
    def rows(self) -> list[tuple[Row, list[tuple[Cell, str]]]]:
        """Each row, and its cells with their origins."""
        pairs = zip(self.table.rows, self.origins, strict=True)
        return [(row, list(zip(row.cells, origins, strict=True))) for row, origins in pairs]

    @property
    def keys(self) -> list[str]:
        """For each row the key of its encoder, see `encoder_key`."""
        return [encoder_key(row_encoder(row.label)) for row in self.table.rows]

    def text(self, cell: Cell) -> str:
        return cell_text(cell, self.table.decimals)

    def sort_key(self, cell: Cell) -> str:
        return self.text(cell) if cell.value is None else repr(cell.value)


def row_encoder(label: str) -> str:
    """The label of a table's row without what may follow the encoder: the mark of a fault, the number of runs."""
    return label.removesuffix(f" {MARK}").partition(MEAN_OF)[0]


@dataclass
class TableMaker:
    """Gives tables their ids and collects the origins of their cells: id of a box -> its records."""

    origins: dict[str, list[Origin]] = field(default_factory=dict)
    _ids: count[int] = field(default_factory=count)
    _of_records: dict[tuple[Path, ...], str] = field(default_factory=dict)

    def plain(self, table: Table) -> ReportTable:
        """A table whose cells have no record of their own."""
        return self._table(table, [[()] * len(row.cells) for row in table.rows])

    def explanation(self, one: Explanation) -> ReportTable:
        """An explained difference: each of the two scores comes from one record, the shares from all."""
        table = explanation_table(one)
        shares = [(), (), *([one.records] * (len(table.columns) - 3))]
        whole = [one.records[:1], one.records[-1:], *shares[2:]]
        return self._table(table, [*([shares] * len(one.switches)), whole])

    def summary(self, section: Section) -> list[ReportTable]:
        """The headline column of each benchmark of the summary; nothing without any."""
        if (summary := section.summary()) is None:
            return []
        groups = section.headline_groups()
        every = [stored for group in groups for stored in group.records]
        shown = [i for i, own in enumerate(records_by_row(section.entries, every)) if own]
        by_group = [records_by_row(section.entries, group.records) for group in groups]
        made = [self._table(summary, [[tuple(of[i]) for of in by_group] for i in shown])]
        if (gains := gain_over_random(section)) is not None:
            made.append(self.plain(gains))
        return made

    def group(self, section: Section, group: Group) -> list[ReportTable]:
        """The tables of one protocol and data set."""
        rows = [tuple(own) for own in records_by_row(section.entries, group.records) if own]
        return [
            self._table(table, [[own] * (len(table.columns) - 1) for own in rows])
            for table in section.group_tables(group)
        ]

    def _table(self, table: Table, records: Sequence[Sequence[tuple[StoredRecord, ...]]]) -> ReportTable:
        origins = tuple(
            tuple(self._origin(cell, own) for cell, own in zip(row.cells, of_row, strict=True))
            for row, of_row in zip(table.rows, records, strict=True)
        )
        return ReportTable(f"table-{next(self._ids)}", table, origins)

    def _origin(self, cell: Cell, records: tuple[StoredRecord, ...]) -> str:
        if not records or not cell_text(cell, 0):
            return ""
        paths = tuple(stored.path for stored in records)
        if paths not in self._of_records:
            self._of_records[paths] = f"origin-{len(self._of_records)}"
            self.origins[self._of_records[paths]] = [origin(stored) for stored in records]
        return self._of_records[paths]


# ---- where a number comes from


@dataclass(frozen=True)
class Origin:
    """One record behind a cell: labelled texts, a row of texts per score, and the faults that make it unreliable."""

    title: str
    texts: tuple[tuple[str, str], ...]
    scores: tuple[tuple[str, ...], ...]
    faults: tuple[str, ...]


SCORE_COLUMNS = ("Column", "Value", "Selection", "Standard error", "Standard deviation", "Items")


def origin(stored: StoredRecord) -> Origin:
    """Everything a record says about how its scores were measured."""
    record = stored.record
    card, protocol, dataset, hardware = record.encoder, record.protocol.resolved, record.dataset, record.hardware
    source = protocol.source
    texts = {
        "Protocol": f"{record.protocol.id}, sha256 {record.protocol.sha256[:12]}",
        "Source": " ".join(text for text in (source.repository, source.revision, source.note) if text),
        "Metric": f"{protocol.metric}, "
        f"{family_of(protocol.benchmark).direction(protocol.columns, higher_is_better=protocol.higher_is_better)}",
        "Selection": protocol.selection,
        "Data": f"{dataset.own_name if dataset.own else dataset.id}: {dataset.train_items:,} training items "
        f"({protocol.train_split}) and {dataset.test_items:,} test items ({protocol.test_split}), "
        f"fingerprint {dataset.fingerprint[:12]}",
        "Architecture": architecture_text(card.architecture),
        "Weights": f"{card.source}, sha256 {(card.weights_sha256 or 'not known')[:12]}",
        "Seed": ", ".join(map(str, record.seeds)),
        "Time": _timing(record),
        "Peak memory": f"{record.peak_memory_gib:.2f} GiB" if record.peak_memory_gib else "",
        "Hardware": ", ".join(
            text
            for text in (hardware.gpu, hardware.cpu, f"{hardware.cores} cores", f"{hardware.memory_gib:.0f} GiB")
            if text
        ),
        "Commit": record.commit or "not known",
        "Versions": ", ".join(f"{name} {version}" for name, version in record.versions.items()),
        "Written": record.created,
        "Record": f"{stored.path.name}, sha256 {record.sha256[:12]}",
    }
    scores = tuple(
        (
            name,
            _four_digits(score.value),
            score.selection,
            _four_digits(score.standard_error),
            _four_digits(score.std),
            "" if score.n is None else f"{score.n:,}",
        )
        for name, score in record.scores.items()
    )
    title = f"{name_with_init(card)}, {record.protocol.id}"
    return Origin(title, tuple((name, text) for name, text in texts.items() if text), scores, stored.faults)


def _timing(record: Record) -> str:
    phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in record.timing.items() if name != "total")
    total = record.timing.get("total")
    if total is None:
        return phases
    return f"{total:.1f} s" + (f" ({phases})" if phases else "")


def _four_digits(number: float | None) -> str:
    return "" if number is None else f"{number:.4g}"


# ---- charts

MIN_SCALE = 0.85  # of a chart's own size: below that its text is illegible, so a narrow window scrolls it sideways


@dataclass(frozen=True)
class Chart:
    """An inline SVG with its title, a description for readers who cannot see it, and the same figure as a PDF."""

    id: str
    title: str
    description: str
    svg: str
    pdf: str


def chart(identifier: str, title: str, description: str, draw: Callable[[Path], None]) -> list[Chart]:
    """The figure that `draw` writes to the given file, as a chart; none if it raises `NothingToDrawError`."""
    from matplotlib import rc_context

    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": identifier, "font.size": 9.5}
    settings |= {"text.parse_math": False, "savefig.transparent": True, "pdf.compression": 9}
    with TemporaryDirectory() as folder, rc_context(settings), without_title():
        svg, pdf = (Path(folder) / f"chart.{form}" for form in ("svg", "pdf"))
        try:
            for path in (svg, pdf):
                draw(path)
        except NothingToDrawError:
            return []
        inline = inline_svg(svg.read_text(encoding="utf-8"), identifier)
        return [Chart(identifier, title, description, inline, base64.b64encode(pdf.read_bytes()).decode())]


def inline_svg(text: str, prefix: str) -> str:
    """An SVG file as an element of a page: unique ids, the page's text colour and font, hidden from screen readers.

    It is half as long: without blanks, a hundredth of a point is enough, and of groups only those of encoders have ids.
    """
    svg = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<g id="(?!encoder-)[^"]*"', "<g", svg)
    svg = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), re.sub(r">\s+<", "><", svg))
    svg = re.sub(r' transform="rotate\(-0 [^"]*"', "", svg)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", svg.replace("#000000", "currentColor"))
    width = re.match(r'<svg [^>]*?width="([\d.]+)pt"', svg)
    style = f' style="min-width: {MIN_SCALE * float(width[1]):.0f}pt"' if width else ""
    return svg.replace("<svg ", f'<svg aria-hidden="true" focusable="false"{style} ', 1)


@dataclass(frozen=True)
class Dot:
    """One encoder in one panel: a value with its 95 % interval; `tied` where it is the best or tied with it."""

    label: str
    value: float
    low: float | None
    high: float | None
    tied: bool = False


@dataclass(frozen=True)
class DotPanel:
    """A column's title and its dots, in the order of the rows."""

    title: str
    dots: tuple[Dot, ...]


def draw_dots(
    panels: Sequence[DotPanel], out: Path, styles: EncoderStyles, *, x_label: str, zero: bool = False
) -> None:
    """A row per encoder, a panel per column: dots with 95 % intervals, filled where tied with the best.

    Args:
        zero: draw a line at zero, for differences.
    """
    labels = list(dict.fromkeys(dot.label for panel in panels for dot in panel.dots))
    if not labels:
        raise NothingToDrawError("no encoder has a headline score")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.0 + 2.4 * len(panels), 1.2 + 0.32 * len(labels)), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, panel in zip(all_axes, panels, strict=True):
        for dot in panel.dots:
            colour, row = styles.of(dot.label)["color"], labels.index(dot.label)
            if dot.low is not None and dot.high is not None:
                (line,) = axes.plot([dot.low, dot.high], [row, row], color=colour, linewidth=1.6)
                mark(line, dot.label)
            (point,) = axes.plot(
                [dot.value], [row], color=colour, marker=styles.of(dot.label)["marker"], markersize=6,
                markerfacecolor=colour if dot.tied else "none",  # white would look filled on a dark page
            )  # fmt: skip
            mark(point, dot.label)
        if zero:
            axes.axvline(0, color="#7a7a7a", linewidth=0.8)
        axes.set_title(textwrap.fill(panel.title, 26), fontsize="medium", loc="left")
        plain_axes(axes, grid="x")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    all_axes[0].set_yticks(range(len(labels)), [textwrap.fill(label, LABEL_WIDTH) for label in labels])
    all_axes[0].set_ylim(len(labels) - 0.5, -0.5)
    figure.supxlabel(x_label, fontsize="small")
    save_figure(figure, out)


# ---- images saved with the records

SHEET_WIDTH, SHEET_HEIGHT = 900, 16383  # pixels; WebP allows no more than the second
IMAGE_KINDS = {
    "sheet": ("Contact sheet", "Test images with the ground truth, each next to the prediction."),
    "masks": ("Segmentation", "Test images with the true classes of their pixels, each next to the prediction."),
    "neighbours": ("Nearest neighbours", "One row per query image: the query, then its neighbours by rank."),
}


@dataclass(frozen=True)
class SavedImage:
    """An image as a data URI, with its size in pixels; those of untrained networks come last in the choice."""

    id: str
    title: str
    description: str
    uri: str
    width: int
    height: int
    untrained: bool


def saved_images(records: Sequence[StoredRecord]) -> list[SavedImage]:
    """Every `<record>.<kind>.png` next to the records, in their order.

    Of several random initialisations of one architecture the first is enough: their images look alike, and are large.
    """
    found: list[SavedImage] = []
    shown: set[tuple[str, str, str, str]] = set()
    for stored in records:
        for path in sorted(stored.path.parent.glob(f"{glob.escape(stored.path.stem)}.*.png")):
            kind = path.name.removeprefix(f"{stored.path.stem}.").removesuffix(".png")
            name, description = IMAGE_KINDS.get(kind, (kind, "An image saved with the record."))
            record = stored.record
            protocol = record.protocol.resolved
            if record.encoder.method == "random":
                same = record.encoder.architecture.model_dump_json(), protocol.id, record.dataset.fingerprint, kind
                if same in shown:
                    continue
                shown.add(same)
            about = f"{family_of(protocol.benchmark).title}, {variant_text(protocol)}, on {record.dataset.shown_name}"
            title = f"{name}: {name_with_init(record.encoder)}, {about}"
            content = io.BytesIO()
            try:
                with open_image(path) as image:
                    shown_image = image.convert("RGB")
                shown_image.thumbnail((SHEET_WIDTH, SHEET_HEIGHT))
                shown_image.save(content, "WEBP", quality=30, method=6)  # a report holds many
                size = shown_image.size
            except Exception as error:  # Pillow raises nearly anything on a damaged file
                reason = " ".join(str(error).split())[:200]
                text = f"the report leaves out {path}, which cannot be read as an image ({reason})"
                log.warning("%s", without_control(text))
                continue
            uri = f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"
            found.append(
                SavedImage(
                    f"image-{record.sha256[:12]}-{len(found)}",
                    title,
                    description,
                    uri,
                    *size,
                    record.encoder.method == "random",
                )
            )
    return found
