"""What protocols of training on images have in common, typed: views, batch, schedule, and what is kept to choose by."""

from __future__ import annotations

import math
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, ValidationError

from benchmarks.contract import InputError
from results.schema import Frozen, Protocol


class ViewSettings(Frozen):
    """How a training view is drawn.

    Attributes:
        view: `resized_crop` takes a random area and aspect (Inception style); `stored_crop` resizes the shorter side to
            the geometry's `resize`, takes that centre square, and crops at random within it.
        jitter: strength of brightness, contrast and saturation; 0 is none.
        lighting: standard deviation of the PCA lighting noise on pixels in [0, 1]; 0 is none.
    """

    view: Literal["resized_crop", "stored_crop"] = "resized_crop"
    crop_area: tuple[float, float] = (0.08, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    jitter: float = 0.0
    lighting: float = 0.0
    flip_p: float = 0.5


class TrainingSettings(ViewSettings):
    """How long and in what steps something is trained.

    Attributes:
        batch_size: of all ranks together.
        evaluate_every: epochs between evaluations; the last epoch is always evaluated.
        heldout: fraction of train that is chosen by.
        precision: bf16 is autocast; the weights that are trained stay float32.
    """

    momentum: float = 0.9
    nesterov: bool = False
    batch_size: int = Field(256, gt=0)
    epochs: int = Field(gt=0)
    schedule: Literal["step", "cosine"] = "step"
    drops: tuple[int, ...] = ()
    gamma: float = 0.1
    evaluate_every: int = Field(1, gt=0)
    heldout: float = Field(0.0, ge=0.0, lt=1.0)
    precision: Literal["fp32", "bf16"] = "fp32"

    def changed(self, **changes: Any) -> Self:
        """A copy with other values, checked as any other settings are (`model_copy` would not)."""
        return self.model_validate({**self.model_dump(), **changes})

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimiser steps of the whole run."""
        return self.epochs * steps_per_epoch

    def rate_factor(self, step: int, steps_per_epoch: int) -> float:
        """What every rate is multiplied by at `step`. Both schedules change between epochs only."""
        epoch = step // steps_per_epoch
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
        return self.gamma ** sum(epoch >= drop for drop in self.drops)


Settings = TypeVar("Settings", bound=Frozen)


def typed(kind: type[Settings], protocol: Protocol) -> Settings:
    """The `params` of a protocol as its harness types them.

    Raises:
        InputError: an override that makes no sense, in one sentence.
    """
    try:
        return kind.model_validate(protocol.params)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{protocol.id}: {where}{': ' if where else ''}{first['msg']}") from error
