"""The contents of the report, in order, and how they become one HTML file."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from results.compare import (
    MIN_ENCODERS,
    checkpoint_runs,
    correlation_table,
    correlations,
    draw_heat_map,
    headlines,
    measured_values,
    published_values,
    remark,
    together,
)
from results.errors import InputError
from results.explain import AskedPair, Explanation, draw_waterfall, explanations, heading, in_words
from results.families import suite_of
from results.files import MAX_TEXT, read_text
from results.formats import Cell, Row, Table, cell_text, sourced_table
from results.html_parts import (
    SCORE_COLUMNS,
    Chart,
    Dot,
    DotPanel,
    ReportPart,
    TableMaker,
    VerdictCard,
    chart,
    draw_dots,
    rendered,
    saved_images,
)
from results.noise import NOISE_LINE, TWO_SIDED, difference, rank_rows
from results.plots import (
    EncoderStyles,
    NothingToDrawError,
    encoder_key,
    line_style,
    mark,
    plain_axes,
    record_figures,
    save_figure,
)
from results.published import Figure
from results.published_tables import CONFIG, PAGE_TABLES, filled_columns, published_rows
from results.rows import (
    FULL,
    Entry,
    Group,
    architecture_text,
    data_kinds,
    matching,
    records_by_row,
    suite_groups,
    variant_text,
)
from results.store import BadRecord, StoredRecord
from results.tables import SPREAD_LINE, Section, duration, headline, per_class_tables, score_cell

TITLE = "Benchmark report"
ORIGIN_LINE = "Click a number with a dotted underline to see the record that it comes from."
BEHIND_LINE = "±: standard error of the test sample. Behind the best by: 95% interval of the difference."
LEGEND = "The legend gives the colour, marker and dashes of each line; the tables hold the numbers."
TABS = {
    "overview": "Overview", "benchmarks": "Benchmarks", "noise": "Noise", "differences": "Protocols",
    "correlations": "Correlations", "images": "Neighbours and predictions", "provenance": "Provenance",
}  # fmt: skip
FOLD_FROM = 12  # rows of a table of correlations


def report_html(
    records: Sequence[StoredRecord],
    bad: Sequence[BadRecord],
    logs: Sequence[PretrainingLog],
    figures: Sequence[Figure],
    questions: Sequence[AskedPair] = (),
) -> str:
    """The whole page. It loads nothing, and its only script sorts the tables.

    Args:
        questions: differences between protocols to explain.
    """
    maker = TableMaker()
    explained, unanswered = _answers(records, questions)
    shown = _without_steps(records, explained)
    styles = EncoderStyles(shown)
    kinds = sorted(data_kinds(shown), key=lambda kind: kind != FULL)
    sections = [section for kind in kinds if (section := Section(shown, kind)).groups]
    parts = [
        *(_overview(section, maker, styles) for section in sections),
        *(part for section in sections for part in _benchmarks(section, maker, styles)),
        *(_noise(section, maker, styles) for section in sections),
        _differences(explained, maker),
        *_correlations(shown, figures, maker),
        *(_images(section) for section in sections),
        *(_encoders(section, maker) for section in sections),
        _pretraining(logs, styles),
        _published(figures, maker),
        _left_out(bad, unanswered, maker),
    ]
    filled = [part for part in parts if not part.empty]
    return rendered(
        "report.html",
        ["sortable.min.js", "wide.js", "report.js"],
        ["style.css"],
        title=TITLE,
        lines=(SPREAD_LINE, NOISE_LINE, ORIGIN_LINE),
        tabs=[(name, title, own) for name, title in TABS.items() if (own := [p for p in filled if p.tab == name])],
        encoders=_choices(sections),
        benchmarks=list(dict.fromkeys(part.benchmark for part in filled if part.benchmark)),
        origins=maker.origins,
        score_columns=SCORE_COLUMNS,
    )


def _choices(sections: Sequence[Section]) -> list[tuple[str, str]]:
    """What the encoder picker offers: a label, and the keys of its rows and lines."""
    found: dict[str, str] = {}
    for section in sections:
        for entry in section.entries:
            keys = dict.fromkeys(encoder_key(label) for label in (entry.label, entry.training))
            found.setdefault(entry.label, " ".join(keys))
    return list(found.items())


# ---- the measured data sets


def _id(section: Section) -> str:
    kind = section.kind
    return f"own-{kind.fingerprint[:12]}" if kind.kind == "own" else kind.kind


def _rows(section: Section, group: Group) -> list[tuple[str, list[StoredRecord]]]:
    """Label and records of each encoder that a group measured."""
    by_row = records_by_row(section.entries, group.records)
    return [(entry.label, own) for entry, own in zip(section.entries, by_row, strict=True) if own]


def _best(section: Section, group: Group) -> tuple[int, Sequence[Cell]] | None:
    """Row of the best score of a group's primary column, and all its cells, bold where tied with it."""
    column, rows = group.protocol.primary, _rows(section, group)
    cells = [score_cell(section.cache, own, column) for _, own in rows]
    higher = group.protocol.higher_is_better
    ranked = rank_rows(section.cache, [own for _, own in rows], {column: cells}, higher_is_better=higher)[column].cells
    filled = {i: cell.value if higher else -cell.value for i, cell in enumerate(ranked) if cell.value is not None}
    return (max(filled, key=lambda i: filled[i]), ranked) if filled else None


