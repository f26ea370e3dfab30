"""Corruptions of pictures in ImageNet-C's definitions (Hendrycks and Dietterich 2019), for the embedded drawings.

The strengths are those of ImageNet-C for 224 pixels, read in hendrycks/robustness@29b1753, create_c/make_imagenet_c.py.
Only corruptions whose strength does not depend on the size of the picture are here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.demo.drawings import generator

Floats = NDArray[np.float64]

JPEG_QUALITY = 85  # in which ImageNet-C is stored
DEMO_CORRUPTIONS = ("gaussian_noise", "contrast", "pixelate", "jpeg_compression")
DEMO_SEVERITIES = (3, 5)


def gaussian_noise(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    scale = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    x = _floats(image)
    return _image(x + rng.normal(scale=scale, size=x.shape))


def shot_noise(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    photons = (60, 25, 12, 5, 3)[severity - 1]
    return _image(rng.poisson(_floats(image) * photons) / photons)


def impulse_noise(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    """A share of all values becomes black or white, each with the same probability."""
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    x = _floats(image)
    return _image(np.where(rng.random(x.shape) < share, rng.random(x.shape) < 0.5, x))


def brightness(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    """Adds to the value of HSV: hue and saturation stay, so the channels grow in proportion."""
    added = (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]
    x = _floats(image)
    value = x.max(2, keepdims=True)
    target = np.minimum(value + added, 1)
    return _image(np.where(value > 0, x * target / np.maximum(value, 1e-12), target))


def contrast(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    kept = (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]
    x = _floats(image)
    mean = x.mean((0, 1))
    return _image((x - mean) * kept + mean)


def pixelate(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    small = image.resize((int(image.width * share), int(image.height * share)), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.BOX)


def jpeg_compression(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    quality = (25, 18, 15, 10, 7)[severity - 1]
    stored = BytesIO()
    image.save(stored, "JPEG", quality=quality)
    return Image.open(stored).convert("RGB")


CORRUPTIONS: Mapping[str, Callable[[Image.Image, int, np.random.Generator], Image.Image]] = {
    each.__name__: each
    for each in (gaussian_noise, shot_noise, impulse_noise, brightness, contrast, pixelate, jpeg_compression)
}


def write_corrupted(drawing: Path, folder: Path, seed: int) -> None:
    """Write every corruption of the demo of one drawing as `<corruption>/<severity>/<class>/<name>.jpg`.

    Args:
        drawing: `…/<class>/<name>.png`.
    """
    with Image.open(drawing) as opened:
        image = opened.convert("RGB")
    for name in DEMO_CORRUPTIONS:
        for severity in DEMO_SEVERITIES:
            file = folder / name / str(severity) / drawing.parent.name / f"{drawing.stem}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            rng = generator(seed, name, severity, drawing.parent.name, drawing.stem)
            CORRUPTIONS[name](image, severity, rng).save(file, quality=JPEG_QUALITY)


def _floats(image: Image.Image) -> Floats:
    return np.asarray(image, np.float64) / 255


def _image(x: Floats) -> Image.Image:
    return Image.fromarray((np.clip(x, 0, 1) * 255).astype(np.uint8))
