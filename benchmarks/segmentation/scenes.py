"""Images with masks as mmsegmentation's pipelines take them; order and random numbers can be taken up again."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset, Sampler

from benchmarks.contract import InputError, Labels
from benchmarks.datasets.cityscapes import label_map

IGNORED = 255  # of masks: the border of VOC's objects, what Cityscapes does not evaluate, padding


def register() -> None:
    """Makes `RandomRelativeResize` known to mmsegmentation, whose own resizes towards one size for all images."""
    from mmcv.transforms import BaseTransform, Resize
    from mmseg.registry import TRANSFORMS

    class RandomRelativeResize(BaseTransform):
        """Multiplies the sides of image and mask by one random factor."""

        def __init__(self, ratio_range: Sequence[float]) -> None:
            self.ratio_range = ratio_range

        def transform(self, results: dict[str, Any]) -> dict[str, Any]:
            low, high = self.ratio_range
            factor = low + (high - low) * np.random.random_sample()
            resized: dict[str, Any] = Resize(scale_factor=factor, keep_ratio=True).transform(results)
            return resized

    TRANSFORMS.register_module(module=RandomRelativeResize)


class ClassIndices:
    """A step after `LoadAnnotations`: the mask's values become class indices, of which none is unknown.

    Args:
        translation: value of a mask -> class index or 255; None where they are class indices already.

    Raises:
        InputError: the mask is no (H, W) map, is not of its image's size, or has a value that is no class.
    """

    def __init__(self, translation: dict[int, int] | None, classes: int) -> None:
        self.classes = classes
        self.table = np.full(256, -1, dtype=np.int16)
        for value, index in (translation or {n: n for n in (*range(classes), IGNORED)}).items():
            self.table[value] = index

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        mask, file = results["gt_seg_map"], results["seg_map_path"]
        if mask.ndim != 2:
            raise InputError(
                f"{file} is a picture of {mask.shape[-1]} channels, not a map of class indices; take the masks as "
                "their owner publishes them, as PNGs with a palette or in grey"
            )
        if mask.shape != tuple(results["ori_shape"]):
            (height, width), (tall, wide) = mask.shape, results["ori_shape"]
            raise InputError(
                f"{file} has {width} by {height} pixels and its image {wide} by {tall}; unpack the data set again"
            )
        found = self.table[mask]
        if found.min() < 0:
            odd = int(mask[found < 0][0])
            raise InputError(
                f"{file} has the value {odd}, and there are {self.classes} classes, numbered from 0, and {IGNORED} for "
                "what is ignored; restore the mask"
            )
        results["gt_seg_map"] = found.astype(np.uint8)
        return results


class Scenes(Dataset[dict[str, Any]]):
    """(image, mask) through a pipeline; the masks are the annotations of the labels.

    An image or a mask that cannot be used is an InputError when its turn comes.

    Args:
        classes: number of them.
        seed: None takes items by index. Else item n is the n-th draw of an endless series of shuffled epochs, and its
            random numbers depend on `seed` and n alone: whatever worker makes it, and after a restart too.
    """

    def __init__(self, labels: Labels, classes: int, pipeline: list[dict[str, Any]], seed: int | None = None) -> None:
        from mmcv.transforms import Compose

        if len(labels.annotations) != len(labels):
            raise InputError(
                "the data set has no mask for each image; choose one with masks, as voc2012_seg or cityscapes"
            )
        self.paths, self.masks, self.seed = labels.paths, labels.annotations, seed
        checked = ClassIndices(label_map(labels), classes)
        steps = [(step, checked) if step["type"] == "LoadAnnotations" else (step,) for step in pipeline]
        self.pipeline = Compose([step for group in steps for step in group])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: int) -> dict[str, Any]:
        index = item
        if self.seed is not None:
            epoch, place = divmod(item, len(self))
            index = int(np.random.default_rng((self.seed, epoch)).permutation(len(self))[place])
            draw = np.random.SeedSequence((self.seed, item)).generate_state(2)
            np.random.seed(draw[0])
            random.seed(int(draw[1]))
        image, mask = self.paths[index], self.masks[index]
        files = {"img_path": str(image), "seg_map_path": str(mask)}
        try:
            packed: dict[str, Any] = self.pipeline({**files, "reduce_zero_label": False, "seg_fields": []})
        except InputError:
            raise
        except Exception as error:
            for file in (image, mask):
                _require_readable(file)
            raise RuntimeError(f"{image} and {mask.name} can be read, and yet: {error}") from error
        return packed


class Draws(Sampler[int]):
    """Every `ranks`-th draw from `rank` on, without end. `skip` is what mmengine calls when a run goes on."""

    def __init__(self, items: int, rank: int = 0, ranks: int = 1) -> None:
        self.items, self.next, self.ranks = items, rank, ranks

    def __len__(self) -> int:
        """Of an epoch, by which mmengine counts; the iteration itself has no end."""
        return self.items // self.ranks

    def skip(self, count: int) -> None:
        """Passes over `count` draws of this rank."""
        self.next += count * self.ranks

    def __iter__(self) -> Iterator[int]:
        draw = self.next
        while True:
            yield draw
            draw += self.ranks


def _require_readable(file: Path) -> None:
    try:
        with Image.open(file) as opened:
            opened.load()
    except Exception as error:  # Pillow raises nearly anything on a damaged file
        reason = " ".join(str(error).replace(str(file), "").split())
        raise InputError(f"{file} cannot be read as an image ({reason}); unpack the data set again") from error
