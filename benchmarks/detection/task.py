"""Detection, instance masks and keypoints: a detector on the encoder, fine-tuned as a whole by detectron2.

A ResNet gets the detectors of the MoCo papers, a plain ViT gets ViTDet.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from benchmarks.detection import protocols as declared
from benchmarks.detection.protocols import DetectionParams, VitDetectionParams
from benchmarks.task import ImageTask, InputError, Labels, Outcome, Outputs, RunOptions
from benchmarks.training.trials import Sheet, Trial, require_packages, run_trials
from results.files import open_image
from results.schema import Protocol

if TYPE_CHECKING:
    from benchmarks.detection.train import DetectionTrial
    from benchmarks.encoders.encoder import Encoder


ParamsT = TypeVar("ParamsT", bound=DetectionParams | VitDetectionParams)


@dataclass(frozen=True)
class DetectionTask(ImageTask[ParamsT]):
    """What all detection benchmarks share."""

    fits_image_size = False  # the engine resizes images
    half_on_gpu = True

    @abstractmethod
    def trial(self, params: ParamsT, encoder: Encoder, classes: int) -> type[DetectionTrial]:
        """The kind of trial, once all that can be checked without images is.

        Raises:
            InputError: something is not installed, or detectron2's configuration does not have what `params` set.
        """

    def run(
        self, protocol: Protocol, encoder: Encoder, train: Labels, test: Labels, workdir: Path, options: RunOptions
    ) -> Outcome:
        """Fine-tune a detector on the encoder in every trial of the protocol and measure it on `test`.

        Under torchrun the protocol's batch is split over the ranks.

        Raises:
            InputError: detectron2 or its DensePose project is not installed, or the splits have different classes.
            NotApplicableError: the engine cannot hold the encoder.
        """
        self.check_encoder(protocol, encoder)
        require_packages("detection", "detectron2")
        from benchmarks.detection.data import read_scenes

        params = self.params(protocol)
        if train.classes != test.classes:
            raise InputError(f"the splits of {protocol.dataset} have different classes; unpack the data set again")
        kind = self.trial(params, encoder, len(train.classes))
        started = time.monotonic()
        of_train, of_test = (
            read_scenes(split, params.task, inclusive=params.inclusive_boxes) for split in (train, test)
        )
        reading = time.monotonic() - started

        def start(seed: int, folder: Path) -> Trial:
            return kind(params, encoder, of_train, of_test, test, seed, folder, options)

        sheet = DetectionSheet(test.classes)
        outcome = run_trials(protocol, encoder, train, test, workdir, options, start=start, sheet=sheet)
        outcome.timing["read"] = reading
        return outcome


@dataclass(frozen=True)
class Detection(DetectionTask[DetectionParams]):
    """Detectors on a ResNet."""

    Params = DetectionParams

    def outputs(self, protocol: Protocol) -> Outputs:
        """The last stage: a detector needs the whole backbone."""
        return {"feature5": ("feature5", None)}

    def check_encoder(self, protocol: Protocol, encoder: Encoder) -> None:
        """Raises NotApplicableError for an encoder that is not a ResNet; this needs no detectron2."""
        from benchmarks.detection.model import resnet_settings

        resnet_settings(encoder.card)

    def amount(self, protocol: Protocol, train: Labels, test: Labels) -> tuple[int, int]:
        """The batches of precise batch norms pass forwards only."""
        params = self.params(protocol)
        solver = params.solver()
        batches = solver.iterations + params.precise_bn / self.passes_per_step
        return round(params.trials * solver.batch_size * batches), params.trials * len(test)

    def shortened(self, protocol: Protocol, steps: int, batch_size: int) -> Protocol:
        """Without what follows or stretches the training."""
        return protocol.changed(
            iterations=steps, steps=(), warmup_iterations=0, batch_size=batch_size, precise_bn=0, schedule=1.0,
            scaled_batch=0, trials=1,
        )  # fmt: skip

    def trial(self, params: DetectionParams, encoder: Encoder, classes: int) -> type[DetectionTrial]:
        from benchmarks.detection import densepose
        from benchmarks.detection.model import configuration
        from benchmarks.detection.train import ResNetDetectionTrial

        if params.task == "densepose":
            densepose.require_project()
        configuration(params, encoder.card, classes)
        if params.task == "densepose":
            densepose.fetch_tables()
        return ResNetDetectionTrial


@dataclass(frozen=True)
class VocDetection(Detection):
    """Object detection on PASCAL VOC: Faster R-CNN C4, fine-tuned."""

    name = "voc-det"
    protocols = declared.VOC_PROTOCOLS


@dataclass(frozen=True)
class CocoDetection(Detection):
    """Boxes and instance masks on COCO, and DensePose: Mask R-CNN or RetinaNet, fine-tuned."""

    name = "coco-det"
    protocols = declared.COCO_PROTOCOLS


@dataclass(frozen=True)
class CocoKeypoints(Detection):
    """Person keypoints on COCO: Keypoint R-CNN with a feature pyramid, fine-tuned."""

    name = "coco-keypoints"
    protocols = declared.KEYPOINT_PROTOCOLS


@dataclass(frozen=True)
class LvisDetection(Detection):
    """Instance masks of the long-tailed classes of LVIS: Mask R-CNN with a feature pyramid, fine-tuned."""

    name = "lvis-det"
    protocols = declared.LVIS_PROTOCOLS


@dataclass(frozen=True)
class CityscapesDetection(Detection):
    """Instance masks on Cityscapes: Mask R-CNN with a feature pyramid, fine-tuned."""

    name = "cityscapes-det"
    protocols = declared.CITYSCAPES_PROTOCOLS


@dataclass(frozen=True)
class VitDetection(DetectionTask[VitDetectionParams]):
    """Boxes and instance masks on COCO with a ViT: detectron2's ViTDet, fine-tuned."""

    name = "vit-det"
    Params = VitDetectionParams
    protocols = declared.VIT_PROTOCOLS

    def outputs(self, protocol: Protocol) -> Outputs:
        """The patch tokens, which the pyramid sits on."""
        return {"patches": ("patches", None)}

    def check_encoder(self, protocol: Protocol, encoder: Encoder) -> None:
        """Raises NotApplicableError for an encoder that detectron2's ViT cannot hold; this needs no detectron2."""
        from benchmarks.encoders.vit_export import vit_shape

        vit_shape(encoder, "detectron2")

    def shortened(self, protocol: Protocol, steps: int, batch_size: int) -> Protocol:
        """At a constant rate."""
        return protocol.changed(iterations=steps, steps=(), warmup_iterations=0, batch_size=batch_size, trials=1)

    def trial(self, params: VitDetectionParams, encoder: Encoder, classes: int) -> type[DetectionTrial]:
        from benchmarks.detection.train import VitDetectionTrial

        return VitDetectionTrial


