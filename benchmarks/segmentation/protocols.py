"""The segmentation protocols. Figures: mmselfsup's benchmark configurations; MoCo v1 (arXiv:1911.05722), appendix."""

from __future__ import annotations

from benchmarks.segmentation.settings import SegmentationSettings
from results.schema import Geometry, Protocol, Source

# Two FCNs that never share a column: the published figures differ by 5 points for the same weights.
MMSELFSUP = SegmentationSettings(  # stride 8, an auxiliary head
    base="fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py",
    classes=21,
    strides=(1, 2, 1, 1),
    dilations=(1, 1, 2, 4),
    contract_dilation=True,
    head_channels=512,
    head_convs=2,
    head_concat=True,
    dropout=0.1,
    auxiliary_channels=256,
    scale=(2048, 512),
    crop=512,
    most_of_one_class=0.75,
    photometric=True,
    batch_size=16,
    iterations=20_000,
    lr=0.01,
    weight_decay=5e-4,
    schedule="poly",
    lr_min=1e-4,
    checkpoint_every=2000,
)
MMSELFSUP_CITYSCAPES = MMSELFSUP.model_copy(
    update={
        "base": "fcn/fcn_r50-d8_4xb2-40k_cityscapes-769x769.py",
        "classes": 19,
        "align_corners": True,
        "scale": (2049, 1025),
        "crop": 769,
        "inference": "windows",
        "window_stride": 513,
        "batch_size": 8,
        "iterations": 40_000,
        "checkpoint_every": 4000,
    }
)
MOCO = SegmentationSettings(  # stride 16, no auxiliary head
    base="fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py",
    classes=21,
    strides=(1, 2, 2, 1),
    dilations=(1, 1, 1, 2),
    contract_dilation=False,
    head_channels=256,
    head_convs=2,
    head_dilation=6,
    head_concat=False,
    dropout=0.0,
    auxiliary_channels=0,
    scale=None,
    crop=513,
    batch_size=16,
    iterations=30_000,
    lr=0.003,
    weight_decay=1e-4,
    schedule="step",
    drops=(21_000, 27_000),
    trials=5,
)
MOCO_CITYSCAPES = MOCO.model_copy(
    update={
        "base": "fcn/fcn_r50-d8_4xb2-40k_cityscapes-769x769.py",
        "classes": 19,
        "crop": 769,
        "iterations": 90_000,
        "lr": 0.01,
        "drops": (63_000, 81_000),
    }
)
# The embedded scenes, reduced to 128 pixels: 12 classes of drawings and the background.
DEMO = MMSELFSUP.model_copy(
    update={
        "classes": 13,
        "strides": (1, 2, 2, 1),  # stride 8 with a stem that has no max-pool
        "dilations": (1, 1, 1, 2),
        "head_channels": 64,
        "auxiliary_channels": 32,
        "scale": (128, 128),
        "ratio": (0.75, 1.5),
        "crop": 96,
        "photometric": False,
        "batch_size": 8,
        "iterations": 700,
        "lr": 0.08,
        "trials": 3,
        "checkpoint_every": 100,
    }
)

_MMSELFSUP_SOURCE = Source(
    repository="open-mmlab/mmselfsup", revision="0.x", note="configs/benchmarks/mmsegmentation; batch as mmseg has it"
)
_MOCO_SOURCE = Source(repository="arXiv:1911.05722", note="appendix, as transcribed; figures are means of 5 trials")


def _protocol(benchmark: str, variant: str, settings: SegmentationSettings, source: Source, dataset: str) -> Protocol:
    train, test = {"voc12aug": ("train_aug", "val"), "cityscapes": ("train", "val")}.get(dataset, ("trainval", "test"))
    return Protocol(
        benchmark=benchmark,
        variant=variant,
        harness="cityscapes-seg" if dataset == "cityscapes" else "voc-seg",
        dataset=dataset,
        train_split=train,
        test_split=test,
        geometry=Geometry(mode="shorter", resize=settings.crop, crop=settings.crop),
        columns=("mIoU", "mAcc", "aAcc"),
        primary="mIoU",
        metric="mean intersection over union",
        selection="last iteration",
        params=settings.model_dump(),
        source=source,
    )


PROTOCOLS = (
    _protocol("voc12aug_fcn", "mmselfsup", MMSELFSUP, _MMSELFSUP_SOURCE, "voc12aug"),
    _protocol("voc12aug_fcn_s16", "moco", MOCO, _MOCO_SOURCE, "voc12aug"),
    _protocol("voc12aug_fcn", "demo", DEMO, Source(repository="this project"), "voc2007_seg"),
    _protocol("cityscapes_fcn", "mmselfsup", MMSELFSUP_CITYSCAPES, _MMSELFSUP_SOURCE, "cityscapes"),
    _protocol("cityscapes_fcn_s16", "moco", MOCO_CITYSCAPES, _MOCO_SOURCE, "cityscapes"),
)
