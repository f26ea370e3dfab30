"""Augmented training views, drawn per sample, so that neither the order nor the number of workers changes them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import functional as F

from benchmarks.training.settings import ViewSettings
from results.schema import Geometry

# The eigenvalues and eigenvectors of ImageNet's RGB pixels in [0, 1], as fb.resnet.torch published them; the noise
# along them is AlexNet's (Krizhevsky et al. 2012, section 4.1).
PCA_VALUES = np.array([0.2175, 0.0188, 0.0045])
PCA_VECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])

VIEW, ORDER = 1, 2  # what numbers are drawn for; numpy pads a seed with zeros, so a shorter key alone would not differ

RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def draw(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random numbers of one view: a function of which it is, not of when it is made."""
    return np.random.default_rng((VIEW, seed, epoch, index))


def order(seed: int, epoch: int) -> np.random.Generator:
    """The random numbers that shuffle one epoch."""
    return np.random.default_rng((ORDER, seed, epoch))


def training_view(
    image: Image.Image, settings: ViewSettings, geometry: Geometry, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A random view of an RGB image.

    Returns:
        The view, (crop, crop, 3), and its lighting noise, (3,) RGB in units of white, which is added to the pixels only
        after they have become floats.
    """
    resample = RESAMPLE[geometry.interpolation]
    if settings.view == "resized_crop":
        view = resized_crop(image, geometry.crop, settings.crop_area, settings.crop_aspect, resample, rng)
    else:
        view = stored_crop(image, geometry, resample, rng)
    if rng.random() < settings.flip_p:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if settings.jitter:
        view = jitter(view, settings.jitter, rng)
    lighting = np.zeros(3, np.float32)
    if settings.lighting:
        lighting = (PCA_VECTORS @ (rng.normal(0, settings.lighting, 3) * PCA_VALUES)).astype(np.float32)
    return np.asarray(view), lighting


def resized_crop(
    image: Image.Image,
    size: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
    resample: Image.Resampling,
    rng: np.random.Generator,
) -> Image.Image:
    """torchvision's RandomResizedCrop: ten draws of area and log-aspect, else the largest centre crop in `aspect`."""
    width, height = image.size
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for fraction, log_ratio in zip(rng.uniform(*area, 10), rng.uniform(low, high, 10), strict=True):
        target, ratio = fraction * width * height, math.exp(log_ratio)
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            break
    else:
        w = min(width, round(height * aspect[1]))
        h = min(height, round(width / aspect[0]))
        left, top = (width - w) // 2, (height - h) // 2
    # First cut, then resize: the antialiasing filter must not see beyond the crop.
    return image.crop((left, top, left + w, top + h)).resize((size, size), resample)


def stored_crop(
    image: Image.Image, geometry: Geometry, resample: Image.Resampling, rng: np.random.Generator
) -> Image.Image:
    """Resize the shorter side to `geometry.resize`, keep that centre square, crop `geometry.crop` at random in it."""
    stored = F.center_crop(
        F.resize(image, geometry.resize, F.InterpolationMode(geometry.interpolation)), geometry.resize
    )
    room = geometry.resize - geometry.crop + 1
    left, top = int(rng.integers(room)), int(rng.integers(room))
    return stored.crop((left, top, left + geometry.crop, top + geometry.crop))


def jitter(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """torchvision's ColorJitter(strength, strength, strength, 0): the three in a random order."""
    factors = rng.uniform(max(0.0, 1 - strength), 1 + strength, 3)
    changes: tuple[Any, ...] = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
    for which in rng.permutation(3):
        image = changes[which](image, float(factors[which]))
    return image
