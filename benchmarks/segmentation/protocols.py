"""The segmentation protocols and the type of their parameters.

Values: mmselfsup's benchmark configurations; MoCo v1 (arXiv:1911.05722), appendix.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from results.schema import Geometry, Params, Protocol, Source

IGNORED = 255  # mask value of VOC's object borders, of what Cityscapes does not evaluate, and of padding


class SegmentationParams(Params):
    """An FCN on the encoder's last stage, fine-tuned as a whole.

    Attributes:
        base: configuration shipped with mmsegmentation that the other fields change.
        classes: of the network, including the background.
        strides, dilations: of the four stages; the network's stride follows from them.
        contract_dilation: the first block of a dilated stage keeps the dilation of the stage before.
        head_channels, head_convs, head_dilation: of the 3x3 convolutions before the classifier.
        head_concat: concatenate the head's input with their output and apply one more such convolution.
        auxiliary_channels: of the auxiliary head on the third stage; 0 has no such head.
        scale: long and short side that an image is resized to before the random ratio (aspect kept, the smaller factor
            counts); None applies the ratio to the image as it is.
        most_of_one_class: draw a crop again, at most ten times, while one class covers more than this fraction of it.
        inference: the whole image at once, or `crop` windows every `window_stride` pixels.
        batch_size: images per iteration, over all ranks.
        drops: iterations at which the `step` schedule multiplies the learning rate by `gamma`.
        trials: runs with different seeds; the protocol reports their mean.
        checkpoint_every: iterations between checkpoints, from which a killed run continues.
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
    def _fields_agree(self) -> Self:
        if self.inference == "windows" and not 0 < self.window_stride <= self.crop:
            raise ValueError(f"windows of {self.crop} pixels need a window_stride between 1 and {self.crop}")
        within = [0, *self.drops, self.iterations]
        if self.schedule == "step" and (not self.drops or sorted(set(within)) != within):
            raise ValueError(
                f"drops {self.drops} must ascend and lie within the {self.iterations} iterations; set drops to 70 % "
                "and 90 % of the iterations"
            )
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio {self.ratio} must be positive and in ascending order")
        return self


# Two FCNs that never share a column: the published figures differ by 5 points for the same weights.
MMSELFSUP = SegmentationParams(  # stride 8, an auxiliary head
    base="fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py", classes=21,
    strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dilation=True,
    head_channels=512, head_convs=2, head_concat=True, dropout=0.1, auxiliary_channels=256,
    scale=(2048, 512), crop=512, most_of_one_class=0.75, photometric=True,
    batch_size=16, iterations=20_000, lr=0.01, weight_decay=5e-4, schedule="poly", lr_min=1e-4, checkpoint_every=2000,
)  # fmt: skip
MMSELFSUP_CITYSCAPES = MMSELFSUP.changed(
    base="fcn/fcn_r50-d8_4xb2-40k_cityscapes-769x769.py", classes=19, align_corners=True,
    scale=(2049, 1025), crop=769, inference="windows", window_stride=513,
    batch_size=8, iterations=40_000, checkpoint_every=4000,
)  # fmt: skip
MOCO = SegmentationParams(  # stride 16, no auxiliary head
    base="fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py", classes=21,
    strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), contract_dilation=False,
    head_channels=256, head_convs=2, head_dilation=6, head_concat=False, dropout=0.0, auxiliary_channels=0,
    scale=None, crop=513,
    batch_size=16, iterations=30_000, lr=0.003, weight_decay=1e-4, schedule="step", drops=(21_000, 27_000), trials=5,
)  # fmt: skip
MOCO_CITYSCAPES = MOCO.changed(
    base="fcn/fcn_r50-d8_4xb2-40k_cityscapes-769x769.py", classes=19,
    crop=769, iterations=90_000, lr=0.01, drops=(63_000, 81_000),
)  # fmt: skip
# The embedded scenes, reduced to 128 pixels: 12 classes of drawings and the background.
DEMO = MMSELFSUP.changed(
    classes=13, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2),  # stride 8 with a stem that has no max-pool
    head_channels=64, auxiliary_channels=32,
    scale=(128, 128), ratio=(0.75, 1.5), crop=96, photometric=False,
    batch_size=8, iterations=700, lr=0.08, trials=3, checkpoint_every=100,
)  # fmt: skip

_MMSELFSUP_SOURCE = Source(
    repository="open-mmlab/mmselfsup", revision="0.x", note="configs/benchmarks/mmsegmentation; batch as mmseg has it"
)
_MOCO_SOURCE = Source(repository="arXiv:1911.05722", note="appendix, as transcribed; figures are means of 5 trials")


def _protocol(benchmark: str, variant: str, params: SegmentationParams, source: Source, dataset: str) -> Protocol:
    train, test = {"voc12aug": ("train_aug", "val"), "cityscapes": ("train", "val")}.get(dataset, ("trainval", "test"))
    return Protocol.of(
        params,
        benchmark=benchmark,
        variant=variant,
        harness="cityscapes-seg" if dataset == "cityscapes" else "voc-seg",
        dataset=dataset,
        train_split=train,
        test_split=test,
        geometry=Geometry(mode="shorter", resize=params.crop, crop=params.crop),
        columns=("mIoU", "mAcc", "aAcc"),
        primary="mIoU",
        metric="mean intersection over union",
        selection="last iteration",
        source=source,
    )


VOC_PROTOCOLS = (
    _protocol("voc12aug_fcn", "mmselfsup", MMSELFSUP, _MMSELFSUP_SOURCE, "voc12aug"),
    _protocol("voc12aug_fcn_s16", "moco", MOCO, _MOCO_SOURCE, "voc12aug"),
    _protocol("voc12aug_fcn", "demo", DEMO, Source(repository="this project"), "voc2007_seg"),
)
CITYSCAPES_PROTOCOLS = (
    _protocol("cityscapes_fcn", "mmselfsup", MMSELFSUP_CITYSCAPES, _MMSELFSUP_SOURCE, "cityscapes"),
    _protocol("cityscapes_fcn_s16", "moco", MOCO_CITYSCAPES, _MOCO_SOURCE, "cityscapes"),
)
