"""The drawings, their near-duplicate groups and their side of the fixed train/test split."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ROOT = Path(__file__).parent / "openclipart12"
SPLIT_FILE = Path(__file__).parent / "split.tsv"

# Line art is what encloses this many times the area of its strokes.
LINE_ART = 1.8

Side = Literal["train", "test"]


@dataclass(frozen=True)
class Drawing:
    """One drawing.

    Attributes:
        id: `<class>/<file name without suffix>`.
        group: id of the first drawing that it is a near-duplicate of (its own, where there is none). A group is wholly
            on one side of the split.
        side: `train` or `test`.
    """

    id: str
    group: str
    side: Side

    @property
    def class_name(self) -> str:
        return self.id.split("/")[0]

    @property
    def name(self) -> str:
        return self.id.split("/")[1]

    @property
    def file(self) -> Path:
        return ROOT / f"{self.id}.png"


@cache
def read_drawings() -> tuple[Drawing, ...]:
    """All drawings in use, sorted by id, from `split.tsv`. The files that it leaves out hold no drawing."""
    rows = [line.split("\t") for line in SPLIT_FILE.read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    sides: dict[str, Side] = {"train": "train", "test": "test"}
    return tuple(Drawing(id, group, sides[side]) for id, group, side in rows if side in sides)


def of_side(side: Side) -> dict[str, list[Drawing]]:
    """The drawings of one side by class, classes and drawings sorted."""
    chosen: dict[str, list[Drawing]] = {}
    for drawing in read_drawings():
        if drawing.side == side:
            chosen.setdefault(drawing.class_name, []).append(drawing)
    return chosen


@cache
def classes() -> tuple[str, ...]:
    """Class names in alphabetical order, which is the order of their indices everywhere."""
    return tuple(sorted({drawing.class_name for drawing in read_drawings()}))


@cache
def load(file: Path) -> Image.Image:
    """The drawing as RGBA, cropped to the pixels that can be seen. Shared: do not change it in place."""
    with Image.open(file) as opened:
        image = opened.convert("RGBA")
    return image.crop(image.getchannel("A").point(lambda a: 255 * (a > 24)).getbbox())


@cache
def cut_out(file: Path) -> Image.Image:
    """As `load`, but line art is filled with white paper: bare strokes would be no object on a coloured background."""
    image = load(file)
    stroke = np.asarray(image)[..., 3] >= 64
    solid = _without_holes(stroke)
    if solid.sum() < LINE_ART * stroke.sum():
        return image
    paper = Image.new("RGBA", image.size, "white")
    paper.putalpha(Image.fromarray(np.where(solid, 255, 0).astype(np.uint8)))
    return Image.alpha_composite(paper, image)


def _without_holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask and everything that it encloses."""
    free = ~np.pad(mask, 1)
    outside = np.zeros_like(free)
    outside[0] = outside[-1] = outside[:, 0] = outside[:, -1] = True
    reached = 0
    while reached != (reached := int(outside.sum())):
        for axis in (0, 1):
            for step in (1, -1):
                outside |= np.roll(outside, step, axis)
                outside &= free
    return ~outside[1:-1, 1:-1]
