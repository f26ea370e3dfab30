"""Linear heads on a frozen encoder's maps of augmented images: segmentation and depth (DINOv2, DINOv3).

A head per learning rate, all trained in one pass over the images and chosen on held-out ones.
`benchmarks.dense.problems` has their views, losses and measurements, `benchmarks.dense.training` the training.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from benchmarks.dense.masks import MaskFormat, add_segmentation, require_masks
from benchmarks.dense.patches import Layers, maps_of
from benchmarks.task import ImageTask, InputError, Labels, Outcome, Outputs, RunOptions
from benchmarks.training.task import NotNegative, Positive, Rates, mask_protocol, require_images
from results.schema import Geometry, Params, Protocol, Score, Source

if TYPE_CHECKING:
    from benchmarks.encoders.encoder import Encoder

_OWN = (
    "The grid around the published rate, the choice on held-out training images and a map of stride 16 of networks "
    "with stages are this project's own"
)
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

    def rate_factor(self, step: int) -> float:
        """The factor of every rate at `step` (from 0).

        The first two are mmcv's warm-up (ratio 1e-6) times the decaying rate, then the decay alone; dinov3's cosine
        lags one step behind, as its scheduler is first stepped in the second iteration, and is read one step ahead.
        """
        total = self.iterations
        if self.schedule == "one_cycle":
            if step < self.warmup:
                return 1e-3 + (1 + math.cos(math.pi * step / total)) / 2 * step / self.warmup
            least = 1 / 25 / 1000
            return least + (1 - least) * (1 + math.cos(math.pi * (step + 1) / total)) / 2
        if self.schedule == "cosine":
            step = max(step - 1, 0)
        warming = 1 - (1 - step / self.warmup) * (1 - 1e-6) if step < self.warmup else 1.0
        if self.schedule == "poly" or step < self.warmup:
            return warming * (1 - step / total)
        return (1 + math.cos(math.pi * (step + 1) / total)) / 2

    def first_moment(self, step: int) -> float:
        """AdamW's beta1 at `step`: one cycle raises it from 0.85 to 0.95 after a warm-up, in which its code has 0."""
        if self.schedule != "one_cycle":
            return self.betas[0]
        if step < self.warmup:
            return 0.0
        share = (step - self.warmup) / (self.iterations - self.warmup)
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


