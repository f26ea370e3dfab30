"""The MoCo augmentation lists on single images in loader workers: by PIL, as the reference runs them, and by OpenCV.

`worker_views` gives what the workers run for any of the engines.

OpenCV makes the views of the PIL engine in a fraction of the time. Every random number is drawn as the PIL list draws
it. So a view has the crop, the operations, their order and their factors of the PIL engine's view with the same seed;
its pixels differ by rounding, and after a turn of the hue by a few units of 255, as OpenCV's HSV has other whole
numbers than PIL's.

For it, JPEG files are decoded by OpenCV, to PIL's pixels. Crops are resized by torch, whose antialiased filter on bytes
is PIL's. Views stay bytes up to the batch, which is a quarter of the memory to move, and are normalised there.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn import functional as F
from torchvision import transforms as T

from pretrain.augment_tensor import BOXES, GRAY, box_radius
from pretrain.data import Pixels, require_cv2
from pretrain.recipe import Augmentation, Recipe

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
CUT = 0.49  # less: PIL cuts off the fractions that OpenCV rounds
WEIGHTS = 256  # of a blur's kernel, whose weights are whole numbers of them, as OpenCV computes with bytes


# ---- by PIL ----------------------------------------------------------------------------------------------------------


class GaussianBlur:
    """PIL's Gaussian blur with a radius (its sigma, in pixels) drawn uniformly (SimCLR; MoCo v2's loader)."""

    def __init__(self, sigma: tuple[float, float]) -> None:
        self.sigma = sigma

    def __call__(self, image: Image.Image) -> Image.Image:
        low, high = self.sigma
        return image.filter(ImageFilter.GaussianBlur(radius=low + (high - low) * torch.rand(()).item()))


class PilViews:
    """Independent random views of one image, by the whole list.

    MoCo v1's list is crop, grayscale, jitter, flip; v2's is crop, jitter (p 0.8), grayscale, blur (p 0.5), flip
    (section 3.3 of v1; main_moco.py of the reference for the order).

    Args:
        views: number of views.
    """

    def __init__(
        self,
        augmentation: Augmentation,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        views: int = 2,
    ) -> None:
        a, self.views = augmentation, views
        jitter = T.RandomApply([T.ColorJitter(a.brightness, a.contrast, a.saturation, a.hue)], p=a.jitter_p)
        gray = T.RandomGrayscale(p=a.grayscale_p)
        colours = [gray, jitter] if a.grayscale_first else [jitter, gray]
        blur = [T.RandomApply([GaussianBlur(a.blur_sigma)], p=a.blur_p)] if a.blur_p else []
        end = [T.RandomHorizontalFlip(a.flip_p), T.ToTensor(), T.Normalize(mean, std)]
        self.view = T.Compose([_crop(a), *colours, *blur, *end])

    def __call__(self, image: Image.Image) -> tuple[Tensor, ...]:
        """To (3, crop, crop) float32 tensors, normalised."""
        return tuple(self.view(image) for _ in range(self.views))


class PilCrops:
    """Independent random crops of one image, for the rest of the list to run on batches of tensors."""

    def __init__(self, augmentation: Augmentation, views: int = 2) -> None:
        self.view = T.Compose([_crop(augmentation), T.PILToTensor()])
        self.views = views

    def __call__(self, image: Image.Image) -> tuple[Tensor, ...]:
        """To (3, crop, crop) uint8 tensors."""
        return tuple(self.view(image) for _ in range(self.views))


def _crop(a: Augmentation) -> T.RandomResizedCrop:
    return T.RandomResizedCrop(a.crop, scale=a.crop_area, ratio=a.crop_aspect)


# ---- by OpenCV -------------------------------------------------------------------------------------------------------


class DrawnView(NamedTuple):
    """The random numbers of one view.

    Attributes:
        crop: top, left, height and width.
        jitter: (kind, factor) in their order; empty where the view is not jittered. The hue's factor is its shift.
        gray, flip: whether it is.
        sigma: of the blur; None without one.
    """

    crop: tuple[int, int, int, int]
    jitter: tuple[tuple[int, float], ...]
    gray: bool
    sigma: float | None
    flip: bool


class Cv2Views:
    """Independent random views of one image, by the whole list but the normalisation.

    Args:
        views: number of views.
    """

    def __init__(self, augmentation: Augmentation, views: int = 2) -> None:
        a = self.augmentation = augmentation
        self.views = views
        jitter = T.ColorJitter(a.brightness, a.contrast, a.saturation, a.hue)
        self.ranges = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
        require_cv2()

    def __call__(self, image: Pixels | Image.Image) -> tuple[Tensor, ...]:
        """To (crop, crop, 3) uint8 tensors."""
        pixels = np.array(image) if isinstance(image, Image.Image) else image
        return tuple(self.apply(pixels, self.draw(*pixels.shape[:2])) for _ in range(self.views))

    def draw(self, height: int, width: int) -> DrawnView:
        """From torch's global generator, number by number as `PilViews` does."""
        a = self.augmentation
        shape_only = torch.empty(3, height, width, device="meta")
        crop = T.RandomResizedCrop.get_params(shape_only, list(a.crop_area), list(a.crop_aspect))
        gray = _chance() < a.grayscale_p if a.grayscale_first else False
        jitter: tuple[tuple[int, float], ...] = ()
        if _chance() <= a.jitter_p:
            order, *factors = T.ColorJitter.get_params(*self.ranges)
            drawn = ((int(kind), factors[int(kind)]) for kind in order)
            jitter = tuple((kind, factor) for kind, factor in drawn if factor is not None)
        gray = gray if a.grayscale_first else _chance() < a.grayscale_p
        sigma = None
        if a.blur_p and _chance() <= a.blur_p:
            low, high = a.blur_sigma
            sigma = low + (high - low) * torch.rand(()).item()
        return DrawnView(crop, jitter, gray, sigma, _chance() < a.flip_p)

    def apply(self, pixels: Pixels, drawn: DrawnView) -> Tensor:
        """The view of these numbers."""
        cv2, a = require_cv2(), self.augmentation
        x = resize_box(pixels, drawn.crop, a.crop)
        if drawn.gray and a.grayscale_first:
            x = to_gray(x)
        for kind, factor in drawn.jitter:
            x = OPERATIONS[kind](x, factor)
        if drawn.gray and not a.grayscale_first:
            x = to_gray(x)
        if drawn.sigma is not None:
            x = blur_pixels(x, drawn.sigma)
        return torch.from_numpy(cv2.flip(x, 1) if drawn.flip else x)


