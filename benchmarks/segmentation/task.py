"""Semantic segmentation by mmsegmentation: an FCN on a ResNet, or UPerNet or a linear head on a ViT.

Values of the protocols: mmselfsup's benchmark configurations; MoCo v1 (arXiv:1911.05722), appendix; the configurations
of mmsegmentation and iBOT for ViTs.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar

import numpy as np
from pydantic import Field, model_validator

from benchmarks.task import ImageTask, InputError, Labels, Outcome, Outputs, RunOptions
from benchmarks.training.task import mask_protocol
from benchmarks.training.trials import IGNORED, Sheet, Trial, mask_figure, run_trials
from results.files import open_image
from results.schema import Geometry, Params, Protocol, Source

if TYPE_CHECKING:
    from benchmarks.encoders.encoder import Encoder
    from benchmarks.segmentation.train import SegmentationTrial


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

    reduce_zero_label: ClassVar[bool] = False  # masks hold class indices

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


class VitSegmentationParams(Params):
    """A head of mmsegmentation on four blocks of a ViT.

    Attributes:
        head: `upernet` has a pyramid of the four maps at strides 4 to 32 and an auxiliary FCN, `linear` is a 1x1
            convolution on the four maps together.
        classes: of the network, including a background where the data set scores it.
        reduce_zero_label: masks number classes from 1, and 0 is ignored, as in ADE20K.
        blocks: whose outputs the head reads, from 0, without a norm after them; () takes the last one of each quarter
            of the depth.
        frozen: train the head only.
        head_channels: of UPerNet; 0 is the width of the encoder.
        scale: long and short side that an image is resized to before the random ratio (aspect kept, the smaller factor
            counts).
        most_of_one_class: draw a crop again, at most ten times, while one class covers more than this fraction of it.
        window_stride: pixels between the windows of `crop` pixels that a test image is cut into.
        batch_size: images per iteration, over all ranks.
        layer_decay: the rate of a block is this share of the next one's; weight decay spares biases and norms then.
        warmup_iterations: of a line from `warmup_factor` to 1, before the rate falls to 0 by a power of the time left.
        trials: runs with different seeds; the protocol reports their mean.
        checkpoint_every: iterations between checkpoints, from which a killed run continues.
    """

    head: Literal["upernet", "linear"]
    classes: int = Field(150, gt=1)
    reduce_zero_label: bool = True
    blocks: tuple[int, ...] = (3, 5, 7, 11)
    frozen: bool = False
    head_channels: int = Field(0, ge=0)
    auxiliary_channels: int = Field(256, ge=0)
    auxiliary_weight: float = 0.4
    dropout: float = Field(0.1, ge=0, lt=1)
    drop_path: float = Field(0.1, ge=0, lt=1)
    scale: tuple[int, int] = (2048, 512)
    ratio: tuple[float, float] = (0.5, 2.0)
    crop: int = Field(512, gt=0)
    most_of_one_class: float = Field(0.75, gt=0, le=1)
    flip_p: float = 0.5
    photometric: bool = True
    window_stride: int = 341
    batch_size: int = Field(16, gt=0)
    iterations: int = Field(160_000, gt=0)
    lr: float = Field(gt=0)
    beta2: float = Field(0.999, gt=0, lt=1)
    weight_decay: float = Field(0.05, ge=0)
    layer_decay: float | None = Field(None, gt=0, le=1)
    warmup_iterations: int = Field(1500, ge=0)
    warmup_factor: float = Field(1e-6, gt=0, le=1)
    power: float = 1.0
    trials: int = Field(1, gt=0)
    checkpoint_every: int = Field(4000, gt=0)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if not 0 < self.window_stride <= self.crop:
            raise ValueError(f"windows of {self.crop} pixels need a window_stride between 1 and {self.crop}")
        if self.blocks and (len(self.blocks) != 4 or sorted(set(self.blocks)) != list(self.blocks)):
            raise ValueError(f"blocks {self.blocks} must be four different ones in ascending order")
        if self.warmup_iterations >= self.iterations:
            raise ValueError(
                f"a warm-up of {self.warmup_iterations} iterations does not end within the {self.iterations} of the run"
            )
        if self.warmup_iterations == 1:
            raise ValueError(
                "mmengine never ends a warm-up of one iteration; set warmup_iterations to 0, or to 2 or more"
            )
        if self.frozen and self.layer_decay:
            raise ValueError("a frozen encoder has no rates for layer_decay to change; set one of the two")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio {self.ratio} must be positive and in ascending order")
        return self

    def blocks_of(self, name: str, depth: int) -> tuple[int, ...]:
        """The blocks whose outputs the head reads, of an encoder with this many.

        Raises:
            InputError: the encoder does not end with the last of them, or has fewer than four.
        """
        if depth < 4:
            raise InputError(f"{name} has {depth} blocks, and the head reads the outputs of four; use another encoder")
        blocks = self.blocks or tuple(depth * part // 4 - 1 for part in (1, 2, 3, 4))
        if blocks[-1] != depth - 1:
            raise InputError(
                f"{name} has {depth} blocks, but the protocol reads blocks {', '.join(map(str, blocks))} (from 0), of "
                "which the last must be the encoder's last; choose the protocol of this size, or add --set blocks="
            )
        return blocks


UPERNET_MAE = VitSegmentationParams(head="upernet", lr=1e-4, layer_decay=0.65)
UPERNET_IBOT = UPERNET_MAE.changed(lr=7e-4)
UPERNET_IBOT_LARGE = UPERNET_IBOT.changed(lr=2e-5, layer_decay=0.95, drop_path=0.2, blocks=(7, 11, 15, 23))
LINEAR_IBOT = VitSegmentationParams(
    head="linear", frozen=True, lr=7e-4, dropout=0.0, drop_path=0.0, auxiliary_channels=0
)
# The embedded scenes: 192 pixels, 12 classes of drawings and their background.
_DEMO: dict[str, Any] = {
    "classes": 13, "blocks": (), "scale": (128, 128), "ratio": (0.75, 1.5), "crop": 96, "window_stride": 64,
    "photometric": False, "batch_size": 8, "iterations": 700, "warmup_iterations": 50, "checkpoint_every": 100,
}  # fmt: skip
UPERNET_DEMO = UPERNET_MAE.changed(**_DEMO, head_channels=64, auxiliary_channels=32, lr=3e-4)
LINEAR_DEMO = LINEAR_IBOT.changed(**_DEMO)

_MMSEG = Source(
    repository="open-mmlab/mmsegmentation",
    revision="1.x, as onedl-mmsegmentation 1.4.2 ships it",
    note="configs/mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py, which in spite of its name trains in fp32; "
    "there the encoder also gets relative position biases that start at zero, which this project's does not",
)
_IBOT = Source(
    repository="bytedance/ibot",
    revision="c24f870",
    note="evaluation/semantic_segmentation/configs/{}/vit_{}_512_ade20k_160k.py: 8 x 2 images, there in float16; the "
    "warm-up is mmengine's, after which the rate falls from its full value",
)
_OURS = Source(repository="this project", note="made small, on the embedded scenes")


def _ibot(head: str, size: str) -> Source:
    return _IBOT.model_copy(update={"note": (_IBOT.note or "").format(head, size)})


def _protocol(
    harness: str,
    benchmark: str,
    variant: str,
    params: SegmentationParams | VitSegmentationParams,
    source: Source,
    dataset: str,
) -> Protocol:
    return mask_protocol(
        harness, variant, dataset, Geometry(mode="shorter", resize=params.crop, crop=params.crop), params, source,
        benchmark=benchmark, columns=("mIoU", "mAcc", "aAcc"), metric="mean intersection over union",
        selection="last iteration",
    )  # fmt: skip


VOC_PROTOCOLS = (
    _protocol("voc-seg", "voc12aug_fcn", "mmselfsup", MMSELFSUP, _MMSELFSUP_SOURCE, "voc12aug"),
    _protocol("voc-seg", "voc12aug_fcn_s16", "moco", MOCO, _MOCO_SOURCE, "voc12aug"),
    _protocol("voc-seg", "voc12aug_fcn", "demo", DEMO, Source(repository="this project"), "voc2007_seg"),
)
CITYSCAPES_PROTOCOLS = (
    _protocol("cityscapes-seg", "cityscapes_fcn", "mmselfsup", MMSELFSUP_CITYSCAPES, _MMSELFSUP_SOURCE, "cityscapes"),
    _protocol("cityscapes-seg", "cityscapes_fcn_s16", "moco", MOCO_CITYSCAPES, _MOCO_SOURCE, "cityscapes"),
)
VIT_PROTOCOLS = (
    _protocol("vit-seg", "ade20k_upernet", "mae_base", UPERNET_MAE, _MMSEG, "ade20k"),
    _protocol("vit-seg", "ade20k_upernet", "ibot_base", UPERNET_IBOT, _ibot("upernet", "base"), "ade20k"),
    _protocol("vit-seg", "ade20k_upernet", "ibot_large", UPERNET_IBOT_LARGE, _ibot("upernet", "large"), "ade20k"),
    _protocol("vit-seg", "ade20k_linear_vit", "ibot_base", LINEAR_IBOT, _ibot("linear", "base"), "ade20k"),
    _protocol("vit-seg", "ade20k_upernet", "demo", UPERNET_DEMO, _OURS, "ade20k"),
    _protocol("vit-seg", "ade20k_linear_vit", "demo", LINEAR_DEMO, _OURS, "ade20k"),
)


ParamsT = TypeVar("ParamsT", bound=SegmentationParams | VitSegmentationParams)


@dataclass(frozen=True)
class SegmentationTask(ImageTask[ParamsT]):
    """What all segmentation benchmarks share."""

    fits_image_size = False  # the engine resizes images
    half_on_gpu = True

    @abstractmethod
    def trial(self) -> type[SegmentationTrial]:
        """The kind of trial."""

    def run(
        self, protocol: Protocol, encoder: Encoder, train: Labels, test: Labels, workdir: Path, options: RunOptions
    ) -> Outcome:
        """Train the head, and the encoder where it is not frozen, in every trial and measure the model on `test`.

        Under torchrun the protocol's batch is split over the ranks.

        Raises:
            InputError: mmsegmentation is not installed, images lack masks, or the number of classes is another.
            NotApplicableError: the engine cannot hold the encoder.
        """
        self.check_encoder(protocol, encoder)
        from benchmarks.segmentation.model import require_library

        require_library()
        params = self.params(protocol)
        require_classes(protocol, train, params.classes)
        kind = self.trial()

        def start(seed: int, folder: Path) -> Trial:
            return kind(params, encoder, train, test, seed, folder, options)

        sheet = SegmentationSheet(train.classes, test)
        return run_trials(protocol, encoder, train, test, workdir, options, start=start, sheet=sheet)


@dataclass(frozen=True)
class Segmentation(SegmentationTask[SegmentationParams]):
    """FCNs on a ResNet."""

    Params = SegmentationParams

    def outputs(self, protocol: Protocol) -> Outputs:
        """The last stage, which the head sits on."""
        return {"feature5": ("feature5", None)}

    def check_encoder(self, protocol: Protocol, encoder: Encoder) -> None:
        """Raises NotApplicableError for an encoder that mmsegmentation's ResNet cannot hold."""
        from benchmarks.segmentation.model import resnet_settings

        resnet_settings(encoder.card)

    def shortened(self, protocol: Protocol, steps: int, batch_size: int) -> Protocol:
        """At a rate without drops."""
        return protocol.changed(iterations=steps, schedule="poly", drops=(), batch_size=batch_size, trials=1)

    def trial(self) -> type[SegmentationTrial]:
        from benchmarks.segmentation.train import FcnTrial

        return FcnTrial


