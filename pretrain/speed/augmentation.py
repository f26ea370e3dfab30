"""The batched augmentation beside the PIL list."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from pretrain.augment import PilCrops, PilViews
from pretrain.augment_batched import BatchedViews
from pretrain.sources import read_rgb
from pretrain.speed.entry import entry, seconds_of
from pretrain.speed.setting import BATCH, moco_v2, photographs


def measure_augmentation() -> dict[str, Any]:
    """Views of decoded pictures on one core: the PIL list, and crops by PIL with the rest on batches."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    recipe = moco_v2()
    with tempfile.TemporaryDirectory() as folder:
        pictures = [read_rgb(path) for path in photographs(Path(folder), BATCH).paths]
    a = recipe.augmentation
    pil, crops = PilViews(a, recipe.mean, recipe.std, views=1), PilCrops(a, views=1)
    batched = BatchedViews(a, recipe.mean, recipe.std, torch.Generator().manual_seed(0))

    def ours() -> None:
        batched.recoloured(torch.stack([crops(picture)[0] for picture in pictures]))

    def theirs() -> None:
        torch.stack([pil(picture)[0] for picture in pictures])

    try:
        ours()
        theirs()
        rounds = [(seconds_of(ours), seconds_of(theirs)) for _ in range(7)]
        crop = statistics.median(seconds_of(lambda: [crops(picture) for picture in pictures]) for _ in range(5))
    finally:
        torch.set_num_threads(threads)
    mine, other = (statistics.median(column) for column in zip(*rounds, strict=True))
    return entry(
        "augment",
        mine,
        other,
        "the same list by PIL, image by image",
        crop,
        "the crops, which both do by PIL",
        f"{BATCH} views of 500 x 375 pixels at 224 on one core, without the decoding: {BATCH / mine:.0f} against "
        f"{BATCH / other:.0f} views/s",
    )
