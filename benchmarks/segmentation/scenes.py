"""Images with masks as mmsegmentation's pipelines take them; order and random numbers can be taken up again."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

from benchmarks.contract import InputError, Labels
from benchmarks.data.cityscapes import label_map

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


class Scenes(Dataset[dict[str, Any]]):
    """(image, mask) through a pipeline; the masks are the annotations of the labels.

    Args:
        seed: None takes items by index. Else item n is the n-th draw of an endless series of shuffled epochs, and its
            random numbers depend on `seed` and n alone: whatever worker makes it, and after a restart too.
    """

    def __init__(self, labels: Labels, pipeline: list[dict[str, Any]], seed: int | None = None) -> None:
        from mmcv.transforms import Compose

        if len(labels.annotations) != len(labels):
            raise InputError(
                "the data set has no mask for each image; choose one with masks, as voc2012_seg or cityscapes"
            )
        self.paths, self.masks, self.seed = labels.paths, labels.annotations, seed
        self.label_map = label_map(labels)
        self.pipeline = Compose(pipeline)

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
        packed: dict[str, Any] = self.pipeline(
            {
                "img_path": str(self.paths[index]),
                "seg_map_path": str(self.masks[index]),
                "reduce_zero_label": False,
                "label_map": self.label_map,
                "seg_fields": [],
            }
        )
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
