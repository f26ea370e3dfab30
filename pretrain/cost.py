"""Time and memory of a recipe's training step on this machine, on noise images, and the plan of a dry run."""

from __future__ import annotations

import multiprocessing
import re
import resource
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from pretrain.checkpoint import RESUME
from pretrain.distributed import full_float32
from pretrain.mechanism import Batch, Mechanism
from pretrain.recipe import Recipe
from pretrain.train import backward, build_mechanism, build_optimizer

NOISE_IMAGES = 65_536  # vectors in a memory bank; the cost does not depend on their number
SMALL_BATCH = 8 * 224**2  # pixels of the batch that a dry run measures


@dataclass(frozen=True)
class Cost:
    """Of one training step.

    Attributes:
        seconds: median.
        peak_gib: the process's growth since before the model (CPU), or what the allocator held (GPU).
    """

    mechanism: str
    batch: int
    seconds: float
    peak_gib: float


class Stepper:
    """A model with its optimiser and one batch of noise.

    Args:
        recipe: its batch_size images are one step of this one process.
    """

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        torch.manual_seed(0)
        self.model: Mechanism = build_mechanism(recipe, torch.Generator(device).manual_seed(0), NOISE_IMAGES)
        self.model.to(device).to(memory_format=torch.channels_last).train()
        self.optimizer = build_optimizer(recipe, [self.model.get_submodule(name) for name in self.model.trained])
        n, crop = recipe.batch_size, recipe.augmentation.crop
        noise = torch.randn(n, 3, crop, crop, device=device).contiguous(memory_format=torch.channels_last)
        self.batch = Batch((noise,) * self.model.views, torch.arange(n, device=device))

    def step(self) -> None:
        """One whole update."""
        self.optimizer.zero_grad(set_to_none=True)
        backward(self.model, self.batch, self.recipe)
        self.optimizer.step()

    def timed(self) -> float:
        """Seconds of a step, to its end on the device."""
        began = time.perf_counter()
        self.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began


def measure_cost(recipe: Recipe, device: str, steps: int) -> Cost:
    """The cost of a step, measured in a process of its own after one step that warms up."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, recipe.model_dump_json(), device, torch.get_num_threads(), steps).result()


def _measure(recipe_json: str, device_name: str, threads: int, steps: int) -> Cost:
    torch.set_num_threads(threads)
    recipe, device = Recipe.model_validate_json(recipe_json), torch.device(device_name)
    before = _largest_resident()
    with full_float32():
        stepper = Stepper(recipe, device)
        seconds = [stepper.timed() for _ in range(steps + 1)][1:]
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _largest_resident() - before
    return Cost(recipe.mechanism, recipe.batch_size, statistics.median(seconds), peak / 2**30)


def _largest_resident() -> int:
    """Bytes of the largest resident set that this process has had.

    Linux hands what getrusage says on to the programs that a process starts, so that a small child of a large process
    would seem large from its beginning; the high-water mark in /proc begins anew.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        found = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(encoding="ascii"), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def plan_run(recipe: Recipe, data: Path, images: int, out: Path, device: torch.device) -> str:
    """The report of `--dry-run`. The time is measured on a small batch of noise, without the augmentation."""
    steps = recipe.epochs * (recipe.epoch_steps or images // recipe.batch_size)
    batch = small_batch(recipe)
    with full_float32():
        seconds, parameters, memory = _measure_pass(recipe, batch, images, device)
    disk = parameters * 8 + memory  # weights and momentum; the memory of keys, and weights without momentum
    hours = seconds / batch * recipe.batch_size * steps / 3600
    there = ", which exists: the run would resume" if (out / RESUME).is_file() else ""
    return (
        f"recipe      {recipe.name}: {recipe.mechanism}, {recipe.architecture.name}, {recipe.epochs} epochs, "
        f"batch {recipe.batch_size}\n"
        f"data        {data}: {images:,} images, {steps:,} steps\n"
        f"out         {out}: {disk / 2**20:.0f} MiB for the resume file{there}\n"
        f"memory      {(parameters * 12 + memory) / 2**20:.0f} MiB for weights, gradients, optimiser and keys, and the "
        "activations\n"
        f"time        about {hours:.2g} hours on this {device.type}, measured on one batch of {batch}\n"
    )


def small_batch(recipe: Recipe) -> int:
    """A part of the recipe's batch that the queue and split batch norms can take, of about SMALL_BATCH pixels."""
    total, parts = recipe.batch_size, recipe.split_bn
    possible = [n for n in range(2 * parts, total + 1, parts) if total % n == 0] or [total]
    wanted = SMALL_BATCH // recipe.augmentation.crop**2
    return max((n for n in possible if n <= wanted), default=possible[0])


def _measure_pass(recipe: Recipe, batch: int, images: int, device: torch.device) -> tuple[float, int, int]:
    """Seconds of a forward and backward pass of `batch` images, trained parameters, bytes of everything else."""
    small = recipe.changed(batch_size=batch)
    model = build_mechanism(small, torch.Generator(device), images).to(device).to(memory_format=torch.channels_last)
    crop = recipe.augmentation.crop
    noise = torch.randn(batch, 3, crop, crop, device=device).contiguous(memory_format=torch.channels_last)
    indices = torch.arange(batch, device=device)
    seconds = 0.0
    for _ in range(2):  # the first one warms up
        started = time.monotonic()
        backward(model, Batch((noise,) * model.views, indices), small)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.monotonic() - started
    trained = [p for name in model.trained for p in model.get_submodule(name).parameters()]
    total = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    return seconds, sum(p.numel() for p in trained), total - sum(p.numel() * p.element_size() for p in trained)
