"""Backgrounds: plain, graded and textured, from a random generator alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Rgb = NDArray[np.float32]


def pale(rng: np.random.Generator, size: tuple[int, int], *, plain: bool) -> Rgb:
    """A light, nearly neutral background (height, width, 3), values 0..255.

    Instance discrimination on one picture per drawing learns whatever tells two pictures apart most easily; a strong
    background would be just that, so the textures here stay within about 30 levels.
    """
    base = np.full(3, rng.uniform(215, 255)) + rng.uniform(-12, 12, 3)
    ground = np.broadcast_to(base, (*size[::-1], 3))
    if not plain:
        tint = rng.uniform(0.7, 1.0, 3)
        ground = ground + 15 * _pattern(rng, size)[..., None] * tint
    return np.clip(ground, 0, 255).astype(np.float32)


def tinted(rng: np.random.Generator, size: tuple[int, int]) -> Rgb:
    """A background of a scene (height, width, 3), values 0..255: a light tint under a gradient or texture, with noise.

    Behind pooled features a background counts by its area. With colours and contrasts as strong as the drawings' own,
    even ImageNet features lost a fifth of their mean AP, and what was left measured the backgrounds.
    """
    base = rng.uniform(170, 250) + rng.uniform(-25, 25, 3)
    amplitude = rng.uniform(4, 18) * rng.uniform(0.6, 1.0, 3) * rng.choice([-1, 1])
    grain = rng.normal(0, rng.uniform(1, 3), (*size[::-1], 1))
    return np.clip(base + amplitude * _pattern(rng, size)[..., None] + grain, 0, 255).astype(np.float32)


def _pattern(rng: np.random.Generator, size: tuple[int, int]) -> Rgb:
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
