"""Typed parameters that every benchmark has which trains on images: views, batch, schedule, held-out part."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from results.schema import Params


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
