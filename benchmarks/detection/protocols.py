"""The detection protocols and the type of their parameters. Each protocol is a change of a detectron2 configuration.

Values: facebookresearch/moco `detection/`; mmselfsup 0.x `configs/benchmarks/{detectron2,mmdetection}`; MoCo v1
(arXiv:1911.05722), section 4.2 and appendix, as transcribed.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from results.schema import Geometry, Params, Protocol, Source

TaskName = Literal["voc", "coco", "densepose", "lvis", "cityscapes"]

_BOX = ("AP_box", "AP50_box", "AP75_box")
_MASK = ("AP_mask", "AP50_mask", "AP75_mask")
_KEYPOINT = ("AP_kp", "AP50_kp", "AP75_kp")


class DetectionParams(Params):
    """A detector on the encoder, fine-tuned as a whole.

    Attributes:
        base: configuration shipped with detectron2 that the other fields change.
        task: whose annotations are read and whose average precision is computed.
        config: further keys of detectron2's configuration, for which there is no field here.
        masks, keypoints: add a mask or a keypoint head.
        norm: detectron2's name of the normalisation of the backbone (and of res5 in the box head). One process
            replaces synchronised batch norms by ordinary ones.
        fpn_norm, box_norm, mask_norm: the same for the pyramid, the box head and the mask head.
        extra_norm: add a normalisation after res5 in the box head. It is not pretrained.
        reduce_channels: channels of a 3x3 convolution with normalisation after a dilated res5; 0 adds none.
        pad_divisor: pad the images of a batch to a multiple of it; 0 leaves it to detectron2.
        precise_bn: iterations over which batch-norm statistics are computed again after training; 0 skips this.
        norm_weight_decay: weight decay of the weights and biases of normalisations.
        difficult_in_training: `keep` trains on VOC objects marked difficult, `ignore` removes them. An image that shows
            nothing else stays, as one without objects.
        inclusive_boxes: VOC's right and bottom edges are inside the box: its width is right - left + 1 in evaluation
            and right - left in training. detectron2 has them outside.
        rpn_low_quality: smallest overlap from which an object's best anchor is positive although it is below the
            threshold of the other anchors.
        min_sizes: short sides in training; one is drawn for each image.
        max_size: largest long side in training.
        test_min_size, test_max_size: the same in testing.
        batch_size: images per iteration, over all ranks.
        steps: iterations at which the learning rate is multiplied by `gamma`.
        schedule: factor of `iterations` and `steps`, as 0.1.
        scaled_batch: another total batch, k times `batch_size`: the learning rate is multiplied by k, and iterations,
            steps and warm-up are divided by k (linear scaling, Goyal et al. 2017). 0 trains with `batch_size`.
        trials: runs with different seeds; the protocol reports their mean.
        checkpoint_every: iterations between checkpoints, from which a killed run continues.
    """

    base: str
    task: TaskName
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
    def _steps_ascend(self) -> Self:
        if list(self.steps) != sorted(set(self.steps)) or any(step <= 0 for step in self.steps):
            raise ValueError(f"steps {self.steps} must be positive and in ascending order")
        if self.steps and self.steps[-1] >= self.iterations:
            raise ValueError(
                f"steps {self.steps} must lie within the {self.iterations} iterations: set both, or change the length "
                "of the whole schedule, such as schedule=0.5"
            )
        return self

    def columns(self) -> tuple[str, ...]:
        """The columns that the evaluator of `task` fills."""
        match self.task:
            case "voc":
                return ("AP50",) if self.inclusive_boxes else ("AP50", "AP", "AP75")
            case "cityscapes":
                return _MASK[:2]
            case "densepose":
                return ("AP_dp", "AP50_dp", "AP75_dp")
        return (*_BOX, *(_MASK if self.masks else ()), *(_KEYPOINT if self.keypoints else ()))

    def solver(self) -> Solver:
        """Batch, learning rate and lengths with `schedule` and `scaled_batch` applied."""
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


class Solver(NamedTuple):
    """See `DetectionParams.solver`."""

    batch_size: int
    lr: float
    iterations: int
    steps: tuple[int, ...]
    warmup_iterations: int


VOC = DetectionParams(
    base="PascalVOC-Detection/faster_rcnn_R_50_C4.yaml", task="voc",
    norm="naiveSyncBN", extra_norm=True,
    min_sizes=(480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
    iterations=24_000, steps=(18_000, 22_000), warmup_iterations=100, trials=5,
)  # fmt: skip
# mmdetection's counterpart. Its differences from detectron2 are expressed by fields and keys of detectron2.
VOC_MMSELFSUP = VOC.changed(
    norm="SyncBN", precise_bn=0, norm_weight_decay=1e-4, pad_divisor=32, trials=1,
    difficult_in_training="ignore", inclusive_boxes=True, rpn_low_quality=0.3,
    config={
        "MODEL.RPN.BOUNDARY_THRESH": 0,
        "MODEL.RPN.SMOOTH_L1_BETA": 0.0,
        "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.0,
    },
)  # fmt: skip
# Conv5 at stride 1 with dilation 2, a 3x3 convolution to 512 channels, two hidden layers.
VOC_DILATED = VOC.changed(
    base="COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x.yaml", extra_norm=False, reduce_channels=512
)
_TWICE: dict[str, Any] = {"iterations": 180_000, "steps": (120_000, 160_000)}
_SIX_TIMES: dict[str, Any] = {"iterations": 540_000, "steps": (480_000, 520_000)}  # as detectron2 extends schedules
COCO_C4 = DetectionParams(
    base="COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml", task="coco", masks=True,
    norm="naiveSyncBN", extra_norm=True,
    iterations=90_000, steps=(60_000, 80_000),
)  # fmt: skip
COCO_C4_MMSELFSUP = COCO_C4.changed(norm="SyncBN", max_size=1200)
COCO_FPN = DetectionParams(  # the heads are detectron2's
    base="COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", task="coco", masks=True,
    norm="SyncBN", fpn_norm="SyncBN",
    iterations=90_000, steps=(60_000, 80_000),
)  # fmt: skip
COCO_FPN_MMSELFSUP = COCO_FPN.changed(
    box_norm="SyncBN", mask_norm="SyncBN", precise_bn=0, norm_weight_decay=1e-4, rpn_low_quality=0.3,
    # 12 epochs of 7330 iterations: the 117,266 images of train2017 that show an object, in batches of 16.
    iterations=12 * 7330, steps=(8 * 7330, 11 * 7330),
    config={
        "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,
        "MODEL.ROI_BOX_HEAD.CONV_DIM": 256,
        "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 1024,
        "MODEL.RPN.SMOOTH_L1_BETA": 0.0,
        "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.0,
    },
)  # fmt: skip
RETINANET = COCO_FPN.changed(base="COCO-Detection/retinanet_R_50_FPN_1x.yaml", masks=False, lr=0.01)
KEYPOINTS = COCO_FPN.changed(
    base="COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml", masks=False, keypoints=True, **_TWICE
)
# The DensePose project's own base repeats detectron2's Base-RCNN-FPN, and an installed project ships no configurations.
DENSEPOSE = COCO_FPN.changed(
    base="Base-RCNN-FPN.yaml", task="densepose", masks=False,
    lr=0.01, iterations=130_000, steps=(100_000, 120_000), warmup_factor=0.1,
    config={
        "MODEL.ROI_HEADS.NAME": "DensePoseROIHeads",
        "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 2,
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlign",
        "MODEL.ROI_DENSEPOSE_HEAD.NAME": "DensePoseV1ConvXHead",
        "MODEL.ROI_DENSEPOSE_HEAD.POOLER_TYPE": "ROIAlign",
    },
)  # fmt: skip
LVIS = COCO_FPN.changed(base="LVISv0.5-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", task="lvis", trials=5)
LVIS_V1 = LVIS.changed(base="LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", **_TWICE)
CITYSCAPES = COCO_FPN.changed(
    base="Cityscapes/mask_rcnn_R_50_FPN.yaml", task="cityscapes",
    min_sizes=(800, 832, 864, 896, 928, 960, 992, 1024), max_size=2048, test_min_size=1024, test_max_size=2048,
    batch_size=8, lr=0.01, iterations=24_000, steps=(18_000,),
)  # fmt: skip
# The embedded scenes: 192 pixels, 12 classes of drawings.
_DEMO: dict[str, Any] = {
    "min_sizes": (96, 112, 128), "max_size": 192, "test_min_size": 112, "test_max_size": 192,
    "precise_bn": 20, "lr": 0.02, "warmup_iterations": 50, "trials": 3, "precision": "bf16",
}  # fmt: skip
_FEW_PROPOSALS = {
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 500,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 100,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 300,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 30,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 64,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.5,
    "TEST.DETECTIONS_PER_IMAGE": 20,
}
VOC_DEMO = VOC.changed(
    **_DEMO, batch_size=8, iterations=400, steps=(300, 360), checkpoint_every=100,
    config={
        **_FEW_PROPOSALS,
        "MODEL.ANCHOR_GENERATOR.SIZES": [[20, 40, 80]],
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 8,
    },
)  # fmt: skip
# The heads start from random weights and learn most from many small steps: AP50 was 15 after 1,200 iterations of 4
# images and 9 after 400 of 8. Two pyramid levels, with as many anchors each, suffice for the drawings.
COCO_DEMO = COCO_FPN.changed(
    **_DEMO, batch_size=4, iterations=1400, steps=(1100, 1300), checkpoint_every=200,
    config={
        **_FEW_PROPOSALS,
        "MODEL.RESNETS.OUT_FEATURES": ["res4", "res5"],
        "MODEL.FPN.IN_FEATURES": ["res4", "res5"],
        "MODEL.FPN.OUT_CHANNELS": 128,
        "MODEL.RPN.IN_FEATURES": ["p4", "p5"],
        "MODEL.ROI_HEADS.IN_FEATURES": ["p4"],
        "MODEL.ANCHOR_GENERATOR.SIZES": [[20, 28], [40, 80]],
        "MODEL.ROI_BOX_HEAD.FC_DIM": 512,
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 5,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 32,
        "MODEL.ROI_MASK_HEAD.NUM_CONV": 2,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 64,
        "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 7,
    },
)  # fmt: skip

_MOCO = Source(repository="facebookresearch/moco", revision="7397dfe", note="detection/configs; figures of 5 trials")
_MOCO_V1 = Source(repository="arXiv:1911.05722", note="as transcribed; where it is silent, mmselfsup 0.x's file")
_MOCO_V1_VOC07 = Source(repository="arXiv:1911.05722", note="no schedule is transcribed; that of trainval07+12")
_MM = Source(
    repository="open-mmlab/mmselfsup",
    revision="6faad81",
    note="configs/benchmarks/mmdetection, expressed over detectron2; images are resized by Pillow, not OpenCV",
)
_MM_D2 = Source(repository="open-mmlab/mmselfsup", revision="6faad81", note="configs/benchmarks/detectron2")
_DETECTRON2 = Source(repository="facebookresearch/detectron2", revision="02b5c4e", note="with MoCo v1's norms")
_DENSEPOSE = Source(
    repository="facebookresearch/detectron2",
    revision="02b5c4e",
    note="projects/DensePose, densepose_rcnn_R_50_FPN_s1x, with MoCo v1's norms; splits of 2014, images of 2017",
)
_OURS = Source(repository="this project")

_METRIC = {
    "voc": "PASCAL VOC 2007 average precision, 11 points, mean over classes (AP: over ten overlaps)",
    "coco": "COCO average precision (pycocotools)",
    "densepose": "DensePose average precision at ten geodesic point similarities",
    "lvis": "LVIS average precision, federated (pycocotools)",
    "cityscapes": "Cityscapes average precision of instances",
}


def _protocol(
    command: str,
    benchmark: str,
    variant: str,
    params: DetectionParams,
    source: Source,
    dataset: str,
    primary: str,
    revision: int = 1,
) -> Protocol:
    voc = params.task == "voc"
    return Protocol.of(
        params,
        benchmark=benchmark,
        variant=variant,
        revision=revision,
        harness=command,
        dataset=dataset,
        train_split="trainval" if voc else "train",
        test_split="test" if voc else "val",
        geometry=Geometry(mode="shorter", resize=params.test_min_size, crop=params.test_min_size),
        primary=primary,
        metric=_METRIC[params.task],
        selection="last iteration",
        source=source,
    )


def _voc(benchmark: str, variant: str, params: DetectionParams, source: Source, dataset: str = "voc0712") -> Protocol:
    return _protocol("voc-det", benchmark, variant, params, source, dataset, "AP50")


def _coco(benchmark: str, variant: str, params: DetectionParams, source: Source) -> Protocol:
    return _protocol("coco-det", benchmark, variant, params, source, "coco", "AP_box")


def _lvis(benchmark: str, params: DetectionParams, source: Source, dataset: str) -> Protocol:
    return _protocol("lvis-det", benchmark, "moco", params, source, dataset, "AP_mask")


VOC_PROTOCOLS = (
    _voc("voc0712_det", "moco", VOC, _MOCO),
    _voc("voc0712_det", "mmselfsup", VOC_MMSELFSUP, _MM),
    _voc("voc0712_det", "demo", VOC_DEMO, _OURS, "voc2007_det"),
    _voc("voc07_det", "moco", VOC.changed(trials=1), _MOCO_V1_VOC07, "voc2007_det"),
    _voc("voc0712_det_dilated_c5", "moco", VOC_DILATED, _MOCO_V1),
)
COCO_PROTOCOLS = (
    _coco("coco_mask_rcnn_fpn_1x", "mmselfsup", COCO_FPN_MMSELFSUP, _MM),
    _coco("coco_mask_rcnn_fpn_1x", "moco", COCO_FPN, _MOCO_V1),
    _coco("coco_mask_rcnn_fpn_2x", "moco", COCO_FPN.changed(**_TWICE), _MOCO_V1),
    _coco("coco_mask_rcnn_fpn_6x", "moco", COCO_FPN.changed(**_SIX_TIMES), _MOCO_V1),
    _coco("coco_mask_rcnn_c4_1x", "moco", COCO_C4, _MOCO),
    _coco("coco_mask_rcnn_c4_2x", "moco", COCO_C4.changed(**_TWICE), _MOCO),
    _coco("coco_mask_rcnn_c4_1x", "mmselfsup", COCO_C4_MMSELFSUP, _MM_D2),
    _coco("coco_mask_rcnn_c4_2x", "mmselfsup", COCO_C4_MMSELFSUP.changed(**_TWICE), _MM_D2),
    _coco("coco_mask_rcnn_fpn", "demo", COCO_DEMO, _OURS),
    _coco("coco_retinanet_fpn", "mmselfsup", RETINANET, _MM_D2),
    _protocol("coco-det", "coco_densepose_fpn_s1x", "moco", DENSEPOSE, _DENSEPOSE, "coco_densepose", "AP_dp"),
)
KEYPOINT_PROTOCOLS = (
    _protocol("coco-keypoints", "coco_keypoint_fpn_2x", "moco", KEYPOINTS, _MOCO_V1, "coco_keypoints", "AP_kp"),
)
LVIS_PROTOCOLS = (
    _lvis("lvis_v1_mask_rcnn_fpn_2x", LVIS_V1, _DETECTRON2, "lvis_v1"),
    _lvis("lvis_v0_5_mask_rcnn_fpn_1x", LVIS, _MOCO_V1, "lvis_v0.5"),
    _lvis("lvis_v0_5_mask_rcnn_fpn_2x", LVIS.changed(**_TWICE), _MOCO_V1, "lvis_v0.5"),
)
# Revision 1 was trained on bitmasks of the owner's instance images, not on detectron2's polygons.
CITYSCAPES_PROTOCOLS = (
    _protocol(
        "cityscapes-det",
        "cityscapes_mask_rcnn_fpn",
        "moco",
        CITYSCAPES,
        _MOCO_V1,
        "cityscapes_instances",
        "AP_mask",
        revision=2,
    ),
)


# ---- ViTDet: values of detectron2 1d650ef, configs/common/models/mask_rcnn_vitdet.py, configs/common/optim.py and
# projects/ViTDet


class VitDetectionParams(Params):
    """Mask R-CNN on a simple feature pyramid of a plain ViT, fine-tuned as a whole.

    Attributes:
        image_size: side of the square that a training view is cut to, and of the one that every image is padded to.
            An encoder with patches of P pixels sees this square resized by P / 16 (see `model.card_vit`).
        scales: of a training view, drawn evenly, as a share of what fits an image into the square.
        window: side in patches of the windows that attention is limited to, except in the last block of each quarter of
            the depth; 0 has no windows.
        relative_positions: add decomposed relative positions to attention, which start at zero.
        cls: detectron2's ViT drops the class token. Kept, it is treated as registers are, which are always kept: every
            window has a copy, and the mean over the windows goes on.
        drop_path: of the last block; those of the others grow towards it.
        pyramid_channels: of the pyramid, and of the convolutions of the heads.
        fc_channels: of the box head.
        proposals: kept of an image, in training and in testing.
        layer_decay: the rate of a block is this share of the next one's.
        norm_weight_decay: of norms and of LayerScale; None has the same as all.
        positions_decay: whether weight decay applies to the positions and to tokens besides the patches.
        steps: iterations at which the rate is multiplied by 0.1.
        trials: runs with different seeds; the protocol reports their mean.
        checkpoint_every: iterations between checkpoints, from which a killed run continues.
    """

    task: ClassVar[TaskName] = "coco"
    masks: ClassVar[bool] = True
    keypoints: ClassVar[bool] = False
    inclusive_boxes: ClassVar[bool] = False
    difficult_in_training: ClassVar[Literal["keep"]] = "keep"

    image_size: int = Field(1024, gt=0)
    scales: tuple[float, float] = (0.1, 2.0)
    window: int = Field(14, ge=0)
    relative_positions: bool = True
    # Left out of the JSON at its default, so that older records keep their hashes.
    cls: Literal["dropped", "kept"] = Field("dropped", exclude_if=lambda value: value == "dropped")
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
        return (*_BOX, *_MASK)


VITDET_BASE = VitDetectionParams()
VITDET_LARGE = VITDET_BASE.changed(drop_path=0.4, layer_decay=0.8)
VITDET_HUGE = VITDET_BASE.changed(
    drop_path=0.5, layer_decay=0.9, norm_weight_decay=None, positions_decay=True,
    iterations=138_281, steps=(122_916, 133_159),
)  # fmt: skip
# detectron2's 1x (90,000 iterations of 16 images, steps at 60,000 and 80,000) in batches of 64.
VITDET_1X = VITDET_BASE.changed(iterations=22_500, steps=(15_000, 20_000))
VITDET_DEMO = VITDET_BASE.changed(
    image_size=128, scales=(0.7, 1.3), window=4, pyramid_channels=64, fc_channels=256,
    anchor_sizes=(8, 16, 32, 64, 128), proposals=100, rois=32, batch_size=4, iterations=1400, steps=(1100, 1300),
    warmup_iterations=50, lr=3e-4, checkpoint_every=200, precision="fp32",
)  # fmt: skip

_VITDET_NOTE = (
    "projects/ViTDet/configs/COCO/mask_rcnn_vitdet_{}.py; scales of the views as others' copies of coco_loader_lsj.py "
    "have them, the file itself was not at hand. Relative "
    "positions, windows and that the class token is dropped are detectron2's. Masks are cut as bitmaps here"
)
_1X_NOTE = "detectron2's 1x schedule for ResNets carried over to batches of 64: this project's choice, as is drop path"


def _vitdet(name: str) -> Source:
    return Source(repository="facebookresearch/detectron2", revision="1d650ef", note=_VITDET_NOTE.format(name))


def _vit_protocol(benchmark: str, variant: str, params: VitDetectionParams, source: Source) -> Protocol:
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


VIT_PROTOCOLS = (
    _vit_protocol("coco_vitdet", "base_100ep", VITDET_BASE, _vitdet("b_100ep")),
    _vit_protocol("coco_vitdet", "large_100ep", VITDET_LARGE, _vitdet("l_100ep")),
    _vit_protocol("coco_vitdet", "huge_75ep", VITDET_HUGE, _vitdet("h_75ep")),
    _vit_protocol("coco_vitdet_1x", "own", VITDET_1X, Source(repository="this project", note=_1X_NOTE)),
    _vit_protocol(
        "coco_vitdet", "demo", VITDET_DEMO, Source(repository="this project", note="made small, on the embedded scenes")
    ),
)
