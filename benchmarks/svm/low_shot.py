"""The old interface of low_shot_svm, until the registry runs the task."""

from __future__ import annotations

from pathlib import Path

from benchmarks.low_shot_svm import LowShotSvm
from benchmarks.task import Outcome, Outputs, RunOptions, Split
from results.schema import Protocol


def run(
    protocol: Protocol,
    train: Split,
    test: Split,
    *,
    device: str = "cpu",
    progress: bool = True,
    index_files: Path | None = None,
) -> Outcome:
    return LowShotSvm(index_files=index_files).run(protocol, train, test, RunOptions(device=device, progress=progress))


def required_outputs(protocol: Protocol) -> Outputs:
    return LowShotSvm().outputs(protocol)
