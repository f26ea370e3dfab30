"""A sheet of queries and their nearest neighbours, to look at what a number is made of."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.contract import InputError, Labels
from benchmarks.datasets.images import decode

QUERIES = 10
NEIGHBOURS = 6
SIDE = 96
# Blue and vermillion of Okabe and Ito, which the colour-blind can tell apart; the titles say it too.
SAME, OTHER = "#0072B2", "#D55E00"


def neighbour_sheet(train: Labels, test: Labels, indices: NDArray[np.int64]) -> bytes | None:
    """A PNG: per row a query and its nearest images of the gallery, framed by whether they are of its class.

    One query of each class, or of classes evenly spread over them all where there are many.

    Args:
        indices: (N, k) rows of `train` for every item of `test`, the nearest first.

    Returns:
        None where an image of the sheet cannot be opened: the numbers do not depend on the picture.
    """
    from matplotlib.figure import Figure

    rows = _chosen(test)
    shown = min(NEIGHBOURS, indices.shape[1])
    try:
        pictures = [
            [_small(test.paths[row]), *(_small(train.paths[int(i)]) for i in indices[row, :shown])] for row in rows
        ]
    except InputError:
        return None
    figure = Figure(figsize=(1.45 * (shown + 1), 1.65 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), shown + 1, squeeze=False)
    for row, axes, images in zip(rows, grid, pictures, strict=True):
        names = [test.classes[int(test.targets[row])]]
        names += [train.classes[int(train.targets[int(i)])] for i in indices[row, :shown]]
        for place, (axis, image, name) in enumerate(zip(axes, images, names, strict=True)):
            axis.imshow(image)
            axis.set_xticks([])
            axis.set_yticks([])
            same = name == names[0]
            colour = "black" if place == 0 else SAME if same else OTHER
            mark = "" if place == 0 or same else "not: "
            axis.set_title(f"{mark}{name}"[:20], fontsize=8, color=colour)
            for edge in axis.spines.values():
                edge.set(color=colour, linewidth=2, linestyle="-" if place == 0 or same else "--")
    grid[0, 0].set_ylabel("query", fontsize=9)
    png = BytesIO()
    figure.savefig(png, format="png", dpi=100)
    return png.getvalue()


def _chosen(test: Labels) -> list[int]:
    """The first item of each class, of `QUERIES` classes at most."""
    classes = np.unique(test.targets)
    spread = classes[np.linspace(0, len(classes) - 1, min(QUERIES, len(classes))).round().astype(int)]
    return [int(np.flatnonzero(test.targets == c)[0]) for c in spread]


def _small(path: Path) -> NDArray[np.uint8]:
    image = decode(path)
    image.thumbnail((SIDE, SIDE))
    return np.asarray(image)
