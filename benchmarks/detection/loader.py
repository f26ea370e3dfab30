"""Batches for training, each a function of the seed and its number alone, so that a run goes on as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from benchmarks.detection import densepose
from benchmarks.detection.scenes import Scene


class Draws(Dataset[Any]):
    """(number of the draw, index of the image) to what the model takes, with its random resize and flip.

    Args:
        mapper: detectron2's, which draws from the generators of numpy and of Python.
    """

    def __init__(self, scenes: list[Scene], mapper: Any, seed: int) -> None:
        self.scenes, self.mapper, self.seed = scenes, mapper, seed

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, draw: tuple[int, int]) -> Any:
        number, index = draw
        own = np.random.SeedSequence([self.seed, number]).generate_state(2)
        np.random.seed(int(own[0]))
        random.seed(int(own[1]))
        return self.mapper(self.scenes[index])


class Batches(Sampler[list[tuple[int, int]]]):
    """Endless batches of (number, index) for one rank, whose images are all wide or all tall.

    As detectron2's loader: a random order for every epoch, dealt out to the ranks, and two buckets by aspect that give
    a batch when full. Here the buckets hold indices, so that a run that goes on skips what it has seen for nothing.

    Args:
        order: endless indices of this rank.
        batch_size: of this rank.
        first: batches to skip.
    """

    def __init__(
        self, scenes: list[Scene], order: Any, batch_size: int, *, rank: int = 0, ranks: int = 1, first: int = 0
    ) -> None:
        self.tall = [scene["height"] >= scene["width"] for scene in scenes]
        self.order, self.batch_size, self.first = order, batch_size, first
        self.rank, self.ranks = rank, ranks

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        buckets: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
        given = 0
        for position, index in enumerate(self.order):
            bucket = buckets[self.tall[index]]
            bucket.append((position * self.ranks + self.rank, index))
            if len(bucket) == self.batch_size:
                if given >= self.first:
                    yield list(bucket)
                given += 1
                bucket.clear()


def train_loader(
    scenes: list[Scene], cfg: Any, *, seed: int, rank: int = 0, ranks: int = 1, workers: int = 0, first: int = 0
) -> DataLoader[Any]:
    """Endless batches (lists of dicts) for one rank.

    Args:
        first: batches that were trained on before.
    """
    from detectron2.data import DatasetMapper
    from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler

    order: Any
    if cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            scenes, cfg.DATALOADER.REPEAT_THRESHOLD
        )
        order = RepeatFactorTrainingSampler(factors, seed=seed)
    else:
        order = TrainingSampler(len(scenes), seed=seed)
    if densepose.is_on(cfg):
        mapper = densepose.train_mapper(cfg)
    else:
        mapper = DatasetMapper(
            is_train=True,
            augmentations=_augmentations(cfg),
            image_format=cfg.INPUT.FORMAT,
            use_instance_mask=cfg.MODEL.MASK_ON,
            instance_mask_format=cfg.INPUT.MASK_FORMAT,
            use_keypoint=cfg.MODEL.KEYPOINT_ON,
            keypoint_hflip_indices=_flipped_keypoints() if cfg.MODEL.KEYPOINT_ON else None,
        )
    batches = Batches(scenes, order, cfg.SOLVER.IMS_PER_BATCH // ranks, rank=rank, ranks=ranks, first=first)
    return DataLoader(
        # A generator of its own: to start an iterator takes a number from one, and a run that goes on starts it later.
        generator=torch.Generator(),
        dataset=Draws(scenes, mapper, seed), batch_sampler=batches, num_workers=workers, collate_fn=list,
        persistent_workers=workers > 0,
    )  # fmt: skip


def inference_loader(
    scenes: list[Scene], cfg: Any, *, rank: int = 0, ranks: int = 1, workers: int = 0
) -> DataLoader[Any]:
    """One image at a time, this rank's share of them."""
    from detectron2.data import DatasetMapper
    from detectron2.data.detection_utils import build_augmentation

    mapper = DatasetMapper(
        is_train=False, augmentations=build_augmentation(cfg, is_train=False), image_format=cfg.INPUT.FORMAT
    )
    return DataLoader(_Mapped(scenes[rank::ranks], mapper), batch_size=1, num_workers=workers, collate_fn=list)


class _Mapped(Dataset[Any]):
    def __init__(self, scenes: list[Scene], mapper: Any) -> None:
        self.scenes, self.mapper = scenes, mapper

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Any:
        return self.mapper(self.scenes[index])


def _augmentations(cfg: Any) -> Any:
    from detectron2.data.detection_utils import build_augmentation

    return build_augmentation(cfg, is_train=True)


def _flipped_keypoints() -> Any:
    """Index of the point that each of COCO's person keypoints becomes in a mirror."""
    from detectron2.data.datasets.builtin_meta import COCO_PERSON_KEYPOINT_FLIP_MAP, COCO_PERSON_KEYPOINT_NAMES

    names = list(COCO_PERSON_KEYPOINT_NAMES)
    mirror = dict(COCO_PERSON_KEYPOINT_FLIP_MAP)
    mirror |= {right: left for left, right in mirror.items()}
    return np.array([names.index(mirror.get(name, name)) for name in names])
