"""Semantic segmentation by mmsegmentation: an FCN on a ResNet, or UPerNet or a linear head on a ViT."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from benchmarks.segmentation import protocols as declared
from benchmarks.segmentation.protocols import IGNORED, SegmentationParams, VitSegmentationParams, blocks_read
from benchmarks.task import ImageTask, InputError, Labels, Outcome, Outputs, RunOptions
from benchmarks.training.trials import Sheet, Trial, mask_figure, run_trials
from results.files import open_image
from results.schema import Protocol

if TYPE_CHECKING:
    from benchmarks.encoders.encoder import Encoder
    from benchmarks.segmentation.train import SegmentationTrial


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
        from benchmarks.segmentation.train import SegmentationTrial

        return SegmentationTrial


@dataclass(frozen=True)
class VocSegmentation(Segmentation):
    """Semantic segmentation on PASCAL VOC 2012: an FCN, fine-tuned."""

    name = "voc-seg"
    protocols = declared.VOC_PROTOCOLS


@dataclass(frozen=True)
class CityscapesSegmentation(Segmentation):
    """Semantic segmentation on Cityscapes: an FCN, fine-tuned."""

    name = "cityscapes-seg"
    protocols = declared.CITYSCAPES_PROTOCOLS


@dataclass(frozen=True)
class VitSegmentation(SegmentationTask[VitSegmentationParams]):
    """Semantic segmentation with a ViT: UPerNet fine-tuned, or a linear head on the frozen encoder."""

    name = "vit-seg"
    Params = VitSegmentationParams
    protocols = declared.VIT_PROTOCOLS

    def outputs(self, protocol: Protocol) -> Outputs:
        """The patch tokens, which the head sits on."""
        return {"patches": ("patches", None)}

    def check_encoder(self, protocol: Protocol, encoder: Encoder) -> None:
        """Raises NotApplicableError for an encoder that mmsegmentation's ViT cannot hold."""
        from benchmarks.encoders.vit_export import vit_shape

        blocks_read(self.params(protocol), encoder.card.name, vit_shape(encoder, "mmsegmentation").depth)

    def shortened(self, protocol: Protocol, steps: int, batch_size: int) -> Protocol:
        """Without warm-up."""
        return protocol.changed(iterations=steps, warmup_iterations=0, batch_size=batch_size, trials=1)

    def trial(self) -> type[SegmentationTrial]:
        from benchmarks.segmentation.vit_model import VitSegmentationTrial

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