def _overview(section: Section, maker: TableMaker, styles: EncoderStyles) -> ReportPart:
    """A verdict per encoder, the figure of the headline scores, and the summary."""
    part = ReportPart(_id(section), section.kind.title, (section.kind.line,) if section.kind.line else (), "overview")
    verdicts: dict[str, list[tuple[str, str, str, bool]]] = {}
    panels, leaders = [], []
    for group in section.headline_groups():
        best = _best(section, group)
        if best is None:
            continue
        first, cells = best
        rows, column, dots = _rows(section, group), group.protocol.primary, []
        tied = [label for (label, _), cell in zip(rows, cells, strict=True) if cell.bold and label != rows[first][0]]
        if sum(cell.value is not None for cell in cells) > 1:
            leaders.append((headline(group), rows[first][0], tied))
        unit = " %" if group.protocol.unit == "%" else ""
        for (label, own), cell in zip(rows, cells, strict=True):
            if cell.value is None:
                continue
            where = "best" if cell.bold else ""
            behind = not cell.bold and label != rows[first][0]  # of a single encoder nothing is bold
            if behind and (found := difference(section.cache, rows[first][1], own, column)) is not None:
                form = f".{group.decimals}f"
                where = f"behind the best by {found.low:{form}} to {found.high:{form}}"
            elif cell.bold and sum(each.bold for each in cells) > 1:
                where = "tied for best"
            text = cell_text(replace(cell, std=None), group.decimals) + unit
            verdicts.setdefault(label, []).append((headline(group), text, where, cell.bold))
            half = None if cell.error is None else TWO_SIDED * cell.error
            low, high = (None, None) if half is None else (cell.value - half, cell.value + half)
            dots.append(Dot(label, cell.value, low, high, cell.bold))
        panels.append(DotPanel(headline(group), tuple(dots)))
    control = {entry.label: entry.random or entry.architecture.name == "pixels" for entry in section.entries}
    wins = {label: sum(best for *_, best in scores) for label, scores in verdicts.items()}
    for entry in sorted(section.entries, key=lambda entry: (control[entry.label], -wins.get(entry.label, 0))):
        if entry.label in verdicts:
            colour = str(styles.of(entry.label)["color"])
            about = ", ".join(t for t in (architecture_text(entry.architecture), entry.cards[0].method or "") if t)
            scores = tuple(verdicts[entry.label])
            part.verdicts.append(
                VerdictCard(entry.label, encoder_key(entry.label), colour, about, scores, _cost(section, entry))
            )
    description = (
        "Dots: score. Lines: 95% interval of the test sample. Filled dots are the best of their column, or cannot be "
        "told from it by the paired interval of their difference, which is narrower than the two lines."
    )
    draw = partial(draw_dots, panels, styles=styles, x_label="score (%); line: 95% interval of the test sample")
    part.charts = chart(f"{part.id}-headlines", "Headline scores", description, draw)
    part.tables = maker.summary(section)
    if leaders:
        part.lines += (f"{leading(leaders)} {BEHIND_LINE}",)
    return part


