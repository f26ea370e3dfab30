"""The detection protocols of all commands, by id."""

from __future__ import annotations

from benchmarks.detection.task import CityscapesDetection, CocoDetection, CocoKeypoints, LvisDetection, VocDetection
from results.schema import Protocol

TASKS = (VocDetection, CocoDetection, CocoKeypoints, LvisDetection, CityscapesDetection)
PROTOCOLS = [protocol for task in TASKS for protocol in task.protocols]


def detection_protocol(identifier: str) -> Protocol:
    return next(protocol for protocol in PROTOCOLS if protocol.id == identifier)
