"""The embedded drawings, and pictures of them: single ones, and scenes of 1 to 5 with the visible mask of each.

The drawings are in `openclipart12.zip`; `split.tsv` has their near-duplicate groups and their side of the fixed split.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
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
SceneSplit = Literal["train", "val", "test"]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]
Pool = dict[str, list["Drawing"]]

# Single drawings.
SINGLE_SIZE = 96  # pixels
VIEWS_TRAIN = 1
VIEWS_VAL = 3  # the prediction depends on where the drawing lies; three views halve that noise

# Scenes.
LONGER_SIDE = 192  # pixels, give or take 16
ASPECTS = (1.0, 4 / 3, 3 / 2, 16 / 9)
PORTRAIT = 0.4
OBJECTS = (0.30, 0.30, 0.20, 0.12, 0.08)  # intended share of scenes with 1, 2, … 5 objects
SAME_CLASS_AGAIN = 0.22  # so that instances of one class touch
TINY = 0.08
OVERHANGING = 0.2
OVERHANG = 0.35  # at most this share of a side lies outside
WELL_VISIBLE = 0.6  # if an object would show less than this, other positions are tried first
LEAST_VISIBLE = 0.15
LEAST_PIXELS = 12
POSITIONS = 8  # tries for a well visible object, then half as many for a hidden one, then another drawing
DRAWINGS = 4  # tries before the scene gets fewer objects
VAL_SHARE = 0.25
OPAQUE = 64  # of 255: alpha from which a pixel belongs to the object
DIFFICULT_VISIBLE = 0.35
DIFFICULT_EXTENT = 22  # pixels of the visible box's longer side
TRUNCATED_VISIBLE = 0.97


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


@dataclass(frozen=True)
class Single:
    """One picture of one drawing."""

    drawing: Drawing
    split: str
    view: int

    @property
    def path(self) -> Path:
        """Relative to the folder `drawings`."""
        return Path(self.split, self.drawing.class_name, f"{self.drawing.name}_{self.view}.png")


def plan_singles(per_class: int | None = None) -> list[Single]:
    """Every drawing of both sides, or the first few of each class; test drawings are `val`, as ImageNet calls it."""
    folders: tuple[tuple[str, DrawingSplit, int], ...] = (("train", "train", VIEWS_TRAIN), ("val", "test", VIEWS_VAL))
    return [
        Single(drawing, split, view)
        for split, side, views in folders
        for drawings in of_side(side).values()
        for drawing in drawings[:per_class]
        for view in range(views)
    ]


def paint_single(single: Single, seed: int, size: int = SINGLE_SIZE) -> Image.Image:
    """The picture, of `size` pixels a side: the drawing at 75 to 95 % of that, anywhere, on a light background."""
    rng = generator(seed, single.drawing.id, single.view)
    drawing = load_drawing(single.drawing.id)
    zoom = size * rng.uniform(0.75, 0.95) / max(drawing.size)
    width, height = (max(1, round(zoom * side)) for side in drawing.size)
    left, top = int(rng.integers(size - width + 1)), int(rng.integers(size - height + 1))
    ground = _pale(rng, (size, size), plain=bool(rng.random() < 0.5))
    image = Image.fromarray(ground.astype(np.uint8))
    scaled = drawing.resize((width, height), Image.Resampling.BICUBIC)
    image.paste(scaled, (left, top), scaled)
    return image


@dataclass(frozen=True)
class Placement:
    """One drawing in a scene, in pixels; it may reach over the edge."""

    drawing: Drawing
    left: int
    top: int
    width: int
    height: int
    mirrored: bool

    def rendered(self) -> Image.Image:
        """The drawing at its size, RGBA. Shared: do not change it in place."""
        return _rendered(self.drawing.id, self.width, self.height, self.mirrored)


@dataclass(frozen=True)
class Scene:
    """`placements` are painted in order, later ones over earlier ones. `number` counts from 1 over all splits."""

    number: int
    split: SceneSplit
    width: int
    height: int
    placements: tuple[Placement, ...]


@dataclass(frozen=True)
class Instance:
    """The visible part of one object.

    Attributes:
        mask: (height, width) visible pixels, at least one.
        truncated: cut off by the image's edge or partly covered by another object.
        difficult: mostly hidden, or tiny.
    """

    drawing: Drawing
    mask: Mask
    truncated: bool
    difficult: bool

    @property
    def box(self) -> tuple[int, int, int, int]:
        """First column, first row, last column, last row of the visible pixels, counted from 0, inclusive."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def scene_pools() -> dict[SceneSplit, Pool]:
    """The drawings that the scenes of each split show, by class. No near-duplicate group is in two splits.

    Test scenes show the test side. The train side is divided between train and val, so that a choice made on val is not
    made on drawings of train.
    """
    pools: dict[SceneSplit, Pool] = {"train": {}, "val": {}, "test": of_side("test")}
    for name, drawings in of_side("train").items():
        for drawing in drawings:
            held_out = generator(0, "val", drawing.group).random() < VAL_SHARE
            pools["val" if held_out else "train"].setdefault(name, []).append(drawing)
    return pools