_ALL: tuple[type[DetectionTask[Any]], ...] = (
    VocDetection, CocoDetection, CocoKeypoints, LvisDetection, CityscapesDetection, VitDetection
)  # fmt: skip
TASKS = {task.name: task for task in _ALL}  # by command


class DetectionSheet(Sheet):
    """True and predicted boxes side by side."""

    def look(self, item: Any, predicted: Any) -> None:
        """Take a scene and detectron2's `Instances` of it, unless the sheet is full or the scene shows no object."""
        if len(self.chosen) < self.images and item["annotations"]:
            self.chosen.append((item, predicted))

    def draw(self, plt: Any) -> Any:
        """Two images per line, each with its true boxes and as many predicted ones."""
        lines = math.ceil(len(self.chosen) / 2)
        figure, axes = plt.subplots(lines, 4, figsize=(13, 3.2 * lines), squeeze=False, layout="constrained", dpi=100)
        for axis in axes.flat:
            axis.set_axis_off()
        pairs = [line[at : at + 2] for line in axes for at in (0, 2)]
        for pair, (scene, found) in zip(pairs, self.chosen, strict=False):  # the last line may have room
            with open_image(Path(scene["file_name"])) as image:
                pixels = np.asarray(image.convert("RGB"))
            true = [(a["bbox"], a["category_id"], None) for a in scene["annotations"]]
            boxes, kinds, scores = found.pred_boxes.tensor.tolist(), found.pred_classes.tolist(), found.scores.tolist()
            # As many as there are objects: no threshold suits a weak detector and a strong one.
            ranked = sorted(zip(boxes, kinds, scores, strict=True), key=lambda prediction: -prediction[2])
            for axis, objects in zip(pair, (true, ranked[: len(true)]), strict=True):
                axis.imshow(pixels)
                for box, kind, score in objects:
                    self._draw_box(axis, plt, box, kind, score)
        for pair in pairs[: min(2, len(self.chosen))]:
            for axis, title in zip(pair, ("truth", "predictions, as many, by confidence"), strict=True):
                axis.set_title(title)
        return figure

    def _draw_box(self, axis: Any, plt: Any, box: tuple[float, ...], kind: int, score: float | None) -> None:
        left, top, right, bottom = box
        colour = plt.get_cmap("tab20")(kind % 20)
        axis.add_patch(plt.Rectangle((left, top), right - left, bottom - top, fill=False, lw=1.6, color=colour))
        text = self.classes[kind] + (f" {score:.2f}" if score is not None else "")
        light = np.dot(colour[:3], (0.3, 0.59, 0.11)) > 0.6  # luma
        axis.text(
            left, top, text, fontsize=7, color="black" if light else "white", va="bottom",
            bbox={"facecolor": colour, "pad": 1, "lw": 0},
        )  # fmt: skip
