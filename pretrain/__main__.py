"""`python -m pretrain --recipe NAME --data DIR --out DIR`; every field of the recipe is a flag as well."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from pydantic import ValidationError

from pretrain.images import find_images
from pretrain.recipe import Recipe, load_recipe
from pretrain.train import RESUME, Run, process_group

log = logging.getLogger("pretrain")


@dataclass
class Command:
    """Pretrains an encoder with momentum contrast and writes OUT/backbone.safetensors with its card.

    Started again, a killed run goes on where it was.
    """

    data: Path
    """folder of images, with or without train/ in it; labels are not used"""
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
    dry_run: bool = False
    """say what would run and what it needs, and stop"""


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        # The recipe's name comes first: its values are the defaults of all the other flags.
        finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        finder.add_argument("--recipe", default=Command.recipe)
        name = finder.parse_known_args(arguments)[0].recipe
        base = load_recipe(name)
        command = tyro.cli(Command, args=arguments, default=Command(tyro.MISSING, base, recipe=name))
        return _run(command)
    except (FileNotFoundError, ValueError, FloatingPointError, OSError) as error:
        sys.stderr.write(f"pretrain: {_sentence(error)}\n")
        return 2


def _run(command: Command) -> int:
    recipe, out = command.settings, command.out or Path("work/pretrain") / command.settings.name
    if command.threads:
        torch.set_num_threads(command.threads)
    device = torch.device(command.device)
    if command.dry_run:
        sys.stdout.write(_plan(recipe, command.data, out, device))
        return 0
    with process_group(device):
        run = Run(recipe, command.data, out, device=device, workers=command.workers, warm_start=command.warm_start)
        path = run.run()
    log.info("wrote %s (%.0f s of training, %.0f images/s)", path, run.seconds,
             run.step * recipe.batch_size / max(run.seconds, 1e-9))  # fmt: skip
    return 0


def _plan(recipe: Recipe, data: Path, out: Path, device: torch.device) -> str:
    """What would run. The time is measured on a small batch of noise, without the augmentation."""
    paths = find_images(data)
    steps = recipe.epochs * (len(paths) // recipe.batch_size)
    from pretrain.moco import MoCo

    batch = min(recipe.batch_size, max(8, recipe.split_bn * 2))
    small = recipe.model_copy(update={"queue_size": batch})
    model = MoCo(small, torch.Generator(device)).to(device).to(memory_format=torch.channels_last)
    crop = recipe.augmentation.crop
    images = torch.randn(batch, 3, crop, crop, device=device).contiguous(memory_format=torch.channels_last)
    for attempt in range(2):  # the first one warms up
        started = time.monotonic()
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            loss = model(images, images).loss
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.monotonic() - started
        log.debug("attempt %d: %.3f s", attempt, seconds)
    parameters = sum(p.numel() for p in model.encoder_q.parameters())
    disk = (parameters * 3 + recipe.dim * recipe.queue_size) * 4
    hours = seconds / batch * recipe.batch_size * steps / 3600
    return (
        f"recipe      {recipe.name}: {recipe.architecture.name}, {recipe.epochs} epochs, batch {recipe.batch_size}\n"
        f"data        {data}: {len(paths):,} images, {steps:,} steps\n"
        f"out         {out}: {disk / 2**20:.0f} MiB for the resume file"
        f"{', which is there: the run would go on' if (out / RESUME).is_file() else ''}\n"
        f"memory      {parameters * 16 / 2**20:.0f} MiB for weights, gradients and optimiser, and the activations\n"
        f"time        about {hours:.2g} hours on this {device.type}, measured on one batch of {batch}\n"
    )


def _sentence(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or error.title
        return f"{where}: {first['msg']}"
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
