"""`python -m pretrain --recipe NAME --data DIR --out DIR`; every field of the recipe is a flag as well."""

from __future__ import annotations

import argparse
import logging
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro
from numpy.typing import NDArray

from pretrain.data import Files, Shards, find_images, require_batch
from pretrain.recipe import Recipe, load_recipe
from results.command_line import parse
from results.errors import InputError, print_error
from results.files import locked_folder

if TYPE_CHECKING:  # torch takes seconds to import, which help and refusals need not wait for
    from pretrain.monitor import Features, Labelled

log = logging.getLogger("pretrain")

OUT_OF_MEMORY = "out of memory; lower batch_size, augmentation.crop, queue_size or architecture.width, or use more GPUs"
MONITOR_K, MONITOR_TEMPERATURE = 20, 0.07  # the best k of the published protocol, and its temperature


@dataclass
class Command:
    """Pretrain an encoder and write OUT/backbone.safetensors with its card.

    A killed run resumes when it is started again.
    """

    data: Path
    """folder of images, of tar shards or of CIFAR-10's batches, with or without train/ in it; a .txt list; a .json
    index of shards"""
    settings: Annotated[Recipe, tyro.conf.arg(name="")]
    out: Path | None = None
    """folder of this run; default work/pretrain/RECIPE"""
    recipe: str = "mocov2_resnet50_8xb32-coslr-200e_in1k"
    """name in pretrain/recipes, or a .toml file"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, …; auto is the GPU where there is one"""
    workers: int = 2
    """loader processes"""
    threads: int | None = None
    """CPU threads of this process; torch's default without it"""
    warm_start: Path | None = None
    """backbone.safetensors whose weights the training starts from"""
    monitor: Path | None = None
    """labelled image folder with train/ and val/ or test/, or CIFAR-10's batches: kNN accuracy of the held-out split
    during training"""
    monitor_every: int = 10
    """epochs between two runs of the monitor"""
    max_unreadable: float = 0.01
    """share of the images that may be unreadable; they are skipped and listed in the log"""
    remote_shards: bool = False
    """let an index of shards name files outside of its folder and addresses (pipe:, http:, …); pipe: runs a shell
    command"""
    dry_run: bool = False
    """report what would run and what it needs, and stop"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; exit code 2 and a message on stderr when the input cannot be used."""
    arguments = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        # The recipe's name comes first: its values are the defaults of all the other flags.
        finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        finder.add_argument("--recipe", default=Command.recipe, nargs="?", const=Command.recipe)
        name = finder.parse_known_args(arguments)[0].recipe
        default = Command(tyro.MISSING, load_recipe(name), recipe=name)
        return _run(parse(Command, arguments, "python -m pretrain", default))
    except (InputError, FloatingPointError, OSError) as error:
        return print_error("pretrain", error)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or "allocate memory" in str(error):
            return print_error("pretrain", InputError(OUT_OF_MEMORY))
        if not type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            raise
        fault = f"--compile does not work here, leave it out: {str(error).splitlines()[0]}"
        return print_error("pretrain", InputError(fault))


def _run(command: Command) -> int:
    for flag, value, least in (
        ("--workers", command.workers, 0), ("--threads", command.threads, 1),
        ("--monitor-every", command.monitor_every, 1),
    ):  # fmt: skip
        if value is not None and value < least:
            raise InputError(f"{flag} must be at least {least}, got {value}")
    if not 0 <= command.max_unreadable <= 1:
        raise InputError(f"--max-unreadable is a share from 0 to 1, got {command.max_unreadable:g}")
    recipe, out = command.settings, command.out or Path("work/pretrain") / command.settings.name
    images = _images(command.data, command.remote_shards)
    require_batch(images, recipe.batch_size)
    labelled = _monitor_splits(command.monitor) if command.monitor else None

    import torch

    from pretrain.cost import plan
    from pretrain.distributed import own_device, process_group, rank
    from pretrain.monitor import KnnMonitor
    from pretrain.train import Run

    if command.threads is not None:
        torch.set_num_threads(command.threads)
    if command.dry_run:
        sys.stdout.write(plan(recipe, command.data, len(images), out, own_device(command.device)))
        return 0
    with ExitStack() as stack:
        device = stack.enter_context(process_group(command.device))
        if rank() == 0:
            stack.enter_context(locked_folder(out))
        run = Run(
            recipe,
            command.data,
            out,
            device=device,
            images=images,
            workers=command.workers,
            warm_start=command.warm_start,
            max_unreadable=command.max_unreadable,
            monitor=KnnMonitor(*labelled, _classify, recipe, device, command.workers) if labelled else None,
            monitor_every=command.monitor_every,
        )
        path = run.run()
    log.info("wrote %s (%.0f s of training, %.0f images/s)", path, run.seconds,
             run.trainer.step * recipe.batch_size / max(run.seconds, 1e-9))  # fmt: skip
    return 0


def _images(data: Path, remote_shards: bool) -> Files | Shards:
    """What `find_images` finds, or CIFAR-10's training images in the batches of its owner."""
    return _labelled(data, "train")[0] if _is_cifar10(data) else find_images(data, remote_shards=remote_shards)


def _is_cifar10(folder: Path) -> bool:
    from benchmarks.datasets.cifar10 import CIFAR10

    return CIFAR10.find(folder, "train") is not None


def _labelled(root: Path, split: str) -> Labelled:
    from benchmarks.datasets.cifar10 import read_cifar10
    from benchmarks.datasets.classification import read_image_folder
    from benchmarks.datasets.images import decode

    found = (read_cifar10 if _is_cifar10(root) else read_image_folder)(root, split)
    return Files(tuple(found.paths), decode), found.targets


def _monitor_splits(root: Path) -> tuple[Labelled, Labelled]:
    """Gallery and queries of the monitor."""
    return _labelled(root, "train"), _labelled(root, "val" if (root / "val").is_dir() else "test")


def _classify(gallery: Features, classes: NDArray[np.int64], queries: Features, targets: NDArray[np.int64]) -> float:
    from benchmarks.solvers.exact_knn import exact_knn, vote_ranks

    k = min(MONITOR_K, len(gallery))
    found = exact_knn(gallery, queries, k)
    ranks = vote_ranks(
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
