"""`make bench-loader`: images per second of the input pipeline alone, from files to views on the device."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from pretrain.data import find_images
from pretrain.recipe import load_recipe
from results.command_line import run_script
from results.errors import InputError


@dataclass
class BenchLoader:
    """Load batches as a run of the recipe does, and time them."""

    data: Path
    """as for `python -m pretrain`"""
    recipe: str = "mocov2_resnet50_8xb32-coslr-200e_in1k"
    """name in pretrain/recipes, or a .toml file"""
    engine: Literal["pil", "cv2", "tensor"] | None = None
    """augmentation engine; the recipe's by default"""
    batch: int = 32
    """images per batch of this one process"""
    batches: int = 20
    workers: int = 2
    """loader processes"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, …"""


def measure(options: BenchLoader) -> int:
    """Print one line."""
    if options.batches < 1:
        raise InputError(f"--batches must be at least 1, got {options.batches}")
    recipe = load_recipe(options.recipe)
    engine = options.engine or recipe.augmentation.engine
    augmentation = {**recipe.augmentation.model_dump(), "engine": engine}
    if engine != "tensor":
        augmentation["stored_size"] = None
    # The model's fields do not matter to the loader, but must go together.
    recipe = recipe.changed(
        augmentation=augmentation, batch_size=options.batch, queue_size=2 * options.batch, split_bn=1
    )
    images = find_images(options.data)

    import torch  # after everything that can be refused without it

    from pretrain.distributed import own_device
    from pretrain.loader import Loader

    device = own_device(options.device)
    loader = Loader(recipe, images, device, torch.Generator(device), options.workers)
    left, count, number = options.batches, 0, 0
    began = time.perf_counter()
    while left > 0:
        for batch in islice(loader.epoch(number), left):
            count += len(batch.indices)
            left -= 1
        number += 1
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    sys.stdout.write(
        f"{count / seconds:.1f} images/s, {recipe.views * count / seconds:.1f} views/s: engine {engine}, "
        f"{recipe.augmentation.crop} pixels, batch {options.batch}, {options.workers} workers, {count} images, "
        "including the start of the workers\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_script(BenchLoader, measure, "bench-loader"))
