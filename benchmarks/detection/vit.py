"""Boxes and instance masks on COCO with detectron2's ViTDet: a plain ViT and a simple feature pyramid, fine-tuned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from benchmarks.detection.vit_protocols import PROTOCOLS, VitDetectionParams
from benchmarks.task import ImageTask, Labels, Outcome, Outputs, RunOptions
from results.schema import Protocol

if TYPE_CHECKING:
    from benchmarks.detection.data import Scene
    from benchmarks.encoders.encoder import Encoder
    from benchmarks.training.trials import Trial


@dataclass(frozen=True)
class VitDetection(ImageTask[VitDetectionParams]):
    """Boxes and instance masks on COCO with a ViT: detectron2's ViTDet, fine-tuned."""

    name = "vit-det"
    Params = VitDetectionParams
    protocols = PROTOCOLS
    fits_image_size: ClassVar[bool] = False  # the engine resizes images
    half_on_gpu: ClassVar[bool] = True

    def outputs(self, protocol: Protocol) -> Outputs:
        """The patch tokens, which the pyramid sits on."""
        return {"patches": ("patches", None)}

    def check_encoder(self, protocol: Protocol, encoder: Encoder) -> None:
        """Raises NotApplicableError for an encoder that detectron2's ViT cannot hold; this needs no detectron2."""
        from benchmarks.encoders.vit_export import vit_shape

        vit_shape(encoder, "detectron2")

    def run(
        self, protocol: Protocol, encoder: Encoder, train: Labels, test: Labels, workdir: Path, options: RunOptions
    ) -> Outcome:
        """Fine-tune a detector on the encoder in every trial of the protocol and measure it on `test`.

        Under torchrun the protocol's batch is split over the ranks.

        Raises:
            InputError: detectron2 is not installed, or the splits have different classes.
            NotApplicableError: detectron2's ViT cannot hold the encoder.
        """
        from benchmarks.training.trials import require_packages

        self.check_encoder(protocol, encoder)
        require_packages("detection", "detectron2")
        from benchmarks.detection.data import read_scenes
        from benchmarks.detection.task import require_same_classes, run_on_scenes
        from benchmarks.detection.vit_model import VitDetectionTrial

        params = self.params(protocol)
        require_same_classes(protocol, train, test)

        def read(labels: Labels) -> list[Scene]:
            return read_scenes(labels, "coco")

        def start(scenes: tuple[list[Scene], list[Scene]], seed: int, folder: Path) -> Trial:
            return VitDetectionTrial(params, encoder, *scenes, test, seed, folder, options)

        return run_on_scenes(protocol, encoder, train, test, workdir, options, params.trials, read, start)
