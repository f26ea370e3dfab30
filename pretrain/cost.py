"""What a step of a recipe costs on this machine: seconds and peak memory, on noise, without the input pipeline."""

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

from pretrain import mechanisms
from pretrain.contrast import Batch, Mechanism
from pretrain.recipe import Recipe
from pretrain.schedule import build_optimizer
from pretrain.trainer import AUTOCAST

NOISE_IMAGES = 65_536  # vectors in a memory bank, whose length no figure depends on


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
        self.model: Mechanism = mechanisms.build(recipe, torch.Generator(device).manual_seed(0), NOISE_IMAGES)
        self.model.to(device).to(memory_format=torch.channels_last).train()
        self.optimizer = build_optimizer(recipe, [self.model.get_submodule(name) for name in self.model.trained])
        n, crop = recipe.batch_size, recipe.augmentation.crop
        noise = torch.randn(n, 3, crop, crop, device=device).contiguous(memory_format=torch.channels_last)
        self.batch = Batch((noise,) * self.model.views, torch.arange(n, device=device))

    def step(self) -> None:
        """One whole update."""
        precision = self.recipe.precision
        with torch.autocast(self.device.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST):
            loss = self.model(self.batch).loss
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def timed(self) -> float:
        """Seconds of a step, to its end on the device."""
        began = time.perf_counter()
        self.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began


def measure(recipe: Recipe, device: str, steps: int) -> Cost:
    """The cost of a step, measured in a process of its own after one step that warms up."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, recipe.model_dump_json(), device, torch.get_num_threads(), steps).result()


def _measure(recipe_json: str, device_name: str, threads: int, steps: int) -> Cost:
    torch.set_num_threads(threads)
    recipe, device = Recipe.model_validate_json(recipe_json), torch.device(device_name)
    before = _largest_resident()
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
