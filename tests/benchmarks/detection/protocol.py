"""The detection protocols of all commands, by id."""

from __future__ import annotations

from benchmarks.detection.task import TASKS, Detection
from results.schema import Protocol

PROTOCOLS = [protocol for task in TASKS.values() if issubclass(task, Detection) for protocol in task.protocols]


def detection_protocol(identifier: str) -> Protocol:
    return next(protocol for protocol in PROTOCOLS if protocol.id == identifier)
