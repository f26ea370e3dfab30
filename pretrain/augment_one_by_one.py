"""The colours, blur and flip of the MoCo lists on a CPU: one image after the other, so that all steps run in its cache.

The same operations as in `pretrain.augment_batched`, several times faster where an image is too large for a batch of
them to stay in the cache.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.recipe import Augmentation, BlurKernel

Sigma = TypeVar("Sigma", float, Tensor)

BOXES = 3  # box blurs in place of a Gaussian, as PIL has them
GRAY = (0.299, 0.587, 0.114)  # ITU-R 601-2 luma, as PIL converts to "L"


class Draws(NamedTuple):
    """What was drawn for a batch.

    Attributes:
        jitter, gray, blur, flip: numbers of the images that the operation is for.
        factors: (4, len(jitter)): of brightness, contrast and saturation, and one plus the shift of hue in turns.
        order: (len(jitter), 4): which of these comes first, second …
        sigma: (len(blur),) in pixels.
    """

    jitter: Tensor
    factors: Tensor
    order: Tensor
    gray: Tensor
    blur: Tensor
    sigma: Tensor
    flip: Tensor


def recolour_one_by_one(images: Tensor, draws: Draws, a: Augmentation, mean: Tensor, std: Tensor) -> Tensor:
    """(N, 3, H, W), uint8 or in [0, 1], to float32, normalised, in channels_last."""
    jitters = dict(
        zip(draws.jitter.tolist(), zip(draws.order.tolist(), draws.factors.T.tolist(), strict=True), strict=True)
    )
    gray, flip = set(draws.gray.tolist()), set(draws.flip.tolist())
    sigmas = dict(zip(draws.blur.tolist(), draws.sigma.tolist(), strict=True))
    out = torch.empty(images.shape).contiguous(memory_format=torch.channels_last)
    for i, source in enumerate(images):
        x = source.float().div_(255) if source.dtype == torch.uint8 else source.clone()
        if i in gray and a.grayscale_first:
            x.copy_(_luma(x).expand_as(x))
        if i in jitters:
            _jitter(x, *jitters[i])
        if i in gray and not a.grayscale_first:
            x.copy_(_luma(x).expand_as(x))
        if i in sigmas:
            x = blur_one(x, sigmas[i], a.blur_kernel)
        if i in flip:
            x = x.flip(2)
        out[i] = x.sub_(mean).div_(std)
    return out


def _jitter(image: Tensor, kinds: list[int], factors: list[float]) -> None:
    """ColorJitter on (3, H, W), in place and in the order of `kinds`."""
    for kind in kinds:
        if kind == 0:
            image.mul_(factors[kind])
        elif kind == 1:
            mean = _luma(image).mean()
            image.mul_(factors[kind]).add_(mean, alpha=1 - factors[kind])
        elif kind == 2:
            gray = _luma(image)
            image.mul_(factors[kind]).add_(gray, alpha=1 - factors[kind])
        else:
            _shift_hue(image, 6 * (factors[kind] - 1))
            continue  # stays in [0, 1]
        image.clamp_(0, 1)


def _luma(image: Tensor) -> Tensor:
    r, g, b = image
    return (r * GRAY[0]).add_(g, alpha=GRAY[1]).add_(b, alpha=GRAY[2])


def _shift_hue(image: Tensor, sixths: float) -> None:
    """Rotates the hue of HSV by `sixths` of a turn, in place: back to RGB by triangle waves, without a modulus."""
    r, g, b = image
    high, low = torch.maximum(r, g), torch.minimum(r, g)
    torch.maximum(high, b, out=high)
    torch.minimum(low, b, out=low)
    chroma = low.neg_().add_(high)
    slope = chroma.clamp_min(1e-12).reciprocal_()
    hue = torch.where(
        high == r, (g - b).mul_(slope), torch.where(high == g, (b - r).mul_(slope).add_(2), (r - g).mul_(slope).add_(4))
    )
    hue.add_(sixths)
    hue.sub_((hue / 6).floor_(), alpha=6)
    base = high.sub_(chroma)  # V - C
    torch.addcmul(base, (hue - 3).abs_().sub_(1).clamp_(0, 1), chroma, out=r)
    torch.addcmul(base, (hue - 2).abs_().neg_().add_(2).clamp_(0, 1), chroma, out=g)
    torch.addcmul(base, hue.sub_(4).abs_().neg_().add_(2).clamp_(0, 1), chroma, out=b)


def box_radius(sigma: Sigma) -> Sigma:
    """Radius of the box that, applied `BOXES` times, has the variance of a Gaussian (Gwosdek et al. 2011, section 3).

    A box of radius l + f has weight 1 up to l pixels from its centre and f one pixel further, as PIL's blur has.
    """
    variance = sigma * sigma / BOXES
    whole = ((12 * variance + 1) ** 0.5 - 1) // 2
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    return whole + part


def blur_one(image: Tensor, sigma: float, kernel: BlurKernel) -> Tensor:
    """(3, H, W): sums of shifted copies, which for a few taps are less work than a matrix."""
    if kernel == "boxes":
        radius = box_radius(sigma)
        weights = [min(1.0, radius + 1 - offset) for offset in range(math.ceil(radius) + 1)]
    else:
        weights = [math.exp(-0.5 * (offset / max(sigma, 1e-3)) ** 2) for offset in range(math.ceil(3 * sigma) + 1)]
    reach, total = len(weights) - 1, 2 * sum(weights) - weights[0]
    for dim in (2, 1):
        padding = (reach, reach, 0, 0) if dim == 2 else (0, 0, reach, reach)
        for _ in range(BOXES if kernel == "boxes" else 1):
            size = image.shape[dim]
            padded = F.pad(image[None], padding, mode="replicate")[0]
            image = padded.narrow(dim, reach, size) * (weights[0] / total)
            for offset in range(1, reach + 1):
                both = padded.narrow(dim, reach - offset, size) + padded.narrow(dim, reach + offset, size)
                image.add_(both, alpha=weights[offset] / total)
    return image