def leading(columns: Sequence[tuple[str, str, Sequence[str]]]) -> str:
    """Who is best in which columns, in sentences.

    Args:
        columns: title of a column, the label of its best row, and the labels that cannot be told from it.
    """
    alone: dict[str, list[str]] = {}
    shared: dict[tuple[str, ...], list[str]] = {}
    for title, best, tied in columns:
        if tied:
            shared.setdefault((best, *tied), []).append(title)
        else:
            alone.setdefault(best, []).append(title)
    sentences = [f"Best in {_listed(titles)}: {label}." for label, titles in alone.items()]
    sentences += [f"Tied for best in {_listed(titles)}: {_listed(labels)}." for labels, titles in shared.items()]
    return " ".join(sentences)


def _listed(names: Sequence[str]) -> str:
    return " and ".join([*([", ".join(names[:-1])] if len(names) > 1 else []), names[-1]])


def _cost(section: Section, entry: Entry) -> str:
    """What pretraining and measuring took, as far as records say."""
    own = entry.records(stored for group in section.groups for stored in group.records)
    seconds = sum(stored.record.timing.get("total", 0.0) for stored in own)
    hardware = {stored.record.hardware.gpu or f"{stored.record.hardware.cores} CPU cores" for stored in own}
    known = [card.pretrain_seconds for card in entry.cards if card.pretrain_seconds is not None]
    parts = [f"Pretrained in {duration(sum(known))}"] if known else []
    count = f"{len(own)} measurements" if len(own) != 1 else "1 measurement"
    parts.append(f"{count} in {duration(seconds)} on {' and '.join(sorted(hardware))}")
    return "; ".join(parts)


def _benchmarks(section: Section, maker: TableMaker, styles: EncoderStyles) -> list[ReportPart]:
    """A part per protocol and data set: its table, its figures and its scores per class."""
    parts = []
    alone = [group for group in section.groups if suite_of(group.protocol.benchmark) is None]
    for number, group in enumerate(alone):
        identifier = f"{_id(section)}-{number}"
        title = f"{group.title} ({section.kind.title}, {variant_text(group.protocol)})"
        part = ReportPart(identifier, title, (), "benchmarks", group.title, closed=number > 0)
        part.tables = maker.group(section, group)
        part.tables += [maker.plain(table) for table in per_class_tables(group.records, entries=section.entries)]
        part.charts = _charts(group.records, identifier, styles)
        parts.append(part)
    for number, suite in enumerate(suite_groups(section.groups), start=len(alone)):
        tables = [maker.plain(table) for table in section.suite_tables(suite)]
        if tables:
            title = f"{tables[0].table.title} ({section.kind.title})"
            parts.append(ReportPart(f"{_id(section)}-{number}", title, (), "benchmarks", tables[0].table.title,
                                    closed=number > 0, tables=tables))  # fmt: skip
    return parts


