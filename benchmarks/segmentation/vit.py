"""Semantic segmentation with mmsegmentation's ViT: UPerNet fine-tuned as a whole, or a linear head on frozen maps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from benchmarks.segmentation.vit_protocols import PROTOCOLS, VitSegmentationParams, blocks_of
from benchmarks.task import ImageTask, Labels, Outcome, Outputs, RunOptions
from results.schema import Protocol

if TYPE_CHECKING:
    from benchmarks.encoders.encoder import Encoder
    from benchmarks.training.trials import Trial


@dataclass(frozen=True)
class VitSegmentation(ImageTask[VitSegmentationParams]):
    """Semantic segmentation with a ViT: UPerNet fine-tuned, or a linear head on the frozen encoder."""

    name = "vit-seg"
    Params = VitSegmentationParams
    protocols = PROTOCOLS
    fits_image_size: ClassVar[bool] = False  # the engine resizes images
    half_on_gpu: ClassVar[bool] = True

    def outputs(self, protocol: Protocol) -> Outputs:
        """The patch tokens, which the head sits on."""
        return {"patches": ("patches", None)}

    def check_encoder(self, protocol: Protocol, encoder: Encoder) -> None:
        """Raises NotApplicableError for an encoder that mmsegmentation's ViT cannot hold."""
        from benchmarks.encoders.vit_export import vit_shape

        blocks_of(self.params(protocol), encoder.card.name, vit_shape(encoder, "mmsegmentation").depth)

    def run(
        self, protocol: Protocol, encoder: Encoder, train: Labels, test: Labels, workdir: Path, options: RunOptions
    ) -> Outcome:
        """Train the head, and the encoder where it is not frozen, in every trial and measure the model on `test`.

        Under torchrun the protocol's batch is split over the ranks.

        Raises:
            InputError: mmsegmentation is not installed, images lack masks, or the number of classes is another.
            NotApplicableError: mmsegmentation's ViT cannot hold the encoder.
        """
        params = self.params(protocol)
        self.check_encoder(protocol, encoder)
        from benchmarks.segmentation.model import require_library
        from benchmarks.segmentation.task import SegmentationSheet, require_classes
        from benchmarks.training.trials import run_trials

        require_library()
        require_classes(protocol, train, params.classes)
        from benchmarks.segmentation.vit_model import VitSegmentationTrial

        def start(seed: int, folder: Path) -> Trial:
            return VitSegmentationTrial(params, encoder, train, test, seed, folder, options)

        return run_trials(
            protocol, encoder, train, test, workdir, options, trials=params.trials, start=start,
            sheet=SegmentationSheet(train.classes, test),
        )  # fmt: skip
