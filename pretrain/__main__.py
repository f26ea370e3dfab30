"""`python -m pretrain --recipe NAME --data DIR --out DIR`; every field of the recipe is a flag as well."""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from PIL import Image

from pretrain.command_line import parse, sentence
from pretrain.distributed import own_device, process_group
from pretrain.monitor import Features, KnnMonitor, Labelled
from pretrain.plan import plan
from pretrain.recipe import Recipe, load_recipe
from pretrain.sources import Files, Shards, find_images
from pretrain.train import Run
from results.errors import InputError

log = logging.getLogger("pretrain")

MONITOR_K, MONITOR_TEMPERATURE = 20, 0.07  # the best k of the published protocol, and its temperature


@dataclass
class Command:
    """Pretrains an encoder and writes OUT/backbone.safetensors with its card.

    Started again, a killed run goes on where it was.
    """

    data: Path
    """folder of images or of tar shards, with or without train/ in it, or of CIFAR-10's batches; a .txt list; a .json
    index of shards"""
    settings: Annotated[Recipe, tyro.conf.arg(name="")]
    out: Path | None = None
    """folder of this run; default work/pretrain/RECIPE"""
    recipe: str = "mocov2_resnet50_8xb32-coslr-200e_in1k"
    """name in pretrain/recipes, or a .toml file"""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    workers: int = 2
    """loader processes"""
    threads: int | None = None
    """CPU threads of this process; default torch's"""
    warm_start: Path | None = None
    """backbone.safetensors to start the weights from: a warm start, not a resume"""
    monitor: Path | None = None
    """labelled image folder with train/ and val/ or test/, or CIFAR-10's batches: kNN accuracy of the held-out split,
    now and then"""
    monitor_every: int = 10
    """epochs between two of these"""
    dry_run: bool = False
    """say what would run and what it needs, and stop"""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 2 and one sentence on stderr when it cannot work."""
    arguments = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        # The recipe's name comes first: its values are the defaults of all the other flags.
        finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        finder.add_argument("--recipe", default=Command.recipe, nargs="?", const=Command.recipe)
        name = finder.parse_known_args(arguments)[0].recipe
        base = load_recipe(name)
        command = parse(Command, arguments, "python -m pretrain", Command(tyro.MISSING, base, recipe=name))
        return _run(command)
    except (InputError, ValueError, FloatingPointError, OSError) as error:
        sys.stderr.write(f"pretrain: {sentence(error)}\n")
        return 2
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            raise
        sys.stderr.write(f"pretrain: --compile does not work here, leave it out: {str(error).splitlines()[0]}\n")
        return 2


def _run(command: Command) -> int:
    recipe, out = command.settings, command.out or Path("work/pretrain") / command.settings.name
    if command.threads:
        torch.set_num_threads(command.threads)
    images = _images(command.data)
    if command.dry_run:
        device = own_device(command.device)
        sys.stdout.write(plan(recipe, command.data, len(images), out, device))
        return 0
    with process_group(command.device) as device:
        run = Run(
            recipe,
            command.data,
            out,
            device=device,
            images=images,
            workers=command.workers,
            warm_start=command.warm_start,
            monitor=_monitor(command.monitor, recipe, device, command.workers) if command.monitor else None,
            monitor_every=command.monitor_every,
        )
        path = run.run()
    log.info("wrote %s (%.0f s of training, %.0f images/s)", path, run.seconds,
             run.trainer.step * recipe.batch_size / max(run.seconds, 1e-9))  # fmt: skip
    return 0


def _images(data: Path) -> Files | Shards:
    """What `find_images` finds, or CIFAR-10's training images in the batches of its owner."""
    return _labelled(data, "train")[0] if _is_cifar10(data) else find_images(data)


def _is_cifar10(folder: Path) -> bool:
    from benchmarks.datasets.cifar10 import CIFAR10

    return CIFAR10.find(folder, "train") is not None


def _labelled(root: Path, split: str) -> Labelled:
    from benchmarks.contract import InputError
    from benchmarks.datasets.cifar10 import read_cifar10
    from benchmarks.datasets.imagefolder import read_image_folder

    try:
        found = (read_cifar10 if _is_cifar10(root) else read_image_folder)(root, split)
    except InputError as error:
        raise ValueError(str(error)) from error
    return Files(tuple(found.paths), _decode), found.targets


def _decode(path: Path) -> Image.Image:
    from benchmarks.contract import InputError
    from benchmarks.datasets.images import decode

    try:
        return decode(path)
    except InputError as error:
        raise ValueError(str(error)) from error


def _monitor(root: Path, recipe: Recipe, device: torch.device, workers: int) -> KnnMonitor:
    held_out = "val" if (root / "val").is_dir() else "test"
    return KnnMonitor(_labelled(root, "train"), _labelled(root, held_out), _classify, recipe, device, workers)


def _classify(gallery: Features, classes: NDArray[np.int64], queries: Features, targets: NDArray[np.int64]) -> float:
    from benchmarks.knn.search import search
    from benchmarks.knn.vote import true_class_ranks

    k = min(MONITOR_K, len(gallery))
    found = search(gallery, queries, k)
    ranks = true_class_ranks(
        found.similarities,
        classes[found.indices],
        targets,
        ks=(k,),
        temperature=MONITOR_TEMPERATURE,
        num_classes=int(classes.max()) + 1,
    )
    return float((ranks[k] == 0).mean())


if __name__ == "__main__":
    sys.exit(main())
