"""Batches of images for training and evaluation: random views, decoded images in memory, loaders, network input.

Every random view is drawn from a generator of its own, seeded by run, epoch and image, so that neither the order nor
the number of workers changes it, and a restart needs no random state.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import functional as F

from benchmarks.datasets.images import apply_geometry, decode
from benchmarks.datasets.lists import batch_file, path_strings
from benchmarks.encoders.encoder import Encoder
from benchmarks.task import InputError
from benchmarks.training.task import ViewParams
from pretrain import distributed
from pretrain.distributed import DataLoader
from results.schema import Geometry

# The eigenvalues and eigenvectors of ImageNet's RGB pixels in [0, 1], as fb.resnet.torch published them; the noise
# along them is AlexNet's (Krizhevsky et al. 2012, section 4.1).
PCA_VALUES = np.array([0.2175, 0.0188, 0.0045])
PCA_VECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])

# First part of a seed. Numpy pads seeds with zeros, so a shorter one alone would not differ.
VIEW, ORDER, ERASE, MIX = 1, 2, 3, 4

RESAMPLE = {
    "bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS,
}  # fmt: skip


def view_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of one view of one image."""
    return np.random.default_rng((VIEW, seed, epoch, index))


def erase_rng(seed: int, step: int) -> np.random.Generator:
    """The generator that chooses what is erased in the batch of one step."""
    return np.random.default_rng((ERASE, seed, step))


def mix_rng(seed: int, step: int, rank: int) -> np.random.Generator:
    """The generator that mixes one rank's part of the batch of one step."""
    return np.random.default_rng((MIX, seed, step, rank))


def epoch_rng(seed: int, epoch: int) -> np.random.Generator:
    """The generator that shuffles one epoch."""
    return np.random.default_rng((ORDER, seed, epoch))


