"""The MoCo augmentation lists on PIL images, in loader workers, as the reference runs them."""

from __future__ import annotations

import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision import transforms as T

from pretrain.recipe import Augmentation


class GaussianBlur:
    """PIL's Gaussian blur with a radius (its sigma, in pixels) drawn uniformly (SimCLR; MoCo v2's loader)."""

    def __init__(self, sigma: tuple[float, float]) -> None:
        self.sigma = sigma

    def __call__(self, image: Image.Image) -> Image.Image:
        low, high = self.sigma
        return image.filter(ImageFilter.GaussianBlur(radius=low + (high - low) * torch.rand(()).item()))


class PilViews:
    """Two independent random views of one image.

    MoCo v1's list is crop, grayscale, jitter, flip; v2's is crop, jitter (p 0.8), grayscale, blur (p 0.5), flip
    (section 3.3 of v1; main_moco.py of the reference for the order).
    """

    def __init__(
        self, augmentation: Augmentation, mean: tuple[float, float, float], std: tuple[float, float, float]
    ) -> None:
        a = augmentation
        crop = T.RandomResizedCrop(a.crop, scale=a.crop_area, ratio=a.crop_aspect)
        jitter = T.RandomApply([T.ColorJitter(a.brightness, a.contrast, a.saturation, a.hue)], p=a.jitter_p)
        gray = T.RandomGrayscale(p=a.grayscale_p)
        colours = [gray, jitter] if a.grayscale_first else [jitter, gray]
        blur = [T.RandomApply([GaussianBlur(a.blur_sigma)], p=a.blur_p)] if a.blur_p else []
        end = [T.RandomHorizontalFlip(a.flip_p), T.ToTensor(), T.Normalize(mean, std)]
        self.view = T.Compose([crop, *colours, *blur, *end])

    def __call__(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        """To two (3, crop, crop) float32 tensors, normalised."""
        return self.view(image), self.view(image)
