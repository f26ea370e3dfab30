"""What the full and the low-shot SVM share: the variants of their sources, their params, and checks of their splits."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from pydantic import Field, field_validator

from benchmarks.features.pool import ADAPTIVE_GRIDS, FIXED_224, Pooling
from benchmarks.task import FEATURE_MAPS, InputError, Labels, Outputs, Split
from results.errors import first_few
from results.schema import Geometry, Params, Source

_CHUNK_ROWS = 4096
PooledOutputs = dict[str, Pooling | None]
_FIXED_POOLING: PooledOutputs = {**FIXED_224, "embed": None}
_ADAPTIVE_POOLING: PooledOutputs = {**ADAPTIVE_GRIDS, "embed": None}
_RESIZE_THEN_WARP = Geometry(mode="warp", resize=256, crop=224)
_POWERS = tuple(0.5**n for n in range(4, 20))


@dataclass(frozen=True)
class Variant:
    """What the full and the low-shot protocol of one source share."""

    source: Source
    costs: tuple[float, ...]
    geometry: Geometry = _RESIZE_THEN_WARP
    outputs: PooledOutputs = field(default_factory=lambda: _FIXED_POOLING)
    tolerance: float = 1e-5
    revision: int = 1


MMSELFSUP = Variant(
    Source(
        repository="open-mmlab/mmselfsup",
        revision="0.x@6faad81",
        note="tools/benchmarks/classification/svm_voc07: LinearSVC, squared hinge, L2, class weight 1:2 -1:1, 3-fold "
        "cross-validation, envelope AP; best layer of the page chosen on test",
    ),
    (1.0, 10.0, 100.0, *_POWERS),
)
VARIANTS = {
    "mmselfsup": MMSELFSUP,
    "vissl": Variant(
        Source(
            repository="facebookresearch/vissl",
            revision="09270ed",
            note="vissl/utils/svm_utils and configs/config/benchmark: cost base -1 disables the powers",
        ),
        (0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0),
    ),
    "fssb": Variant(
        Source(
            repository="facebookresearch/fair_self_supervision_benchmark",
            revision="1e5d165",
            note="tools/svm and its guide: costs 1e-7 to 1e2 by decades and 0.5^4 to 0.5^19",
        ),
        (*(float(f"1e{n}") for n in range(-7, 3)), *_POWERS),
        # At the lowest costs a model is hardly more than a mean of all images, and decisions of images differ by less
        # than 1e-5 of its norm: at the usual tolerance their ranks could still change (by 0.03 AP and more for a class
        # of 14).
        tolerance=1e-8,
        revision=2,
    ),
    "adaptive": Variant(
        Source(
            repository="this project",
            note="costs of mmselfsup 0.x on adaptive grids of 12, 6, 4, 3 and 2, for any encoder and size",
        ),
        MMSELFSUP.costs,
        outputs=_ADAPTIVE_POOLING,
    ),
    "demo": Variant(
        Source(
            repository="this project",
            note="voc07_svm.adaptive@1 on the embedded scenes, at their size, with the last two layers and four costs",
        ),
        (0.01, 0.1, 1.0, 10.0),  # every decade between the extremes that were ever chosen on the embedded scenes
        Geometry(mode="warp", resize=0, crop=96),
        # The early layers of a small net hardly tell the scenes apart, and cost as much time as the others.
        {name: _ADAPTIVE_POOLING[name] for name in ("feature4", "feature5", "embed")},
    ),
}


class SvmParams(Params):
    """Params of both benchmarks.

    Attributes:
        costs: in the order in which ties are broken: the first best cost wins.
        positive_weight, negative_weight: class weights, factors of the cost.
        tolerance: of the solver, see `squared_hinge.solve`. Every model is the optimum to within it.
        outputs: encoder output -> pooling of its maps, None for a vector.
    """

    costs: tuple[float, ...] = Field(min_length=1)
    positive_weight: float = Field(2.0, gt=0, allow_inf_nan=False)
    negative_weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    tolerance: float = Field(1e-5, gt=0, le=1e-2)
    outputs: PooledOutputs = Field(min_length=1)

    @field_validator("costs")
    @classmethod
    def _positive_and_distinct(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < cost < float("inf") for cost in value) or len(set(value)) < len(value):
            raise ValueError(f"{value} must be positive, finite and without repeats")
        return value

    @field_validator("outputs")
    @classmethod
    def _maps_are_pooled(cls, value: PooledOutputs) -> PooledOutputs:
        unpooled = [name for name, pooling in value.items() if name in FEATURE_MAPS and pooling is None]
        if unpooled:
            raise ValueError(f"{', '.join(unpooled)} are feature maps and need a pooling to become vectors")
        return value

    def read(self) -> Outputs:
        """What the benchmark reads of an encoder, see `Task.outputs`."""
        return {name: (name, pooling) for name, pooling in self.outputs.items()}


def check_labels(train: Labels, test: Labels) -> None:
    """Refuse splits on which no average precision can be measured.

    Raises:
        InputError: an empty split, splits of different classes, or a class without a positive test image.
    """
    for labels, name in ((train, "train"), (test, "test")):
        if len(labels) == 0:
            raise InputError(f"the {name} split is empty: an SVM needs images in both splits")
    if train.classes != test.classes:
        raise InputError(
            f"train and test differ in their classes ({first_few(train.classes)} against {first_few(test.classes)}): "
            "use two splits of one data set"
        )
    without = [name for name, has in zip(test.classes, (test.one_hot() == 1).any(0), strict=True) if not has]
    if without:
        raise InputError(
            f"the test split has no image with {first_few(without)}, so that average precision is undefined: "
            f"use a larger split{leave_out(test)}"
        )


def leave_out(labels: Labels) -> str:
    """How to leave a class out of the data set, for the end of a message."""
    if labels.targets.ndim == 2:
        return ", or leave the class out by removing its lists from ImageSets/Main"
    return ", or leave the class out by removing its folder from every split"


def usable_outputs(params: SvmParams, train: Split, test: Split) -> tuple[str, ...]:
    """The outputs of the protocol that both splits have, in the protocol's order.

    Raises:
        InputError: the splits have none of the outputs, or features of the wrong shape or not finite.
    """
    names = tuple(name for name in params.outputs if name in train.features and name in test.features)
    if not names:
        raise InputError(
            f"the encoder's features ({', '.join(train.features) or 'none'}) include none of "
            f"{', '.join(params.outputs)}: choose a protocol that reads an output of the encoder"
        )
    for name in names:
        _check_features(name, train, "train")
        _check_features(name, test, "test")
        dims = train.features[name].shape[1], test.features[name].shape[1]
        if dims[0] != dims[1]:
            raise InputError(f"{name} has {dims[0]} numbers per image in train and {dims[1]} in test: extract it again")
    return names


def _check_features(name: str, split: Split, which: str) -> None:
    features, ids = split.features[name], split.labels.ids
    if features.ndim != 2 or len(features) != len(ids):
        raise InputError(f"{name} of {which} has shape {features.shape} for {len(ids)} images: extract it again")
    starts = range(0, len(features), _CHUNK_ROWS)  # in blocks, as the features may be memory-mapped
    finite = np.concatenate([np.isfinite(features[start : start + _CHUNK_ROWS]).all(axis=1) for start in starts])
    bad = np.flatnonzero(~finite)
    if len(bad):
        raise InputError(
            f"{name} of {which} is NaN or infinite for {len(bad)} of {len(ids)} images "
            f"({first_few([ids[i] for i in bad])}): check these images and the encoder's weights"
        )