def _noise(section: Section, maker: TableMaker, styles: EncoderStyles) -> ReportPart:
    """How far each encoder is behind the best of a headline column, with the interval of the difference."""
    panels, rows = [], []
    for group in section.headline_groups():
        best = _best(section, group)
        if best is None:
            continue
        first, cells = best
        own, column, dots, widths = _rows(section, group), group.protocol.primary, [], []
        for i, (label, records) in enumerate(own):
            if i == first or cells[i].value is None:
                continue
            found = difference(section.cache, own[first][1], records, column)
            if found is not None:
                dots.append(Dot(label, found.value, found.low, found.high, tied=bool(cells[i].bold)))
                widths.append((found.high - found.low) / 2)
        if dots:
            size = f"{group.example.dataset.test_items:,}"
            typical = Cell(sorted(widths)[len(widths) // 2])
            rows.append(Row(headline(group), (Cell(text=own[first][0]), Cell(text=size), typical)))
            panels.append(DotPanel(f"{headline(group)}: behind {own[first][0]}", tuple(dots)))
    description = (
        "Dots: how far an encoder is behind the best of the column. Lines: 95% interval of that difference, by a "
        "paired bootstrap over the test items, with the spread over runs where both sides have several. A line that "
        "reaches zero: the two cannot be told apart."
    )
    part = ReportPart(f"{_id(section)}-noise", section.kind.title, (), "noise")
    draw = partial(draw_dots, panels, styles=styles, x_label="points behind the best; line: 95% interval", zero=True)
    part.charts = chart(f"{part.id}-differences", "Differences from the best", description, draw)
    if rows:
        lines = (
            "A difference smaller than the last column could be chance: it is half the width of the 95% interval of a "
            "difference from the best, the median over encoders, in points.",
        )
        columns = ("Column", "Best", "Test items", "Smallest difference to be told apart")
        part.tables = [maker.plain(Table("What these test sets can tell apart", lines, columns, tuple(rows), 1))]
    return part


def _images(section: Section) -> ReportPart:
    records = [stored for group in section.groups for stored in group.records]
    images = sorted(saved_images(records), key=lambda image: image.untrained)
    line = "Of several random initialisations one is shown; the images of the others are next to their records."
    lines = (line,) if any(image.untrained for image in images) else ()
    return ReportPart(f"{_id(section)}-images", section.kind.title, lines, "images", images=images)


def _encoders(section: Section, maker: TableMaker) -> ReportPart:
    tables = [maker.plain(table) for table in section.encoder_table()]
    return ReportPart(f"{_id(section)}-encoders", section.kind.title, tables=tables)


def _charts(records: Sequence[StoredRecord], part: str, styles: EncoderStyles) -> list[Chart]:
    return [
        made
        for one in record_figures(records, styles)
        for made in chart(
            f"{part}-{re.sub(r'[^a-z0-9]+', '-', one.name)}", one.title, f"{one.caption} {LEGEND}".strip(), one.draw
        )
    ]


# ---- explained differences


def _answers(
    records: Sequence[StoredRecord], questions: Sequence[AskedPair]
) -> tuple[list[Explanation], tuple[str, ...]]:
    """The explanations, and a sentence for each question that the records do not answer."""
    explained: list[Explanation] = []
    unanswered: list[str] = []
    for question in questions:
        try:
            own = matching(records, encoder=question.encoder)
            explained += explanations(own, question.a, question.b, question.column, question.together)
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
    part = ReportPart("differences", "Why two protocols differ", (line,), "differences")
    for i, one in enumerate(explained):
        part.tables.append(maker.explanation(one))
        form = f".{one.decimals}f"
        steps = ", ".join(f"{in_words(switch.field)} {switch.share:+{form}}" for switch in one.switches)
        description = (
            f"{one.encoder}, {one.column} on {one.dataset}: from {one.score_a:{form}} by {steps} to "
            f"{one.score_b:{form}}. Bars of settings that lower the score are hatched."
        )
        draw = partial(draw_waterfall, [one])
        part.charts += chart(f"difference-{i}", f"{heading(one)}, step by step", description, draw)
    return part


# ---- correlations


def _correlations(records: Sequence[StoredRecord], figures: Sequence[Figure], maker: TableMaker) -> list[ReportPart]:
    full = together(published_values(figures), measured_values(records, embedded=False))
    small = measured_values(records, embedded=True)
    runs = checkpoint_runs(records)
    description = (
        f"Spearman's coefficient of every two columns that at least {MIN_ENCODERS} encoders have, one column per "
        "protocol; n is the number of encoders. The table gives the intervals. For every pair of columns run "
        "encoder-bench correlations --columns all."
    )
    parts = []
    for name, title, values in (
        ("predicts", "Which cheap number predicts transfer?", full),
        ("predicts-embedded", "Which number predicts which on the embedded data?", small),
    ):
        found = correlations(values, headlines(values), runs)
        said = remark(values)
        part = ReportPart(name, title, (said,) if said else (), "correlations", folded=len(found) > FOLD_FROM)
        drawn = [one for one in found if len(one.encoders) >= MIN_ENCODERS]
        part.charts = chart(f"{name}-heat", "Rank correlations", description, partial(draw_heat_map, drawn))
        part.tables = [maker.plain(correlation_table(found))] if found else []
        parts.append(part)
    return parts


# ---- pretraining logs

# Column of the log -> label of its axis, and the factor from the log's unit to the label's.
LOG_PANELS = {
    "loss": ("loss (dotted: at chance)", 1.0),
    "accuracy": ("pretext accuracy (%)", 100.0),
    "knn": ("kNN accuracy on\nheld-out images (%)", 1.0),
    "probe": ("linear probe on\nheld-out images (%)", 1.0),
    "online_probe": ("online probe on\nheld-out images (%)", 1.0),
    "online_probe_train": ("online probe on\ntraining views (%)", 1.0),
    "rankme": ("RankMe", 1.0),
    "effective_rank": ("effective rank\nof the features", 1.0),
    "alpha_req": ("alpha-ReQ", 1.0),
    "uniformity": ("uniformity\n(lower is more even)", 1.0),
    "deviation": ("deviation\n(1: even, 0: collapsed)", 1.0),
    "dead_share": ("dead dimensions (%)", 100.0),
    "lidar": ("LiDAR", 1.0),
    "alignment": ("alignment of views\n(lower is closer)", 1.0),
}


@dataclass(frozen=True)
class PretrainingLog:
    """The log of one run: the name of its folder, (epoch, value) pairs by column, and the encoder that it made.

    Attributes:
        encoder: source and epochs as the encoder's card states them; empty if the folder has no recipe.
    """

    name: str
    columns: dict[str, list[tuple[float, float]]]
    encoder: tuple[str, float] | None = None


MAX_DRAWN = 1e100  # larger numbers, such as the loss of a run that diverged, have no place on an axis


def read_pretraining_logs(root: Path) -> list[PretrainingLog]:
    """Every `log.csv` below a folder, one row per epoch; empty if the folder does not exist.

    Raises:
        InputError: a file is not a log of a pretraining run.
    """
    return [_read_log(path) for path in sorted(root.rglob("log.csv"))]


def _read_log(path: Path) -> PretrainingLog:
    columns: dict[str, list[tuple[float, float]]] = {}
    try:
        for row in csv.DictReader(io.StringIO(read_text(path, MAX_TEXT), newline="")):
            for name, text in row.items():
                if not text:
                    continue
                epoch, value = float(row["epoch"]), float(text)
                if abs(epoch) < MAX_DRAWN and not abs(value) >= MAX_DRAWN:  # nan is a gap in the line
                    columns.setdefault(name, []).append((epoch, value))
    except (csv.Error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not the log of a pretraining run ({error}); remove it or choose another folder with --pretrain"
        ) from error
    return PretrainingLog(path.parent.name, columns, _made_by(path.parent / "recipe.json"))


def _made_by(recipe: Path) -> tuple[str, float] | None:
    try:
        content = json.loads(read_text(recipe, MAX_TEXT))
        return f"recipe {content['name']}, seed {content['seed']}", float(content["epochs"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # only the colour of a line depends on it
        return None


def draw_pretraining(logs: Sequence[PretrainingLog], out: Path, styles: EncoderStyles | None = None) -> None:
    """A panel for the loss, the pretext accuracy and each measure of the monitor against the epoch, as the logs have.

    Args:
        styles: gives the line of a run the style of its encoder.
    """
    from matplotlib.figure import Figure

    shown = [name for name in LOG_PANELS if any(name in log.columns for log in logs)]
    if not shown:
        raise NothingToDrawError("no log of a pretraining run")
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(3.8 * columns, 2.1 * rows + 0.25 * len(logs) + 0.4), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True).flat)
    labels = run_labels(logs, styles)
    lines = [line_style(i) if styles is None else styles.of(label) for i, label in enumerate(labels)]
    for axes, name in zip(panels, shown, strict=False):
        title, factor = LOG_PANELS[name]
        for log, label, style in zip(logs, labels, lines, strict=True):
            points = log.columns.get(name, [])
            (line,) = axes.plot(
                [epoch for epoch, _ in points], [factor * value for _, value in points], label=log.name,
                markevery=max(1, len(points) // 12), markersize=4, **style,
            )  # fmt: skip
            mark(line, label)
            if name == "loss":
                chance = log.columns.get("chance_loss", [])
                axes.plot([x for x, _ in chance], [y for _, y in chance], ":", color=style["color"], linewidth=1)
        if name == "dead_share":  # mostly none, which is no range
            axes.set_ylim(-0.2, max(5.0, axes.get_ylim()[1]))
        axes.set_ylabel(title)
        plain_axes(axes)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    for axes in panels[len(shown) - columns : len(shown)]:
        axes.set_xlabel("epoch")
        axes.tick_params(labelbottom=True)  # also of a panel above an empty place
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    save_figure(figure, out)


def run_labels(logs: Sequence[PretrainingLog], styles: EncoderStyles | None) -> list[str]:
    """For each run the label of the encoder that it made, if the records have it; else the name of its folder."""
    known = {} if styles is None else styles.by_training
    return [log.name if log.encoder is None else known.get(log.encoder, log.name) for log in logs]


def _pretraining(logs: Sequence[PretrainingLog], styles: EncoderStyles) -> ReportPart:
    watched = (
        " Below them: what the monitor measured of the features." if any("knn" in log.columns for log in logs) else ""
    )
    description = f"One line per run. Dotted: the loss at chance.{watched} {LEGEND}"
    draw = partial(draw_pretraining, logs, styles=styles)
    charts = chart("pretraining-curves", "Pretraining curves", description, draw)
    return ReportPart("pretraining", "Pretraining", charts=charts)


# ---- published figures, and what was left out


def _published(figures: Sequence[Figure], maker: TableMaker) -> ReportPart:
    """Every published figure that has a place on a model-zoo page, with its source."""
    line = "Figures as their sources print them. Protocols differ between sources. This project measured none of them."
    part = ReportPart("published", "Published figures", (line,), folded=True)
    for layout in PAGE_TABLES:
        found = published_rows(layout, figures)
        if not found:
            continue
        columns = filled_columns(layout, found)
        table = sourced_table(
            layout.title,
            (CONFIG, *(column.title for column in columns)),
            [(row.name, tuple(row.cell(column, figures) for column in columns), row.sources) for row in found],
            lines=(layout.line,) if layout.line else (),
            decimals=layout.decimals,
        )
        part.tables.append(maker.plain(table))
    return part


def _left_out(bad: Sequence[BadRecord], unanswered: tuple[str, ...], maker: TableMaker) -> ReportPart:
    files = tuple(f"{found.name(found.path.parent)}: {found.reason}" for found in bad)
    lists = {"Files that are not records": files, "Differences that these records do not explain": unanswered}
    tables = [maker.plain(Table(title, (), ("",), (), notes=notes)) for title, notes in lists.items() if notes]
    return ReportPart("left-out", "Left out", tables=tables)