class LinearSegParams(ImageHeadParams):
    """The numbers of a linear segmentation.

    Attributes:
        short_side: of the resized image, in training times a random number of `ratio`; the aspect is kept.
        crop: of a training view and of a window, squared.
        most_of_one_class: draw the crop again, at most ten times, while one class covers this share of its pixels.
        brightness: largest shift of pixel values of 255.
        contrast, saturation: factors, lowest and highest.
        hue: largest turn, as a fraction of the colour circle.
        window_stride: pixels from one window to the next.
        pad: every input with zeros on all sides to whole patches of a ViT.
        best_on_test: the source reports its best evaluation on the test images, not the last.
        test_ratios: of the short side of a test image; probabilities are averaged over these sizes.
        flip_test: average the probabilities of an image and of its mirror image too.
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
    best_on_test: bool
    # Left out of the JSON at their defaults, so that older records keep their hashes.
    test_ratios: tuple[Positive, ...] = Field((1.0,), min_length=1, exclude_if=lambda value: value == (1.0,))
    flip_test: bool = Field(False, exclude_if=lambda value: value is False)

    def columns(self) -> tuple[str, ...]:
        """The published column stands only where its rate is in the grid."""
        return ("mIoU", *(("mIoU published",) if self.published in self.rates else ()), "mIoU oracle")


_GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
DINOV2 = LinearSegParams(
    rates=_GRID, decay=1e-4, warmup=1500, schedule="poly", iterations=40_000, batch_size=16, hue=18 / 180, pad=True,
    published=1e-3, best_on_test=False, evaluate_every=10_000,
)  # fmt: skip
DINOV2_MS = DINOV2.changed(
    short_side=640, crop=640, ratio=(1.0, 3.0), window_stride=427, layers="last4",
    test_ratios=(1.0, 1.32, 1.73, 2.28, 3.0), flip_test=True,
)  # fmt: skip
DINOV3 = LinearSegParams(
    rates=_GRID, decay=1e-3, warmup=1500, schedule="cosine", iterations=40_000, batch_size=16, hue=0.5, dropout=0.1,
    published=1e-3, best_on_test=True, evaluate_every=5000,
)  # fmt: skip
DEMO = DINOV3.changed(
    rates=(3e-4, 1e-3, 3e-3), short_side=96, ratio=(0.75, 1.5), crop=96, window_stride=64, iterations=150, warmup=10,
    batch_size=8, heldout=0.15, evaluate_every=150,
)  # fmt: skip

_DINOV2_SOURCE = Source(
    repository="facebookresearch/dinov2",
    revision="b8931f7",
    note="linear segmentation head on ADE20K; training settings as in a third party's copy of the configuration that "
    "the notebook downloads (BrianPulfer/robustness-tokens@b1af51e); hue 18 of 180 is mmsegmentation's default. Patch "
    f"tokens of the last block, padded to whole patches. {_OWN}",
)
_DINOV2_MS_SOURCE = Source(
    repository="facebookresearch/dinov2",
    revision="b8931f7",
    note="multi-scale evaluation as in a third party's edit of its configuration: short side and crop 640, views of 1 "
    "to 3 times that, five test sizes and mirror images, of which the notebook keeps three sizes; probabilities are "
    "averaged as in mmsegmentation. The rest as ade20k_seg_linear.dinov2@1. Reading the last four blocks together and "
    f"the stride of the windows are this project's own: the head's settings were not at hand. {_OWN}",
)
_DINOV3_SOURCE = Source(
    repository="facebookresearch/dinov3",
    revision="6876159",
    note="dinov3/eval/segmentation, configs/config-ade20k-linear-training.yaml, restated. The source reports its best "
    f"evaluation on the validation set: column mIoU published. {_OWN}",
)


def _segmentation(dataset: str, variant: str, params: LinearSegParams, source: Source) -> Protocol:
    geometry = Geometry(mode="shorter", resize=params.short_side, crop=params.crop)
    return mask_protocol(
        "seg-linear", variant, dataset, geometry, params, source,
        metric="mean intersection over union at the size of the original masks",
        selection="rate chosen on held-out training images, last iteration",
    )  # fmt: skip


def _own(dataset: str, variant: str, params: LinearSegParams) -> Protocol:
    note = f"ade20k_seg_linear.{variant}@1 on {dataset}, for which the source gives no settings"
    return _segmentation(dataset, variant, params, Source(repository="this project", note=note))


SEGMENTATION_PROTOCOLS = (
    _segmentation("ade20k", "dinov2", DINOV2, _DINOV2_SOURCE),
    _segmentation("ade20k", "dinov2_ms", DINOV2_MS, _DINOV2_MS_SOURCE),
    _segmentation("ade20k", "dinov3", DINOV3, _DINOV3_SOURCE),
    _own("voc12aug", "dinov2", DINOV2),
    _own("voc12aug", "dinov3", DINOV3),
    _own("cityscapes", "dinov2", DINOV2),
    _own("cityscapes", "dinov3", DINOV3),
    _segmentation("ade20k", "demo", DEMO, Source(repository="this project", note="ade20k_seg_linear.dinov3@1, short")),
)


@dataclass(frozen=True)
class LinearSegmentation(HeadsTask[LinearSegParams]):
    """Linear segmentation on a frozen encoder, trained on augmented images (DINOv2, DINOv3)."""

    name = "seg-linear"
    Params = LinearSegParams
    protocols = SEGMENTATION_PROTOCOLS

    def check(self, protocol: Protocol, train: Labels, test: Labels) -> None:
        """Raises InputError for an image without a mask, splits of other classes, or several processes of torchrun."""
        super().check(protocol, train, test)
        require_masks(protocol, train, test)

    def run(
        self, protocol: Protocol, encoder: Encoder, train: Labels, test: Labels, workdir: Path, options: RunOptions
    ) -> Outcome:
        """Train a head per rate in one pass over the images, choose one on held-out images, and measure it on `test`.

        Raises:
            InputError: see `check`; also an encoder without a suitable map, or a mask that cannot be read.
        """
        from benchmarks.dense.problems import LinearSegmentationProblem
        from benchmarks.dense.training import choices, outcome_of, train_heads

        self.check(protocol, train, test)
        params, style = self.params(protocol), MaskFormat.of(protocol.dataset, train)
        trained = train_heads(
            lambda held: LinearSegmentationProblem(params, style, train, test, held, options),
            params, params.crop, protocol, encoder, train, test, workdir, options,
        )  # fmt: skip
        found = choices(trained, params, best=params.best_on_test)
        chosen = found[""][0]
        outcome = outcome_of(trained, chosen, options.seed)
        final = trained.state.evaluations[-1]
        outcome.runs = [
            {
                "output": trained.output,
                "lr": rate,
                "chosen": head == chosen,
                "heldout_mIoU": final["held"][head],
            }
            | {f"mIoU@{row['iteration']}": row["test"][head] for row in trained.state.evaluations}
            for head, rate in enumerate(params.rates)
        ]
        selections = {
            "": protocol.selection,
            " oracle": "best rate and evaluation on test (oracle)",
            " published": f"rate {params.published:g}, "
            + ("best evaluation on test (oracle)" if params.best_on_test else "last iteration"),
        }
        for ending, (_, measured) in found.items():
            add_segmentation(outcome, f"mIoU{ending}", measured, style.classes, selections[ending])
        return outcome


DEPTH_COLUMNS = ("RMSE", "δ1", "AbsRel")


class DepthParams(ImageHeadParams):
    """The numbers of a linear depth head and of its training.

    Attributes:
        low, high: metres of the first and of the last bin.
        norm: the heads have a batch norm.
        class_token: appended to every patch.
        upsample: factor of the bins' map before depth is computed (bilinear).
        rotation: largest angle in degrees, of a rotation with probability 1/2.
        crop: height and width of a training view.
        gamma, brightness, colour: lowest and highest; all three with probability 1/2.
        pad: with zeros on all sides to whole patches of a ViT.
        flip_test: average the depth of a test image and of its mirror image.
        scored_low, scored_high: metres between which a pixel's true depth is scored, and to which depth is clamped.
        loss_groups: parts of the batch, as on so many GPUs, whose losses are averaged. The loss is no mean over pixels,
            so that the whole batch has another one.
    """

    low: Positive = 1e-3
    high: Positive
    norm: bool = True
    class_token: bool = False
    upsample: int = Field(1, gt=0)
    rotation: NotNegative = 2.5
    crop: tuple[int, int] = (416, 544)
    gamma: tuple[Positive, Positive] = (0.9, 1.1)
    brightness: tuple[Positive, Positive] = (0.75, 1.25)
    colour: tuple[Positive, Positive] = (0.9, 1.1)
    flip_p: Annotated[float, Field(ge=0, le=1)] = 0.5
    pad: bool = True
    flip_test: bool = True
    scored_low: Positive = 1e-3
    scored_high: Positive = 10.0
    # Left out of the JSON at its default, so that older records keep their hashes.
    loss_groups: int = Field(1, gt=0, exclude_if=lambda value: value == 1)

    def columns(self) -> tuple[str, ...]:
        """Each error of the chosen head, of the published rate's, and of the best on test."""
        endings = ("", *((" published",) if self.published in self.rates else ()), " oracle")
        return tuple(f"{name}{ending}" for ending in endings for name in DEPTH_COLUMNS)


