"""Linear segmentation on a frozen encoder: heads of a rate grid on augmented images, and windows over whole images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from benchmarks.dense.heads import HeadsTask, ImageHeadParams, SegmentationViews
from benchmarks.dense.masks import MaskFormat, mask_protocol, require_masks
from benchmarks.dense.scores import add_segmentation
from benchmarks.task import Labels, Outcome, RunOptions
from benchmarks.training.params import Positive
from results.schema import Geometry, Protocol, Source

if TYPE_CHECKING:
    from benchmarks.encoders.encoder import Encoder


class LinearSegParams(ImageHeadParams, SegmentationViews):
    """The numbers of a linear segmentation.

    Attributes:
        best_on_test: the source reports its best evaluation on the test images, not the last.
        test_ratios: of the short side of a test image; probabilities are averaged over these sizes.
        flip_test: average the probabilities of an image and of its mirror image too.
    """

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

_OWN = (
    "The grid around the published rate, the choice on held-out training images and a map of stride 16 of networks "
    "with stages are this project's own"
)
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


def _protocol(dataset: str, variant: str, params: LinearSegParams, source: Source) -> Protocol:
    geometry = Geometry(mode="shorter", resize=params.short_side, crop=params.crop)
    return mask_protocol(
        "seg-linear", variant, dataset, geometry, params, source, primary="mIoU",
        metric="mean intersection over union at the size of the original masks",
        selection="rate chosen on held-out training images, last iteration",
    )  # fmt: skip


def _own(dataset: str, variant: str, params: LinearSegParams) -> Protocol:
    note = f"ade20k_seg_linear.{variant}@1 on {dataset}, for which the source gives no settings"
    return _protocol(dataset, variant, params, Source(repository="this project", note=note))


PROTOCOLS = (
    _protocol("ade20k", "dinov2", DINOV2, _DINOV2_SOURCE),
    _protocol("ade20k", "dinov2_ms", DINOV2_MS, _DINOV2_MS_SOURCE),
    _protocol("ade20k", "dinov3", DINOV3, _DINOV3_SOURCE),
    _own("voc12aug", "dinov2", DINOV2),
    _own("voc12aug", "dinov3", DINOV3),
    _own("cityscapes", "dinov2", DINOV2),
    _own("cityscapes", "dinov3", DINOV3),
    _protocol("ade20k", "demo", DEMO, Source(repository="this project", note="ade20k_seg_linear.dinov3@1, short")),
)


@dataclass(frozen=True)
class LinearSegmentation(HeadsTask[LinearSegParams]):
    """Linear segmentation on a frozen encoder, trained on augmented images (DINOv2, DINOv3)."""

    name = "seg-linear"
    Params = LinearSegParams
    protocols = PROTOCOLS

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
