"""Linear segmentation on a frozen encoder: heads of a rate grid on augmented images, and windows over whole images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from benchmarks.datasets.lists import fingerprint
from benchmarks.dense.masks import MaskFormat, held_out_images, map_outputs, require_masks
from benchmarks.dense.params import HeadParams, SegmentationViews
from benchmarks.dense.patches import Layers, maps_of
from benchmarks.dense.scores import add_segmentation
from benchmarks.task import ImageTask, Labels, Outcome, Outputs, RunOptions
from benchmarks.training.params import Positive
from results.schema import Geometry, Protocol, Source, canonical_sha256

if TYPE_CHECKING:
    from benchmarks.encoders.encoder import Encoder


class LinearSegParams(HeadParams, SegmentationViews):
    """The numbers of a linear segmentation.

    Attributes:
        published: the rate of the source, whose head has a column of its own.
        best_on_test: the source reports its best evaluation on the test images, not the last.
        evaluate_every: iterations between evaluations on the test images.
        heldout: fraction of the training images that the rate is chosen on.
        stride: of the map, where the encoder has stages: the deepest one that is no coarser.
        layers: of a ViT. `last` is the last block after the final norm, `last4` the last four, each after the final
            norm, together; `last_raw` is the last block without a norm, `even4_raw` the last ones of each quarter of
            the depth without a norm, together, with DINOv2's exception for 24 blocks.
        test_ratios: of the short side of a test image; probabilities are averaged over these sizes.
        flip_test: average the probabilities of an image and of its mirror image too.
    """

    published: float
    best_on_test: bool
    evaluate_every: int = Field(gt=0)
    heldout: float = Field(0.05, gt=0, lt=1)
    stride: int = Field(16, gt=0)
    # Left out of the JSON at its default, so that older records keep their hashes.
    layers: Layers = Field("last", exclude_if=lambda value: value == "last")
    test_ratios: tuple[Positive, ...] = Field((1.0,), min_length=1, exclude_if=lambda value: value == (1.0,))
    flip_test: bool = Field(False, exclude_if=lambda value: value is False)

    def columns(self) -> tuple[str, ...]:
        """The published column stands only where its rate is in the grid."""
        return ("mIoU", *(("mIoU published",) if self.published in self.rates else ()), "mIoU oracle")


SPLITS = {"ade20k": ("training", "validation"), "voc12aug": ("train_aug", "val"), "cityscapes": ("train", "val")}
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
    train, test = SPLITS[dataset]
    return Protocol.of(
        params,
        benchmark=f"{dataset}_seg_linear",
        variant=variant,
        harness="seg-linear",
        dataset=dataset,
        train_split=train,
        test_split=test,
        geometry=Geometry(mode="shorter", resize=params.short_side, crop=params.crop),
        primary="mIoU",
        metric="mean intersection over union at the size of the original masks",
        selection="rate chosen on held-out training images, last iteration",
        source=source,
    )


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
class LinearSegmentation(ImageTask[LinearSegParams]):
    """Linear segmentation on a frozen encoder, trained on augmented images (DINOv2, DINOv3)."""

    name = "seg-linear"
    Params = LinearSegParams
    protocols = PROTOCOLS
    passes_per_step = 1
    fits_image_size = False  # images are padded instead

    def outputs(self, protocol: Protocol) -> Outputs:
        """The patch tokens, or the map of a stage."""
        return map_outputs(maps_of(self.params(protocol).layers))

    def check(self, protocol: Protocol, train: Labels, test: Labels) -> None:
        """Raises InputError for an image without a mask, splits of other classes, or several processes of torchrun."""
        from benchmarks.dense.training import refuse_ranks

        refuse_ranks()
        require_masks(protocol, train, test)

    def shortened(self, protocol: Protocol, steps: int, batch_size: int) -> Protocol:
        """Without warm-up, and evaluated once."""
        return protocol.changed(iterations=steps, warmup=0, evaluate_every=steps, batch_size=batch_size)

    def run(
        self, protocol: Protocol, encoder: Encoder, train: Labels, test: Labels, workdir: Path, options: RunOptions
    ) -> Outcome:
        """Train a head per rate in one pass over the images, choose one on held-out images, and measure it on `test`.

        Raises:
            InputError: the encoder has no suitable map, or a mask cannot be read.
        """
        from benchmarks.dense.problems import LinearSegmentationProblem
        from benchmarks.dense.training import choices, choose_map, train_heads

        params = self.params(protocol)
        output, channels = choose_map(encoder, params.crop, params.stride, pad=params.pad, layers=params.layers)
        kept, held = held_out_images(len(train), params.heldout, options.seed)
        style = MaskFormat.of(protocol.dataset, train)
        problem = LinearSegmentationProblem(params, style, train, test, held, options)
        data = [fingerprint(train), fingerprint(test)]
        key = canonical_sha256([protocol.content_sha256(), encoder.card.weights_sha256, *data, options.seed])
        model, state = train_heads(
            problem, params, encoder, output, channels, kept, workdir, options, key=key,
            evaluate_every=params.evaluate_every,
        )  # fmt: skip
        found = choices(state, params.rates, params.published, best=params.best_on_test)
        outcome = Outcome(seeds=(options.seed,), timing=dict(state.timing))
        final = state.evaluations[-1]
        outcome.runs = [
            {"output": output, "lr": rate, "chosen": head == found[""].head, "heldout_mIoU": final["held"][head]}
            | {f"mIoU@{row['iteration']}": row["test"][head] for row in state.evaluations}
            for head, rate in enumerate(params.rates)
        ]
        selections = {
            "": protocol.selection,
            " oracle": "best rate and evaluation on test (oracle)",
            " published": f"rate {params.published:g}, "
            + ("best evaluation on test (oracle)" if params.best_on_test else "last iteration"),
        }
        for ending, choice in found.items():
            add_segmentation(outcome, f"mIoU{ending}", choice.found, style.classes, selections[ending])
        outcome.tensors = {name: tensor[found[""].head].clone() for name, tensor in model.bank.tensors().items()}
        outcome.pictures |= problem.sheet(model, found[""].head)
        return outcome
