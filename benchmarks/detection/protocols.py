"""The detection protocols, each a few differences from a configuration that detectron2 ships.

Figures: facebookresearch/moco `detection/`; mmselfsup 0.x `configs/benchmarks/{detectron2,mmdetection}`; MoCo v1
(arXiv:1911.05722), section 4.2 and appendix, as transcribed.
"""

from __future__ import annotations

from typing import Any

from benchmarks.detection.settings import DetectionSettings
from results.schema import Geometry, Protocol, Source

_C4, _C4_MASK = "PascalVOC-Detection/faster_rcnn_R_50_C4.yaml", "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml"
_FPN = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"

VOC = DetectionSettings(
    base=_C4,
    task="voc",
    norm="naiveSyncBN",
    extra_norm=True,
    min_sizes=(480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
    iterations=24_000,
    steps=(18_000, 22_000),
    warmup_iterations=100,
    trials=5,
)
# mmdetection's counterpart: what it does otherwise, under the names that it has here.
VOC_MMSELFSUP = VOC.model_copy(
    update={
        "norm": "SyncBN",
        "precise_bn": 0,
        "norm_weight_decay": 1e-4,
        "difficult_in_training": "ignore",
        "inclusive_boxes": True,
        "rpn_low_quality": 0.3,
        "pad_divisor": 32,
        "trials": 1,
        "config": {
            "MODEL.RPN.BOUNDARY_THRESH": 0,
            "MODEL.RPN.SMOOTH_L1_BETA": 0.0,
            "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.0,
        },
    }
)
# Conv5 at stride 1 with dilation 2, a 3x3 convolution to 512 channels, two hidden layers.
VOC_DILATED = VOC.model_copy(
    update={
        "base": "COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x.yaml",
        "extra_norm": False,
        "reduce_channels": 512,
    }
)
COCO_C4 = DetectionSettings(
    base=_C4_MASK, task="coco", masks=True, norm="naiveSyncBN", extra_norm=True, iterations=90_000,
    steps=(60_000, 80_000),
)  # fmt: skip
_TWICE = {"iterations": 180_000, "steps": (120_000, 160_000)}
_C4_MMSELFSUP = {"norm": "SyncBN", "max_size": 1200}
COCO_FPN = DetectionSettings(  # the heads are detectron2's
    base=_FPN, task="coco", masks=True, norm="SyncBN", fpn_norm="SyncBN", iterations=90_000, steps=(60_000, 80_000)
)
# 12 epochs of 7330 iterations: the 117,266 images of train2017 that show an object, 16 at a time.
COCO_FPN_MMSELFSUP = COCO_FPN.model_copy(
    update={
        "box_norm": "SyncBN",
        "mask_norm": "SyncBN",
        "precise_bn": 0,
        "norm_weight_decay": 1e-4,
        "rpn_low_quality": 0.3,
        "iterations": 12 * 7330,
        "steps": (8 * 7330, 11 * 7330),
        "config": {
            "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,
            "MODEL.ROI_BOX_HEAD.CONV_DIM": 256,
            "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
            "MODEL.ROI_BOX_HEAD.FC_DIM": 1024,
            "MODEL.RPN.SMOOTH_L1_BETA": 0.0,
            "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.0,
        },
    }
)
RETINANET = COCO_FPN.model_copy(
    update={"base": "COCO-Detection/retinanet_R_50_FPN_1x.yaml", "masks": False, "lr": 0.01}
)
KEYPOINTS = COCO_FPN.model_copy(
    update={"base": "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml", "masks": False, "keypoints": True, **_TWICE}
)
# detectron2's project, laid over the base that its own base repeats, since an installed project has no configurations.
DENSEPOSE = COCO_FPN.model_copy(
    update={
        "base": "Base-RCNN-FPN.yaml",
        "task": "densepose",
        "masks": False,
        "lr": 0.01,
        "iterations": 130_000,
        "steps": (100_000, 120_000),
        "warmup_factor": 0.1,
        "config": {
            "MODEL.ROI_HEADS.NAME": "DensePoseROIHeads",
            "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 2,
            "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlign",
            "MODEL.ROI_DENSEPOSE_HEAD.NAME": "DensePoseV1ConvXHead",
            "MODEL.ROI_DENSEPOSE_HEAD.POOLER_TYPE": "ROIAlign",
        },
    }
)
LVIS = COCO_FPN.model_copy(
    update={"base": "LVISv0.5-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", "task": "lvis", "trials": 5}
)
LVIS_V1 = LVIS.model_copy(update={"base": "LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", **_TWICE})
CITYSCAPES = COCO_FPN.model_copy(
    update={
        "base": "Cityscapes/mask_rcnn_R_50_FPN.yaml",
        "task": "cityscapes",
        "min_sizes": (800, 832, 864, 896, 928, 960, 992, 1024),
        "max_size": 2048,
        "test_min_size": 1024,
        "test_max_size": 2048,
        "batch_size": 8,
        "lr": 0.01,
        "iterations": 24_000,
        "steps": (18_000,),
        "config": {"INPUT.MASK_FORMAT": "bitmask"},  # of the instance images, not of the polygons
    }
)
# The embedded scenes: 192 pixels, 12 classes of drawings.
_DEMO: dict[str, Any] = {
    "min_sizes": (96, 112, 128),
    "max_size": 192,
    "test_min_size": 112,
    "test_max_size": 192,
    "precise_bn": 20,
    "batch_size": 8,
    "iterations": 400,
    "steps": (300, 360),
    "lr": 0.02,
    "warmup_iterations": 50,
    "checkpoint_every": 100,
    "trials": 3,
    "precision": "bf16",
}
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
VOC_DEMO = VOC.model_copy(
    update=_DEMO
    | {
        "config": {
            **_FEW_PROPOSALS,
            "MODEL.ANCHOR_GENERATOR.SIZES": [[20, 40, 80]],
            "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 8,
        }
    }
)
# Its heads start at random, and many small steps teach them most: AP50 was 15 after 1,200 of 4 images, 9 after 400 of
# 8. Two levels are what the drawings need, with as many anchors each.
COCO_DEMO = COCO_FPN.model_copy(
    update=_DEMO
    | {
        "batch_size": 4,
        "iterations": 1400,
        "steps": (1100, 1300),
        "checkpoint_every": 200,
        "config": {
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
    }
)

_MOCO = Source(repository="facebookresearch/moco", revision="7397dfe", note="detection/configs; figures of 5 trials")
_MOCO_V1 = Source(repository="arXiv:1911.05722", note="as transcribed; where it is silent, mmselfsup 0.x's file")
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

_VOC_COLUMNS = ("AP50", "AP", "AP75")
_BOX = ("AP_box", "AP50_box", "AP75_box")
_MASK = ("AP_mask", "AP50_mask", "AP75_mask")
_KEYPOINT = ("AP_kp", "AP50_kp", "AP75_kp")
_SURFACE = ("AP_dp", "AP50_dp", "AP75_dp")


def columns(protocol: Protocol) -> tuple[str, ...]:
    """What an evaluator gives under these settings."""
    params = protocol.params
    if params["task"] == "voc":
        return _VOC_COLUMNS[:1] if params["inclusive_boxes"] else _VOC_COLUMNS
    if params["task"] == "cityscapes":
        return _MASK[:2]
    if params["task"] == "densepose":
        return _SURFACE
    return (*_BOX, *(_MASK if params["masks"] else ()), *(_KEYPOINT if params["keypoints"] else ()))


_SPLITS = {"voc0712": ("trainval", "test"), "voc2007_det": ("trainval", "test")}
_METRIC = {
    "voc": "PASCAL VOC 2007 average precision, 11 points, mean over classes (AP: over ten overlaps)",
    "coco": "COCO average precision (pycocotools)",
    "densepose": "DensePose average precision at ten geodesic point similarities",
    "lvis": "LVIS average precision, federated (pycocotools)",
    "cityscapes": "Cityscapes average precision of instances",
}


def _protocol(benchmark: str, variant: str, settings: DetectionSettings, source: Source, dataset: str) -> Protocol:
    train, test = _SPLITS.get(dataset, ("train", "val"))
    found = {
        "voc": ("voc-det", "AP50"),
        "coco": ("coco-keypoints", "AP_kp") if settings.keypoints else ("coco-det", "AP_box"),
        "densepose": ("coco-det", "AP_dp"),
        "lvis": ("lvis-det", "AP_mask"),
        "cityscapes": ("cityscapes-det", "AP_mask"),
    }
    command, primary = found[settings.task]
    protocol = Protocol(
        benchmark=benchmark,
        variant=variant,
        harness=command,
        dataset=dataset,
        train_split=train,
        test_split=test,
        geometry=Geometry(mode="shorter", resize=settings.test_min_size, crop=settings.test_min_size),
        columns=(primary,),
        primary=primary,
        metric=_METRIC[settings.task],
        selection="last iteration",
        params=settings.model_dump(),
        source=source,
    )
    return protocol.model_copy(update={"columns": columns(protocol)})


def _c4(variant: str, twice: bool) -> DetectionSettings:
    changes = {**(_TWICE if twice else {}), **(_C4_MMSELFSUP if variant == "mmselfsup" else {})}
    return COCO_C4.model_copy(update=changes)


_SIX_TIMES = {"iterations": 540_000, "steps": (480_000, 520_000)}  # as detectron2's own schedules beyond 2x

PROTOCOLS = (
    _protocol("voc0712_det", "moco", VOC, _MOCO, "voc0712"),
    _protocol("voc0712_det", "mmselfsup", VOC_MMSELFSUP, _MM, "voc0712"),
    _protocol("voc0712_det", "demo", VOC_DEMO, _OURS, "voc2007_det"),
    _protocol("voc07_det", "moco", VOC.model_copy(update={"trials": 1}),
              Source(repository="arXiv:1911.05722", note="no schedule is transcribed; that of trainval07+12"),
              "voc2007_det"),
    _protocol("voc0712_det_dilated_c5", "moco", VOC_DILATED, _MOCO_V1, "voc0712"),
    _protocol("coco_mask_rcnn_c4_1x", "moco", _c4("moco", False), _MOCO, "coco"),
    _protocol("coco_mask_rcnn_c4_2x", "moco", _c4("moco", True), _MOCO, "coco"),
    _protocol("coco_mask_rcnn_c4_1x", "mmselfsup", _c4("mmselfsup", False), _MM_D2, "coco"),
    _protocol("coco_mask_rcnn_c4_2x", "mmselfsup", _c4("mmselfsup", True), _MM_D2, "coco"),
    _protocol("coco_mask_rcnn_fpn_1x", "mmselfsup", COCO_FPN_MMSELFSUP, _MM, "coco"),
    _protocol("coco_mask_rcnn_fpn_1x", "moco", COCO_FPN, _MOCO_V1, "coco"),
    _protocol("coco_mask_rcnn_fpn_2x", "moco", COCO_FPN.model_copy(update=_TWICE), _MOCO_V1, "coco"),
    _protocol("coco_mask_rcnn_fpn_6x", "moco", COCO_FPN.model_copy(update=_SIX_TIMES), _MOCO_V1, "coco"),
    _protocol("coco_mask_rcnn_fpn", "demo", COCO_DEMO, _OURS, "coco"),
    _protocol("coco_retinanet_fpn", "mmselfsup", RETINANET, _MM_D2, "coco"),
    _protocol("coco_keypoint_fpn_2x", "moco", KEYPOINTS, _MOCO_V1, "coco_keypoints"),
    _protocol("coco_densepose_fpn_s1x", "moco", DENSEPOSE, _DENSEPOSE, "coco_densepose"),
    _protocol("lvis_v0_5_mask_rcnn_fpn_1x", "moco", LVIS, _MOCO_V1, "lvis_v0.5"),
    _protocol("lvis_v0_5_mask_rcnn_fpn_2x", "moco", LVIS.model_copy(update=_TWICE), _MOCO_V1, "lvis_v0.5"),
    _protocol("lvis_v1_mask_rcnn_fpn_2x", "moco", LVIS_V1, _DETECTRON2, "lvis_v1"),
    _protocol("cityscapes_mask_rcnn_fpn", "moco", CITYSCAPES, _MOCO_V1, "cityscapes_instances"),
)  # fmt: skip
