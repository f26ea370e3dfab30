"""Parameters of heads that are trained on images, and their schedules; nothing here needs torch."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from benchmarks.training.params import NotNegative, Positive, Rates
from results.schema import Params

Schedule = Literal["poly", "cosine", "one_cycle"]


class HeadParams(Params):
    """Linear heads with a batch norm of their own scale and shift, one per rate, trained by AdamW.

    Attributes:
        rates: learning rates, each a head; all heads see the same batches.
        decay: weight decay of every parameter, as torch's AdamW has it.
        dropout: fraction of the channels of an image that are zeroed; the heads share the draws.
        warmup: iterations of linear warm-up.
        schedule: poly of power 1, cosine, or one cycle with a cycled first moment, to `iterations`.
        clip: largest norm of a head's gradient; 0 does not clip.
        batch_size: images.
    """

    rates: Rates
    decay: NotNegative
    betas: tuple[float, float] = (0.9, 0.999)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    warmup: int = Field(ge=0)
    schedule: Schedule
    clip: NotNegative = 0.0
    iterations: int = Field(gt=0)
    batch_size: int = Field(gt=0)


def rate_factor(params: HeadParams, step: int) -> float:
    """The factor of every rate at `step` (from 0).

    The first two are mmcv's warm-up (ratio 1e-6) times the decaying rate, then the decay alone; dinov3's cosine lags
    one step behind, as its scheduler is first stepped in the second iteration, and is read one step ahead.
    """
    total = params.iterations
    if params.schedule == "one_cycle":
        if step < params.warmup:
            return 1e-3 + (1 + math.cos(math.pi * step / total)) / 2 * step / params.warmup
        least = 1 / 25 / 1000
        return least + (1 - least) * (1 + math.cos(math.pi * (step + 1) / total)) / 2
    if params.schedule == "cosine":
        step = max(step - 1, 0)
    warming = 1 - (1 - step / params.warmup) * (1 - 1e-6) if step < params.warmup else 1.0
    if params.schedule == "poly" or step < params.warmup:
        return warming * (1 - step / total)
    return (1 + math.cos(math.pi * (step + 1) / total)) / 2


def first_moment(params: HeadParams, step: int) -> float:
    """AdamW's beta1 at `step`: one cycle raises it from 0.85 to 0.95 after a warm-up, in which it is 0 by its code."""
    if params.schedule != "one_cycle":
        return params.betas[0]
    if step < params.warmup:
        return 0.0
    share = (step - params.warmup) / (params.iterations - params.warmup)
    return 0.95 + (0.85 - 0.95) * (1 + math.cos(math.pi * share)) / 2


class SegmentationViews(Params):
    """How a training view is drawn, and how a test image is cut into windows.

    Attributes:
        short_side: of the resized image, in training times a random number of `ratio`; the aspect is kept.
        crop: of a training view and of a window, squared.
        most_of_one_class: draw the crop again, at most ten times, while one class covers this share of its pixels.
        brightness: largest shift of pixel values of 255.
        contrast, saturation: factors, lowest and highest.
        hue: largest turn, as a fraction of the colour circle.
        window_stride: pixels from one window to the next.
        pad: every input with zeros on all sides to whole patches of a ViT.
    """

    short_side: int = Field(512, gt=0)
    ratio: tuple[Positive, Positive] = (0.5, 2.0)
    crop: int = Field(512, gt=0)
    most_of_one_class: Annotated[float, Field(gt=0, le=1)] = 0.75
    flip_p: Annotated[float, Field(ge=0, le=1)] = 0.5
    brightness: NotNegative = 32.0
    contrast: tuple[Positive, Positive] = (0.5, 1.5)
    saturation: tuple[Positive, Positive] = (0.5, 1.5)
    hue: Annotated[float, Field(ge=0, le=0.5)]
    window_stride: int = Field(341, gt=0)
    pad: bool = False