@dataclass(frozen=True)
class VocSegmentation(Segmentation):
    """Semantic segmentation on PASCAL VOC 2012: an FCN, fine-tuned."""

    name = "voc-seg"
    protocols = VOC_PROTOCOLS


@dataclass(frozen=True)
class CityscapesSegmentation(Segmentation):
    """Semantic segmentation on Cityscapes: an FCN, fine-tuned."""

    name = "cityscapes-seg"
    protocols = CITYSCAPES_PROTOCOLS


@dataclass(frozen=True)
class VitSegmentation(SegmentationTask[VitSegmentationParams]):
    """Semantic segmentation with a ViT: UPerNet fine-tuned, or a linear head on the frozen encoder."""

    name = "vit-seg"
    Params = VitSegmentationParams
    protocols = VIT_PROTOCOLS

    def outputs(self, protocol: Protocol) -> Outputs:
        """The patch tokens, which the head sits on."""
        return {"patches": ("patches", None)}

    def check_encoder(self, protocol: Protocol, encoder: Encoder) -> None:
        """Raises NotApplicableError for an encoder that mmsegmentation's ViT cannot hold."""
        from benchmarks.encoders.vit_export import vit_shape

        self.params(protocol).blocks_of(encoder.card.name, vit_shape(encoder, "mmsegmentation").depth)

    def shortened(self, protocol: Protocol, steps: int, batch_size: int) -> Protocol:
        """Without warm-up."""
        return protocol.changed(iterations=steps, warmup_iterations=0, batch_size=batch_size, trials=1)

    def trial(self) -> type[SegmentationTrial]:
        from benchmarks.segmentation.train import VitSegmentationTrial

        return VitSegmentationTrial


