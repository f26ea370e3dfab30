"""The MoCo augmentation lists on a whole batch of tensors at once, with parameters drawn per image.

The same distributions as the PIL lists of `pretrain.augment` (MoCo v1, section 3.3; MoCo v2, section 2 "aug+"), on
whatever device the batch is. On small images it is many times faster than PIL in loader workers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pretrain.recipe import Augmentation

GRAY = (0.299, 0.587, 0.114)  # ITU-R 601-2 luma, as PIL converts to "L"


def random_resized_crop(
    images: Tensor, size: int, area: tuple[float, float], aspect: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """A random crop of each image, resized to `size` squared by antialiased bilinear interpolation.

    Args:
        images: (N, 3, H, W) float.
        area: smallest and largest fraction of the image's area.
        aspect: smallest and largest width/height, drawn log-uniformly.

    Returns:
        (N, 3, size, size).

    As torchvision's RandomResizedCrop: ten draws, the first that fits, else the largest central crop within `aspect`.
    """
    n, _, height, width = images.shape
    draws = torch.rand(4, 10, n, generator=generator, device=images.device)
    pixels = height * width * (area[0] + (area[1] - area[0]) * draws[0])
    ratio = torch.exp(math.log(aspect[0]) + (math.log(aspect[1]) - math.log(aspect[0])) * draws[1])
    w, h = torch.round(torch.sqrt(pixels * ratio)), torch.round(torch.sqrt(pixels / ratio))
    fits = (w <= width) & (h <= height) & (w >= 1) & (h >= 1)
    first = fits.float().argmax(dim=0, keepdim=True)  # the first True, or 0 where there is none
    w, h, u, v = (x.gather(0, first)[0] for x in (w, h, draws[2], draws[3]))
    fallback_w = min(float(width), height * aspect[1])
    fallback_h = min(float(height), width / aspect[0])
    none = ~fits.any(dim=0)
    w, h = torch.where(none, round(fallback_w), w), torch.where(none, round(fallback_h), h)
    left = torch.where(none, torch.round((width - w) / 2), torch.floor(u * (width - w + 1)))
    top = torch.where(none, torch.round((height - h) / 2), torch.floor(v * (height - h + 1)))
    # A resize is linear in the pixels and separable: one (size x W) and one (size x H) matrix per image.
    across = _resize_matrix(left, w, width, size)
    down = _resize_matrix(top, h, height, size)
    return torch.matmul(torch.matmul(down[:, None], images), across[:, None].transpose(2, 3))


def _resize_matrix(start: Tensor, length: Tensor, full: int, size: int) -> Tensor:
    """(N, size, full): row i holds the weights of output pixel i over the input pixels [start, start + length).

    PIL's bilinear filter: a triangle whose support grows with the reduction, cut at the crop's edges, renormalised.
    """
    scale = (length / size)[:, None, None]
    support = scale.clamp(min=1.0)
    centre = (torch.arange(size, device=start.device) + 0.5)[None, :, None] * scale
    position = torch.arange(full, device=start.device)[None, None, :] - start[:, None, None] + 0.5
    weight = (1 - (position - centre).abs() / support).clamp(min=0)
    weight = weight * ((position > 0) & (position < length[:, None, None]))
    return weight / weight.sum(dim=2, keepdim=True)


def color_jitter(
    images: Tensor, brightness: float, contrast: float, saturation: float, hue: float, generator: torch.Generator
) -> Tensor:
    """torchvision's ColorJitter: factors in [1 - x, 1 + x], hue shift in [-hue, hue], in a random order per image.

    Args:
        images: (N, 3, H, W) in [0, 1].
    """
    n, device = len(images), images.device
    spread = torch.tensor([brightness, contrast, saturation, hue], device=device)[:, None]
    factors = 1 + (2 * torch.rand(4, n, generator=generator, device=device) - 1) * spread
    order = torch.rand(n, 4, generator=generator, device=device).argsort(dim=1)
    operations = (_blend_black, _blend_mean, _blend_gray, _shift_hue)
    images = images.clone()
    for position in range(4):
        for kind, operation in enumerate(operations):
            chosen = (order[:, position] == kind).nonzero()[:, 0]
            images[chosen] = operation(images[chosen], factors[kind, chosen, None, None, None])
    return images


def _gray(images: Tensor) -> Tensor:
    r, g, b = images.unbind(1)
    return (GRAY[0] * r + GRAY[1] * g + GRAY[2] * b).unsqueeze(1)


def _blend_black(images: Tensor, factor: Tensor) -> Tensor:
    return (images * factor).clamp(0, 1)


def _blend_mean(images: Tensor, factor: Tensor) -> Tensor:
    mean = _gray(images).mean(dim=(2, 3), keepdim=True)
    return torch.lerp(mean, images, factor).clamp(0, 1)


def _blend_gray(images: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_gray(images), images, factor).clamp(0, 1)


def _shift_hue(images: Tensor, factor: Tensor) -> Tensor:
    """Rotates the hue of HSV by `factor - 1` turns."""
    high, low = images.amax(1), images.amin(1)
    chroma = high - low
    r, g, b = images.unbind(1)
    safe = torch.where(chroma == 0, 1, chroma)
    hue = torch.where(
        high == r, (g - b) / safe, torch.where(high == g, 2 + (b - r) / safe, 4 + (r - g) / safe)
    )  # in sixths of a turn
    hue = torch.remainder(hue + 6 * (factor[:, 0] - 1), 6)
    # f(n) = V - C max(0, min(k, 4 - k, 1)), k = (n + H) mod 6: the closed form of HSV to RGB for n = 5, 3, 1
    shift = torch.tensor([5.0, 3.0, 1.0], device=images.device)[None, :, None, None]
    k = torch.remainder(shift + hue[:, None], 6)
    return high[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def gaussian_blur(images: Tensor, sigma: Tensor, sigma_max: float) -> Tensor:
    """Each image blurred by its own `sigma` (N,), in pixels and at most `sigma_max`; the edge pixels are repeated."""
    reach = math.ceil(3 * sigma_max)  # from the bound, not the draw: a read of the draw would stall a GPU
    offsets = torch.arange(-reach, reach + 1, device=images.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets[None] / sigma[:, None].clamp(min=1e-3)) ** 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    down, across = (_blur_matrix(kernel, offsets, size) for size in images.shape[2:])
    return torch.matmul(torch.matmul(down[:, None], images), across[:, None].transpose(2, 3))


def _blur_matrix(kernel: Tensor, offsets: Tensor, size: int) -> Tensor:
    """(N, size, size): the convolution with each row of `kernel` (N, taps) along an axis of `size` pixels."""
    pixels = torch.arange(size, device=kernel.device)
    source = (pixels[:, None] + offsets[None]).clamp(0, size - 1).long().flatten()
    target = pixels.repeat_interleave(len(offsets))
    matrix = kernel.new_zeros(len(kernel), size * size)
    matrix.index_add_(1, target * size + source, kernel.repeat(1, size))
    return matrix.view(len(kernel), size, size)


class BatchedViews:
    """One random view of every image in a batch, in the order of the recipe's list.

    Args:
        augmentation: the list's parameters.
        mean, std: of the normalisation, per channel, for pixels in [0, 1].
        generator: source of all randomness, on the device of the batches.
    """

    def __init__(
        self,
        augmentation: Augmentation,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        generator: torch.Generator,
    ) -> None:
        self.augmentation, self.generator = augmentation, generator
        self.mean = torch.tensor(mean, device=generator.device)[:, None, None]
        self.std = torch.tensor(std, device=generator.device)[:, None, None]

    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 to (N, 3, crop, crop) float32, normalised."""
        a = self.augmentation
        x = random_resized_crop(images.float() / 255, a.crop, a.crop_area, a.crop_aspect, self.generator)
        if a.grayscale_first:  # v1
            x = self._sometimes(x, a.grayscale_p, lambda part: _gray(part).expand_as(part))
            x = self._sometimes(x, a.jitter_p, self._jitter)
        else:
            x = self._sometimes(x, a.jitter_p, self._jitter)
            x = self._sometimes(x, a.grayscale_p, lambda part: _gray(part).expand_as(part))
        x = self._sometimes(x, a.blur_p, self._blur)
        x = self._sometimes(x, a.flip_p, lambda part: part.flip(3))
        return (x - self.mean) / self.std

    def _sometimes(self, images: Tensor, p: float, operation: Callable[[Tensor], Tensor]) -> Tensor:
        if p == 0:
            return images
        chosen = (torch.rand(len(images), generator=self.generator, device=images.device) < p).nonzero()[:, 0]
        return images.index_copy(0, chosen, operation(images[chosen]))

    def _jitter(self, images: Tensor) -> Tensor:
        a = self.augmentation
        return color_jitter(images, a.brightness, a.contrast, a.saturation, a.hue, self.generator)

    def _blur(self, images: Tensor) -> Tensor:
        low, high = self.augmentation.blur_sigma
        sigma = low + (high - low) * torch.rand(len(images), generator=self.generator, device=images.device)
        return gaussian_blur(images, sigma, high)
