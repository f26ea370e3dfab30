"""What a linear probe's protocol says, typed: `Protocol.params` of this harness."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from benchmarks.contract import InputError
from benchmarks.features.pool import Pooling
from benchmarks.overrides import typed
from benchmarks.task import FEATURE_MAPS
from benchmarks.training.settings import Decays, NotNegative, Positive, Rates, TrainingSettings
from results.schema import Frozen, Protocol


class ProbeSettings(TrainingSettings):
    """Linear heads that are trained on augmented views of the images.

    A bank has one head per pair of `lrs` and `weight_decays`, per output. Several heads are trained in one pass over
    the images and chosen among by the accuracy on the `heldout` fraction of train.

    Attributes:
        outputs: which of the encoder's outputs carry a head.
        pooling: output -> how its maps become vectors; none for outputs that are vectors already.
        batch_norm: over the channels before the linear layer; `plain` has no scale and shift, `affine` has.
        iterations: where the schedule counts them instead of epochs; `drops` then are iterations too.
        choose_epoch: which evaluation the primary figure is: the last, or the best on test as the field often reports.
    """

    outputs: tuple[str, ...] = Field(min_length=1)
    pooling: dict[str, Pooling] = Field(default_factory=dict)
    batch_norm: Literal["none", "plain", "affine"] = "none"
    optimiser: Literal["sgd", "lars"] = "sgd"
    lrs: Rates
    weight_decays: Decays = (0.0,)
    lars_eta: Positive = 1e-3
    init_std: NotNegative = 0.01
    iterations: int | None = Field(None, gt=0)
    choose_epoch: Literal["best", "last"] = "last"

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(self.grid) > 1 and self.heldout == 0:
            raise ValueError(
                "several rates or weight decays are chosen among on a held-out part of train: set heldout > 0"
            )
        known = ("embed", *FEATURE_MAPS)
        if len(set(self.outputs)) < len(self.outputs) or not set(self.outputs) <= set(known):
            raise ValueError(f"outputs {', '.join(self.outputs)} must be among {', '.join(known)} and without repeats")
        unpooled = [name for name in self.outputs if name != "embed" and name not in self.pooling]
        if unpooled:
            raise ValueError(f"{', '.join(unpooled)} are maps, and pooling does not say how they become vectors")
        if self.schedule == "cosine" and self.iterations is not None:
            raise ValueError("the cosine schedule is per epoch: leave iterations unset")
        return self

    @property
    def grid(self) -> tuple[tuple[float, float], ...]:
        """The (rate, weight decay) of every head of a bank."""
        return tuple((lr, decay) for lr in self.lrs for decay in self.weight_decays)

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimiser steps of the whole run."""
        return self.iterations if self.iterations is not None else super().total_steps(steps_per_epoch)

    def rate_factor(self, step: int, steps_per_epoch: int) -> float:
        """What every head's rate is multiplied by at `step`."""
        if self.iterations is None:
            return super().rate_factor(step, steps_per_epoch)
        return self.gamma ** sum(step >= drop for drop in self.drops)


class StoredSettings(Frozen):
    """Multinomial logistic regression on stored features, full batch.

    The loss is the mean cross-entropy plus `penalty` / 2 times the squared norm of the weights (not of the bias), on
    features whose every dimension is standardised by train's mean and deviation.
    """

    output: Literal["embed", "head"] = "embed"
    penalties: Decays
    heldout: float = Field(gt=0.0, lt=1.0)
    max_iterations: int = Field(500, gt=0)
    tolerance: Positive = 1e-5
    history: int = Field(10, gt=0)
    dtype: Literal["float32", "float64"] = "float32"
    chunk: int = Field(65536, gt=0, description="rows on the device at a time")


def probe_settings(protocol: Protocol) -> ProbeSettings:
    """The typed `params` of a probe's protocol; raises as `typed`."""
    settings = typed(ProbeSettings, protocol)
    if "embed" in settings.outputs and len(settings.outputs) > 1:
        raise InputError(
            f"{protocol.id}: embed and maps have columns of their own: ask for them by two protocols, which `probes` "
            "trains in one pass"
        )
    return settings


def stored_settings(protocol: Protocol) -> StoredSettings:
    """The typed `params` of a protocol of the fast variant; raises as `typed`."""
    return typed(StoredSettings, protocol)
