"""The look of every figure, and the figures of records: one `draw_…` function each, and `write_figures` for all.

A function writes one file in the format of its ending, and raises `NothingToDrawError` if there is nothing to show.
"""

from __future__ import annotations

import hashlib
import io
import re
import statistics
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from results.families import family_of
from results.files import write_file
from results.rows import (
    architecture_text,
    data_kind,
    data_kinds,
    identity,
    name_with,
    newest,
    records_by_row,
    table_rows,
    variant_text,
)
from results.schema import Protocol, Record
from results.store import StoredRecord, slug
from results.tables import MEAN_OF, POSITIVES, per_class_markdown, per_class_tables

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# ---- the look of every figure

# The palette of Okabe and Ito (2008), safe for colour-blind readers; markers and dashes repeat the distinction.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
DASHES = ("-", "--", ":", "-.")
CONTROLS = ("#6e6e6e", "#a3a3a3")  # untrained networks and raw pixels, which other encoders are compared with
LABEL_WIDTH = 38  # characters of a label before it goes on in the next line
_TITLED: ContextVar[bool] = ContextVar("titled", default=True)


@contextmanager
def without_title() -> Iterator[None]:
    """Figures of one panel are drawn without a title: the page or the caption around them has it."""
    token = _TITLED.set(False)
    try:
        yield
    finally:
        _TITLED.reset(token)


def encoder_key(label: str) -> str:
    """Eight hex digits by which a page finds an encoder's lines in its figures."""
    return hashlib.sha256(label.encode()).hexdigest()[:8]


def mark(artist: Artist, label: str) -> None:
    """Name an artist after its encoder, so that a page can dim the others."""
    axes = artist.axes
    assert axes is not None
    panel = next(i for i, each in enumerate(axes.figure.axes) if each is axes)
    place = f"{panel}-{axes.get_children().index(artist)}"
    artist.set_gid(f"encoder-{encoder_key(label)}-{place}")


class NothingToDrawError(ValueError):
    """The records hold nothing that this figure shows."""


class LineStyle(TypedDict):
    """Keyword arguments of `Axes.plot`."""

    color: str
    marker: str
    linestyle: str


