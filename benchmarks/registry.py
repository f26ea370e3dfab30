"""Every benchmark and protocol by name. A benchmark's file is imported when its name is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, get_args, get_origin

from benchmarks.task import InputError, Task
from results.errors import did_you_mean
from results.schema import Protocol

AnyTask = Task[Any]

# The groups of the help page. To add a benchmark, name it here and import its class in `load_task`.
TASKS: Mapping[str, tuple[str, ...]] = {
    "Frozen features": ("knn", "linear", "multihead", "linear-grid", "attentive", "linear-stored",
                        "logistic", "ncm", "few-shot", "voc-svm", "low-shot-svm"),
    "Suites of data sets": ("transfer", "robustness", "retrieval"),
    "Without labels": ("label-free", "label-free-views"),
    "Dense tasks on frozen features": (
        "seg-linear", "seg-linear-cached", "seg-logistic", "seg-knn", "seg-incontext", "depth-linear",
    ),
    "Fine-tuning": ("semi-1pct", "semi-10pct", "finetune"),
    "Detection and segmentation": (
        "voc-det", "coco-det", "coco-keypoints", "lvis-det", "cityscapes-det", "vit-det",
        "voc-seg", "cityscapes-seg", "vit-seg",
    ),
}  # fmt: skip
TASK_NAMES = tuple(name for names in TASKS.values() for name in names)


def load_task(name: str) -> type[AnyTask]:
    """The class of a benchmark.

    Raises:
        InputError: an unknown name.
    """
    match name:
        case "knn":
            from benchmarks.knn import Knn

            return Knn
        case "voc-svm":
            from benchmarks.voc_svm import VocSvm

            return VocSvm
        case "low-shot-svm":
            from benchmarks.low_shot_svm import LowShotSvm

            return LowShotSvm
        case "voc-det" | "coco-det" | "coco-keypoints" | "lvis-det" | "cityscapes-det":
            from benchmarks.detection.task import TASKS as DETECTION

            return DETECTION[name]
        case "voc-seg" | "cityscapes-seg":
            from benchmarks.segmentation.task import TASKS as SEGMENTATION

            return SEGMENTATION[name]
        case "vit-det":
            from benchmarks.detection.vit import VitDetection

            return VitDetection
        case "vit-seg":
            from benchmarks.segmentation.vit import VitSegmentation

            return VitSegmentation
        case "seg-knn":
            from benchmarks.dense.knn import PatchKnn

            return PatchKnn
        case "seg-logistic":
            from benchmarks.dense.logistic import PatchLogistic

            return PatchLogistic
        case "seg-linear":
            from benchmarks.dense.linear import LinearSegmentation

            return LinearSegmentation
        case "depth-linear":
            from benchmarks.dense.depth import LinearDepth

            return LinearDepth
        case "seg-linear-cached":
            from benchmarks.dense.cached import CachedLinear

            return CachedLinear
        case "seg-incontext":
            from benchmarks.dense.incontext import InContext

            return InContext
        case "linear":
            from benchmarks.linear import AvgPoolLinear

            return AvgPoolLinear
        case "multihead":
            from benchmarks.linear import MultiheadLinear

            return MultiheadLinear
        case "linear-grid":
            from benchmarks.linear_grid import LinearGrid

            return LinearGrid
        case "attentive":
            from benchmarks.attentive import Attentive

            return Attentive
        case "linear-stored":
            from benchmarks.logistic import StoredLogistic

            return StoredLogistic
        case "robustness":
            from benchmarks.robustness import Robustness

            return Robustness
        case "logistic":
            from benchmarks.logistic import LogisticRegression

            return LogisticRegression
        case "ncm":
            from benchmarks.few_shot import Ncm

            return Ncm
        case "few-shot":
            from benchmarks.few_shot import FewShot

            return FewShot
        case "retrieval":
            from benchmarks.retrieval import Retrieval

            return Retrieval
        case "transfer":
            from benchmarks.transfer import Transfer

            return Transfer
        case "label-free":
            from benchmarks.label_free import LabelFree

            return LabelFree
        case "label-free-views":
            from benchmarks.label_free import LabelFreeViews

            return LabelFreeViews
        case "semi-1pct":
            from benchmarks.finetune import SemiSupervised1Percent

            return SemiSupervised1Percent
        case "semi-10pct":
            from benchmarks.finetune import SemiSupervised10Percent

            return SemiSupervised10Percent
        case "finetune":
            from benchmarks.finetune import FineTuneImageNet

            return FineTuneImageNet
    raise InputError(f"no benchmark {name!r}{did_you_mean(name, TASK_NAMES)}\nbenchmarks: {', '.join(TASK_NAMES)}")


def tasks() -> Iterator[AnyTask]:
    """Every benchmark, with its own flags at their defaults."""
    for name in TASK_NAMES:
        yield load_task(name)()


def find_protocol(identifier: str) -> Protocol:
    """A protocol by its id, as `knn.mmselfsup@1`; `@revision` may be left out. Its `harness` names its task.

    Raises:
        InputError: an unknown id.
    """
    known: list[str] = []
    for task in tasks():
        for protocol in task.protocols:
            if identifier in (protocol.id, protocol.id.partition("@")[0]):
                return protocol
            known.append(protocol.id)
    raise InputError(
        f"no protocol {identifier!r}{did_you_mean(identifier, known)}\n`encoder-bench protocols` lists all of them"
    )


def matching_protocols(patterns: Sequence[str]) -> list[tuple[AnyTask, Protocol]]:
    """The protocols whose ids match any of the patterns, as `knn.*` or `voc07_svm.vissl`.

    Raises:
        InputError: a pattern that matches nothing.
    """
    every = [(task, protocol) for task in tasks() for protocol in task.protocols]
    for pattern in patterns:
        if not any(_matches(protocol, pattern) for _, protocol in every):
            raise InputError(
                f"no protocol matches {pattern!r}{did_you_mean(pattern, [p.id for _, p in every])}\n"
                "`encoder-bench protocols` lists all of them"
            )
    return [(task, p) for task, p in every if any(_matches(p, pattern) for pattern in patterns)]


def _matches(protocol: Protocol, pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in (protocol.id, protocol.id.partition("@")[0]))


def with_settings(protocol: Protocol, texts: Sequence[str]) -> Protocol:
    """The protocol changed by `--set` texts, as `epochs=10`, `lrs=0.1,1,10` or `geometry.crop=192`.

    Raises:
        InputError: a text of another form, a name that the protocol does not have, the same name twice, or a value
            that cannot be.
    """
    params: dict[str, Any] = {}
    geometry: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text}: expected name=value, as epochs=10")
        into, key = (geometry, name.removeprefix("geometry.")) if name.startswith("geometry.") else (params, name)
        if key in into:
            raise InputError(f"--set {text}: {name} is set twice")
        if into is params and name not in protocol.settable:
            raise InputError(
                f"{protocol.id} has no setting {name!r}{did_you_mean(name, protocol.settable)}\n"
                f"settings: {', '.join(protocol.settable)}"
            )
        field = protocol.params_type.model_fields.get(name) if into is params else None
        into[key] = _value(value.strip(), field.annotation if field else str)
    return protocol.changed(geometry=geometry, **params)


def _value(text: str, annotation: Any) -> Any:
    """A value as pydantic takes it: a tuple is written 0.1,1,10 or as JSON, a mapping as JSON."""
    parts = (annotation, *get_args(annotation))
    if text in ("none", "None") and type(None) in parts:
        return None
    if text[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"--set …={text}: this is not JSON ({error.msg})") from error
    if any(part is tuple or get_origin(part) is tuple for part in parts):
        return [part.strip() for part in text.split(",") if part.strip()]
    return text
