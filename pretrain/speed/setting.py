"""What the pairs are measured on: MoCo v2's recipe at a small batch, and pictures of ImageNet's size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pretrain.recipe import Recipe, load_recipe
from pretrain.sources import Files

BATCH = 32
CPU = torch.device("cpu")


def moco_v2(**changes: Any) -> Recipe:
    base = load_recipe("mocov2_resnet50_8xb32-coslr-200e_in1k").model_dump()
    augmentation = {**base["augmentation"], **changes.pop("augmentation", {})}
    return Recipe(**{**base, "batch_size": BATCH, **changes, "augmentation": augmentation})


def photographs(folder: Path, number: int) -> Files:
    """JPEG files of ImageNet's usual size, with coarse shapes and some grain."""
    random = np.random.default_rng(0)
    paths = []
    for i in range(number):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375), 3)
        grain = random.normal(0, 8, (375, 500, 3))
        pixels = (np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)
        paths.append(folder / f"{i:03d}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=90)
    return Files(tuple(paths))
