"""The tables of a model-zoo page: sections, columns and their order, number formats and explanatory lines, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CONFIG = "Self-Supervised Config"


@dataclass(frozen=True)
class PageColumn:
    """A column, and what fills it, measured or published alike.

    Attributes:
        benchmark: of the protocols whose `column` this is: their id without variant and revision.
        dataset: the full data set; empty where the benchmark's name says it.
        layer: the cell names the layer that gave `column`, instead of the figure.
    """

    title: str
    benchmark: str
    column: str
    dataset: str = ""
    layer: bool = False


@dataclass(frozen=True)
class PageTable:
    """One table of the page.

    Attributes:
        part: the heading that it stands under.
        task: its title where the data is another than the full sets.
        lines: how to read the columns.
        protocol: in a line, of the full data sets.
    """

    part: str
    title: str
    task: str
    lines: tuple[str, ...]
    columns: tuple[PageColumn, ...]
    protocol: str = ""
    decimals: int = 2


def _columns(benchmark: str, columns: Sequence[str], dataset: str = "") -> tuple[PageColumn, ...]:
    return tuple(PageColumn(column, benchmark, column, dataset) for column in columns)


FEATURES = tuple(f"Feature{i}" for i in range(1, 6))
_LOW_SHOT = tuple(f"k={k}" for k in (1, 2, 4, 8, 16, 32, 64, 96))
_NEIGHBOURS = tuple(f"k={k}" for k in (10, 20, 100, 200))
_INSTANCES = tuple(
    PageColumn(f"{title}({kind.capitalize()})", "", f"{column}_{kind}")
    for kind in ("box", "mask")
    for title, column in (("mAP", "AP"), ("AP50", "AP50"), ("AP75", "AP75"))
)
_POOLED = "Feature1 to Feature5 are the stem and the four stages, pooled to fixed sizes without global average pooling."
_MOCO_DETECTION = "Detection follows MoCo's protocol"


def _instances(benchmark: str) -> tuple[PageColumn, ...]:
    return tuple(PageColumn(column.title, benchmark, column.column) for column in _INSTANCES)


PAGE = (
    PageTable(
        "Classification",
        "VOC SVM / Low-shot SVM",
        "SVM / Low-shot SVM",
        (
            "Best Layer is the layer whose features gave the best figure: 1 is the stem, 2 to 5 are the four stages. "
            "k is the number of positive images per class.",
        ),
        (
            PageColumn("Best Layer", "voc07_svm", "best_oracle", "voc2007", layer=True),
            PageColumn("SVM", "voc07_svm", "best_oracle", "voc2007"),
            *_columns("voc07_low_shot_svm", _LOW_SHOT, "voc2007"),
        ),
    ),
    PageTable(
        "Classification",
        "ImageNet Linear Evaluation",
        "Linear Evaluation",
        (f"{_POOLED} AvgPool is the vector after global average pooling.",),
        (
            *_columns("linear_multihead", FEATURES, "imagenet"),
            *_columns("linear_avgpool", ("AvgPool",), "imagenet"),
        ),
    ),
    PageTable(
        "Classification",
        "Places205 Linear Evaluation",
        "Linear Evaluation",
        (_POOLED,),
        _columns("linear_multihead_places205", FEATURES, "places205"),
    ),
    PageTable(
        "Classification",
        "iNaturalist18 Linear Evaluation",
        "Linear Evaluation",
        (_POOLED,),
        _columns("linear_multihead_inat18", FEATURES, "inat18"),
    ),
    PageTable(
        "Classification",
        "ImageNet Nearest-Neighbor Classification",
        "Nearest-Neighbor Classification",
        ("The features are those after global average pooling; k is the number of neighbours that vote.",),
        _columns("knn", _NEIGHBOURS, "imagenet"),
        decimals=1,
    ),
    PageTable(
        "Classification",
        "ImageNet Semi-Supervised Classification",
        "Semi-Supervised Classification",
        ("The whole network is fine-tuned on 1% and on 10% of the labels; the best of a grid of rates on val.",),
        tuple(
            PageColumn(f"{share}% {top}", f"semi_supervised_{share}pct", f"{top} oracle")
            for share in (1, 10)
            for top in ("Top-1", "Top-5")
        ),
    ),
    PageTable(
        "Classification",
        "Fine-tuning",
        "Fine-tuning",
        ("The whole network is fine-tuned on all labels.",),
        (
            PageColumn("ImageNet Top-1", "finetune_imagenet", "Top-1"),
            PageColumn("iNaturalist18 Top-1", "finetune_inat18", "Top-1"),
        ),
        decimals=1,
    ),
    PageTable(
        "Detection",
        "Pascal VOC 2007 + 2012",
        "Faster R-CNN C4",
        (),
        _columns("voc0712_det", ("AP50", "AP", "AP75")),
        protocol=f"{_MOCO_DETECTION}: Faster R-CNN C4, 24k iterations.",
    ),
    PageTable(
        "Detection",
        "COCO2017",
        "Mask R-CNN FPN",
        (),
        _instances("coco_mask_rcnn_fpn_1x"),
        decimals=1,
        protocol=f"{_MOCO_DETECTION}: Mask R-CNN FPN, 1x schedule.",
    ),
    PageTable(
        "Detection",
        "COCO2017, Mask R-CNN FPN, 2x schedule",
        "Mask R-CNN FPN",
        (),
        _instances("coco_mask_rcnn_fpn_2x"),
        decimals=1,
    ),
    PageTable(
        "Detection",
        "COCO2017, Mask R-CNN C4, 2x schedule",
        "Mask R-CNN C4",
        (),
        _instances("coco_mask_rcnn_c4_2x"),
        decimals=1,
    ),
    PageTable(
        "Segmentation",
        "Pascal VOC 2012 + Aug",
        "FCN",
        (),
        (PageColumn("mIOU", "voc12aug_fcn", "mIoU"),),
        protocol="Segmentation follows mmsegmentation's protocol: FCN, 20k iterations.",
    ),
    PageTable(
        "Segmentation",
        "Cityscapes",
        "FCN",
        (),
        (PageColumn("mIOU", "cityscapes_fcn", "mIoU"),),
        protocol="Segmentation follows mmsegmentation's protocol: FCN, 40k iterations.",
    ),
    PageTable(
        "Segmentation",
        "MoCo's own FCN, stride 16",
        "FCN, stride 16",
        ("Another network than the tables above have.",),
        (
            PageColumn("VOC2012 mIOU", "voc12aug_fcn_s16", "mIoU"),
            PageColumn("Cityscapes mIOU", "cityscapes_fcn_s16", "mIoU"),
        ),
        decimals=1,
    ),
)
