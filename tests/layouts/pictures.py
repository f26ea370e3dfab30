"""What the tiny data sets show: the class is the colour, so that even a random network can tell the classes apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

Box = tuple[int, int, int, int]  # left, top, right, bottom; the last two are outside

_COLOURS = (
    (200, 40, 40), (40, 180, 60), (50, 70, 210), (210, 200, 40), (180, 60, 200),
    (40, 190, 200), (240, 140, 30), (120, 80, 40), (120, 120, 220), (160, 220, 140),
)  # fmt: skip


def plain(kind: int, seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A noisy picture in the colour of class `kind`; `size` is width, height."""
    return scene(((kind, (0, 0, *size)),), seed, size)


def scene(objects: Sequence[tuple[int, Box]], seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """Boxes in the colours of their classes on noisy grey."""
    pixels = np.full((size[1], size[0], 3), 128.0)
    for kind, (left, top, right, bottom) in objects:
        pixels[top:bottom, left:right] = _COLOURS[kind % len(_COLOURS)]
    pixels += np.random.default_rng(seed).normal(0, 8, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def boxes(number: int, kinds: int, size: tuple[int, int] = (64, 48)) -> list[tuple[int, Box]]:
    """Two objects of picture `number`, apart from each other: one in the left half, one in the right."""
    width, height = size
    return [
        (number % kinds, (2 + number % 3, 4, width // 2 - 4, height - 6)),
        ((number + 1) % kinds, (width // 2 + 3, 6 + number % 4, width - 5, height - 3)),
    ]


def save(image: Image.Image, file: Path) -> Path:
    """Saves as the suffix says, JPEG where it is unknown to Pillow, and makes the folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, **({"quality": 95} if file.suffix.lower() in (".jpg", ".jpeg") else {}))
    return file
