"""One curve per encoder over some columns of a protocol, a panel per protocol and data set."""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from results.atomic import write_file
from results.pictures.styles import Styles
from results.schema import Protocol
from results.store import StoredRecord
from results.tables.roster import current, roster

Position = Callable[[str], float | None]


@dataclass(frozen=True)
class Point:
    """A value with its spread: over runs, where there are several, else the test sample's standard error."""

    x: float
    value: float
    spread: float | None


@dataclass(frozen=True)
class Curve:
    """One encoder under one protocol. `runs` is the number of encoders that were averaged."""

    label: str
    runs: int
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Panel:
    """The curves of one protocol on one data set."""

    protocol: Protocol
    dataset: str
    curves: tuple[Curve, ...]


def panels(records: Sequence[StoredRecord], position: Position) -> list[Panel]:
    """The curves that the records give, in the order of the tables.

    Encoders of one name, which repeat a training, and random initialisations of one architecture are averaged.

    Args:
        position: a column's place on the horizontal axis; None where it does not belong there.
    """
    newest = [stored for stored in current(records)[0] if stored.intact]
    groups: dict[tuple[str, str, str], list[StoredRecord]] = {}
    for stored in newest:
        record = stored.record
        groups.setdefault((record.protocol.id, record.protocol.sha256, record.dataset.fingerprint), []).append(stored)
    found = []
    for _, group in sorted(groups.items()):
        protocol = group[0].record.protocol.resolved
        places = {c: x for c in protocol.columns if (x := position(c)) is not None}
        rows: dict[str, list[StoredRecord]] = {}
        for entry in roster(newest):
            label = entry.label if entry.random else entry.cards[0].name
            rows.setdefault(label, []).extend(entry.records(group))
        curves = [_curve(label, own, places) for label, own in rows.items() if own]
        drawn = tuple(curve for curve in curves if curve.points)
        if drawn:
            found.append(Panel(protocol, group[0].record.dataset.id, drawn))
    return found


def _curve(label: str, records: Sequence[StoredRecord], places: dict[str, float]) -> Curve:
    points = []
    for column, x in places.items():
        scores = [stored.record.scores.get(column) for stored in records]
        values = [score.value for score in scores if score is not None and score.value is not None]
        if len(values) < len(records):
            continue
        single = scores[0].standard_error if scores[0] is not None else None
        spread = statistics.stdev(values) if len(values) > 1 else single
        points.append(Point(x, statistics.fmean(values), spread))
    return Curve(label, len(records), tuple(sorted(points, key=lambda point: point.x)))


def draw(
    found: Sequence[Panel], out: Path, *, across: str, styles: Styles, ticks: dict[float, str] | None = None
) -> None:
    """Writes the panels as one picture, in the format that the name of `out` ends in; whole or not at all.

    Args:
        across: what the horizontal axis is.
        styles: of the curves, by their labels.
        ticks: position -> its name; without, the axis is logarithmic and its ticks are the positions.

    Raises:
        ValueError: there is nothing to draw.
    """
    if not found:
        raise ValueError("no record has a column for this picture")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 0.6 + sum(3.6 + 0.2 * len(panel.curves) for panel in found)), layout="constrained")
    for axes, panel in zip(figure.subplots(len(found), 1, squeeze=False)[:, 0], found, strict=True):
        for curve in panel.curves:
            style = styles.of(curve.label)
            axes.errorbar(
                [point.x for point in curve.points],
                [point.value for point in curve.points],
                [point.spread or 0.0 for point in curve.points],
                label=f"{curve.label}, mean of {curve.runs}" if curve.runs > 1 else curve.label,
                color=style.colour,
                marker=style.marker,
                linestyle=style.dashes,
                capsize=3,
                markersize=5,
            )
        positions = sorted({point.x for curve in panel.curves for point in curve.points})
        if ticks is None:
            axes.set_xscale("log")
            axes.minorticks_off()
        axes.set_xticks(positions, [f"{x:g}" if ticks is None else ticks[x] for x in positions])
        axes.set_title(f"{panel.protocol.id} on {panel.dataset}", fontsize="medium", loc="left")
        axes.set_ylabel(f"{panel.protocol.metric} ({panel.protocol.unit})")
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel(across)
        axes.legend(fontsize="small", frameon=False, loc="upper left", bbox_to_anchor=(0.0, -0.16))
    figure.supxlabel(
        "bars: standard deviation over runs where there are several, else standard error of the test images",
        fontsize="small",
    )
    picture = io.BytesIO()
    figure.savefig(picture, format=out.suffix.removeprefix(".") or "png", dpi=150)
    write_file(out, picture.getvalue())
