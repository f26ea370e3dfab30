"""The unlabelled images of a run: found in a folder, delivered as pairs of views in an order fixed by the seed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional as TF

from pretrain import distributed
from pretrain.augment import PilViews
from pretrain.augment_batched import BatchedViews
from pretrain.recipe import Recipe

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff"}


def find_images(data: Path) -> list[Path]:
    """Every image under `data/train` if there is such a folder, else under `data`, sorted. Labels are not used.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
    """
    folder = data / "train" if (data / "train").is_dir() else data
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: --data takes an image folder, with or without a train/ in it")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise FileNotFoundError(
            f"no image below {folder}: --data takes a folder of {', '.join(sorted(SUFFIXES))} files"
        )
    return paths


def read_rgb(path: Path) -> Image.Image:
    """Decodes one file, upright, in RGB; transparency is laid on white.

    Raises:
        ValueError: the file is not a whole image.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
                rgba = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
            return upright.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not a readable image ({error}); repair or remove it") from error


class _Stored(Dataset[Tensor]):
    """(3, size, size) uint8: shorter side to `size`, centre."""

    def __init__(self, paths: list[Path], size: int) -> None:
        self.paths, self.size = paths, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image = TF.center_crop(TF.resize(read_rgb(self.paths[index]), self.size), [self.size, self.size])
        return TF.pil_to_tensor(image)


class _Pairs(Dataset[tuple[Tensor, Tensor]]):
    """Two views of an image. An item's draw depends on (seed, epoch, image) alone, not on the worker that makes it."""

    def __init__(self, paths: list[Path], views: PilViews, seed: int, epoch: int) -> None:
        self.paths, self.views, self.seed, self.epoch = paths, views, seed, epoch

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((self.seed * 1_000_003 + self.epoch) * 2_147_483_659 + index)
            return self.views(read_rgb(self.paths[index]))


class ViewPairs:
    """Batches of view pairs for every epoch, this rank's share of each.

    The incomplete last batch of an epoch is dropped, as in the reference. With the tensor engine the decoded images
    stay in memory and `generator` is advanced by every batch; with PIL nothing but (seed, epoch) decides.
    """

    def __init__(
        self, recipe: Recipe, paths: list[Path], device: torch.device, generator: torch.Generator, workers: int
    ) -> None:
        if len(paths) < recipe.batch_size:
            raise ValueError(
                f"{len(paths)} images do not fill one batch of {recipe.batch_size}: add images or lower batch_size"
            )
        self.recipe, self.paths, self.device, self.workers = recipe, paths, device, workers
        self.steps = len(paths) // recipe.batch_size
        self.stored: Tensor | None = None
        if recipe.augmentation.engine == "tensor":
            assert recipe.augmentation.stored_size is not None
            stored = _Stored(paths, recipe.augmentation.stored_size)
            batches = list(DataLoader(stored, batch_size=64, num_workers=workers))
            self.stored = torch.cat(batches).to(device)
            self.batched = BatchedViews(recipe.augmentation, recipe.mean, recipe.std, generator)

    def epoch(self, number: int, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of epoch `number`, from `first_step` on: two (N, 3, H, W) views on the device."""
        order_generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + number)
        order = torch.randperm(len(self.paths), generator=order_generator)[: self.steps * self.recipe.batch_size]
        batches = order.view(self.steps, -1)[first_step:, distributed.own_slice(self.recipe.batch_size)]
        if self.stored is not None:
            for batch in batches:
                images = self.stored[batch.to(self.device)]
                yield self._laid_out(self.batched(images)), self._laid_out(self.batched(images))
            return
        pairs = _Pairs(self.paths, PilViews(self.recipe.augmentation, self.recipe.mean, self.recipe.std),
                       self.recipe.seed, number)  # fmt: skip
        loader = DataLoader(
            pairs, batch_sampler=batches.tolist(), num_workers=self.workers, pin_memory=self.device.type == "cuda"
        )
        for view_q, view_k in loader:
            yield self._laid_out(view_q), self._laid_out(view_k)

    def _laid_out(self, view: Tensor) -> Tensor:
        return view.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
