"""Heads of a rate grid on stored patch features, against one head at a time with the encoder run in every epoch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.datasets.images import Images
from benchmarks.datasets.registry import find_dataset
from benchmarks.demo.compose import Counts, compose
from benchmarks.dense.cached import CachedLinear, class_shares, train_bank
from benchmarks.dense.patches import Patches
from benchmarks.encoders.load import load_encoder
from benchmarks.features.extract import default_batch_size, extractor
from benchmarks.features.store import FeatureRequest, FeatureStore
from benchmarks.registry import find_protocol
from benchmarks.task import RunOptions

from .measurement import Entries, Entry, entry, timed

ENCODER = "random:resnet18-w32-k3-nopool"


def entries() -> Entries:
    return {"dense": dense_heads}


def dense_heads(scenes: int = 800, epochs: int = 10, data: Path | None = None) -> Entry:
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
        encoder = load_encoder(ENCODER)
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
        note=f"{len(labels)} scenes at {protocol.geometry.crop} pixels, {ENCODER}, {len(params.rates)} rates, {epochs} "
        f"epochs; extraction {extracting:.2f} s, heads {grid:.2f} s, one plain epoch {one:.2f} s",
    )