def plan_scene(seed: int, number: int, split: SceneSplit, pool: Pool) -> Scene:
    """A scene of 1 to 5 objects. It depends on the arguments alone, not on other scenes."""
    rng = generator(seed, "scene", split, number)
    longer = LONGER_SIDE + int(rng.integers(-16, 17))
    sides = (longer, round(longer / float(rng.choice(ASPECTS))))
    width, height = sides[::-1] if rng.random() < PORTRAIT else sides
    intended = 1 + int(rng.choice(len(OBJECTS), p=OBJECTS))
    placements: list[Placement] = []
    visible: list[Mask] = []
    whole: list[int] = []
    while not placements:  # the strokes of a first object may be too thin to be seen
        for _ in range(intended):
            for placement, least in _proposals(rng, pool, placements, (width, height), intended):
                masks, area = _covered(visible, placement, (width, height))
                if all(m.sum() >= max(least * w, LEAST_PIXELS) for m, w in zip(masks, [*whole, area], strict=True)):
                    placements.append(placement)
                    visible, whole = masks, [*whole, area]
                    break
    return Scene(number, split, width, height, tuple(placements))


def instances(scene: Scene) -> list[Instance]:
    """The objects of a scene in the order of its placements."""
    masks: list[Mask] = []
    whole: list[int] = []
    for placement in scene.placements:
        masks, area = _covered(masks, placement, (scene.width, scene.height))
        whole.append(area)
    found = []
    for placement, mask, area in zip(scene.placements, masks, whole, strict=True):
        seen = int(mask.sum())
        instance = Instance(placement.drawing, mask, truncated=seen < TRUNCATED_VISIBLE * area, difficult=False)
        left, top, right, bottom = instance.box
        tiny = max(right - left, bottom - top) + 1 < DIFFICULT_EXTENT
        found.append(replace(instance, difficult=tiny or seen < DIFFICULT_VISIBLE * area))
    return found


def _proposals(
    rng: np.random.Generator, pool: Pool, before: Sequence[Placement], size: tuple[int, int], intended: int
) -> Iterator[tuple[Placement, float]]:
    """Several positions for each of several drawings, with the visible share that every object must keep there."""
    for _ in range(DRAWINGS):
        again = before and rng.random() < SAME_CLASS_AGAIN
        name = before[-1].drawing.class_name if again else str(rng.choice(classes()))
        drawing = pool[name][int(rng.integers(len(pool[name])))]
        natural = cut_out(drawing.id).size
        tiny = rng.random() < TINY
        longer = rng.uniform(12, 22) if tiny else rng.uniform(0.4, 0.85) / intended**0.3 * LONGER_SIDE
        zoom = min(longer / max(natural), *(0.95 * room / side for room, side in zip(size, natural, strict=True)))
        extents = (max(1, round(zoom * natural[0])), max(1, round(zoom * natural[1])))
        mirrored = bool(rng.random() < 0.5)
        for least in POSITIONS * [WELL_VISIBLE] + POSITIONS // 2 * [LEAST_VISIBLE]:
            outside = OVERHANG if rng.random() < OVERHANGING else 0.0
            left, top = (
                int(rng.integers(-int(outside * extent), room - extent + int(outside * extent) + 1))
                for extent, room in zip(extents, size, strict=True)
            )
            yield Placement(drawing, left, top, *extents, mirrored=mirrored), least


