"""The parameters and protocols of detection with detectron2's ViTDet.

Values: detectron2 1d650ef, configs/common/models/mask_rcnn_vitdet.py, configs/common/optim.py and projects/ViTDet.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from results.schema import Geometry, Params, Protocol, Source

_COLUMNS = tuple(f"{name}_{kind}" for kind in ("box", "mask") for name in ("AP", "AP50", "AP75"))


class VitDetectionParams(Params):
    """Mask R-CNN on a simple feature pyramid of a plain ViT, fine-tuned as a whole.

    Attributes:
        image_size: side of the square that a training view is cut to, and of the one that every image is padded to.
        scales: of a training view, drawn evenly, as a share of what fits an image into the square.
        window: side in patches of the windows that attention is limited to, except in the last block of each quarter of
            the depth; 0 has no windows.
        relative_positions: add decomposed relative positions to attention, which start at zero.
        drop_path: of the last block; those of the others grow towards it.
        pyramid_channels: of the pyramid, and of the convolutions of the heads.
        fc_channels: of the box head.
        proposals: kept of an image, in training and in testing.
        layer_decay: the rate of a block is this share of the next one's.
        norm_weight_decay: of norms; None has the same as all.
        positions_decay: whether weight decay applies to the positions.
        steps: iterations at which the rate is multiplied by 0.1.
        trials: runs with different seeds; the protocol reports their mean.
        checkpoint_every: iterations between checkpoints, from which a killed run continues.
    """

    image_size: int = Field(1024, gt=0)
    scales: tuple[float, float] = (0.1, 2.0)
    window: int = Field(14, ge=0)
    relative_positions: bool = True
    drop_path: float = Field(0.1, ge=0, lt=1)
    pyramid_channels: int = Field(256, gt=0)
    fc_channels: int = Field(1024, gt=0)
    anchor_sizes: tuple[int, int, int, int, int] = (32, 64, 128, 256, 512)
    proposals: int = Field(1000, gt=0)
    rois: int = Field(512, gt=0)
    batch_size: int = Field(64, gt=0)
    iterations: int = Field(184_375, gt=0)
    steps: tuple[int, ...] = (163_889, 177_546)
    lr: float = Field(1e-4, gt=0)
    beta2: float = Field(0.999, gt=0, lt=1)
    weight_decay: float = Field(0.1, ge=0)
    norm_weight_decay: float | None = Field(0.0, ge=0)
    positions_decay: bool = False
    layer_decay: float = Field(0.7, gt=0, le=1)
    warmup_iterations: int = Field(250, ge=0)
    warmup_factor: float = Field(0.001, gt=0)
    trials: int = Field(1, gt=0)
    checkpoint_every: int = Field(5000, gt=0)
    precision: Literal["fp32", "bf16", "fp16"] = "fp16"

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if list(self.steps) != sorted(set(self.steps)) or any(not 0 < step < self.iterations for step in self.steps):
            raise ValueError(f"steps {self.steps} must ascend and lie within the {self.iterations} iterations")
        if self.image_size % 32:
            raise ValueError(f"image_size must be a multiple of 32, got {self.image_size}")
        if not 0 < self.scales[0] <= self.scales[1]:
            raise ValueError(f"scales {self.scales} must be positive and in ascending order")
        return self

    def columns(self) -> tuple[str, ...]:
        """Boxes and masks."""
        return _COLUMNS


BASE = VitDetectionParams()
LARGE = BASE.changed(drop_path=0.4, layer_decay=0.8)
HUGE = BASE.changed(
    drop_path=0.5, layer_decay=0.9, norm_weight_decay=None, positions_decay=True,
    iterations=138_281, steps=(122_916, 133_159),
)  # fmt: skip
# detectron2's 1x (90,000 iterations of 16 images, steps at 60,000 and 80,000) in batches of 64.
ONE_TIME = BASE.changed(iterations=22_500, steps=(15_000, 20_000))
DEMO = BASE.changed(
    image_size=128, scales=(0.7, 1.3), window=4, pyramid_channels=64, fc_channels=256,
    anchor_sizes=(8, 16, 32, 64, 128), proposals=100, rois=32, batch_size=4, iterations=1400, steps=(1100, 1300),
    warmup_iterations=50, lr=3e-4, checkpoint_every=200, precision="fp32",
)  # fmt: skip

_NOTE = (
    "projects/ViTDet/configs/COCO/mask_rcnn_vitdet_{}.py; scales of the views as others' copies of coco_loader_lsj.py "
    "have them, the file itself was not at hand. Relative "
    "positions, windows and that the class token is dropped are detectron2's. Masks are cut as bitmaps here"
)
_OURS = "detectron2's 1x schedule for ResNets carried over to batches of 64: this project's choice, as is drop path"


def _source(name: str) -> Source:
    return Source(repository="facebookresearch/detectron2", revision="1d650ef", note=_NOTE.format(name))


def _protocol(benchmark: str, variant: str, params: VitDetectionParams, source: Source) -> Protocol:
    return Protocol.of(
        params,
        benchmark=benchmark,
        variant=variant,
        harness="vit-det",
        dataset="coco",
        train_split="train",
        test_split="val",
        geometry=Geometry(mode="shorter", resize=params.image_size, crop=params.image_size),
        primary="AP_box",
        metric="COCO average precision (pycocotools)",
        selection="last iteration",
        source=source,
    )


PROTOCOLS = (
    _protocol("coco_vitdet", "base_100ep", BASE, _source("b_100ep")),
    _protocol("coco_vitdet", "large_100ep", LARGE, _source("l_100ep")),
    _protocol("coco_vitdet", "huge_75ep", HUGE, _source("h_75ep")),
    _protocol("coco_vitdet_1x", "own", ONE_TIME, Source(repository="this project", note=_OURS)),
    _protocol(
        "coco_vitdet", "demo", DEMO, Source(repository="this project", note="made small, on the embedded scenes")
    ),
)
