"""Curves of pretraining runs, from the logs that they write: a row per epoch."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from results.atomic import write_file
from results.errors import InputError
from results.pictures.styles import numbered

LOG = "log.csv"
# column of the log -> label of its axis, and what it is multiplied by
PANELS = {
    "loss": ("loss", 1.0),
    "accuracy": ("pretext accuracy (%)", 100.0),
    "knn": ("kNN on held-out images (%)", 1.0),
}
CHANCE = "chance_loss"


@dataclass(frozen=True)
class RunLog:
    """One run: its folder's name, and by column the (epoch, value) pairs that the log has."""

    name: str
    columns: dict[str, list[tuple[float, float]]]


def read_logs(root: Path) -> list[RunLog]:
    """Every run's log below a folder; none where there is no folder.

    Raises:
        InputError: a log cannot be read as one.
    """
    return [_read(path) for path in sorted(root.rglob(LOG))]


def _read(path: Path) -> RunLog:
    columns: dict[str, list[tuple[float, float]]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                for name, text in row.items():
                    if text:
                        columns.setdefault(name, []).append((float(row["epoch"]), float(text)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is no log of a pretraining run ({error}): remove it or name another folder"
        ) from error
    return RunLog(path.parent.name, columns)


def draw_pretraining(logs: Sequence[RunLog], out: Path) -> None:
    """Writes a panel for each quantity that some run has, the loss of chance dotted beside the loss.

    Raises:
        ValueError: no run has one.
    """
    shown = [name for name in PANELS if any(name in log.columns for log in logs)]
    if not shown:
        raise ValueError("no log of a pretraining run")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 0.6 + 2.4 * len(shown)), layout="constrained")
    for axes, name in zip(figure.subplots(len(shown), 1, squeeze=False, sharex=True)[:, 0], shown, strict=True):
        label, factor = PANELS[name]
        for i, log in enumerate(logs):
            style = numbered(i)
            points = log.columns.get(name, [])
            every = max(1, len(points) // 12)
            axes.plot([x for x, _ in points], [factor * y for _, y in points], label=log.name, markevery=every,
                      linestyle=style.dashes, color=style.colour, marker=style.marker, markersize=4)  # fmt: skip
            if name == "loss":
                chance = log.columns.get(CHANCE, [])
                axes.plot([x for x, _ in chance], [y for _, y in chance], ":", color=style.colour, linewidth=1)
        axes.set_ylabel(label)
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("epoch")
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize="small"
    )
    picture = io.BytesIO()
    figure.savefig(picture, format=out.suffix.removeprefix(".") or "png", dpi=150)
    write_file(out, picture.getvalue())
