"""The old list of protocols, until the registry runs the tasks."""

from __future__ import annotations

from benchmarks.low_shot_svm import PROTOCOLS as LOW_SHOT
from benchmarks.low_shot_svm import LowShotParams
from benchmarks.voc_svm import PROTOCOLS as VOC_SVM
from benchmarks.voc_svm import VocSvmParams
from results.schema import Protocol

PROTOCOLS = (*VOC_SVM, *LOW_SHOT)


def _params(protocol: Protocol) -> VocSvmParams | LowShotParams:
    return (LowShotParams if protocol.harness == "low-shot-svm" else VocSvmParams).model_validate(protocol.params)


def columns(protocol: Protocol) -> tuple[str, ...]:
    return _params(protocol).columns()


def selection(protocol: Protocol) -> str:
    return _params(protocol).selection() or protocol.selection


def metric(protocol: Protocol) -> str:
    return _params(protocol).metric() or protocol.metric
