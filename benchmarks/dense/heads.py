"""What the tasks that train linear heads on images share: their params, schedules, and the task; without torch."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from benchmarks.dense.patches import Layers, maps_of
from benchmarks.task import ImageTask, InputError, Labels, Outputs
from benchmarks.training.params import NotNegative, Positive, Rates
from results.schema import Params, Protocol

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


class ImageHeadParams(HeadParams):
    """Heads on augmented images, chosen on images that are held out.

    Attributes:
        published: the rate of the source, whose head has columns of its own.
        evaluate_every: iterations between evaluations on the test images.
        heldout: fraction of the training images that the rate is chosen on.
        stride: of the map, where the encoder has stages: the deepest one that is no coarser.
        layers: of a ViT. `last` is the last block after the final norm, `last4` the last four, each after the final
            norm, together; `last_raw` is the last block without a norm, `even4_raw` the last ones of each quarter of
            the depth without a norm, together, with DINOv2's exception for 24 blocks.
    """

    published: float
    evaluate_every: int = Field(gt=0)
    heldout: float = Field(0.05, gt=0, lt=1)
    stride: int = Field(16, gt=0)
    # Left out of the JSON at its default, so that older records keep their hashes.
    layers: Layers = Field("last", exclude_if=lambda value: value == "last")


HeadsParamsT = TypeVar("HeadsParamsT", bound=ImageHeadParams)


@dataclass(frozen=True)
class HeadsTask(ImageTask[HeadsParamsT]):
    """A head per learning rate on a frozen encoder, all trained in one pass over the images, see `train_heads`."""

    passes_per_step = 1
    fits_image_size = False  # images are padded instead

    def outputs(self, protocol: Protocol) -> Outputs:
        """The patch tokens, or the map of a stage."""
        return {name: (name, None) for name in maps_of(self.params(protocol).layers)}

    def check(self, protocol: Protocol, train: Labels, test: Labels) -> None:
        """Raises InputError where torchrun started several processes."""
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError("dense heads train in a single process: start the command without torchrun")

    def shortened(self, protocol: Protocol, steps: int, batch_size: int) -> Protocol:
        """Without warm-up, and evaluated once."""
        return protocol.changed(iterations=steps, warmup=0, evaluate_every=steps, batch_size=batch_size)


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