def _covered(below: Sequence[Mask], placement: Placement, size: tuple[int, int]) -> tuple[list[Mask], int]:
    """Visible pixels of all objects once this one lies on top, and the number of pixels of the whole object."""
    width, height = size
    shape = np.asarray(placement.rendered())[..., 3] >= OPAQUE
    own = np.zeros((height, width), dtype=bool)
    left, top = max(placement.left, 0), max(placement.top, 0)
    right, bottom = min(placement.left + placement.width, width), min(placement.top + placement.height, height)
    rows, columns = (
        slice(top - placement.top, bottom - placement.top),
        slice(left - placement.left, right - placement.left),
    )
    own[top:bottom, left:right] = shape[rows, columns]
    return [*(mask & ~own for mask in below), own], int(shape.sum())


@lru_cache(maxsize=64)
def _rendered(id: str, width: int, height: int, mirrored: bool) -> Image.Image:
    image = cut_out(id).resize((width, height), Image.Resampling.BICUBIC)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image


def paint(scene: Scene, seed: int) -> Image.Image:
    """The picture of a scene, RGB."""
    rng = generator(seed, "background", scene.split, scene.number)
    image = Image.fromarray(_tinted(rng, (scene.width, scene.height)).astype(np.uint8))
    for placement in scene.placements:
        drawing = placement.rendered()
        image.paste(drawing, (placement.left, placement.top), drawing)
    return image


def _pale(rng: np.random.Generator, size: tuple[int, int], *, plain: bool) -> Floats:
    """A light, nearly neutral background (height, width, 3), values 0..255.

    Instance discrimination on one picture per drawing learns whatever separates two pictures most easily. That must not
    be the background, so the textures stay within about 30 levels.
    """
    base = np.full(3, rng.uniform(215, 255)) + rng.uniform(-12, 12, 3)
    ground = np.broadcast_to(base, (*size[::-1], 3))
    if not plain:
        tint = rng.uniform(0.7, 1.0, 3)
        ground = ground + 15 * _pattern(rng, size)[..., None] * tint
    return np.clip(ground, 0, 255).astype(np.float32)


def _tinted(rng: np.random.Generator, size: tuple[int, int]) -> Floats:
    """A background of a scene (height, width, 3), values 0..255: a light tint under a gradient or texture, with noise.

    In pooled features a background counts by its area. With colours and contrasts as strong as those of the drawings,
    even ImageNet features lost a fifth of their mean AP, and the rest measured the backgrounds.
    """
    base = rng.uniform(170, 250) + rng.uniform(-25, 25, 3)
    amplitude = rng.uniform(4, 18) * rng.uniform(0.6, 1.0, 3) * rng.choice([-1, 1])
    grain = rng.normal(0, rng.uniform(1, 3), (*size[::-1], 1))
    return np.clip(base + amplitude * _pattern(rng, size)[..., None] + grain, 0, 255).astype(np.float32)


def _pattern(rng: np.random.Generator, size: tuple[int, int]) -> Floats:
    """A gradient, soft noise, stripes or checks, (height, width) in [-1, 1]."""
    width, height = size
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    along = (np.cos(angle) * (x - width / 2) + np.sin(angle) * (y - height / 2)) / max(size)
    kind = rng.choice(["gradient", "noise", "grain", "stripes", "checks"])
    if kind == "gradient":
        return np.clip(2 * along, -1, 1)
    if kind == "stripes":
        return np.sin(2 * np.pi * along * rng.uniform(4, 14)).astype(np.float32)
    if kind == "checks":
        across = (-np.sin(angle) * (x - width / 2) + np.cos(angle) * (y - height / 2)) / max(size)
        turns = np.pi * rng.uniform(4, 12)
        return np.clip(4 * np.sin(turns * along) * np.sin(turns * across), -1, 1).astype(np.float32)
    cell = 24 if kind == "noise" else 4
    coarse = rng.uniform(-1, 1, (height // cell + 2, width // cell + 2)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)).clip(-1, 1)