DEPTH_DINOV3 = DepthParams(
    rates=(3e-5, 1e-4, 3e-4, 1e-3), decay=1e-4, betas=(0.9, 0.99), clip=35.0, warmup=12_800, schedule="one_cycle",
    iterations=38_400, batch_size=16, high=10.0, published=3e-4, evaluate_every=38_400, loss_groups=8,
)  # fmt: skip
DEPTH_DINOV2_HEAD = DEPTH_DINOV3.changed(high=80.0, norm=False, class_token=True, upsample=4)
DEPTH_DINOV2_LINEAR1 = DEPTH_DINOV2_HEAD.changed(layers="last_raw")
DEPTH_DINOV2_LINEAR4 = DEPTH_DINOV2_HEAD.changed(layers="even4_raw")
DEPTH_DEMO = DEPTH_DINOV3.changed(
    rates=(3e-4, 1e-3, 3e-3), crop=(96, 96), iterations=150, warmup=30, batch_size=8, heldout=0.15, evaluate_every=150,
    loss_groups=1,
)  # fmt: skip


def _depth(variant: str, params: DepthParams, source: Source) -> Protocol:
    return Protocol.of(
        params,
        benchmark="nyu_depth_linear",
        variant=variant,
        revision=1 if variant == "demo" else 2,  # 1 had one loss of the whole batch
        harness="depth-linear",
        dataset="nyu_depth",
        train_split="train",
        test_split="test",
        geometry=Geometry(mode="shorter", resize=params.crop[0], crop=params.crop[0]),
        primary="RMSE",
        metric="errors of each image inside the Eigen crop, averaged over the images; δ1 higher, the others lower",
        unit="1",
        higher_is_better=False,
        selection="rate chosen on held-out training images, last iteration",
        source=source,
    )


