"""What a linear probe's protocol says, typed: `Protocol.params` of this harness."""

from __future__ import annotations

import math
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, model_validator

from benchmarks.contract import InputError
from benchmarks.features.pool import Pooling
from results.schema import Frozen, Protocol


class ProbeSettings(Frozen):
    """Linear heads that are trained on augmented views of the images.

    A bank has one head per pair of `lrs` and `weight_decays`, per output. Several heads are trained in one pass over
    the images and chosen among by the accuracy on the `heldout` fraction of train.

    Attributes:
        outputs: which of the encoder's outputs carry a head.
        pooling: output -> how its maps become vectors; none for outputs that are vectors already.
        batch_norm: over the channels before the linear layer; `plain` has no scale and shift, `affine` has.
        view: `resized_crop` takes a random area and aspect (Inception style); `stored_crop` resizes the shorter side to
            the geometry's `resize`, takes that centre square, and crops at random within it.
        jitter: strength of brightness, contrast and saturation; 0 is none.
        lighting: standard deviation of the PCA lighting noise on pixels in [0, 1]; 0 is none.
        batch_size: of all ranks together.
        iterations: where the schedule counts them instead of epochs; `drops` then are iterations too.
        evaluate_every: epochs between evaluations; the last epoch is always evaluated.
        choose_epoch: which evaluation the primary figure is: the last, or the best on test as the field often reports.
        precision: bf16 is autocast for encoder and heads; the heads' master weights stay float32.
    """

    outputs: tuple[str, ...]
    pooling: dict[str, Pooling] = Field(default_factory=dict)
    batch_norm: Literal["none", "plain", "affine"] = "none"
    view: Literal["resized_crop", "stored_crop"] = "resized_crop"
    crop_area: tuple[float, float] = (0.08, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    jitter: float = 0.0
    lighting: float = 0.0
    flip_p: float = 0.5
    optimiser: Literal["sgd", "lars"] = "sgd"
    lrs: tuple[float, ...]
    weight_decays: tuple[float, ...] = (0.0,)
    momentum: float = 0.9
    nesterov: bool = False
    lars_eta: float = 1e-3
    init_std: float = 0.01
    batch_size: int = Field(256, gt=0)
    epochs: int = Field(gt=0)
    iterations: int | None = None
    schedule: Literal["step", "cosine"] = "step"
    drops: tuple[int, ...] = ()
    gamma: float = 0.1
    evaluate_every: int = Field(1, gt=0)
    choose_epoch: Literal["best", "last"] = "last"
    heldout: float = Field(0.0, ge=0.0, lt=1.0)
    precision: Literal["fp32", "bf16"] = "fp32"

    @model_validator(mode="after")
    def _bank_needs_heldout(self) -> Self:
        if len(self.grid) > 1 and self.heldout == 0:
            raise ValueError(
                "several rates or weight decays are chosen among on a held-out part of train: set heldout > 0"
            )
        if self.schedule == "cosine" and self.iterations is not None:
            raise ValueError("the cosine schedule is per epoch: leave iterations unset")
        return self

    def changed(self, **changes: Any) -> Self:
        """A copy with other values, checked as any other settings are (`model_copy` would not)."""
        return self.model_validate({**self.model_dump(), **changes})

    @property
    def grid(self) -> tuple[tuple[float, float], ...]:
        """The (rate, weight decay) of every head of a bank."""
        return tuple((lr, decay) for lr in self.lrs for decay in self.weight_decays)

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimiser steps of the whole run."""
        return self.iterations if self.iterations is not None else self.epochs * steps_per_epoch

    def rate_factor(self, step: int, steps_per_epoch: int) -> float:
        """What every head's rate is multiplied by at `step`. Both schedules change between epochs only."""
        epoch = step // steps_per_epoch
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
        now = step if self.iterations is not None else epoch
        return self.gamma ** sum(now >= drop for drop in self.drops)


class StoredSettings(Frozen):
    """Multinomial logistic regression on stored features, full batch.

    The loss is the mean cross-entropy plus `penalty` / 2 times the squared norm of the weights (not of the bias), on
    features whose every dimension is standardised by train's mean and deviation.
    """

    output: str = "embed"
    penalties: tuple[float, ...]
    heldout: float = Field(gt=0.0, lt=1.0)
    max_iterations: int = 500
    tolerance: float = 1e-5
    history: int = 10
    dtype: Literal["float32", "float64"] = "float32"
    chunk: int = Field(65536, gt=0, description="rows on the device at a time")


def probe_settings(protocol: Protocol) -> ProbeSettings:
    """The typed `params` of a probe's protocol.

    Raises:
        InputError: an override that makes no sense, in one sentence.
    """
    return _typed(ProbeSettings, protocol)


def stored_settings(protocol: Protocol) -> StoredSettings:
    """The typed `params` of a protocol of the fast variant; raises as `probe_settings`."""
    return _typed(StoredSettings, protocol)


Settings = TypeVar("Settings", bound=Frozen)


def _typed(kind: type[Settings], protocol: Protocol) -> Settings:
    try:
        return kind.model_validate(protocol.params)
    except ValueError as error:
        raise InputError(f"{protocol.id}: its settings do not fit together: {error}") from error
