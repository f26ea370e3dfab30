"""What a run tells about itself: a row per epoch in a CSV and in TensorBoard, and a picture at the end."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

Row = dict[str, float]
LOG, CURVES, EVENTS = "log.csv", "curves.png", "tensorboard"
KNN = "knn"


def write_log(path: Path, rows: Sequence[Row]) -> None:
    """One line per epoch; the kNN column is empty where the monitor did not run."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


class Events:
    """TensorBoard's event files in one folder.

    Args:
        step: events after it, of a process that was killed, are hidden.
        write: only the first rank does.
    """

    def __init__(self, folder: Path, step: int, *, write: bool) -> None:
        self.writer = None
        if write:
            from torch.utils.tensorboard import SummaryWriter  # a second to import

            self.writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)
            # Not add_scalars, whose writers of their own would not hide what a killed process wrote.
            self.writer.add_custom_scalars({"pretraining": {"loss": ["Multiline", ["^loss$", "^chance_loss$"]]}})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.writer:
            self.writer.close()

    def add(self, row: Row, step: int) -> None:
        """The row's values at the global step; the loss and its chance line share a diagram under custom scalars."""
        if self.writer is None:
            return
        for name in row.keys() - {"epoch"}:
            self.writer.add_scalar(name, row[name], step)


def draw_curves(path: Path, rows: Sequence[Row], title: str) -> None:
    """Loss with its chance line, accuracy of the pretext task, and the kNN monitor where it ran, over the epochs."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(7, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    style = ".-" if len(rows) < 50 else "-"  # a point of its own where lines are short, or there is none
    above.plot(epochs, [row["loss"] for row in rows], style, label="loss")
    above.plot(epochs, [row["chance_loss"] for row in rows], "--", color="gray", label="chance")
    above.set(ylabel="loss", title=title)
    below.plot(epochs, [100 * row["accuracy"] for row in rows], style, label="pretext accuracy")
    monitored = [row for row in rows if KNN in row]
    if monitored:
        below.plot([r["epoch"] for r in monitored], [r[KNN] for r in monitored], ".-", label="kNN on held-out images")
    below.set(xlabel="epoch", ylabel="%", ylim=(0, 100))
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (above, below):
        axes.legend()
        axes.grid(alpha=0.3)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    figure.savefig(partial, format="png", dpi=120, metadata={"Software": None})
    partial.replace(path)


def as_text(row: Row) -> str:
    """For a log line."""
    return ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "epoch")
