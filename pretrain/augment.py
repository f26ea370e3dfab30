"""The MoCo augmentation lists on single PIL images in loader workers, as the reference runs them.

`worker_views` gives what the workers run for any of the engines.
"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision import transforms as T

from pretrain.augment_cv2 import Cv2Views
from pretrain.recipe import Augmentation, Recipe


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


def _crop(a: Augmentation) -> T.RandomResizedCrop:
    return T.RandomResizedCrop(a.crop, scale=a.crop_area, ratio=a.crop_aspect)
