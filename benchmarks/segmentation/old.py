"""What `benchmarks.harnesses` calls until its rows are task classes."""

from __future__ import annotations

from typing import Any

from benchmarks.segmentation.protocols import PROTOCOLS as PROTOCOLS
from benchmarks.segmentation.task import VocSegmentation
from benchmarks.task import Outcome, RunOptions
from results.schema import Protocol


def required_outputs(protocol: Protocol) -> dict[str, Any]:
    """See `Task.outputs`."""
    return dict(VocSegmentation().outputs(protocol))


def run(
    protocol: Protocol, encoder: Any, train: Any, test: Any, *, workdir: Any, device: str = "cpu", workers: int = 2,
    seed: int = 0, progress: bool = True,
) -> Outcome:  # fmt: skip
    """See `ImageTask.run`."""
    options = RunOptions(device=device, workers=workers, seed=seed, progress=progress)
    return VocSegmentation().run(protocol, encoder, train, test, workdir, options)
