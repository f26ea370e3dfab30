"""Depth by a linear head on a frozen encoder: bins, the scale-invariant loss, and errors of each image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from benchmarks.dense.heads import HeadsTask, ImageHeadParams
from benchmarks.dense.scores import DEPTH_COLUMNS, add_depth
from benchmarks.task import InputError, Labels, Outcome, RunOptions
from benchmarks.training.classification import require_images
from benchmarks.training.params import NotNegative, Positive
from results.schema import Geometry, Protocol, Source

if TYPE_CHECKING:
    from benchmarks.encoders.encoder import Encoder


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

    def columns(self) -> tuple[str, ...]:
        """Each error of the chosen head, of the published rate's, and of the best on test."""
        endings = ("", *((" published",) if self.published in self.rates else ()), " oracle")
        return tuple(f"{name}{ending}" for ending in endings for name in DEPTH_COLUMNS)


DINOV3 = DepthParams(
    rates=(3e-5, 1e-4, 3e-4, 1e-3), decay=1e-4, betas=(0.9, 0.99), clip=35.0, warmup=12_800, schedule="one_cycle",
    iterations=38_400, batch_size=16, high=10.0, published=3e-4, evaluate_every=38_400,
)  # fmt: skip
DINOV2_HEAD = DINOV3.changed(high=80.0, norm=False, class_token=True, upsample=4)
DINOV2_LINEAR1 = DINOV2_HEAD.changed(layers="last_raw")
DINOV2_LINEAR4 = DINOV2_HEAD.changed(layers="even4_raw")
DEMO = DINOV3.changed(
    rates=(3e-4, 1e-3, 3e-3), crop=(96, 96), iterations=150, warmup=30, batch_size=8, heldout=0.15, evaluate_every=150,
)  # fmt: skip

_OWN = (
    "The grid around the published rate, the choice on held-out training images and a map of stride 16 of networks "
    "with stages are this project's own"
)


def _protocol(variant: str, params: DepthParams, source: Source) -> Protocol:
    return Protocol.of(
        params,
        benchmark="nyu_depth_linear",
        variant=variant,
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


PROTOCOLS = (
    _protocol(
        "dinov3",
        DINOV3,
        Source(
            repository="facebookresearch/dinov3",
            revision="6876159",
            note="dinov3/eval/depth, configs/config-nyu.yaml, restated; beta1 is 0 during its warm-up, as in its code. "
            f"{_OWN}",
        ),
    ),
    _protocol(
        "dinov2_head",
        DINOV2_HEAD,
        Source(
            repository="this project",
            note="the head of facebookresearch/dinov2@b8931f7 (hub/depthers.py: class token appended, bins up to 80 m, "
            "no batch norm, maps enlarged four times) under the training of nyu_depth_linear.dinov3@1; its own is "
            "not in its repository. The source takes tokens before the final norm, here they are after it",
        ),
    ),
    *(
        _protocol(
            f"dinov2_linear{blocks}",
            params,
            Source(
                repository="this project",
                note=f"the head and the features of facebookresearch/dinov2@b8931f7 (hub/depthers.py, layers={blocks}: "
                f"{features} without the final norm, class token appended, bins up to 80 m, no batch norm, maps "
                "enlarged four times) under the training of nyu_depth_linear.dinov3@1; its own is not in its "
                "repository",
            ),
        )
        for blocks, params, features in (
            (1, DINOV2_LINEAR1, "the last block"),
            (4, DINOV2_LINEAR4, "the last block of each quarter of the depth, or 4, 11, 17 and 23 of 24,"),
        )
    ),
    _protocol(
        "demo",
        DEMO,
        Source(
            repository="this project",
            note="nyu_depth_linear.dinov3@1, short, on the embedded scenes: the depth is the order in which objects "
            "were painted, composed and not measured",
        ),
    ),
)


@dataclass(frozen=True)
class LinearDepth(HeadsTask[DepthParams]):
    """Depth estimation by a linear head on a frozen encoder (NYU Depth v2, DINOv3)."""

    name = "depth-linear"
    Params = DepthParams
    protocols = PROTOCOLS

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
