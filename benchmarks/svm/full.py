"""The old interface of voc_svm, until the registry runs the task."""

from __future__ import annotations

from benchmarks.task import Outcome, Outputs, RunOptions, Split
from benchmarks.voc_svm import VocSvm
from results.schema import Protocol


def run(protocol: Protocol, train: Split, test: Split, *, device: str = "cpu", progress: bool = True) -> Outcome:
    return VocSvm().run(protocol, train, test, RunOptions(device=device, progress=progress))


def required_outputs(protocol: Protocol) -> Outputs:
    return VocSvm().outputs(protocol)
