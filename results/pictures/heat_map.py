"""Rank correlations of columns as a heat map; every cell also says its number and on how many encoders it rests."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from results.atomic import write_file
from results.comparison.correlation import Column, Correlation, page_order

STRONG = 0.72  # beyond, the colour is dark and its text white


def draw_heat_map(found: Sequence[Correlation], out: Path) -> None:
    """Writes the picture in the format that the name of `out` ends in; whole or not at all.

    Raises:
        ValueError: there is no correlation to draw.
    """
    if not found:
        raise ValueError("no two columns have three encoders in common")
    from matplotlib.figure import Figure

    columns = _drawn(found)
    size = len(columns)
    values = np.full((size, size), np.nan)
    figure = Figure(figsize=(3.4 + 0.68 * size, 2.6 + 0.56 * size), layout="constrained")
    axes = figure.subplots()
    for one in found:
        j, i = sorted((columns.index(one.a), columns.index(one.b)))
        values[i, j] = one.spearman
        axes.text(
            j, i, f"{one.spearman:+.2f}\nn={len(one.encoders)}", ha="center", va="center", fontsize=8,
            color="white" if abs(one.spearman) > STRONG else "#222222"
        )  # fmt: skip
    # Orange to purple through white: told apart without colour vision, and the sign is in the text.
    edges = np.arange(size) - 0.5
    picture = axes.pcolormesh(edges, edges + 1, values[1:, :-1], cmap="PuOr_r", vmin=-1, vmax=1)
    axes.invert_yaxis()
    axes.set_xticks(range(size - 1), [column.label for column in columns[:-1]], rotation=45, ha="right", fontsize=9)
    axes.set_yticks(range(1, size), [column.label for column in columns[1:]], fontsize=9)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.colorbar(picture, ax=axes, label="Spearman's rank correlation", shrink=0.6)
    stream = io.BytesIO()
    figure.savefig(stream, format=out.suffix.removeprefix(".") or "png", dpi=150)
    write_file(out, stream.getvalue())


def _drawn(found: Sequence[Correlation]) -> list[Column]:
    return sorted({column for one in found for column in (one.a, one.b)}, key=page_order)
