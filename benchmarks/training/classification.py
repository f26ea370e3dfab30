"""What classification on single-label sets shares: protocols, checks of splits, tasks that train, the held-out part."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.task import ImageTask, InputError, Labels
from benchmarks.training.params import TrainingParams
from results.schema import Geometry, Params, Protocol, Source

log = logging.getLogger("benchmarks")


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
    members = np.split(by_family, np.cumsum(np.bincount(family))[:-1])
    held: list[int] = []
    for index in np.random.default_rng(seed).permutation(len(members)):
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
