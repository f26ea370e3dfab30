"""Linear heads: what more of them cost in one epoch, and a rate grid on stored patches against one head at a time."""

from __future__ import annotations

import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch

from benchmarks.datasets.images import Images
from benchmarks.datasets.registry import find_dataset
from benchmarks.demo.compose import Counts, compose
from benchmarks.dense.classifiers import CachedLinear, class_shares, train_bank
from benchmarks.dense.patches import Patches
from benchmarks.encoders.load import load_encoder
from benchmarks.features.extract import default_batch_size, extractor
from benchmarks.features.store import FeatureRequest, FeatureStore
from benchmarks.linear import ProbeParams
from benchmarks.registry import find_protocol
from benchmarks.task import RunOptions
from benchmarks.training.probes import FrozenFeatures, HeadTrainer

from .measurement import Entries, SpeedEntry, entry, fast_precision, rounds, seconds_of, timed

DENSE_ENCODER = "random:resnet18-w32-k3-nopool"
CLASSES, SIZE = 1000, 224
HEADS = (1, 11, 21)
SECONDS = 45.0


def entries() -> Entries:
    return {"linear-grid": linear_grid, "dense": dense_heads}


def linear_grid(batch_size: int = 256, most: int = 3) -> SpeedEntry:
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
        limit_s=one,
        limit="as long as with ten heads fewer",
        note=f"ResNet-50, {SIZE} pixels, {CLASSES} classes, batch {batch_size}, {precision}; a "
        f"step with {', '.join(map(str, HEADS))} heads: {one:.2f}, {eleven:.2f}, {twenty_one:.2f} s; ten more "
        f"take {worst / one:.1%} more, to stay below 10 %",
    )


def dense_heads(scenes: int = 800, epochs: int = 10, data: Path | None = None) -> SpeedEntry:
    """Five rates for `epochs` epochs on the patches of the embedded scenes.

    The plain way reads, encodes and trains one head for one epoch; that is measured once and counts for each of the
    heads and epochs. The limit is the encoder's bare passes over images in memory, and the update of the heads.

    Args:
        scenes: of which an eighth is read.
        data: embedded data that is there already.
    """
    protocol = find_protocol("ade20k_seg_linear_cached.demo@1").changed(epochs=epochs)
    params: Any = CachedLinear().params(protocol)
    with TemporaryDirectory() as folder:
        root = Path(folder)
        if data is None:
            data = root / "data"
            compose(data, progress=False, counts=Counts(train=scenes, val=8, test=8, drawings_per_class=1))
        labels = find_dataset("ade20k", data).read("training")
        encoder = load_encoder(DENSE_ENCODER)
        options = RunOptions(device="cpu", progress=False, features=root / "features")
        outputs = {k: v for k, v in CachedLinear().outputs(protocol).items() if k.startswith("feature5")}
        request = FeatureRequest(encoder, labels, protocol.geometry, outputs)
        extracting, (split,) = timed(lambda: FeatureStore(options).get([request]))
        patches = Patches.of(split, protocol, params.stride)
        rows, shares = np.array(patches.rows, np.float32), class_shares(patches)
        items = np.arange(len(rows))

        def heads(of: Any) -> float:
            return timed(lambda: train_bank(rows, items, shares, of, 0, "cpu", show=False))[0]

        heads(params.changed(epochs=1))  # warms up
        grid = heads(params)
        again = replace(options, features=root / "again")
        reading, _ = timed(lambda: FeatureStore(again).get([request]))
        one = reading + heads(params.changed(epochs=1, rates=params.rates[:1]))
        images = Images(labels.paths, protocol.geometry)
        decoded = torch.stack([images[row][0] for row in range(len(labels))])
        batch = default_batch_size(torch.device("cpu"), protocol.geometry.crop)
        with extractor(encoder, protocol.geometry, outputs, "fp32") as extract:
            bare, _ = timed(lambda: [extract(part, outputs) for part in decoded.split(batch)])
    ours = extracting + grid
    return entry(
        "dense",
        ours=ours,
        baseline=one * len(params.rates) * epochs,
        described="one head at a time, encoder in every epoch",
        limit_s=bare + grid,
        limit="encoder and heads on images in memory",
        note=f"{len(labels)} scenes at {protocol.geometry.crop} pixels, {DENSE_ENCODER}, {len(params.rates)} rates, "
        f"{epochs} epochs; extraction {extracting:.2f} s, heads {grid:.2f} s, one plain epoch {one:.2f} s",
    )