def line_style(family: int, member: int = 0) -> LineStyle:
    """The style of a family's member.

    Families differ in colour, marker and dashes, the members of one family in marker and dashes only.
    """
    return {
        "color": COLOURS[family % len(COLOURS)],
        "marker": MARKERS[(family + member) % len(MARKERS)],
        "linestyle": DASHES[(family // len(COLOURS) + member) % len(DASHES)],
    }


class EncoderStyles:
    """One style for each encoder of some records, the same in every figure and on every page.

    The seeds of one training are a family. Untrained networks and raw pixels are grey.

    Attributes:
        by_training: label of an encoder by the source and the epochs that its card states.
        entries: the rows of a table of all these records.
    """

    def __init__(self, records: Sequence[StoredRecord]) -> None:
        self._styles: dict[str, LineStyle] = {}
        self.by_training: dict[tuple[str, float], str] = {}
        families: dict[str, int] = {}
        members: dict[str, int] = {}
        controls = 0
        self.entries = table_rows(newest(records))
        for entry in self.entries:
            name = entry.training
            if entry.random or entry.architecture.name == "pixels":
                style: LineStyle = {**line_style(controls, controls), "color": CONTROLS[controls % len(CONTROLS)]}
                controls += 1
            else:
                family, member = families.setdefault(name, len(families)), members.get(name, 0)
                members[name] = member + 1
                style = line_style(family, member)
            for label in (entry.label, name, *(card.name for card in entry.cards)):
                self._styles.setdefault(label, style)
            for card in entry.cards:
                if card.epochs is not None:
                    self.by_training.setdefault((card.source, card.epochs), entry.label)
        # A part of the records may need fewer words to tell two encoders apart; the shorter label is the same encoder.
        styles = {identity(card): self._styles[entry.label] for entry in self.entries for card in entry.cards}
        for own in _parts(records):
            for entry in table_rows(own):
                if (known := styles.get(identity(entry.cards[0]))) is not None:
                    self._styles.setdefault(entry.label, known)
        self._families = len(families)

    def of(self, label: str) -> LineStyle:
        """The style of a row label or encoder name. An unknown name gets the next free style and keeps it."""
        if label not in self._styles:
            self._styles[label] = line_style(self._families)
            self._families += 1
        return self._styles[label]


def _parts(records: Sequence[StoredRecord]) -> Iterable[list[StoredRecord]]:
    """The records that a page or a figure shows together: of each kind of data, and of each protocol on a data set."""
    parts: dict[Any, list[StoredRecord]] = {}
    for stored in records:
        if stored.intact:
            record = stored.record
            parts.setdefault(data_kind(record), []).append(stored)
            parts.setdefault((record.protocol.sha256, record.dataset.fingerprint), []).append(stored)
    return parts.values()


def stacked_panels(heights: Sequence[float], *, width: float = 6.5, extra: float = 0.0) -> tuple[Figure, list[Axes]]:
    """A figure with one column of panels. Sizes are in inches; `extra` is space for a common label or legend."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, sum(heights) + extra), layout="constrained")
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)
    return figure, list(panels[:, 0])


def plain_axes(axes: Axes, title: str = "", *, grid: Literal["x", "y"] = "y") -> None:
    """A title on the left, a pale grid, no frame on the right and at the top."""
    if title and (_TITLED.get() or len(axes.figure.axes) > 1):
        axes.set_title(title, fontsize="medium", loc="left")
    axes.grid(axis=grid, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def legend_below(axes: Axes, offset: float) -> None:
    """A legend under the panel; `offset` is its distance in heights of the panel."""
    axes.legend(fontsize="small", frameon=False, loc="upper left", bbox_to_anchor=(0.0, -offset))


def save_figure(figure: Figure, out: Path) -> None:
    """Write a figure in the format of the file's ending (PNG without one), completely or not at all."""
    content, form = io.BytesIO(), out.suffix.removeprefix(".") or "png"
    dated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}  # the same records give the same bytes
    figure.savefig(content, format=form, dpi=150, bbox_inches="tight", metadata=dated.get(form))
    write_file(out, content.getvalue())


# ---- every figure of a folder of records


def write_figures(records: Sequence[StoredRecord], out: Path) -> tuple[list[Path], dict[Path, str]]:
    """Write all figures and the per-class table below `out`, in a folder for each kind of data.

    They are `embedded/`, `full/`, and `own_<name>_<fingerprint>/` for each data set of the user's own. Each gets
    a PNG for each of `record_figures`, and `per_class.md`.

    Returns:
        The files written, and for each file left out the reason.
    """
    written: list[Path] = []
    left_out: dict[Path, str] = {}
    styles = EncoderStyles(records)
    for kind in data_kinds(records):
        own = [stored for stored in records if data_kind(stored.record) == kind]
        if not own:
            continue
        folder = out / (f"own_{slug(kind.name)}_{kind.fingerprint[:8]}" if kind.kind == "own" else kind.kind)
        for figure in record_figures(own, styles):
            path = folder / f"{figure.name}.png"
            try:
                figure.draw(path)
            except NothingToDrawError as reason:
                left_out[path] = str(reason)
            else:
                written.append(path)
        if tables := per_class_markdown(own):
            write_file(folder / "per_class.md", tables)
            written.append(folder / "per_class.md")
    return written, left_out


@dataclass(frozen=True)
class RecordFigure:
    """A figure of records: its file's name without ending, its title, how to read it, and the function to draw it."""

    name: str
    title: str
    caption: str
    draw: Callable[[Path], None]


def record_figures(records: Sequence[StoredRecord], styles: EncoderStyles | None = None) -> list[RecordFigure]:
    """The figures of one kind of data, in which an encoder has the same style everywhere."""
    styles = styles or EncoderStyles(records)
    by_layer = partial(draw_per_layer, records, styles=styles)
    by_k = partial(draw_knn_k, records, styles=styles)
    by_class = partial(draw_per_class, records, styles=styles)
    found = [
        RecordFigure("per_layer", "Score by layer", "", by_layer),
        RecordFigure("knn_k", "kNN accuracy against the number of neighbours", "", by_k),
        RecordFigure("per_class", "Score by class", "", by_class),
        RecordFigure(
            "score_against_epoch", "Score against pretraining epochs", "", partial(draw_score_against_epoch, records)
        ),
    ]
    for (protocol, sha256, data), own in sorted(low_shot_groups(records).items()):
        found.append(
            RecordFigure(
                # Two protocols of one id may differ, for example after a new revision of their source.
                f"low_shot_{slug(protocol)}_{sha256[:8]}_{data[:8]}",
                f"Low-shot mAP against the number of images per class, {variant_text(own[0].record.protocol.resolved)}",
                "Lines: mean over the drawn sets; shaded: lowest to highest set.",
                partial(draw_low_shot, own, styles=styles),
            )
        )
    return found


def _by_protocol_and_data(records: Sequence[StoredRecord]) -> dict[tuple[str, str, str], list[StoredRecord]]:
    """Records by protocol id, protocol hash and data fingerprint: only such records may share a panel."""
    groups: dict[tuple[str, str, str], list[StoredRecord]] = {}
    for stored in records:
        record = stored.record
        groups.setdefault((record.protocol.id, record.protocol.sha256, record.dataset.fingerprint), []).append(stored)
    return groups


# ---- curves: scores against layer, neighbours or epochs


@dataclass(frozen=True)
class Point:
    """A score with its spread, see `Curve.bars`."""

    x: float
    value: float
    spread: float | None


OVER_RUNS, OF_SAMPLE = "standard deviation over runs", "standard error of the test sample"


@dataclass(frozen=True)
class Curve:
    """One encoder under one protocol. `runs` is the number of encoders averaged."""

    label: str
    runs: int
    points: tuple[Point, ...]

    @property
    def bars(self) -> str:
        """What the spread of its points is; empty where none is known."""
        if all(point.spread is None for point in self.points):
            return ""
        return OVER_RUNS if self.runs > 1 else OF_SAMPLE


@dataclass(frozen=True)
class Panel:
    """The curves of one protocol on one data set."""

    protocol: Protocol
    dataset: str
    curves: tuple[Curve, ...]


TITLE_WIDTH, LEGEND_WIDTH = 56, 72  # characters
LAYERS = {1.0: "stem", 2.0: "stage 1", 3.0: "stage 2", 4.0: "stage 3", 5.0: "stage 4"}


def draw_per_layer(records: Sequence[StoredRecord], out: Path, styles: EncoderStyles | None = None) -> None:
    """Score of a linear classifier on the features of each layer, for protocols with a column per layer."""
    found = _with_lines(curve_panels(records, layer_of))
    draw_curves(found, out, x_label="layer of the network", ticks=LAYERS, styles=styles or EncoderStyles(records))


def layer_of(column: str) -> float | None:
    """1 to 5 for the columns `feature1` to `feature5`, else None."""
    match = re.fullmatch(r"feature([1-5])", column, flags=re.IGNORECASE)
    return float(match[1]) if match else None


def draw_knn_k(records: Sequence[StoredRecord], out: Path, styles: EncoderStyles | None = None) -> None:
    """Top-1 accuracy of kNN against the number of neighbours, for protocols with several k."""
    knn = [stored for stored in records if stored.record.protocol.resolved.benchmark == "knn"]
    found = _with_lines(curve_panels(knn, neighbours_of))
    draw_curves(found, out, x_label="number of neighbours k", styles=styles or EncoderStyles(records))


def neighbours_of(column: str) -> float | None:
    """20 for the column `k=20`; None for other columns, `k=20 top-5` among them."""
    match = re.fullmatch(r"k=(\d+)", column)
    return float(match[1]) if match else None


def draw_score_against_epoch(records: Sequence[StoredRecord], out: Path) -> None:
    """Primary score against pretraining epochs, for runs with checkpoints of several epochs."""
    draw_curves(epoch_panels(records), out, x_label="pretraining epochs", styles=EncoderStyles(()))


def curve_panels(records: Sequence[StoredRecord], position: Callable[[str], float | None]) -> list[Panel]:
    """One panel per protocol and data set, one curve per encoder, in the order of the tables.

    The seeds of one training and the random initialisations of one architecture are averaged.

    Args:
        position: the place of a column on the horizontal axis; None for a column that the figure does not show.
    """
    shown = newest(records)
    entries = table_rows(shown)
    found = []
    for _, group in sorted(_by_protocol_and_data(shown).items()):
        protocol = group[0].record.protocol.resolved
        places = {column: x for column in protocol.columns if (x := position(column)) is not None}
        rows: dict[str, list[StoredRecord]] = {}
        for entry, own in zip(entries, records_by_row(entries, group), strict=True):
            rows.setdefault(entry.training, []).extend(own)
        curves = [_curve(label, own, places) for label, own in rows.items() if own]
        drawn = tuple(curve for curve in curves if curve.points)
        if drawn:
            found.append(Panel(protocol, group[0].record.dataset.shown_name, drawn))
    return found


def _curve(label: str, records: Sequence[StoredRecord], places: Mapping[str, float]) -> Curve:
    points = []
    for column, x in places.items():
        values = [value for stored in records if (value := stored.record.value(column)) is not None]
        if len(values) < len(records):
            continue
        of_test_set = records[0].record.scores[column].standard_error
        spread = statistics.stdev(values) if len(values) > 1 else of_test_set
        points.append(Point(x, statistics.fmean(values), spread))
    return Curve(label, len(records), tuple(sorted(points, key=lambda point: point.x)))


def epoch_panels(records: Sequence[StoredRecord]) -> list[Panel]:
    """One panel per protocol and data set, one curve per pretraining run, one point per checkpoint.

    Checkpoints belong to one run if their names differ only in `, epoch N`, as `bench-all` names them, and they have
    one initialisation and architecture. An untrained network has no place on the logarithmic axis.
    """
    trained = [stored for stored in newest(records) if stored.record.encoder.epochs]
    found = []
    for _, group in sorted(_by_protocol_and_data(trained).items()):
        protocol = group[0].record.protocol.resolved
        runs: dict[tuple[str, str, str], dict[float, Point]] = {}
        for stored in group:
            card, value = stored.record.encoder, stored.record.value(protocol.primary)
            if card.epochs and value is not None:
                error = stored.record.scores[protocol.primary].standard_error
                run = re.sub(r", epoch [\d.e+]+$", "", card.name)
                runs.setdefault((run, card.init or "", architecture_text(card.architecture)), {})[card.epochs] = Point(
                    card.epochs, value, error
                )
        curves = tuple(
            Curve(_run_label(run, runs), 1, tuple(point for _, point in sorted(points.items())))
            for run, points in sorted(runs.items())
            if len(points) > 1
        )
        if curves:
            found.append(Panel(protocol, group[0].record.dataset.shown_name, curves))
    return found


def _run_label(run: Sequence[str], runs: Iterable[Sequence[str]]) -> str:
    """Its name, and of initialisation and architecture what tells it from the runs of the same name."""
    namesakes = [other for other in runs if other[0] == run[0]]
    return name_with(run[0], [part for i, part in enumerate(run) if part and len({of[i] for of in namesakes}) > 1])


def _with_lines(panels: Sequence[Panel]) -> list[Panel]:
    return [panel for panel in panels if any(len(curve.points) > 1 for curve in panel.curves)]


def draw_curves(
    panels: Sequence[Panel], out: Path, *, x_label: str, styles: EncoderStyles, ticks: dict[float, str] | None = None
) -> None:
    """Draw panels of curves with error bars.

    Args:
        ticks: position -> its name. Without them the axis is logarithmic and the positions are its ticks.
    """
    if not panels:
        raise NothingToDrawError("no record has the columns of this figure")
    figure, all_axes = stacked_panels([3.6 + 0.2 * len(panel.curves) for panel in panels], extra=0.6)
    kinds = sorted({curve.bars for panel in panels for curve in panel.curves if curve.bars})
    for axes, panel in zip(all_axes, panels, strict=True):
        for curve in panel.curves:
            bars = axes.errorbar(
                [point.x for point in curve.points],
                [point.value for point in curve.points],
                [point.spread or 0.0 for point in curve.points],
                label=_curve_label(curve, name_bars=len(kinds) > 1),
                capsize=3,
                markersize=5,
                **styles.of(curve.label),
            )
            for artist in (bars.lines[0], *bars.lines[1], *bars.lines[2]):
                mark(artist, curve.label)
        positions = sorted({point.x for curve in panel.curves for point in curve.points})
        if ticks is None:
            axes.set_xscale("log")
            axes.minorticks_off()
        axes.set_xticks(positions, [f"{x:g}" if ticks is None else ticks[x] for x in positions])
        axes.set_xlabel(x_label)
        axes.set_ylabel(_score_label(panel.protocol))
        plain_axes(axes, panel_title(panel.protocol, panel.dataset))
        legend_below(axes, 0.16)
    if kinds:
        text = kinds[0] if len(kinds) == 1 else "see the legend; the two kinds cannot be compared with each other"
        figure.supxlabel(f"Error bars: {text}", fontsize="small")
    save_figure(figure, out)


def panel_title(protocol: Protocol, dataset: str) -> str:
    """Benchmark and data in words, with what its user changed; the protocol's id is in the tables."""
    changed = f" ({', '.join(protocol.overrides)})" if protocol.overrides else ""
    title = f"{family_of(protocol.benchmark).title}, {protocol.variant}, on {dataset}{changed}"
    return "\n".join(textwrap.wrap(title, TITLE_WIDTH))


def _curve_label(curve: Curve, *, name_bars: bool) -> str:
    label = f"{curve.label}, mean of {curve.runs}" if curve.runs > 1 else curve.label
    return textwrap.fill(f"{label} (bars: {curve.bars})" if name_bars and curve.bars else label, LEGEND_WIDTH)


def _score_label(protocol: Protocol, about: str = "") -> str:
    return f"{protocol.metric}{about}" + (" (%)" if protocol.unit == "%" else "")


# ---- low-shot classification

SELECTIONS = {
    "fixed": "Fixed: the same cost C for every k",
    "heldout": "Held out: C chosen on images outside\nthe drawn set (needs more labels than k)",
    "oracle": "Oracle: C chosen on the test images,\nas for published figures",
}
LEGEND_CHARACTERS = 150  # that fit side by side below the figure


@dataclass(frozen=True)
class Band:
    """One encoder under one selection of the cost: (K,) k in ascending order; mean, lowest and highest of the sets."""

    label: str
    encoder: str
    k: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def low_shot_groups(records: Sequence[StoredRecord]) -> dict[tuple[str, str, str], list[StoredRecord]]:
    """The low-shot records by protocol id, protocol hash and data fingerprint: one figure each."""
    return _by_protocol_and_data(
        [stored for stored in records if stored.record.protocol.resolved.benchmark.endswith("low_shot_svm")]
    )


def draw_low_shot(records: Sequence[StoredRecord], out: Path, styles: EncoderStyles | None = None) -> None:
    """mAP against the number of labelled images per class, one panel for each way of choosing the cost.

    A line is the mean over the drawn sets; its band reaches from the lowest to the highest set. Random initialisations
    of one architecture share a line, and their band covers all of their sets.
    """
    groups = low_shot_groups(newest(records))
    if len(groups) != 1:
        found = ", ".join(sorted(name for name, _, _ in groups)) or "none"
        raise NothingToDrawError(f"the low-shot figure needs records of one protocol on one data set, found: {found}")
    (group,) = groups.values()
    protocol, dataset = group[0].record.protocol.resolved, group[0].record.dataset.shown_name
    looks = styles or EncoderStyles(records)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    all_axes = figure.subplots(1, len(SELECTIONS), sharey=True)
    for axes, (selection, title) in zip(all_axes, SELECTIONS.items(), strict=True):
        bands = low_shot_bands(group, selection)
        for band in bands:
            style = looks.of(band.encoder)
            area = axes.fill_between(band.k, band.low, band.high, color=style["color"], alpha=0.2, linewidth=0)
            (line,) = axes.plot(band.k, band.mean, label=band.label, markersize=5, **style)
            mark(area, band.encoder)
            mark(line, band.encoder)
        ticks = sorted({k for band in bands for k in band.k})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(k) for k in ticks])
        axes.minorticks_off()
        axes.set_xlabel("positive training images per class (k)")
        plain_axes(axes, title)
    all_axes[0].set_ylabel(_score_label(protocol, f" on {protocol.test_split}"))
    sets = protocol.params.get("sets", "all")
    title = f"{panel_title(protocol, dataset)}: mean of {sets} drawn sets; shaded: lowest to highest set"
    figure.suptitle("\n".join(textwrap.wrap(" ".join(title.split()), 2 * TITLE_WIDTH)), fontsize="medium")
    handles, labels = all_axes[0].get_legend_handles_labels()
    columns = max(1, min(3, LEGEND_CHARACTERS // (max(map(len, labels), default=0) + 6)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize="small")
    save_figure(figure, out)


def low_shot_bands(records: Sequence[StoredRecord], selection: str) -> list[Band]:
    """One band per row of the tables, over the k that all its records have."""
    found = []
    for entry in table_rows(records):
        runs = [_by_k(stored.record, selection) for stored in entry.records(records)]
        shared = sorted(set.intersection(*(set(run) for run in runs)))
        if shared:
            found.append(
                Band(
                    entry.label + (f", {len(runs)} initialisations" if len(runs) > 1 else ""),
                    entry.label,
                    tuple(shared),
                    tuple(sum(run[k][0] for run in runs) / len(runs) for k in shared),
                    tuple(min(run[k][1] for run in runs) for k in shared),
                    tuple(max(run[k][2] for run in runs) for k in shared),
                )
            )
    return found


def _by_k(record: Record, selection: str) -> dict[int, tuple[float, float, float]]:
    """k -> mean, lowest and highest mAP of the drawn sets."""
    found = {}
    for run in record.runs:
        column = re.fullmatch(r"k=(\d+)(?: (fixed|heldout))?", str(run.get("score", "")))
        if column and (column[2] or "oracle") == selection:
            found[int(column[1])] = (float(run["map"]), float(run["map_min"]), float(run["map_max"]))
    return found


# ---- scores per class


def draw_per_class(records: Sequence[StoredRecord], out: Path, styles: EncoderStyles | None = None) -> None:
    """Score of each class: a row per class, a marker per encoder, a panel per protocol and data set."""
    tables = per_class_tables(records, entries=None if styles is None else styles.entries)
    if not tables:
        raise NothingToDrawError("no record has scores per class")
    looks = styles or EncoderStyles(records)
    figure, all_axes = stacked_panels([1.2 + 0.3 * len(table.rows) + 0.2 * len(table.columns) for table in tables])
    for axes, table in zip(all_axes, tables, strict=True):
        rows = range(len(table.rows))
        first = 2 if POSITIVES in table.columns[1:2] else 1  # after the class name and the number of positives
        for i, label in enumerate(table.columns[first:], start=first - 1):
            style = looks.of(label.partition(MEAN_OF)[0])
            values = [row.cells[i].value for row in table.rows]
            (line,) = axes.plot(
                [float("nan") if value is None else value for value in values], rows, label=label, linestyle="",
                marker=style["marker"], color=style["color"], markersize=6,
            )  # fmt: skip
            mark(line, label.partition(MEAN_OF)[0])
        axes.set_yticks(rows, [row.label for row in table.rows])
        axes.invert_yaxis()
        axes.set_xlabel("score of the class (%)")
        plain_axes(axes, textwrap.fill(table.title, TITLE_WIDTH))
        axes.spines["left"].set_visible(False)
        legend_below(axes, 0.55 / (0.3 * len(table.rows) + 0.3))  # 0.55 inches, below the axis and its label
    save_figure(figure, out)