DEPTH_PROTOCOLS = (
    _depth(
        "dinov3",
        DEPTH_DINOV3,
        Source(
            repository="facebookresearch/dinov3",
            revision="6876159",
            note="dinov3/eval/depth, configs/config-nyu.yaml, restated: 8 GPUs with 2 images and a loss each; beta1 "
            "is 0 during its warm-up, as in its code. "
            f"{_OWN}",
        ),
    ),
    _depth(
        "dinov2_head",
        DEPTH_DINOV2_HEAD,
        Source(
            repository="this project",
            note="the head of facebookresearch/dinov2@b8931f7 (hub/depthers.py: class token appended, bins up to 80 m, "
            "no batch norm, maps enlarged four times) under the training of nyu_depth_linear.dinov3@2; its own is "
            "not in its repository. The source takes tokens before the final norm, here they are after it",
        ),
    ),
    *(
        _depth(
            f"dinov2_linear{blocks}",
            params,
            Source(
                repository="this project",
                note=f"the head and the features of facebookresearch/dinov2@b8931f7 (hub/depthers.py, layers={blocks}: "
                f"{features} without the final norm, class token appended, bins up to 80 m, no batch norm, maps "
                "enlarged four times) under the training of nyu_depth_linear.dinov3@2; its own is not in its "
                "repository",
            ),
        )
        for blocks, params, features in (
            (1, DEPTH_DINOV2_LINEAR1, "the last block"),
            (4, DEPTH_DINOV2_LINEAR4, "the last block of each quarter of the depth, or 4, 11, 17 and 23 of 24,"),
        )
    ),
    _depth(
        "demo",
        DEPTH_DEMO,
        Source(
            repository="this project",
            note="nyu_depth_linear.dinov3@2, short and with one loss of a batch, on the embedded scenes: the "
            "depth is the order in which objects were painted, composed and not measured",
        ),
    ),
)


@dataclass(frozen=True)
class LinearDepth(HeadsTask[DepthParams]):
    """Depth estimation by a linear head on a frozen encoder (NYU Depth v2, DINOv3)."""

    name = "depth-linear"
    Params = DepthParams
    protocols = DEPTH_PROTOCOLS

    def check(self, protocol: Protocol, train: Labels, test: Labels) -> None:
        """Raises InputError for an image without a depth map, an empty split, or several processes of torchrun."""
        super().check(protocol, train, test)
        require_images(protocol, train, test)
        for labels in (train, test):
            if len(labels.annotations) != len(labels) or labels.classes:
                raise InputError(
                    f"{protocol.id} needs a depth map for each image, which {protocol.dataset} does not have: choose "
                    "nyu_depth"
                )

    def run(
        self, protocol: Protocol, encoder: Encoder, train: Labels, test: Labels, workdir: Path, options: RunOptions
    ) -> Outcome:
        """Train a head per rate in one pass over the images, choose one on held-out images, and measure it on `test`.

        Raises:
            InputError: see `check`; also an encoder without a suitable map or class token, or a depth map that cannot
                be read.
        """
        from benchmarks.dense.problems import LinearDepthProblem
        from benchmarks.dense.training import choices, outcome_of, train_heads

        self.check(protocol, train, test)
        params = self.params(protocol)
        trained = train_heads(
            lambda held: LinearDepthProblem(params, train, test, held, options),
            params, params.crop[0], protocol, encoder, train, test, workdir, options,
        )  # fmt: skip
        found = choices(trained, params, best=False)
        chosen = found[""][0]
        outcome = outcome_of(trained, chosen, options.seed)
        final = trained.state.evaluations[-1]
        outcome.runs = [
            {"output": trained.output, "lr": rate, "chosen": head == chosen,
             "heldout_RMSE": -final["held"][head], "RMSE": -final["test"][head]}
            for head, rate in enumerate(params.rates)
        ]  # fmt: skip
        selections = {
            "": protocol.selection,
            " published": f"rate {params.published:g}, last iteration",
            " oracle": "best rate and evaluation by RMSE on test (oracle)",
        }
        for ending, (_, measured) in found.items():
            add_depth(outcome, measured, ending, selections[ending])
        return outcome


def add_depth(outcome: Outcome, errors: NDArray[np.float64], ending: str, selection: str) -> None:
    """Add the columns of (N, 3) errors of each image: means over the images, as the source has it."""
    for name, values in zip(DEPTH_COLUMNS, errors.T, strict=True):
        seen = np.isfinite(values)
        column = f"{name}{ending}"
        outcome.scores[column] = Score(
            value=float(values[seen].mean()) if seen.any() else None, n=int(seen.sum()), unit="1", selection=selection
        )
        if seen.all():
            outcome.items[f"pseudo_value/{column}"] = values.astype(np.float32)
