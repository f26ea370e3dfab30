"""Cost of additional linear heads: an epoch with more heads against the same epoch with one."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Literal

import torch

from benchmarks.encoders.load import load_encoder
from benchmarks.linear import ProbeParams
from benchmarks.training.probes import FrozenFeatures, HeadTrainer

from .measurement import Entries, Entry, entry, fast_precision, rounds, seconds_of, timed

CLASSES, SIZE = 1000, 224
HEADS = (1, 11, 21)
LIMIT = 1.10
SECONDS = 45.0


def entries() -> Entries:
    return {"linear-grid": linear_grid}


def linear_grid(batch_size: int = 256, most: int = 3) -> Entry:
    """Ten heads and then ten more, beside one, on a ResNet-50 with 1000 classes.

    An epoch is that many equal steps, and a step is one pass of the encoder and one update of the bank. Both are timed,
    the update of each bank in turn on what the same pass gave, up to `most` times, and their medians added. What would
    flatter the heads is left out: images are in memory, and the encoder runs in the faster precision.
    """
    precision: Literal["fp32", "bf16"] = "bf16" if fast_precision() == "bf16" else "fp32"
    encoder, device = load_encoder("random:resnet50"), torch.device("cpu")
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch_size, 3, SIZE, SIZE), dtype=torch.uint8, generator=draws)
    targets = torch.randint(0, CLASSES, (batch_size,), generator=draws)
    params = [
        ProbeParams(
            outputs=("embed",),
            lrs=tuple(0.1 * (n + 1) for n in range(heads)),
            epochs=1,
            heldout=0.5,
            precision=precision,
        )
        for heads in HEADS
    ]
    frozen = FrozenFeatures(encoder, [("embed", None)], SIZE, device, precision)
    trainers = [HeadTrainer(grid, frozen, CLASSES, 0) for grid in params]
    passes: list[float] = []
    updates: list[list[float]] = [[] for _ in HEADS]
    for _ in rounds(most + 1, SECONDS):
        taken, features = timed(lambda: frozen(images))
        passes.append(taken)
        for seconds, trainer in zip(updates, trainers, strict=True):
            seconds.append(seconds_of(partial(trainer.update, features, targets, 1.0, batch_size)))
    # The first round warms up, and counts where there is no time for another.
    encoding = statistics.median(passes[1:] or passes)
    one, eleven, twenty_one = (encoding + statistics.median(seconds[1:] or seconds) for seconds in updates)
    worst = max(eleven - one, twenty_one - eleven)
    return entry(
        "linear-grid",
        ours=one + worst,
        baseline=one,
        described="the same step with ten heads fewer",
        limit_s=LIMIT * one,
        limit="at most a tenth more",
        note=f"ResNet-50, {SIZE} pixels, {CLASSES} classes, batch {batch_size}, {precision}; a "
        f"step with {', '.join(map(str, HEADS))} heads: {one:.2f}, {eleven:.2f}, {twenty_one:.2f} s",
    )
