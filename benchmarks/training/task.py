"""What tasks that train on images share: parameters, protocols, checks of splits, two flags, and the held-out part."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, model_validator

from benchmarks.task import ImageTask, InputError, Labels
from results.schema import Geometry, Params, Protocol, Source

log = logging.getLogger("benchmarks")


def _distinct(values: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(values)) < len(values):
        raise ValueError(f"{values} has a value twice")
    return values


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rates = Annotated[tuple[Positive, ...], Field(min_length=1), AfterValidator(_distinct)]
Decays = Annotated[tuple[NotNegative, ...], Field(min_length=1), AfterValidator(_distinct)]


class ViewParams(Params):
    """How a training view is drawn.

    Attributes:
        view: `resized_crop` takes a random area and aspect (Inception style); `stored_crop` resizes the shorter side to
            the geometry's `resize`, takes that centre square, and crops at random within it; `clipped_crop` draws one
            area and aspect and clips them to the image, as BYOL and MAE's linear probe do.
        auto_augment: a policy by timm's name, such as `rand-m9-mstd0.5-inc1`, applied after the flip.
        erasing: probability that a rectangle of the normalised view becomes noise (Zhong et al. 2020, per pixel).
        jitter: strength of brightness, contrast and saturation; 0 is off.
        lighting: standard deviation of the PCA lighting noise on pixels in [0, 1]; 0 is off.
    """

    view: Literal["resized_crop", "stored_crop", "clipped_crop"] = "resized_crop"
    crop_area: tuple[Positive, Positive] = (0.08, 1.0)
    crop_aspect: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    jitter: NotNegative = 0.0
    lighting: NotNegative = 0.0
    flip_p: float = Field(0.5, ge=0.0, le=1.0)
    auto_augment: str | None = Field(None, exclude_if=lambda policy: policy is None)
    erasing: float = Field(0.0, ge=0.0, le=1.0, exclude_if=lambda probability: probability == 0)

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Self:
        if not self.crop_area[0] <= self.crop_area[1] <= 1:
            raise ValueError(f"crop_area {self.crop_area} must ascend and end at 1 at most")
        if self.crop_aspect[0] > self.crop_aspect[1]:
            raise ValueError(f"crop_aspect {self.crop_aspect} must ascend")
        return self


class TrainingParams(ViewParams):
    """Batches and schedule of a training.

    Attributes:
        batch_size: images of all ranks together.
        evaluate_every: epochs between evaluations; the last epoch is always evaluated.
        heldout: fraction of train that is held out to choose hyperparameters by.
        precision: bf16 is autocast; the trained weights stay float32.
    """

    momentum: float = Field(0.9, ge=0.0, lt=1.0)
    nesterov: bool = False
    batch_size: int = Field(256, gt=0)
    epochs: int = Field(gt=0)
    schedule: Literal["step", "cosine"] = "step"
    drops: tuple[int, ...] = ()
    gamma: Positive = 0.1
    evaluate_every: int = Field(1, gt=0)
    heldout: float = Field(0.0, ge=0.0, lt=1.0)
    precision: Literal["fp32", "bf16"] = "fp32"

    @property
    def length(self) -> int:
        """Of the run, in the unit of `drops`."""
        return self.epochs

    def following(self, after: Self) -> dict[str, Any]:
        """The drops stay at the same share of the run."""
        if self.length == after.length:
            return {}
        return {"drops": tuple(max(1, round(drop * after.length / self.length)) for drop in self.drops)}

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimiser steps of the whole run."""
        return self.epochs * steps_per_epoch

    def rate_factor(self, step: int, steps_per_epoch: int) -> float:
        """The factor of every learning rate at `step`. Both schedules change between epochs only."""
        epoch = step // steps_per_epoch
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
        return self.gamma ** sum(epoch >= drop for drop in self.drops)


def warmup_cosine(step: int, total: int, warmup: int, clock: Literal["before", "after", "both"]) -> float:
    """A line from 0 to 1 over `warmup` steps, then half a cosine to 0 over the rest."""
    at = step + 1 if clock == "after" else step
    shorter = 1 if clock == "both" else 0
    if at < warmup:
        return at / max(1, warmup - shorter)
    return 0.5 * (1 + math.cos(math.pi * (at - warmup) / max(1, total - warmup - shorter)))


