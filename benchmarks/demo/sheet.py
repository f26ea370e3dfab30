"""Contact sheets: the composed data as a person should see them before believing them."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from benchmarks.datasets.imagefolder import read_image_folder
from benchmarks.demo.painting import VOID
from benchmarks.demo.seeding import generator
from benchmarks.task import InputError

COLUMNS = 6
_COLOURS = mpl.colormaps["tab10"]


def contact_sheet(root: Path, out: Path, split: str, n: int = 24) -> None:
    """Draws `n` scenes of a VOC split with boxes, class names, flags (D difficult, T truncated) and masks into a PNG.

    Args:
        root: the data root that `compose` wrote.
        split: as in ImageSets/Main, such as trainval.

    Raises:
        InputError: the scenes are not there.
    """
    folder = root / "VOCdevkit" / "VOC2007"
    listing = folder / "ImageSets" / "Main" / f"{split}.txt"
    if not listing.is_file():
        raise InputError(f"{listing} is missing; compose the data first")
    figure, axes = _grid(n, width=3.0)
    for axis, image_id in zip(axes, _sample(listing.read_text(encoding="utf-8").split(), n), strict=False):
        _draw_scene(axis, folder, image_id)
    _save(figure, out)


def drawings_sheet(root: Path, out: Path, split: str, n: int = 96) -> None:
    """Draws `n` single drawings of a split with their class names into a PNG.

    Raises:
        InputError: the drawings are not there.
    """
    labels = read_image_folder(root / "drawings", split)
    figure, axes = _grid(n, width=1.2)
    chosen = _sample([str(index) for index in range(len(labels))], n)
    for axis, index in zip(axes, sorted(map(int, chosen)), strict=False):
        with Image.open(labels.paths[index]) as image:
            axis.imshow(np.asarray(image.convert("RGB")))
        axis.set_title(labels.classes[labels.targets[index]], fontsize=5, pad=1)
    _save(figure, out)


def _draw_scene(axis: Axes, folder: Path, image_id: str) -> None:
    with Image.open(folder / "JPEGImages" / f"{image_id}.jpg") as image:
        axis.imshow(np.asarray(image))
    with Image.open(folder / "SegmentationObject" / f"{image_id}.png") as image:
        labels = np.asarray(image)
    overlay = np.zeros((*labels.shape, 4))
    overlay[labels == VOID] = (1, 1, 1, 0.9)
    tree = ET.parse(folder / "Annotations" / f"{image_id}.xml")  # noqa: S314 - written by the composer
    for number, element in enumerate(tree.findall("object"), start=1):
        colour = _COLOURS(number - 1)
        overlay[labels == number] = (*colour[:3], 0.3)
        left, top, right, bottom = (int(element.findtext(f"bndbox/{edge}", "")) for edge in _EDGES)
        # Pixel centres are at whole numbers here, counted from 0; the file counts from 1 and includes both ends.
        box = Rectangle((left - 1.5, top - 1.5), right - left + 1, bottom - top + 1, fill=False, ec=colour, lw=1.2)
        axis.add_patch(box)
        flags = [flag for flag, name in (("D", "difficult"), ("T", "truncated")) if element.findtext(name) == "1"]
        text = " ".join([element.findtext("name", ""), *flags])
        axis.text(left - 1, top - 2, text, fontsize=5, color="white", va="bottom",
                  bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8})  # fmt: skip
    axis.imshow(overlay)
    axis.set_title(image_id, fontsize=5, pad=6)


_EDGES = ("xmin", "ymin", "xmax", "ymax")


def _sample(items: list[str], n: int) -> list[str]:
    """`n` of the items, always the same ones."""
    chosen = generator(0, "sheet").permutation(len(items))[:n]
    return [items[index] for index in sorted(chosen)]


def _grid(n: int, width: float) -> tuple[Figure, list[Axes]]:
    columns = max(COLUMNS, round(np.sqrt(2 * n))) if n > 4 * COLUMNS else COLUMNS
    rows = -(-n // columns)
    figure = Figure(figsize=(width * columns, width * rows), layout="constrained")
    axes = [figure.add_subplot(rows, columns, 1 + position) for position in range(n)]
    for axis in axes:
        axis.set_axis_off()
    return figure, axes


def _save(figure: Figure, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_suffix(".partial")
    figure.savefig(aside, format="png", dpi=110)
    aside.replace(out)