def normalise_pixels(views: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(N, H, W, 3) uint8 to (N, 3, H, W) float32 in channels_last.

    Args:
        mean, std: (3, 1, 1), for pixels in [0, 1], on the device of the views.
    """
    width = views.shape[2]
    # One row of pixels of all channels: an inner loop over three of them would be ten times as slow on a CPU.
    scale, shift = (1 / (255 * std)).flatten().repeat(width), (-mean / std).flatten().repeat(width)
    rows = views.flatten(2).float()
    return torch.addcmul(shift, rows, scale, out=rows).unflatten(2, (width, 3)).permute(0, 3, 1, 2)


def _chance() -> float:
    return torch.rand(1).item()


# ---- OpenCV's operations on (H, W, 3) bytes --------------------------------------------------------------------------


def resize_box(pixels: Pixels, box: tuple[int, int, int, int], size: int) -> Pixels:
    """The box (top, left, height, width) at `size` squared, by PIL's antialiased bilinear filter."""
    top, left, height, width = box
    # One picture with its channels last, which torch resizes by vector instructions; it goes by the strides.
    part = torch.from_numpy(pixels[top : top + height, left : left + width])[None].permute(0, 3, 1, 2)
    out = F.interpolate(part, (size, size), mode="bilinear", align_corners=False, antialias=True)
    return np.ascontiguousarray(out[0].permute(1, 2, 0).numpy())


def adjust_brightness(pixels: Pixels, factor: float) -> Pixels:
    return _blended(pixels, 0.0, factor)


def adjust_contrast(pixels: Pixels, factor: float) -> Pixels:
    cv2 = require_cv2()
    return _blended(pixels, math.floor(cv2.mean(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))[0] + 0.5), factor)


