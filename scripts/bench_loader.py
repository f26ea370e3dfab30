"""`make bench-loader`: images per second of the input pipeline alone, from files to views on the device."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import torch

from pretrain.command_line import parse, sentence
from pretrain.distributed import own_device
from pretrain.loader import Loader
from pretrain.recipe import Recipe, load_recipe
from pretrain.sources import find_images
from results.errors import InputError


@dataclass
class BenchLoader:
    """Loads batches as a run of the recipe would, and throws them away."""

    data: Path
    """as of `python -m pretrain`"""
    recipe: str = "mocov2_resnet50_8xb32-coslr-200e_in1k"
    """name in pretrain/recipes, or a .toml file"""
    engine: Literal["pil", "tensor"] | None = None
    """the recipe's where it is not given"""
    batch: int = 32
    """images of this one process"""
    batches: int = 20
    workers: int = 2
    device: str = "cuda" if torch.cuda.is_available() else "cpu"


def main() -> int:
    """Prints one line."""
    try:
        options = parse(BenchLoader, sys.argv[1:], "bench_loader.py")
        if options.batches < 1:
            raise ValueError(f"--batches {options.batches}: there must be one at least")
        device = own_device(options.device)
        fields = load_recipe(options.recipe).model_dump()
        engine = options.engine or fields["augmentation"]["engine"]
        if engine == "pil":
            fields["augmentation"]["stored_size"] = None
        fields["augmentation"]["engine"] = engine
        # The loader asks nothing of the model's side of a recipe.
        recipe = Recipe(**{**fields, "batch_size": options.batch, "queue_size": 2 * options.batch, "split_bn": 1})
        loader = Loader(recipe, find_images(options.data), device, torch.Generator(device), options.workers)
    except (InputError, FileNotFoundError, ValueError) as error:
        sys.stderr.write(f"bench-loader: {sentence(error)}\n")
        return 2
    wanted, images, number = options.batches, 0, 0
    began = time.perf_counter()
    while wanted > 0:
        for batch in islice(loader.epoch(number), wanted):
            images += len(batch.indices)
            wanted -= 1
        number += 1
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    sys.stdout.write(
        f"{images / seconds:.1f} images/s, {loader.views * images / seconds:.1f} views/s: engine {engine}, "
        f"{recipe.augmentation.crop} pixels, batch {options.batch}, {options.workers} workers, {images} images, the "
        "workers' start included\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
