"""What a detection protocol says, typed: `Protocol.params` of this harness."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from benchmarks.overrides import typed
from results.schema import Frozen, Protocol

Task = Literal["voc", "coco", "densepose", "lvis", "cityscapes"]


class DetectionSettings(Frozen):
    """A detector on the encoder, fine-tuned as a whole.

    Attributes:
        base: the configuration shipped with detectron2 that the other fields are laid over.
        task: which evaluator gives the columns.
        config: keys of detectron2's configuration that have no field here.
        norm, fpn_norm, box_norm, mask_norm: detectron2's names of the normalisation of the backbone (and of the res5
            head), of the pyramid and of the two heads. Synchronised ones are ordinary batch norms in one process.
        extra_norm: one more normalisation after res5 in the box head, the only one that is not pretrained.
        reduce_channels: 3x3 convolution with normalisation after a dilated res5, to so many channels; 0 is none.
        pad_divisor: images of a batch are padded to a multiple of it; 0 is detectron2's own for the network.
        precise_bn: iterations over which the statistics of batch norms are computed anew after training; 0 is none.
        norm_weight_decay: weight decay of the normalisations' weights and biases.
        difficult_in_training: VOC objects marked difficult are boxes to learn (`keep`), or no boxes at all (`ignore`;
            an image that shows nothing else stays, as one without objects).
        inclusive_boxes: VOC's right and bottom edges are inside the box, so that a width is right - left + 1 in
            evaluation and right - left in training; detectron2 has them outside.
        rpn_low_quality: an anchor that is an object's best is positive from this overlap on, however low the
            threshold of the others is.
        min_sizes, max_size: of the short side in training, one drawn for each image, and of the long side.
        test_min_size, test_max_size: in testing.
        batch_size: of all ranks together.
        steps: iterations at which the rate is multiplied by `gamma`.
        schedule: multiplies iterations and steps, as 0.1.
        scaled_batch: another total batch, k times `batch_size`: the rate is multiplied by k, iterations, steps and
            warm-up are divided by it (Goyal et al. 2017, linear scaling). 0 trains at `batch_size`.
        trials: runs with seeds of their own, whose mean is reported.
        checkpoint_every: iterations after which a killed run can go on.
    """

    base: str
    task: Task
    config: dict[str, Any] = Field(default_factory=dict)
    masks: bool = False
    keypoints: bool = False
    norm: str = "SyncBN"
    fpn_norm: str = ""
    box_norm: str = ""
    mask_norm: str = ""
    extra_norm: bool = False
    reduce_channels: int = Field(0, ge=0)
    pad_divisor: int = Field(0, ge=0)
    precise_bn: int = Field(200, ge=0)
    norm_weight_decay: float = Field(0.0, ge=0)
    difficult_in_training: Literal["keep", "ignore"] = "keep"
    inclusive_boxes: bool = False
    rpn_low_quality: float = Field(0.0, ge=0, le=1)
    min_sizes: tuple[int, ...] = (640, 672, 704, 736, 768, 800)
    max_size: int = Field(1333, gt=0)
    test_min_size: int = Field(800, gt=0)
    test_max_size: int = Field(1333, gt=0)
    batch_size: int = Field(16, gt=0)
    iterations: int = Field(gt=0)
    steps: tuple[int, ...]
    lr: float = Field(0.02, gt=0)
    momentum: float = 0.9
    weight_decay: float = 1e-4
    gamma: float = 0.1
    warmup_iterations: int = Field(1000, ge=0)
    warmup_factor: float = Field(0.001, gt=0)
    schedule: float = Field(1.0, gt=0)
    scaled_batch: int = Field(0, ge=0)
    trials: int = Field(1, gt=0)
    checkpoint_every: int = Field(5000, gt=0)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"

    @model_validator(mode="after")
    def _steps_lie_within(self) -> Self:
        if list(self.steps) != sorted(set(self.steps)) or any(s <= 0 for s in self.steps):
            raise ValueError(f"steps {self.steps} must rise")
        return self

    def solved(self) -> Solver:
        """The schedule with `schedule` and `scaled_batch` applied."""
        k = self.scaled_batch / self.batch_size if self.scaled_batch else 1.0
        times = self.schedule / k
        iterations = max(1, round(self.iterations * times))
        return Solver(
            batch_size=self.scaled_batch or self.batch_size,
            lr=self.lr * k,
            iterations=iterations,
            steps=tuple(s for s in (round(step * times) for step in self.steps) if 0 < s < iterations),
            warmup_iterations=round(self.warmup_iterations / k),
        )


class Solver(Frozen):
    """What is trained for how long. See `DetectionSettings.solved`."""

    batch_size: int
    lr: float
    iterations: int
    steps: tuple[int, ...]
    warmup_iterations: int


def settings_of(protocol: Protocol) -> DetectionSettings:
    """The typed `params` of a protocol; raises as `typed`."""
    return typed(DetectionSettings, protocol)