def _blended(pixels: Pixels, level: float, factor: float) -> Pixels:
    """With one grey level."""
    blended: Pixels = require_cv2().addWeighted(pixels, factor, pixels, 0, level * (1 - factor) - CUT)
    return blended


def adjust_saturation(pixels: Pixels, factor: float) -> Pixels:
    """Blended with its grey."""
    matrix = np.empty((3, 4), np.float32)
    matrix[:, :3] = np.eye(3, dtype=np.float32) * factor + (1 - factor) * np.array(GRAY, np.float32)
    matrix[:, 3] = -CUT
    blended: Pixels = require_cv2().transform(pixels, matrix)
    return blended


def adjust_hue(pixels: Pixels, shift: float) -> Pixels:
    """The hue turned by `shift` turns in HSV of bytes, in PIL's steps of 1/255 turn."""
    cv2 = require_cv2()
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(round(int(shift * 255) * 256 / 255) % 256)  # wraps around, as the hue does
    turned: Pixels = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
    return turned


OPERATIONS = {
    BRIGHTNESS: adjust_brightness,
    CONTRAST: adjust_contrast,
    SATURATION: adjust_saturation,
    HUE: adjust_hue,
}


def to_gray(pixels: Pixels) -> Pixels:
    cv2 = require_cv2()
    gray: Pixels = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return gray


def blur_pixels(pixels: Pixels, sigma: float) -> Pixels:
    """PIL's Gaussian blur: the three boxes as one kernel. PIL repeats the edge before each box, here it is once."""
    kernel = blur_kernel(sigma)
    blurred: Pixels = require_cv2().sepFilter2D(pixels, -1, kernel, kernel, borderType=1)  # BORDER_REPLICATE
    return blurred


def blur_kernel(sigma: float) -> NDArray[np.float32]:
    radius = box_radius(sigma)
    offsets = np.arange(-math.ceil(radius), math.ceil(radius) + 1)
    box = np.clip(radius + 1 - np.abs(offsets), 0, 1)
    kernel = box = box / box.sum()
    for _ in range(BOXES - 1):
        kernel = np.convolve(kernel, box)
    whole = np.round(WEIGHTS * kernel)
    whole[len(whole) // 2] += WEIGHTS - whole.sum()  # keeps the brightness
    return (whole / WEIGHTS).astype(np.float32)


# ---- what the loader's workers run -----------------------------------------------------------------------------------


WorkerViews = PilViews | PilCrops | Cv2Views


def worker_views(recipe: Recipe) -> WorkerViews:
    """The part of the list that loader workers run: all of it, all but the normalisation, or the crops alone.

    Raises:
        InputError: OpenCV is not installed, and the engine is cv2.
    """
    if recipe.augmentation.engine == "pil":
        return PilViews(recipe.augmentation, recipe.mean, recipe.std, recipe.views)
    return (Cv2Views if recipe.augmentation.engine == "cv2" else PilCrops)(recipe.augmentation, recipe.views)


def seeded_views(work: WorkerViews, image: Any, seed: int, number: int, index: int) -> tuple[Tensor, ...]:
    """The views of image `index` in pass `number`: they depend on these and the seed, not on the worker."""
    before = torch.get_rng_state()
    try:
        # As torch.manual_seed, without the devices, whose seeds would cost a tenth of the views of OpenCV.
        torch.default_generator.manual_seed(((seed * 1_000_003 + number) * 2_147_483_659 + index) % 2**64)
        return work(image)
    finally:
        torch.set_rng_state(before)
