"""The MoCo augmentation lists on a whole batch of tensors, with parameters drawn per image.

The same distributions as the PIL lists of `pretrain.augment` (MoCo v1, section 3.3; MoCo v2, section 3), on the device
of the batch. On small images it is many times faster than PIL in loader workers.

On a CPU, an operation runs on the images that it was drawn for, and images of `ONE_BY_ONE` pixels or more go through
the steps one after the other, so that every step finds its image in the cache. On a GPU the host does not know which
images these are: every operation runs on the whole batch and is kept where it was drawn (`DrawnMasks`), so that no step
waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.recipe import Augmentation, BlurKernel, HueRotation

ONE_BY_ONE = 96 * 96  # pixels
BOXES = 3  # box blurs in place of a Gaussian, as PIL has them
HUE = 3  # of the four kinds of jitter
GRAY = (0.299, 0.587, 0.114)  # ITU-R 601-2 luma, as PIL converts to "L"
Sigma = TypeVar("Sigma", float, Tensor)


class DrawnParameters(NamedTuple):
    """The parameters that were drawn for a batch.

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


class DrawnMasks(NamedTuple):
    """As `DrawnParameters`, with a parameter for each of n images, and masks in place of numbers.

    Attributes:
        jitter, gray, blur, flip: (n,) bool.
        factors: (4, n).
        order: (n, 4).
        sigma: (n,).
    """

    jitter: Tensor
    factors: Tensor
    order: Tensor
    gray: Tensor
    blur: Tensor
    sigma: Tensor
    flip: Tensor


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
        a = augmentation
        self.ranges = torch.tensor([a.brightness, a.contrast, a.saturation, a.hue], device=generator.device)[:, None]
        self.masked = generator.device.type != "cpu"

    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 to (N, 3, crop, crop) float32, normalised."""
        a = self.augmentation
        return self.recoloured(
            random_resized_crop(images.float() / 255, a.crop, a.crop_area, a.crop_aspect, self.generator)
        )

    def recoloured(self, images: Tensor) -> Tensor:
        """All of the list but the crop: (N, 3, crop, crop), uint8 or in [0, 1], to float32, normalised."""
        if self.masked:
            return recolour_by_masks(images, self._draw_masks(len(images)), self.augmentation, self.mean, self.std)
        a, draws = self.augmentation, self._draw(len(images))
        if images.device.type == "cpu" and images.shape[2] * images.shape[3] >= ONE_BY_ONE:
            return recolour_one_by_one(images, draws, a, self.mean, self.std)
        x = images.float() / 255 if images.dtype == torch.uint8 else images
        if a.grayscale_first:
            x = _where(draws.gray, x, lambda part: _gray(part).expand_as(part))
        x = _where(draws.jitter, x, lambda part: color_jitter(part, draws.factors, draws.order, a.hue_rotation))
        if not a.grayscale_first:
            x = _where(draws.gray, x, lambda part: _gray(part).expand_as(part))
        x = _where(draws.blur, x, lambda part: blur(part, draws.sigma, a.blur_sigma[1], a.blur_kernel))
        x = _where(draws.flip, x, lambda part: part.flip(3))
        return (x - self.mean).div_(self.std)

    def _draw(self, n: int) -> DrawnParameters:
        """In the order of the list."""
        a, none = self.augmentation, torch.zeros(0, dtype=torch.long, device=self.generator.device)
        gray = self._chosen(n, a.grayscale_p) if a.grayscale_first else none
        jitter = self._chosen(n, a.jitter_p)
        factors = 1 + (2 * self._uniform(4, len(jitter)) - 1) * self.ranges
        order = self._uniform(len(jitter), 4).argsort(dim=1)
        gray = gray if a.grayscale_first else self._chosen(n, a.grayscale_p)
        blur = self._chosen(n, a.blur_p)
        low, high = a.blur_sigma
        sigma = low + (high - low) * self._uniform(len(blur))
        return DrawnParameters(jitter, factors, order, gray, blur, sigma, self._chosen(n, a.flip_p))

    def _draw_masks(self, n: int) -> DrawnMasks:
        """The same distributions, without a look at what was drawn."""
        a, u = self.augmentation, self._uniform(13, n)
        low, high = a.blur_sigma
        return DrawnMasks(
            jitter=u[0] < a.jitter_p,
            factors=1 + (2 * u[1:5] - 1) * self.ranges,
            order=u[5:9].T.argsort(dim=1),
            gray=u[9] < a.grayscale_p,
            blur=u[10] < a.blur_p,
            sigma=low + (high - low) * u[11],
            flip=u[12] < a.flip_p,
        )

    def _chosen(self, n: int, p: float) -> Tensor:
        """The numbers of the images that an operation of probability p is for."""
        return (self._uniform(n if p else 0) < p).nonzero()[:, 0]

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator, device=self.generator.device)


def _where(chosen: Tensor, images: Tensor, operation: Callable[[Tensor], Tensor]) -> Tensor:
    return images.index_copy(0, chosen, operation(images[chosen])) if len(chosen) else images


def recolour_by_masks(images: Tensor, draws: DrawnMasks, a: Augmentation, mean: Tensor, std: Tensor) -> Tensor:
    """(N, 3, H, W), uint8 or in [0, 1], to float32, normalised: as the steps on the chosen images, without a look."""

    def where(mask: Tensor, changed: Tensor) -> Tensor:
        return torch.where(mask[:, None, None, None], changed, x)

    x = images.float() / 255 if images.dtype == torch.uint8 else images
    if a.grayscale_first:
        x = where(draws.gray, _gray(x))
    x = jitter_by_masks(x, draws, a.hue_rotation)
    if not a.grayscale_first:
        x = where(draws.gray, _gray(x))
    if a.blur_p:
        x = where(draws.blur, blur(x, draws.sigma, a.blur_sigma[1], a.blur_kernel))
    x = where(draws.flip, x.flip(3))
    return (x - mean).div_(std)


def jitter_by_masks(images: Tensor, draws: DrawnMasks, hue_rotation: HueRotation = "pil") -> Tensor:
    """`color_jitter` of the images in `draws.jitter`.

    Brightness, contrast and saturation are one operation, a blend with black, the mean grey or the grey. So there are
    three of them before the rotation of the hue and three behind it, each with what stands at its place in the image's
    order, or with nothing; and the hue, which costs most, is rotated once.
    """
    jitter, factors, order = draws.jitter, draws.factors, draws.order
    hue_at = (order == HUE).int().argmax(dim=1)
    x = images
    for place in range(3):
        x = _blend_chosen(x, order[:, place], factors, jitter & (place < hue_at))
    turned = (_shift_hue if hue_rotation == "pil" else _shift_hue_exactly)(x, factors[HUE, :, None, None, None])
    x = torch.where(jitter[:, None, None, None], turned, x)
    for place in range(1, 4):
        x = _blend_chosen(x, order[:, place], factors, jitter & (place > hue_at))
    return x


def _blend_chosen(images: Tensor, kind: Tensor, factors: Tensor, chosen: Tensor) -> Tensor:
    """Each chosen image blended by its kind (N,): 0 with black, 1 with its mean grey, 2 with its grey."""
    factor = factors.gather(0, kind[None])[0, :, None, None, None]
    gray, kind = _gray(images), kind[:, None, None, None]
    other = torch.where(kind == 1, gray.mean(dim=(2, 3), keepdim=True), gray * (kind == 2))
    return torch.where(chosen[:, None, None, None], torch.lerp(other, images, factor).clamp_(0, 1), images)


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
    left = torch.where(none, torch.floor((width - w) / 2), torch.floor(u * (width - w + 1)))
    top = torch.where(none, torch.floor((height - h) / 2), torch.floor(v * (height - h + 1)))
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


def color_jitter(images: Tensor, factors: Tensor, order: Tensor, hue_rotation: HueRotation = "pil") -> Tensor:
    """torchvision's ColorJitter on a batch.

    Args:
        images: (N, 3, H, W) in [0, 1].
        factors: (4, N): of brightness, contrast and saturation, and one plus the shift of hue in turns.
        order: (N, 4): which of the four comes first, second …
    """
    shift_hue = _shift_hue if hue_rotation == "pil" else _shift_hue_exactly
    operations = (_blend_black, _blend_mean, _blend_gray, shift_hue)
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
    """Rotates the hue by `factor - 1` turns in PIL's whole numbers: HSV of 0 to 255, hue and saturation truncated.

    Hue has 255 steps in a turn and wraps at 256, as in torchvision's `adjust_hue` on a PIL image.
    """
    pixels = (images * 255).round()
    high = pixels.amax(1)
    chroma = high - pixels.amin(1)
    gray = chroma == 0
    r, g, b = ((high[:, None] - pixels) / torch.where(gray, 1, chroma)[:, None]).unbind(1)
    red, green, _ = (pixels == high[:, None]).unbind(1)
    # In the precisions of PIL's C code, so that the truncation below meets the same numbers.
    sixths = torch.where(red, b - g, torch.where(green, 2 + r.double() - b, 4 + g.double() - r).float())
    hue = ((sixths.double() / 6 + 1) % 1).float().double().mul_(255).floor_().float()
    hue = torch.remainder(torch.where(gray, 0, hue) + ((factor[:, 0] - 1) * 255).trunc(), 256)
    saturation = (chroma / high.clamp(min=1)).double().mul_(255).floor_().float() / 255
    return _from_hue(hue * (6 / 255), high, high * saturation).round_().div_(255)


def _shift_hue_exactly(images: Tensor, factor: Tensor) -> Tensor:
    """Rotates the hue of HSV by `factor - 1` turns."""
    high, low = images.amax(1), images.amin(1)
    chroma = high - low
    r, g, b = images.unbind(1)
    safe = torch.where(chroma == 0, 1, chroma)
    hue = torch.where(
        high == r, (g - b) / safe, torch.where(high == g, 2 + (b - r) / safe, 4 + (r - g) / safe)
    )  # in sixths of a turn
    hue = torch.remainder(hue + 6 * (factor[:, 0] - 1), 6)
    return _from_hue(hue, high, chroma)


def _from_hue(hue: Tensor, high: Tensor, chroma: Tensor) -> Tensor:
    """(N, H, W) hue in sixths of a turn, largest channel and chroma, to (N, 3, H, W) RGB."""
    # f(n) = V - C max(0, min(k, 4 - k, 1)), k = (n + H) mod 6: the closed form of HSV to RGB for n = 5, 3, 1
    shift = torch.arange(5.0, 0.0, -2.0, device=hue.device)[None, :, None, None]  # 5, 3, 1, made on the device
    k = torch.remainder(shift + hue[:, None], 6)
    return high[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def blur(images: Tensor, sigma: Tensor, sigma_max: float, kernel: BlurKernel) -> Tensor:
    """Each image blurred by its own `sigma` (N,), in pixels and at most `sigma_max`; the edge pixels are repeated.

    Args:
        kernel: "boxes" are PIL's: three box blurs of the same variance (`box_radius`). "gaussian" is a true Gaussian,
            which is up to 10/255 in the mean from PIL's on white noise.
    """
    # The reach is from the bound, not the draw: a read of the draw would stall a GPU.
    reach = math.ceil(box_radius(sigma_max) if kernel == "boxes" else 3 * sigma_max)
    offsets = torch.arange(-reach, reach + 1, device=images.device, dtype=torch.float32)
    if kernel == "boxes":
        radius = box_radius(sigma)[:, None]
        weights = (radius + 1 - offsets.abs()).clamp(0, 1)
    else:
        weights = torch.exp(-0.5 * (offsets[None] / sigma[:, None].clamp(min=1e-3)) ** 2)
    weights = weights / weights.sum(dim=1, keepdim=True)
    down, across = (_blur_matrix(weights, offsets, size) for size in images.shape[2:])
    if kernel == "boxes":
        down, across = (torch.linalg.matrix_power(matrix, BOXES) for matrix in (down, across))
    return torch.matmul(torch.matmul(down[:, None], images), across[:, None].transpose(2, 3))


def _blur_matrix(kernel: Tensor, offsets: Tensor, size: int) -> Tensor:
    """(N, size, size): the convolution with each row of `kernel` (N, taps) along an axis of `size` pixels."""
    pixels = torch.arange(size, device=kernel.device)
    source = (pixels[:, None] + offsets[None]).clamp(0, size - 1).long().flatten()
    target = pixels.repeat_interleave(len(offsets))
    matrix = kernel.new_zeros(len(kernel), size * size)
    matrix.index_add_(1, target * size + source, kernel.repeat(1, size))
    return matrix.view(len(kernel), size, size)


def box_radius(sigma: Sigma) -> Sigma:
    """Radius of the box that, applied `BOXES` times, has the variance of a Gaussian (Gwosdek et al. 2011, section 3).

    A box of radius l + f has weight 1 up to l pixels from its centre and f one pixel further, as PIL's blur has.
    """
    variance = sigma * sigma / BOXES
    whole = ((12 * variance + 1) ** 0.5 - 1) // 2
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    return whole + part


def recolour_one_by_one(images: Tensor, draws: DrawnParameters, a: Augmentation, mean: Tensor, std: Tensor) -> Tensor:
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
            kinds, factors = jitters[i]
            _jitter_in_place(x, kinds, factors, a.hue_rotation)
        if i in gray and not a.grayscale_first:
            x.copy_(_luma(x).expand_as(x))
        if i in sigmas:
            x = blur_one(x, sigmas[i], a.blur_kernel)
        if i in flip:
            x = x.flip(2)
        out[i] = x.sub_(mean).div_(std)
    return out


def _jitter_in_place(image: Tensor, kinds: list[int], factors: list[float], hue_rotation: HueRotation = "pil") -> None:
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
        elif hue_rotation == "pil":
            image.copy_(_shift_hue(image[None], image.new_full((1, 1, 1, 1), factors[kind]))[0])
        else:
            _shift_hue_in_place(image, 6 * (factors[kind] - 1))
            continue  # stays in [0, 1]
        image.clamp_(0, 1)


def _luma(image: Tensor) -> Tensor:
    r, g, b = image
    return (r * GRAY[0]).add_(g, alpha=GRAY[1]).add_(b, alpha=GRAY[2])


def _shift_hue_in_place(image: Tensor, sixths: float) -> None:
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
