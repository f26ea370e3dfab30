"""The ImageFolder of single drawings: one class each, on plain and on gently textured light backgrounds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.demo.backgrounds import pale
from benchmarks.demo.drawings import Drawing, Side, load, of_side
from benchmarks.demo.seeding import generator

SIZE = 96
VIEWS_TRAIN = 1
VIEWS_VAL = 3  # what a drawing is taken for depends on where it lies; three views of it halve that noise


@dataclass(frozen=True)
class Single:
    """One picture of one drawing; `path` is relative to the folder `drawings`."""

    drawing: Drawing
    split: str
    view: int

    @property
    def path(self) -> Path:
        return Path(self.split, self.drawing.class_name, f"{self.drawing.name}_{self.view}.png")


def plan_singles(per_class: int | None = None) -> list[Single]:
    """Every drawing of both sides, or the first few of each class; test drawings are `val`, as ImageNet calls it."""
    folders: tuple[tuple[str, Side, int], ...] = (("train", "train", VIEWS_TRAIN), ("val", "test", VIEWS_VAL))
    return [
        Single(drawing, split, view)
        for split, side, views in folders
        for drawings in of_side(side).values()
        for drawing in drawings[:per_class]
        for view in range(views)
    ]


def paint_single(single: Single, seed: int) -> Image.Image:
    """The picture: the drawing at 75 to 95 % of the longer side, anywhere, on a light background."""
    rng = generator(seed, single.drawing.id, single.view)
    drawing = load(single.drawing.file)
    zoom = SIZE * rng.uniform(0.75, 0.95) / max(drawing.size)
    width, height = (max(1, round(zoom * side)) for side in drawing.size)
    left, top = int(rng.integers(SIZE - width + 1)), int(rng.integers(SIZE - height + 1))
    ground = pale(rng, (SIZE, SIZE), plain=bool(rng.random() < 0.5))
    image = Image.fromarray(ground.astype(np.uint8))
    scaled = drawing.resize((width, height), Image.Resampling.BICUBIC)
    image.paste(scaled, (left, top), scaled)
    return image
