"""From a planned scene to its picture and its label images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image

from benchmarks.demo.backgrounds import tinted
from benchmarks.demo.drawings import classes
from benchmarks.demo.scenes import Instance, Mask, Scene
from benchmarks.demo.seeding import generator

VOID = 255
VOID_WIDTH = 2  # pixels of the border around objects, where strokes fade into the background


def paint(scene: Scene, seed: int) -> Image.Image:
    """The picture, RGB."""
    rng = generator(seed, "background", scene.split, scene.number)
    image = Image.fromarray(tinted(rng, (scene.width, scene.height)).astype(np.uint8))
    for placement in scene.placements:
        drawing = placement.rendered()
        image.paste(drawing, (placement.left, placement.top), drawing)
    return image


def label_images(objects: Sequence[Instance]) -> tuple[Image.Image, Image.Image]:
    """SegmentationClass and SegmentationObject: palette images, 0 background, 255 void, else class or object from 1.

    Void is the background next to objects. The devkit's void band also eats into the objects; here their pixels are
    exact, and line art would not survive it.
    """
    shape = objects[0].mask.shape
    by_class, by_object = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    anything = np.logical_or.reduce([instance.mask for instance in objects])
    near = _grown(anything, VOID_WIDTH)
    by_class[near] = by_object[near] = VOID
    for number, instance in enumerate(objects, start=1):
        by_class[instance.mask] = 1 + classes().index(instance.drawing.class_name)
        by_object[instance.mask] = number
    return _with_palette(by_class), _with_palette(by_object)


def touching(first: Mask, second: Mask) -> bool:
    """Whether two objects meet: at most one pixel of something else between them."""
    return bool((_grown(first, 1) & _grown(second, 1)).any())


@cache
def voc_palette() -> tuple[int, ...]:
    """The devkit's colour map: bit 3k + c of the index is bit 7 - k of channel c (0 red, 1 green, 2 blue)."""
    return tuple(
        sum((index >> (3 * k + channel) & 1) << (7 - k) for k in range(8))
        for index in range(256)
        for channel in range(3)
    )


def _grown(mask: Mask, by: int) -> Mask:
    """The mask and all pixels at most `by` rows and columns away."""
    grown = mask.copy()
    for _ in range(by):
        grown[1:] |= grown[:-1].copy()
        grown[:-1] |= grown[1:].copy()
        grown[:, 1:] |= grown[:, :-1].copy()
        grown[:, :-1] |= grown[:, 1:].copy()
    return grown


def _with_palette(values: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Image.Image:
    image = Image.fromarray(values).convert("P")
    image.putpalette(list(voc_palette()))
    return image
