"""The drawings in `openclipart12.zip`, their near-duplicate groups and their side of the fixed train/test split."""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ARCHIVE = Path(__file__).with_name("openclipart12.zip")  # <class>/<name>.png
SPLIT_FILE = Path(__file__).with_name("split.tsv")

# A drawing that encloses at least this many times the area of its strokes is line art.
LINE_ART = 1.8
VISIBLE = 24  # of 255: alpha above which a pixel belongs to the drawing

DrawingSplit = Literal["train", "test"]


@dataclass(frozen=True)
class Drawing:
    """One drawing.

    Attributes:
        id: `<class>/<file name without suffix>`.
        group: id of the first of its near-duplicates, or its own. All drawings of a group are on one side of the split.
    """

    id: str
    group: str
    side: DrawingSplit

    @property
    def class_name(self) -> str:
        return self.id.split("/")[0]

    @property
    def name(self) -> str:
        return self.id.split("/")[1]


@cache
def read_drawings() -> tuple[Drawing, ...]:
    """All drawings in use, sorted by id, from `split.tsv`. It leaves out two files without a drawing."""
    rows = [line.split("\t") for line in SPLIT_FILE.read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    sides: dict[str, DrawingSplit] = {"train": "train", "test": "test"}
    return tuple(Drawing(id, group, sides[side]) for id, group, side in rows if side in sides)


def of_side(side: DrawingSplit) -> dict[str, list[Drawing]]:
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
def _files() -> dict[str, bytes]:
    """Drawing id -> PNG file."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        return {name.removesuffix(".png"): archive.read(name) for name in archive.namelist()}


def all_ids() -> list[str]:
    """The ids of all files in the archive, sorted."""
    return sorted(_files())


@cache
def load_drawing(id: str) -> Image.Image:
    """The drawing as RGBA, cropped to its visible pixels. Shared: do not change it in place."""
    with Image.open(io.BytesIO(_files()[id])) as opened:
        return visible_part(opened.convert("RGBA"))


def visible_part(image: Image.Image) -> Image.Image:
    """The RGBA image cropped to its visible pixels."""
    return image.crop(image.getchannel("A").point(lambda a: 255 * (a > VISIBLE)).getbbox())


@cache
def cut_out(id: str) -> Image.Image:
    """A drawing with its line art filled with white paper: bare strokes would hardly show on a coloured background."""
    image = load_drawing(id)
    stroke = np.asarray(image)[..., 3] >= 64
    solid = _without_holes(stroke)
    if solid.sum() < LINE_ART * stroke.sum():
        return image
    paper = Image.new("RGBA", image.size, "white")
    paper.putalpha(Image.fromarray(np.where(solid, 255, 0).astype(np.uint8)))
    return Image.alpha_composite(paper, image)


def _without_holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask and the areas that it encloses."""
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


def generator(seed: int, *item: str | int) -> np.random.Generator:
    """A random generator that depends on the seed and the item's name alone, whatever the order or the process."""
    digest = hashlib.sha256("\0".join(map(str, (seed, *item))).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))
