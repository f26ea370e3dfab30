"""What a segmentation protocol says, typed: `Protocol.params` of this harness."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from benchmarks.overrides import typed
from results.schema import Frozen, Protocol


class SegmentationSettings(Frozen):
    """An FCN on the encoder's last stage, fine-tuned as a whole.

    Attributes:
        base: the configuration shipped with mmsegmentation that the other fields are laid over.
        classes: as the network has them, the background included.
        strides, dilations: of the four stages. What the stride of the whole is follows from them.
        contract_dilation: the first block of a dilated stage keeps the dilation of the stage before.
        head_channels, head_convs, head_dilation, head_concat: of the 3x3 convolutions before the classifier;
            `head_concat` joins their input to their output with one more of them.
        auxiliary_channels: of the auxiliary head on the third stage; 0 is none.
        scale: long and short side that an image is resized to before the random ratio (aspect kept, the smaller factor
            counts); None takes the ratio of the image as it is.
        most_of_one_class: crops in which one class covers more than this fraction are drawn again, ten times at most.
        inference: the whole image at once, or `crop` windows every `window_stride` pixels.
        batch_size: of all ranks together.
        drops: for the `step` schedule, iterations at which the rate is multiplied by `gamma`.
        trials: runs with seeds of their own, whose mean is reported.
        checkpoint_every: iterations after which a killed run can go on.
    """

    base: str
    classes: int = Field(gt=1)
    strides: tuple[int, int, int, int]
    dilations: tuple[int, int, int, int]
    contract_dilation: bool
    head_channels: int = Field(gt=0)
    head_convs: int = Field(gt=0)
    head_dilation: int = Field(1, gt=0)
    head_concat: bool
    dropout: float = Field(ge=0, lt=1)
    auxiliary_channels: int = Field(ge=0)
    auxiliary_weight: float = 0.4
    align_corners: bool = False
    scale: tuple[int, int] | None
    ratio: tuple[float, float] = (0.5, 2.0)
    crop: int = Field(gt=0)
    most_of_one_class: float = Field(1.0, gt=0, le=1)
    flip_p: float = 0.5
    photometric: bool = False
    inference: Literal["whole", "windows"] = "whole"
    window_stride: int = 0
    batch_size: int = Field(gt=0)
    iterations: int = Field(gt=0)
    lr: float = Field(gt=0)
    momentum: float = 0.9
    weight_decay: float
    schedule: Literal["poly", "step"]
    power: float = 0.9
    lr_min: float = 0.0
    drops: tuple[int, ...] = ()
    gamma: float = 0.1
    trials: int = Field(1, gt=0)
    checkpoint_every: int = Field(1000, gt=0)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"

    @model_validator(mode="after")
    def _windows_have_a_stride(self) -> Self:
        if self.inference == "windows" and not 0 < self.window_stride <= self.crop:
            raise ValueError(f"windows of {self.crop} pixels need a window_stride between 1 and {self.crop}")
        return self

    @model_validator(mode="after")
    def _drops_lie_within(self) -> Self:
        within = [0, *self.drops, self.iterations]
        if self.schedule == "step" and (not self.drops or sorted(set(within)) != within):
            raise ValueError(
                f"drops {self.drops} must ascend and lie within the {self.iterations} iterations; set them to 70 % and "
                "90 % of a schedule of another length"
            )
        return self

    @model_validator(mode="after")
    def _ratios_ascend(self) -> Self:
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio {self.ratio} must ascend from above 0")
        return self


def settings_of(protocol: Protocol) -> SegmentationSettings:
    """The typed `params` of a protocol; raises as `typed`."""
    return typed(SegmentationSettings, protocol)
