"""The plan of the scenes: which drawing stands where. Nothing is painted here, so that the plan can be checked fast."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.demo.drawings import Drawing, classes, cut_out, of_side
from benchmarks.demo.seeding import generator

SceneSplit = Literal["train", "val", "test"]
Mask = NDArray[np.bool_]
Pool = dict[str, list[Drawing]]

LONGER_SIDE = 192  # pixels, give or take 16
ASPECTS = (1.0, 4 / 3, 3 / 2, 16 / 9)
PORTRAIT = 0.4
OBJECTS = (0.30, 0.30, 0.20, 0.12, 0.08)  # how often a scene is meant to have 1, 2, … 5 objects
SAME_CLASS_AGAIN = 0.22  # so that instances of one class meet
TINY = 0.08
OVERHANGING = 0.2
OVERHANG = 0.35  # at most this share of a side lies outside
WELL_VISIBLE = 0.6  # where an object would have less than this left, another position is tried first
LEAST_VISIBLE = 0.15
LEAST_PIXELS = 12
POSITIONS = 8  # tried for a well visible object, and half as many for a hidden one, before another drawing is
DRAWINGS = 4  # tried before the scene does with fewer objects
VAL_SHARE = 0.25
OPAQUE = 64  # of 255: alpha from which a pixel belongs to the object
DIFFICULT_VISIBLE = 0.35
DIFFICULT_EXTENT = 22  # pixels of the visible box's longer side
TRUNCATED_VISIBLE = 0.97


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
        return _rendered(self.drawing.file, self.width, self.height, self.mirrored)


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
    """What can be seen of one object.

    Attributes:
        mask: (height, width) visible pixels, at least one.
        truncated: cut by the image's edge or covered in part by another object.
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

    Test scenes show the test side; the train side is divided between train and val, so that whatever is chosen on val
    is not chosen on drawings that were trained on.
    """
    pools: dict[SceneSplit, Pool] = {"train": {}, "val": {}, "test": of_side("test")}
    for name, drawings in of_side("train").items():
        for drawing in drawings:
            held_out = generator(0, "val", drawing.group).random() < VAL_SHARE
            pools["val" if held_out else "train"].setdefault(name, []).append(drawing)
    return pools


def plan_scene(seed: int, number: int, split: SceneSplit, pool: Pool) -> Scene:
    """A scene of 1 to 5 objects: a function of the arguments alone, whatever other scenes there are."""
    rng = generator(seed, "scene", split, number)
    longer = LONGER_SIDE + int(rng.integers(-16, 17))
    sides = (longer, round(longer / float(rng.choice(ASPECTS))))
    width, height = sides[::-1] if rng.random() < PORTRAIT else sides
    wanted = 1 + int(rng.choice(len(OBJECTS), p=OBJECTS))
    placements: list[Placement] = []
    visible: list[Mask] = []
    whole: list[int] = []
    while not placements:  # a first object whose strokes are too thin to be seen is drawn again
        for _ in range(wanted):
            for placement, least in _proposals(rng, pool, placements, (width, height), wanted):
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
    rng: np.random.Generator, pool: Pool, before: Sequence[Placement], size: tuple[int, int], wanted: int
) -> Iterator[tuple[Placement, float]]:
    """Several positions for each of several drawings, with the share that every object must show there."""
    for _ in range(DRAWINGS):
        again = before and rng.random() < SAME_CLASS_AGAIN
        name = before[-1].drawing.class_name if again else str(rng.choice(classes()))
        drawing = pool[name][int(rng.integers(len(pool[name])))]
        natural = cut_out(drawing.file).size
        tiny = rng.random() < TINY
        longer = rng.uniform(12, 22) if tiny else rng.uniform(0.4, 0.85) / wanted**0.3 * LONGER_SIDE
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
    """Visible pixels of all objects once this one lies on top, and the pixels that it would have if nothing cut it."""
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
def _rendered(file: Path, width: int, height: int, mirrored: bool) -> Image.Image:
    image = cut_out(file).resize((width, height), Image.Resampling.BICUBIC)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image
