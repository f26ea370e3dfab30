"""Boxes and instance masks on COCO with detectron2's ViTDet: a plain ViT and a simple feature pyramid, fine-tuned."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from benchmarks.detection.vit_protocols import PROTOCOLS, VitDetectionParams
from benchmarks.task import ImageTask, InputError, Labels, Outcome, Outputs, RunOptions
from results.schema import Protocol

if TYPE_CHECKING:
    from benchmarks.encoders.encoder import Encoder
    from benchmarks.training.trials import Trial


@dataclass(frozen=True)
class VitDetection(ImageTask[VitDetectionParams]):
    """Boxes and instance masks on COCO with a ViT: detectron2's ViTDet, fine-tuned."""

    name = "vit-det"
    Params = VitDetectionParams
    protocols = PROTOCOLS
    fits_image_size: ClassVar[bool] = False  # the engine resizes images

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
        from benchmarks.training.trials import require_packages, run_trials

        self.check_encoder(protocol, encoder)
        require_packages("detection", "detectron2")
        from benchmarks.detection.data import read_scenes
        from benchmarks.detection.task import DetectionSheet
        from benchmarks.detection.vit_model import VitDetectionTrial

        params = self.params(protocol)
        if train.classes != test.classes:
            raise InputError(f"the splits of {protocol.dataset} have different classes; unpack the data set again")
        started = time.monotonic()
        train_scenes, test_scenes = (read_scenes(labels, "coco") for labels in (train, test))
        reading = time.monotonic() - started

        def start(seed: int, folder: Path) -> Trial:
            return VitDetectionTrial(params, encoder, train_scenes, test_scenes, test, seed, folder, options)

        outcome = run_trials(
            protocol, encoder, train, test, workdir, options, trials=params.trials, start=start,
            sheet=DetectionSheet(test.classes),
        )  # fmt: skip
        outcome.timing["read"] = reading
        return outcome
