"""Average precision class by class: a row per class, a mark per encoder, a panel per protocol and data set."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

from results.atomic import write_file
from results.pictures.styles import Styles
from results.store import StoredRecord
from results.tables.per_class import MEAN_OF, POSITIVES, per_class_tables

WIDEST_TITLE = 56  # letters


def draw_per_class(records: Sequence[StoredRecord], out: Path, styles: Styles | None = None) -> None:
    """Writes the picture of every record with values per class, in the format that the name of `out` ends in.

    Raises:
        ValueError: there is no such record.
    """
    tables = per_class_tables(records)
    if not tables:
        raise ValueError("no record has values per class")
    from matplotlib.figure import Figure

    looks = styles or Styles(records)
    heights = [1.2 + 0.3 * len(table.rows) + 0.2 * len(table.columns) for table in tables]
    figure = Figure(figsize=(6.5, sum(heights)), layout="constrained")
    panels = figure.subplots(len(tables), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, table in zip(panels, tables, strict=True):
        places = range(len(table.rows))
        axes.grid(axis="y", alpha=0.4)
        before = 2 if POSITIVES in table.columns[1:2] else 1  # the class, and how often it is there
        for i, label in enumerate(table.columns[before:]):
            style = looks.of(label.partition(MEAN_OF)[0])
            values = [row.cells[i + before - 1].value for row in table.rows]
            axes.plot(
                [float("nan") if value is None else value for value in values], places, linestyle="", label=label,
                marker=style.marker, color=style.colour, markersize=6,
            )  # fmt: skip
        axes.set_yticks(places, [row.label for row in table.rows])
        axes.invert_yaxis()
        axes.set_title(textwrap.fill(table.title, WIDEST_TITLE), fontsize="medium", loc="left")
        axes.set_xlabel("%")
        below = -1.0 / len(table.rows) - 0.1  # of the axis and its label
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.legend(fontsize="small", frameon=False, loc="upper left", bbox_to_anchor=(0.0, below))
    picture = io.BytesIO()
    figure.savefig(picture, format=out.suffix.removeprefix(".") or "png", dpi=150)
    write_file(out, picture.getvalue())