_ALL: tuple[type[SegmentationTask[Any]], ...] = (VocSegmentation, CityscapesSegmentation, VitSegmentation)
TASKS = {task.name: task for task in _ALL}  # by command


def require_classes(protocol: Protocol, train: Labels, classes: int) -> None:
    """Raises InputError where the data set has another number of classes, its background included."""
    if len(train.classes) != classes:
        background = " including the background" if "background" in train.classes else ""
        raise InputError(
            f"{protocol.dataset} has {len(train.classes)} classes{background}, but {protocol.id} is for "
            f"{classes}; choose the protocol of this data set, or --set classes={len(train.classes)}"
        )


class SegmentationSheet(Sheet):
    """Image, truth and prediction side by side, with a legend."""

    def __init__(self, classes: tuple[str, ...], test: Labels, *, images: int = 8) -> None:
        super().__init__(classes, images=images)
        self.test = test

    def look(self, item: Any, predicted: Any) -> None:
        """Take the test image of this index and mmseg's sample, unless the sheet is full or the image has one class."""
        truth = predicted.gt_sem_seg.data[0].cpu().numpy()
        if len(self.chosen) >= self.images or len(set(np.unique(truth)) - {IGNORED}) < 2:
            return
        mask = predicted.pred_sem_seg.data[0].cpu().numpy()
        with open_image(self.test.paths[item]) as image:
            self.chosen.append((np.asarray(image.convert("RGB")), truth, mask))

    def draw(self, plt: Any) -> Any:
        return mask_figure(self.chosen, self.classes)