def training_view(
    image: Image.Image, params: ViewParams, geometry: Geometry, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A random view of an RGB image.

    Returns:
        The view (crop, crop, 3), and its lighting noise (3,) RGB in units of white, which `network_input` adds once the
        pixels are floats.
    """
    resample = RESAMPLE[geometry.interpolation]
    if params.view == "resized_crop":
        view = resized_crop(image, geometry.crop, params.crop_area, params.crop_aspect, resample, rng)
    elif params.view == "clipped_crop":
        view = clipped_crop(image, geometry.crop, params.crop_area, params.crop_aspect, resample, rng)
    else:
        view = stored_crop(image, geometry, resample, rng)
    if rng.random() < params.flip_p:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if params.auto_augment:
        view = auto_augment(view, params.auto_augment, geometry.interpolation, rng)
    if params.jitter:
        view = jitter(view, params.jitter, rng)
    lighting = np.zeros(3, np.float32)
    if params.lighting:
        lighting = (PCA_VECTORS @ (rng.normal(0, params.lighting, 3) * PCA_VALUES)).astype(np.float32)
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


def clipped_crop(
    image: Image.Image,
    size: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
    resample: Image.Resampling,
    rng: np.random.Generator,
) -> Image.Image:
    """One draw of area and log-aspect, sides clipped to the image's: the crop of BYOL and of MAE's linear probe."""
    width, height = image.size
    target = rng.uniform(*area) * width * height
    ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
    w = min(max(1, round(math.sqrt(target * ratio))), width)
    h = min(max(1, round(math.sqrt(target / ratio))), height)
    left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
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


def auto_augment(image: Image.Image, policy: str, interpolation: str, rng: np.random.Generator) -> Image.Image:
    """The image under a policy of timm, which draws from the global generators: they are seeded, and put back."""
    states = random.getstate(), np.random.get_state()
    try:
        random.seed(int(rng.integers(2**32)))
        np.random.seed(int(rng.integers(2**32)))
        return _policy(policy, min(image.size), interpolation)(image)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@lru_cache(maxsize=4)
def _policy(name: str, size: int, interpolation: str) -> Callable[[Image.Image], Image.Image]:
    """A policy with what `timm.data.create_transform` sets: shifts up to 45 % of the size, ImageNet's mean as filling.

    Raises:
        InputError: timm has no such policy.
    """
    from timm.data.auto_augment import auto_augment_transform, rand_augment_transform

    settings = {"translate_const": int(size * 0.45), "img_mean": (124, 116, 104)}
    settings["interpolation"] = RESAMPLE[interpolation]
    make = rand_augment_transform if name.startswith("rand") else auto_augment_transform
    try:
        return make(name, settings)
    except (AssertionError, ValueError, KeyError) as error:
        raise InputError(
            f"auto_augment={name}: unknown policy; use one of timm's, such as rand-m9-mstd0.5-inc1"
        ) from error


def erase(x: Tensor, probability: float, rng: np.random.Generator, rows: slice, length: int) -> None:
    """Fill a rectangle of some images with normal noise, in place (Zhong et al. 2020; area and aspect as in timm).

    Args:
        x: (n, 3, H, W) normalised images: `rows` of a batch of `length`. Draws do not depend on how ranks share it.
    """
    height, width = x.shape[2:]
    for row in range(length):
        erased, seed = rng.random() < probability, int(rng.integers(2**62))
        if not erased or not rows.start <= row < rows.stop:
            continue
        own = np.random.default_rng(seed)
        for _ in range(10):
            target = own.uniform(0.02, 1 / 3) * height * width
            ratio = math.exp(own.uniform(math.log(0.3), math.log(1 / 0.3)))
            h, w = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
            if h < height and w < width:
                top, left = int(own.integers(height - h + 1)), int(own.integers(width - w + 1))
                noise = torch.from_numpy(own.standard_normal((x.shape[1], h, w), np.float32))
                x[row - rows.start, :, top : top + h, left : left + w] = distributed.sent(noise, x.device).to(x.dtype)
                break


def mix(x: Tensor, mixup: float, cutmix: float, rng: np.random.Generator) -> tuple[Tensor, float]:
    """Images mixed with the batch in reverse order, by mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019).

    One draw for the whole batch; where both are on, each is chosen half of the time, as in timm's `Mixup`.

    Args:
        x: (N, 3, H, W) normalised images.
        mixup, cutmix: of the Beta distribution from which the share is drawn; 0 is off.

    Returns:
        The mixed images, and the share of each that is its own.
    """
    cut = cutmix > 0 and (mixup == 0 or rng.random() < 0.5)
    alpha = cutmix if cut else mixup
    if alpha == 0:
        return x, 1.0
    share = float(rng.beta(alpha, alpha))
    if not cut:
        return x * share + x.flip(0) * (1 - share), share
    height, width = x.shape[2:]
    h, w = int(height * math.sqrt(1 - share)), int(width * math.sqrt(1 - share))
    middle, centre = int(rng.integers(height)), int(rng.integers(width))
    rows = slice(max(middle - h // 2, 0), min(middle + (h + 1) // 2, height))
    columns = slice(max(centre - w // 2, 0), min(centre + (w + 1) // 2, width))
    mixed = x.clone()
    mixed[:, :, rows, columns] = x.flip(0)[:, :, rows, columns]
    return mixed, 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)


# ---- decoded images and loaders --------------------------------------------------------------------------------------

CACHE_BYTES = 512 * 2**20  # decoded images that are kept in memory
VIEW_BYTES = 256 * 2**20  # views that are kept in memory
EVALUATION_BATCH = 256  # images
SAMPLED_SIZES = 32  # images whose sizes estimate those of all

Request = tuple[int, int]  # epoch, index of the image
ViewBatch = tuple[Tensor, Tensor, Tensor]  # images (N, 3, S, S) uint8, lighting (N, 3) float32, targets (N,) int64


class TrainingImages:
    """Decoded RGB images, kept in memory where all of them fit in `limit` bytes."""

    def __init__(self, paths: Sequence[Path], limit: int = CACHE_BYTES) -> None:
        self.paths = paths
        self.kept: KeptImages | None = None
        if self._estimated_bytes() <= limit:
            self.kept = _kept(tuple(paths), tuple(map(_modified, path_strings(paths))))

    @property
    def in_memory(self) -> bool:
        return self.kept is not None

    def __getitem__(self, index: int) -> Image.Image:
        return self.kept.images[index] if self.kept is not None else decode(self.paths[index])

    def _estimated_bytes(self) -> float:
        sample = self.paths[:: max(1, len(self.paths) // SAMPLED_SIZES)]
        total = sum(3 * image.width * image.height for image in map(decode, sample))
        return total / max(1, len(sample)) * len(self.paths)


@dataclass
class KeptImages:
    """Decoded images and the views drawn of them, for the next encoder that is trained on the same images.

    Attributes:
        views: (parameters, (epoch, index)) -> image and lighting.
        room: bytes left for more views.
    """

    images: tuple[Image.Image, ...]
    views: dict[Hashable, tuple[Tensor, Tensor]] = field(default_factory=dict)
    room: int = VIEW_BYTES


@lru_cache(maxsize=2)
def _kept(paths: tuple[Path, ...], modified: tuple[int, ...]) -> KeptImages:
    """The decoded images, once for all encoders; `modified` times tell when a file was replaced."""
    return KeptImages(tuple(decode(path) for path in paths))


def _modified(path: str) -> int:
    return os.stat(batch_file(path) or path).st_mtime_ns  # noqa: PTH116 - a million Paths are slow


class Views(Dataset[Any]):
    """Random views under `params`, or the deterministic view of `geometry` where `params` is None."""

    def __init__(
        self,
        images: TrainingImages,
        targets: NDArray[np.int64],
        geometry: Geometry,
        params: ViewParams | None,
        seed: int,
    ) -> None:
        self.images, self.targets, self.geometry, self.params, self.seed = images, targets, geometry, params, seed
        values = None if params is None else tuple(getattr(params, name) for name in ViewParams.model_fields)
        self._identity: Hashable = (values, geometry, seed)

    def __getitem__(self, request: Request) -> tuple[Tensor, Tensor, int]:
        kept, key = self.images.kept, (self._identity, request)
        view = kept.views.get(key) if kept is not None else None
        if view is None:
            view = self._drawn(*request)
            size = view[0].numel()
            if kept is not None and size <= kept.room:
                kept.views[key] = view
                kept.room -= size
        return *view, int(self.targets[request[1]])

    def _drawn(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index]
        if self.params is None:
            pixels, lighting = np.asarray(apply_geometry(image, self.geometry)), np.zeros(3, np.float32)
        else:
            pixels, lighting = training_view(image, self.params, self.geometry, view_rng(self.seed, epoch, index))
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), torch.from_numpy(lighting)

    def collate(self, samples: list[tuple[Tensor, Tensor, int]]) -> ViewBatch:
        if not samples:
            crop = self.geometry.crop
            return (
                torch.zeros(0, 3, crop, crop, dtype=torch.uint8),
                torch.zeros(0, 3),
                torch.zeros(0, dtype=torch.int64),
            )
        images, lighting, targets = zip(*samples, strict=True)
        return torch.stack(images), torch.stack(lighting), torch.tensor(targets)


class TrainingBatches:
    """This rank's part of every training batch from `first_step` to `last_step`, in a fresh order per epoch.

    The order depends on seed and epoch alone. The last batch of an epoch may be smaller (main_lincls.py keeps it too).
    """

    def __init__(self, items: NDArray[np.int64], batch_size: int, seed: int, first_step: int, last_step: int) -> None:
        self.items, self.batch_size, self.seed = items, batch_size, seed
        self.first_step, self.last_step = first_step, last_step
        self.steps_per_epoch = -(-len(items) // batch_size)

    def batch_length(self, step: int) -> int:
        """Images in the whole batch of `step`, over all ranks."""
        start = step % self.steps_per_epoch * self.batch_size
        return min(self.batch_size, len(self.items) - start)

    def __len__(self) -> int:
        return self.last_step - self.first_step

    def __iter__(self) -> Iterator[list[Request]]:
        shuffled_epoch, items = -1, self.items
        for step in range(self.first_step, self.last_step):
            epoch, position = divmod(step, self.steps_per_epoch)
            if epoch != shuffled_epoch:
                items = epoch_rng(self.seed, epoch).permutation(self.items)
                shuffled_epoch = epoch
            batch = items[position * self.batch_size : (position + 1) * self.batch_size]
            yield [(epoch, int(index)) for index in batch[distributed.own_slice(len(batch))]]


class FixedBatches:
    """This rank's part of `items`, in order, `EVALUATION_BATCH` at a time."""

    def __init__(self, items: NDArray[np.int64]) -> None:
        self.items = items[distributed.own_slice(len(items))]

    def __len__(self) -> int:
        return -(-len(self.items) // EVALUATION_BATCH)

    def __iter__(self) -> Iterator[list[Request]]:
        for start in range(0, len(self.items), EVALUATION_BATCH):
            yield [(0, int(index)) for index in self.items[start : start + EVALUATION_BATCH]]


def batch_loader(
    views: Views, sampler: TrainingBatches | FixedBatches, workers: int, device: torch.device
) -> DataLoader[ViewBatch]:
    """The loader of the batches of `sampler`. Images in memory are augmented in this process, others by workers."""
    loader: DataLoader[ViewBatch] = DataLoader(
        views,
        batch_sampler=sampler,
        num_workers=0 if views.images.in_memory else workers,
        collate_fn=views.collate,
        pin_memory=device.type == "cuda",
    )
    return loader


def network_input(encoder: Encoder, images: Tensor, lighting: Tensor | None = None) -> Tensor:
    """(N, 3, H, W) uint8 views, normalised by the encoder's card, in channels_last layout.

    Args:
        lighting: (N, 3) RGB offsets to pixels in [0, 1]. They are added after normalisation, which is affine, so the
            result is the same as adding them before.
    """
    x = encoder.normalise(images)
    if lighting is not None:
        offset = lighting.to(x.device, non_blocking=True)
        offset = offset.flip(1) if encoder.card.channels == "BGR" else offset
        scale = encoder.card.value_range / distributed.sent(torch.tensor(encoder.card.std), x.device)
        x = x + (offset * scale)[:, :, None, None]
    return x.contiguous(memory_format=torch.channels_last)
