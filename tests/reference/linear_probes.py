"""Two small probes, and their runs on the tiny encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.features.pool import AdaptivePooling
from benchmarks.linear import AvgPoolLinear, ProbeParams
from benchmarks.task import Labels, Outcome, RunOptions
from results.schema import Protocol
from tests.builders import folder_protocol
from tests.reference.linear_tiny import TinyEncoder

OPTIONS = RunOptions(device="cpu", workers=0, seed=3, progress=False)

ONE = ProbeParams(
    outputs=("embed",), lrs=(1.0,), weight_decays=(1e-3,), epochs=4, drops=(3,), batch_size=8, choose_epoch="best"
)


MAPS = ProbeParams(
    outputs=("feature1", "feature2", "feature3"),
    pooling={f"feature{n}": AdaptivePooling(grid=4 - n) for n in (1, 2, 3)},
    batch_norm="affine",
    lrs=(0.01, 0.1),
    nesterov=True,
    epochs=3,
    batch_size=8,
    heldout=0.25,
    jitter=0.4,
    lighting=0.1,
    evaluate_every=2,
)


def protocol(params: ProbeParams, **changes: object) -> Protocol:
    params = params.changed(**changes)
    return folder_protocol(params, "linear", params.columns()[0], benchmark="linear_avgpool")


def probe(
    params: ProbeParams,
    data: tuple[Labels, Labels],
    workdir: Path,
    encoder: TinyEncoder | None = None,
    options: RunOptions = OPTIONS,
) -> Outcome:
    return AvgPoolLinear().run(protocol(params), encoder or TinyEncoder(), *data, workdir, options)


def same(a: Outcome, b: Outcome) -> bool:
    tensors = a.tensors.keys() == b.tensors.keys() and all(torch.equal(a.tensors[k], b.tensors[k]) for k in a.tensors)
    items = a.items.keys() == b.items.keys() and all(np.array_equal(a.items[k], b.items[k]) for k in a.items)
    return tensors and items and a.scores == b.scores and a.runs == b.runs