MASK_SPLITS = {  # of data sets with masks: those to train on, and those to measure on
    "ade20k": ("training", "validation"),
    "cityscapes": ("train", "val"),
    "voc12aug": ("train_aug", "val"),
    "voc2007_seg": ("trainval", "test"),
}


def classification_protocol(
    harness: str,
    variant: str,
    params: Params,
    source: Source,
    geometry: Geometry,
    dataset: str = "imagenet",
    **fields: Any,
) -> Protocol:
    """A protocol on train and val of a single-label set.

    Args:
        fields: its other fields, and those that differ from the usual ones.
    """
    usual = {
        "benchmark": harness.replace("-", "_"), "train_split": "train", "test_split": "val", "metric": "top-1 accuracy",
    }  # fmt: skip
    return Protocol.of(
        params,
        variant=variant,
        harness=harness,
        dataset=dataset,
        geometry=geometry,
        source=source,
        **usual | fields,
    )


def mask_protocol(
    harness: str, variant: str, dataset: str, geometry: Geometry, params: Params, source: Source, **fields: Any
) -> Protocol:
    """A protocol on the usual splits of a data set with masks, whose primary column is the mean IoU.

    Args:
        fields: its other fields, and those that differ from the usual ones.
    """
    train, test = MASK_SPLITS[dataset]
    usual = {"benchmark": f"{dataset}_{harness.replace('-', '_')}", "primary": "mIoU"}
    return Protocol.of(
        params,
        variant=variant,
        harness=harness,
        dataset=dataset,
        train_split=train,
        test_split=test,
        geometry=geometry,
        source=source,
        **usual | fields,
    )


def require_images(protocol: Protocol, train: Labels, test: Labels) -> None:
    """Raises InputError for a split without images."""
    for split, labels in ((protocol.train_split, train), (protocol.test_split, test)):
        if not len(labels):
            raise InputError(
                f"{protocol.id}: the {split} split of {protocol.dataset} has no images; `encoder-bench check-data` "
                "says where they belong"
            )


def check_single_label(protocol: Protocol, train: Labels, test: Labels) -> None:
    """Check that both splits have images, one class per image, and the same classes.

    Raises:
        InputError: one of these does not hold.
    """
    require_images(protocol, train, test)
    for split, labels in ((protocol.train_split, train), (protocol.test_split, test)):
        if labels.targets.ndim != 1:
            raise InputError(
                f"{protocol.id} needs one class per image, but images of the {split} split of {protocol.dataset} have "
                "several: choose an SVM protocol"
            )
    if train.classes != test.classes:
        differing = sorted(set(train.classes) ^ set(test.classes)) or ["their order"]
        raise InputError(
            f"{protocol.id}: {protocol.train_split} and {protocol.test_split} of {protocol.dataset} differ in their "
            f"classes ({', '.join(differing[:5])}): make them the same"
        )


ParamsT = TypeVar("ParamsT", bound=TrainingParams)


