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

# The groups of the help page, and the first line of each benchmark's docstring, so that the page needs no import of it.
# To add a benchmark, name it here and import its class in `load_task`.
TASKS: Mapping[str, Mapping[str, str]] = {
    "Frozen features": {
        "knn": "Weighted k-nearest-neighbour classification on frozen features (Wu et al. 2018, section 3.4).",
        "linear": "Linear probe on the encoder's vector after global average pooling (AvgPool).",
        "multihead": "Linear probes on the maps of the stem and the four stages (Feature1 to Feature5).",
        "linear-grid": "Linear evaluation of DINOv2 and DINOv3: a grid of class tokens, patch mean and learning rates, "
            "in one pass.",
        "attentive":
            "Attentive probe: heads that pool patch tokens by attention (efficient probing, V-JEPA 2, AIM, CAPI).",
        "linear-stored": "Logistic regression on stored features, the fast variant of the linear probe.",
        "logistic": "Logistic regression on frozen features, with C chosen on held-out training images.",
        "ncm": "Nearest class mean on frozen features (Mensink et al. 2012).",
        "few-shot":
            "Classification with 1 to 16 images per class, by kNN, the nearest class mean and logistic regression.",
        "voc-svm": "Linear SVM per class of VOC07 on frozen features, mean average precision (Goyal et al. "
            "2019, section 6.1).",
        "low-shot-svm": "Linear SVMs on k images per class of VOC07 or Places205 (Goyal et al. 2019, section 6.2).",
    },
    "Suites of data sets": {
        "transfer":
            "Logistic regression, kNN and nearest class mean on the 12 data sets of SimCLR and BYOL, and on nine more.",
        "robustness":
            "One ImageNet classifier scored on val, ReaL, V2, A, R, Sketch, ObjectNet and C, each by its own rule.",
        "retrieval":
            "Image retrieval: revisited Oxford and Paris (easy, medium, hard), and copy detection on Copydays.",
    },
    "Without labels": {
        "label-free": "Rank, spectrum and spread of stored features, without labels (RankMe, alpha-ReQ, uniformity).",
        "label-free-views": "LiDAR and alignment of several random views of each image, without labels.",
    },
    "Dense tasks on frozen features": {
        "seg-linear": "Linear segmentation on a frozen encoder, trained on augmented images (DINOv2, DINOv3).",
        "seg-linear-cached":
            "Linear segmentation heads on stored patch features, a grid of learning rates without augmentation.",
        "seg-logistic": "Segmentation by logistic regression on frozen patch features (CAPI's linear classifier).",
        "seg-knn": "Segmentation by the nearest neighbours of frozen patch features (CAPI's kNN).",
        "seg-incontext": "In-context segmentation by retrieval from a memory of patches (Hummingbird).",
        "depth-linear": "Depth estimation by a linear head on a frozen encoder (NYU Depth v2, DINOv3).",
    },
    "Fine-tuning": {
        "semi-1pct": "Semi-supervised classification: fine-tuning on 1 % of ImageNet's labels.",
        "semi-10pct": "Semi-supervised classification: fine-tuning on 10 % of ImageNet's labels.",
        "finetune": "End-to-end fine-tuning on all labels of ImageNet or iNaturalist 2018.",
    },
    "Detection and segmentation": {
        "voc-det": "Object detection on PASCAL VOC: Faster R-CNN C4, fine-tuned.",
        "coco-det": "Boxes and instance masks on COCO, and DensePose: Mask R-CNN or RetinaNet, fine-tuned.",
        "coco-keypoints": "Person keypoints on COCO: Keypoint R-CNN with a feature pyramid, fine-tuned.",
        "lvis-det": "Instance masks of the long-tailed classes of LVIS: Mask R-CNN with a feature pyramid, fine-tuned.",
        "cityscapes-det": "Instance masks on Cityscapes: Mask R-CNN with a feature pyramid, fine-tuned.",
        "vit-det": "Boxes and instance masks on COCO with a ViT: detectron2's ViTDet, fine-tuned.",
        "voc-seg": "Semantic segmentation on PASCAL VOC 2012: an FCN, fine-tuned.",
        "cityscapes-seg": "Semantic segmentation on Cityscapes: an FCN, fine-tuned.",
        "vit-seg": "Semantic segmentation with a ViT: UPerNet fine-tuned, or a linear head on the frozen encoder.",
    },
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
        case "voc-det" | "coco-det" | "coco-keypoints" | "lvis-det" | "cityscapes-det" | "vit-det":
            from benchmarks.detection.task import TASKS as DETECTION

            return DETECTION[name]
        case "voc-seg" | "cityscapes-seg" | "vit-seg":
            from benchmarks.segmentation.task import TASKS as SEGMENTATION

            return SEGMENTATION[name]
        case "seg-knn":
            from benchmarks.dense.neighbours import PatchKnn

            return PatchKnn
        case "seg-logistic":
            from benchmarks.dense.classifiers import PatchLogistic

            return PatchLogistic
        case "seg-linear":
            from benchmarks.dense.linear import LinearSegmentation

            return LinearSegmentation
        case "depth-linear":
            from benchmarks.dense.linear import LinearDepth

            return LinearDepth
        case "seg-linear-cached":
            from benchmarks.dense.classifiers import CachedLinear

            return CachedLinear
        case "seg-incontext":
            from benchmarks.dense.neighbours import InContext

            return InContext
        case "linear":
            from benchmarks.linear import AvgPoolLinear

            return AvgPoolLinear
        case "multihead":
            from benchmarks.linear import MultiheadLinear

            return MultiheadLinear
        case "linear-grid":
            from benchmarks.linear import LinearGrid

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
    """A protocol by its id, such as `knn.mmselfsup@1`; `@revision` may be left out. Its `harness` names its task.

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
    """The protocols whose ids match any of the patterns, such as `knn.*` or `voc07_svm.vissl`.

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
    """The protocol changed by `--set` texts, such as `epochs=10`, `lrs=0.1,1,10` or `geometry.crop=192`.

    Raises:
        InputError: a text of another form, a name that the protocol does not have, the same name twice, or a value
            that cannot be.
    """
    params: dict[str, Any] = {}
    geometry: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text}: expected name=value, such as epochs=10")
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
