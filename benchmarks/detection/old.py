"""What `benchmarks.harnesses` calls until its rows are task classes."""

from __future__ import annotations

from typing import Any

from benchmarks.detection.protocols import PROTOCOLS as PROTOCOLS
from benchmarks.detection.protocols import DetectionParams
from benchmarks.detection.task import VocDetection
from benchmarks.task import Outcome, RunOptions
from results.schema import Protocol


def columns(protocol: Protocol) -> tuple[str, ...] | None:
    """See `Params.columns`."""
    return DetectionParams.model_validate(protocol.params).columns()


def required_outputs(protocol: Protocol) -> dict[str, Any]:
    """See `Task.outputs`."""
    return dict(VocDetection().outputs(protocol))


def run(
    protocol: Protocol, encoder: Any, train: Any, test: Any, *, workdir: Any, device: str = "cpu", workers: int = 2,
    seed: int = 0, progress: bool = True,
) -> Outcome:  # fmt: skip
    """See `ImageTask.run`."""
    options = RunOptions(device=device, workers=workers, seed=seed, progress=progress)
    return VocDetection().run(protocol, encoder, train, test, workdir, options)