@dataclass(frozen=True)
class TrainingTask(ImageTask[ParamsT]):
    """What all tasks share that train a classifier on a single-label set."""

    accumulate: int = 1
    """parts in which a batch passes through the network, for less memory; the step stays the same, except for batch
    norms, which see one part: the protocol's id then says so"""
    scale_lr: bool = False
    """multiply the rates by --set batch_size over the protocol's own batch; the protocol's id then shows them"""

    def resolve(self, protocol: Protocol) -> Protocol:
        """With --scale-lr, every rate multiplied by the batch over the declared one (Goyal et al. 2017).

        Raises:
            InputError: --accumulate is below 1; with --scale-lr the batch is the declared one, or --set changes the
                rates too.
        """
        if self.accumulate < 1:
            raise InputError(f"--accumulate must be at least 1, got {self.accumulate}")
        if not self.scale_lr:
            return protocol
        own = next(p for p in self.protocols if p.id == protocol.id.partition("+")[0])
        if any(label.startswith("lrs=") for label in protocol.overrides):
            raise InputError("--set lrs=… and --scale-lr both set the learning rates; use only one of them")
        factor = protocol.params["batch_size"] / own.params["batch_size"]
        if factor == 1:
            raise InputError(
                f"--scale-lr changes nothing: {own.id} itself has batches of {own.params['batch_size']} images; give "
                "another size with --set batch_size=…"
            )
        return protocol.changed(lrs=tuple(lr * factor for lr in protocol.params["lrs"]))

    def adapted(self, protocol: Protocol, train: Labels, test: Labels) -> Protocol:
        """With its number of training images in the id, where it was published for half or twice as many."""
        from benchmarks.datasets.registry import DATASETS

        base = protocol.id.partition("+")[0]
        published = next((p for p in self.protocols if p.id == base), protocol)
        known = DATASETS.get(published.dataset)
        images = known.splits.get(published.train_split) if known else None
        if images is None or images / 2 <= len(train) <= 2 * images:
            return protocol
        log.warning(
            "%s was published for %d training images, and %s has %d: its rate, batch and epochs may be unsuitable, and "
            "the id says so. linear_avgpool.imagefolder searches for its learning rate",
            base, images, protocol.dataset, len(train),
        )  # fmt: skip
        return protocol.changed(label=f"train_images={len(train)}")

    def check(self, protocol: Protocol, train: Labels, test: Labels) -> None:
        """Raises InputError for labels that do not fit, or drops of the rate that the run is too short to reach."""
        check_single_label(protocol, train, test)
        params = self.params(protocol)
        late = [drop for drop in params.drops if drop > params.length]  # one at the end is usual
        if late and params.schedule == "step":
            raise InputError(
                f"{protocol.id}: the run ends at {params.length}, before the drops of the rate at "
                f"{', '.join(map(str, late))}: set earlier drops, or leave them out to scale them with the length of "
                "the run"
            )


def finite(value: float) -> float | None:
    """The number, or None for what JSON cannot hold."""
    return value if math.isfinite(value) else None


def split_held_out(
    protocol: Protocol, labels: Labels, fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`held_out`, where a held-out part is needed if `fraction` is above 0.

    Raises:
        InputError: no class has two images.
    """
    kept, held = held_out(labels, fraction, seed)
    if fraction and not len(held):
        raise InputError(
            f"{protocol.id}: no class has two labelled images in {protocol.train_split}, so none can be held out: "
            "add images"
        )
    return kept, held


def held_out(labels: Labels, fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split the items of train in two: those to train on, and those to choose by. Both ascend.

    Of each class `fraction` is held out, rounded, but at least one item and never all. Items that share a source stay
    on one side, so a class of few sources may have less.
    """
    if fraction == 0:
        return np.arange(len(labels)), np.array([], dtype=np.int64)
    sizes = np.bincount(labels.targets, minlength=len(labels.classes))
    quota = np.minimum(np.maximum(1, np.round(fraction * sizes).astype(np.int64)), np.maximum(sizes - 1, 0))
    family = families(labels.groups)
    by_family = np.argsort(family, kind="stable")
    rng = np.random.default_rng(seed)
    if len(labels) == family.max(initial=-1) + 1:  # no shared sources: the same choice, at once instead of item by item
        drawn = by_family[rng.permutation(len(by_family))]
        targets = labels.targets[drawn]
        by_class = np.argsort(targets, kind="stable")
        within = np.arange(len(labels)) - (np.cumsum(sizes) - sizes)[targets[by_class]]
        out = np.sort(drawn[by_class[within < quota[targets[by_class]]]])
        return np.setdiff1d(np.arange(len(labels)), out), out
    members = np.split(by_family, np.cumsum(np.bincount(family))[:-1])
    held: list[int] = []
    for index in rng.permutation(len(members)):
        counts = np.bincount(labels.targets[members[index]], minlength=len(quota))
        if (counts <= quota).all():
            quota = quota - counts
            held += members[index].tolist()
    out = np.sort(np.array(held, dtype=np.int64))
    return np.setdiff1d(np.arange(len(labels)), out), out


def families(groups: Sequence[Sequence[str]]) -> NDArray[np.int64]:
    """(N,) numbers that are equal for items which share a source, directly or through other items (union-find)."""
    leader: dict[str, str] = {}

    def find(source: str) -> str:
        while leader.setdefault(source, source) != source:
            leader[source] = leader[leader[source]]  # path halving
            source = leader[source]
        return source

    for first, *others in groups:
        for other in others:
            leader[find(other)] = find(first)
    return np.unique([find(sources[0]) for sources in groups], return_inverse=True)[1].astype(np.int64)
