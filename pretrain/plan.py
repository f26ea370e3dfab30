"""What a run would take, for `--dry-run`."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from pretrain import mechanisms
from pretrain.checkpoint import RESUME
from pretrain.contrast import Batch
from pretrain.recipe import Recipe

SMALL_BATCH = 8 * 224**2  # pixels of the batch that is measured


def plan(recipe: Recipe, data: Path, images: int, out: Path, device: torch.device) -> str:
    """Lines for a reader. The time is measured on a small batch of noise, without the augmentation."""
    steps = recipe.epochs * (recipe.epoch_steps or images // recipe.batch_size)
    batch = _small_batch(recipe)
    seconds, parameters, memory = _measure(recipe, batch, images, device)
    disk = parameters * 8 + memory  # weights and momentum; the memory of keys, and weights without momentum
    hours = seconds / batch * recipe.batch_size * steps / 3600
    there = ", which is there: the run would go on" if (out / RESUME).is_file() else ""
    return (
        f"recipe      {recipe.name}: {recipe.mechanism}, {recipe.architecture.name}, {recipe.epochs} epochs, "
        f"batch {recipe.batch_size}\n"
        f"data        {data}: {images:,} images, {steps:,} steps\n"
        f"out         {out}: {disk / 2**20:.0f} MiB for the resume file{there}\n"
        f"memory      {(parameters * 12 + memory) / 2**20:.0f} MiB for weights, gradients, optimiser and keys, and the "
        "activations\n"
        f"time        about {hours:.2g} hours on this {device.type}, measured on one batch of {batch}\n"
    )


def _small_batch(recipe: Recipe) -> int:
    """A part of the recipe's batch that the queue and split batch norms can take, of about SMALL_BATCH pixels."""
    total, parts = recipe.batch_size, recipe.split_bn
    possible = [n for n in range(2 * parts, total + 1, parts) if total % n == 0] or [total]
    wanted = SMALL_BATCH // recipe.augmentation.crop**2
    return max((n for n in possible if n <= wanted), default=possible[0])


def _measure(recipe: Recipe, batch: int, images: int, device: torch.device) -> tuple[float, int, int]:
    """Seconds of a forward and backward pass of `batch` images, trained parameters, bytes of everything else."""
    small = recipe.model_copy(update={"batch_size": batch})
    model = mechanisms.build(small, torch.Generator(device), images).to(device).to(memory_format=torch.channels_last)
    crop = recipe.augmentation.crop
    noise = torch.randn(batch, 3, crop, crop, device=device).contiguous(memory_format=torch.channels_last)
    indices = torch.arange(batch, device=device)
    seconds = 0.0
    for _ in range(2):  # the first one warms up
        started = time.monotonic()
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision != "fp32"):
            loss = model(Batch((noise,) * model.views, indices)).loss
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.monotonic() - started
    trained = [p for name in model.trained for p in model.get_submodule(name).parameters()]
    total = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    return seconds, sum(p.numel() for p in trained), total - sum(p.numel() * p.element_size() for p in trained)
