"""Training views of an image and its mask or depth map, the test image, and windows that slide over it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as TF

from benchmarks.dense.heads import SegmentationViews
from benchmarks.dense.masks import VOID
from benchmarks.encoders.encoder import Encoder
from pretrain.distributed import sent

CROP_TRIES = 10


@dataclass
class View:
    """A training view, not yet normalised.

    Attributes:
        image: (3, crop, crop) uint8 RGB.
        target: (crop, crop) class indices (255: ignored), or metres.
        height, width: of the part that holds the image; the rest is padding.
    """

    image: Tensor
    target: Tensor
    height: int
    width: int


def short_side_size(size: tuple[int, int], short: int) -> tuple[int, int]:
    """(width, height) with this short side, the long one rounded half up."""
    width, height = size
    if height > width:
        return short, int(short * height / width + 0.5)
    return int(short * width / height + 0.5), short


def masked_view(
    image: Image.Image, indices: NDArray[np.uint8], params: SegmentationViews, rng: np.random.Generator
) -> View:
    """Resize, crop, flip and distort an image and its mask of class indices alike; small ones are padded."""
    low, high = params.ratio
    size = short_side_size(image.size, max(1, int(params.short_side * rng.uniform(low, high))))
    pixels = np.asarray(TF.resize(image, [size[1], size[0]], TF.InterpolationMode.BILINEAR))
    mask = np.asarray(Image.fromarray(indices).resize(size, Image.Resampling.NEAREST))
    for _ in range(CROP_TRIES + 1):  # the last draw is taken as it is
        top = int(rng.integers(max(size[1] - params.crop, 0) + 1))
        left = int(rng.integers(max(size[0] - params.crop, 0) + 1))
        cut = mask[top : top + params.crop, left : left + params.crop]
        counts = np.bincount(cut[cut != VOID], minlength=1)
        if (counts > 0).sum() > 1 and counts.max() < params.most_of_one_class * counts.sum():
            break
    pixels = pixels[top : top + params.crop, left : left + params.crop]
    if rng.random() < params.flip_p:
        pixels, cut = pixels[:, ::-1], cut[:, ::-1]
    height, width = cut.shape
    canvas = torch.zeros(3, params.crop, params.crop, dtype=torch.uint8)
    canvas[:, :height, :width] = distorted(torch.from_numpy(pixels.transpose(2, 0, 1).copy()), params, rng)
    target = torch.full((params.crop, params.crop), VOID, dtype=torch.uint8)
    target[:height, :width] = torch.from_numpy(cut.copy())
    return View(canvas, target, height, width)


def distorted(image: Tensor, params: SegmentationViews, rng: np.random.Generator) -> Tensor:
    """Photometric distortion: brightness, contrast, saturation and hue, each with probability 1/2.

    Contrast comes before saturation and hue, or after them, with equal probability.
    """

    def scaled(pixels: Tensor, factor: float, shift: float) -> Tensor:
        return (pixels.float() * factor + shift).clamp(0, 255).to(torch.uint8)

    if rng.random() < 0.5:
        image = scaled(image, 1.0, rng.uniform(-params.brightness, params.brightness))
    first = rng.random() < 0.5
    if first and rng.random() < 0.5:
        image = scaled(image, rng.uniform(*params.contrast), 0.0)
    if rng.random() < 0.5:
        image = TF.adjust_saturation(image, rng.uniform(*params.saturation))
    if rng.random() < 0.5:
        image = TF.adjust_hue(image, rng.uniform(-params.hue, params.hue))
    if not first and rng.random() < 0.5:
        image = scaled(image, rng.uniform(*params.contrast), 0.0)
    return image


def padded_input(encoder: Encoder, views: list[View]) -> Tensor:
    """(N, 3, H, W) normalised views, whose padding is zero after normalisation."""
    x = encoder.normalise(sent(torch.stack([view.image for view in views]), encoder.device))
    for row, view in enumerate(views):
        x[row, :, view.height :] = 0
        x[row, :, :, view.width :] = 0
    return x


def padded(x: Tensor, multiple: int) -> Tensor:
    """Images with zeros on all sides up to a multiple, the odd pixel on the right and below."""
    missing = [-side % multiple for side in x.shape[:-3:-1]]  # width, height
    return F.pad(x, [side for lack in missing for side in (lack // 2, lack - lack // 2)])


def windows(height: int, width: int, crop: int, stride: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of windows that cover an image; the last ones end at its edge. A small image has one."""
    for row in range(max(height - crop + stride - 1, 0) // stride + 1):
        for column in range(max(width - crop + stride - 1, 0) // stride + 1):
            bottom, right = min(row * stride + crop, height), min(column * stride + crop, width)
            yield slice(max(bottom - crop, 0), bottom), slice(max(right - crop, 0), right)
