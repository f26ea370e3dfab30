"""The layout of a model-zoo page as data, and published figures as rows of its tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from results.formats import Cell, Row, Table
from results.published import Figure

CONFIG = "Self-Supervised Config"  # heads the first column, as on the published pages


@dataclass(frozen=True)
class Method:
    """What a page says about a pretraining method."""

    description: str
    paper: str
    link: str
    bibtex: str


# Keyed by `EncoderCard.method`, which is also the part of a published model's name before the slash.
METHODS = {
    "MoCo v1": Method(
        "Contrasts two views of an image against a queue of keys from a slowly moving average of the encoder.",
        "Momentum Contrast for Unsupervised Visual Representation Learning",
        "https://arxiv.org/abs/1911.05722",
        """@article{he2019moco,
  title   = {Momentum Contrast for Unsupervised Visual Representation Learning},
  author  = {He, Kaiming and Fan, Haoqi and Wu, Yuxin and Xie, Saining and Girshick, Ross},
  journal = {arXiv preprint arXiv:1911.05722},
  year    = {2019}
}""",
    ),
    "MoCo v2": Method(
        "MoCo with a two-layer projection head, stronger augmentation and a cosine schedule: a queue of negatives "
        "instead of a large batch.",
        "Improved Baselines with Momentum Contrastive Learning",
        "https://arxiv.org/abs/2003.04297",
        """@article{chen2020improved,
  title   = {Improved Baselines with Momentum Contrastive Learning},
  author  = {Chen, Xinlei and Fan, Haoqi and Girshick, Ross and He, Kaiming},
  journal = {arXiv preprint arXiv:2003.04297},
  year    = {2020}
}""",
    ),
}


# ---- the tables of a page


@dataclass(frozen=True)
class LayoutColumn:
    """A column of a page, and the measured and published figures that belong in it.

    Attributes:
        benchmark: protocol id without variant and revision.
        column: column of these protocols.
        dataset: full data set; empty where the benchmark implies it.
        layer: the cell names the layer that gave `column`, instead of the figure.
    """

    title: str
    benchmark: str
    column: str
    dataset: str = ""
    layer: bool = False


@dataclass(frozen=True)
class TableLayout:
    """A table of a page.

    Attributes:
        part: heading above it.
        task: title for other data than the full data sets.
        line: how to read the columns.
        protocol: the protocol on the full data sets, in one sentence.
    """

    part: str
    title: str
    task: str
    columns: tuple[LayoutColumn, ...]
    line: str = ""
    protocol: str = ""
    decimals: int = 2


def _columns(benchmark: str, columns: Sequence[str], dataset: str = "") -> tuple[LayoutColumn, ...]:
    return tuple(LayoutColumn(column, benchmark, column, dataset) for column in columns)


_FEATURES = tuple(f"Feature{i}" for i in range(1, 6))
_LOW_SHOT = tuple(f"k={k}" for k in (1, 2, 4, 8, 16, 32, 64, 96))
_NEIGHBOURS = tuple(f"k={k}" for k in (10, 20, 100, 200))
_POOLED = "Feature1 to Feature5 are the maps of the stem and the four stages, pooled to fixed sizes but not globally."


def _instances(benchmark: str) -> tuple[LayoutColumn, ...]:
    return tuple(
        LayoutColumn(f"{title}({kind.capitalize()})", benchmark, f"{column}_{kind}")
        for kind in ("box", "mask")
        for title, column in (("mAP", "AP"), ("AP50", "AP50"), ("AP75", "AP75"))
    )


LAYOUTS = (
    TableLayout(
        "Classification", "VOC SVM / Low-shot SVM", "SVM / Low-shot SVM",
        (
            LayoutColumn("Best Layer", "voc07_svm", "best_oracle", "voc2007", layer=True),
            LayoutColumn("SVM", "voc07_svm", "best_oracle", "voc2007"),
            *_columns("voc07_low_shot_svm", _LOW_SHOT, "voc2007"),
        ),
        line="Best Layer is the layer whose features score highest: 1 is the stem, 2 to 5 are the four stages. k is "
        "the number of positive training images per class.",
    ),
    TableLayout(
        "Classification", "ImageNet Linear Evaluation", "Linear Evaluation",
        (*_columns("linear_multihead", _FEATURES, "imagenet"), *_columns("linear_avgpool", ("AvgPool",), "imagenet")),
        line=f"{_POOLED} AvgPool is the vector after global average pooling.",
    ),
    TableLayout(
        "Classification", "Places205 Linear Evaluation", "Linear Evaluation",
        _columns("linear_multihead_places205", _FEATURES, "places205"), line=_POOLED,
    ),
    TableLayout(
        "Classification", "iNaturalist18 Linear Evaluation", "Linear Evaluation",
        _columns("linear_multihead_inat18", _FEATURES, "inat18"), line=_POOLED,
    ),
    TableLayout(
        "Classification", "ImageNet Nearest-Neighbor Classification", "Nearest-Neighbor Classification",
        _columns("knn", _NEIGHBOURS, "imagenet"), decimals=1,
        line="Features after global average pooling; k is the number of neighbours that vote.",
    ),
    TableLayout(
        "Classification", "ImageNet Semi-Supervised Classification", "Semi-Supervised Classification",
        tuple(
            LayoutColumn(f"{share}% {top}", f"semi_supervised_{share}pct", f"{top} oracle")
            for share in (1, 10)
            for top in ("Top-1", "Top-5")
        ),
        line="The whole network is fine-tuned on 1% or 10% of the labels, with the learning rates of a grid that score "
        "best on val.",
    ),
    TableLayout(
        "Classification", "Fine-tuning", "Fine-tuning",
        (
            LayoutColumn("ImageNet Top-1", "finetune_imagenet", "Top-1"),
            LayoutColumn("iNaturalist18 Top-1", "finetune_inat18", "Top-1"),
        ),
        line="The whole network is fine-tuned on all labels.", decimals=1,
    ),
    TableLayout(
        "Detection", "Pascal VOC 2007 + 2012", "Faster R-CNN C4", _columns("voc0712_det", ("AP50", "AP", "AP75")),
        protocol="Detection follows MoCo's protocol: Faster R-CNN C4, 24k iterations.",
    ),
    TableLayout(
        "Detection", "COCO2017", "Mask R-CNN FPN", _instances("coco_mask_rcnn_fpn_1x"), decimals=1,
        protocol="Detection follows MoCo's protocol: Mask R-CNN FPN, 1x schedule.",
    ),
    TableLayout(
        "Detection", "COCO2017, Mask R-CNN FPN, 2x schedule", "Mask R-CNN FPN",
        _instances("coco_mask_rcnn_fpn_2x"), decimals=1,
    ),
    TableLayout(
        "Detection", "COCO2017, Mask R-CNN C4, 2x schedule", "Mask R-CNN C4",
        _instances("coco_mask_rcnn_c4_2x"), decimals=1,
    ),
    TableLayout(
        "Segmentation", "Pascal VOC 2012 + Aug", "FCN", (LayoutColumn("mIOU", "voc12aug_fcn", "mIoU"),),
        protocol="Segmentation follows mmsegmentation's protocol: FCN, 20k iterations.",
    ),
    TableLayout(
        "Segmentation", "Cityscapes", "FCN", (LayoutColumn("mIOU", "cityscapes_fcn", "mIoU"),),
        protocol="Segmentation follows mmsegmentation's protocol: FCN, 40k iterations.",
    ),
    TableLayout(
        "Segmentation", "MoCo's own FCN, stride 16", "FCN, stride 16",
        (
            LayoutColumn("VOC2012 mIOU", "voc12aug_fcn_s16", "mIoU"),
            LayoutColumn("Cityscapes mIOU", "cityscapes_fcn_s16", "mIoU"),
        ),
        line="This network differs from the FCN of the two tables above.", decimals=1,
    ),
)  # fmt: skip


# ---- published figures in these tables


@dataclass(frozen=True)
class PublishedRow:
    """The figures of one model, by column title, and every source that prints the same figures."""

    model: str
    epochs: float | None
    figures: dict[str, Figure]
    sources: tuple[str, ...]

    @property
    def config(self) -> str:
        """The configuration without its method; for a model without one, its name and epochs."""
        return self.model.partition("/")[2] or self.name

    @property
    def name(self) -> str:
        """The model's name and epochs."""
        return self.model + (f", {self.epochs:g} epochs" if self.epochs else "")

    @property
    def protocols(self) -> str:
        """Their ids."""
        return ", ".join(dict.fromkeys(f.place.protocol for f in self.figures.values() if f.place))

    @property
    def runs(self) -> str:
        """As `5 runs`; empty if the sources do not say."""
        counts = dict.fromkeys(f.place.runs for f in self.figures.values() if f.place and f.place.statistic != "layer")
        return ", ".join(f"{n} run{'s' if n > 1 else ''}" for n in counts if n)

    def cell(self, column: LayoutColumn, others: Sequence[Figure] = ()) -> Cell:
        """The figure as it was printed, with the standard deviation if `others` hold it."""
        figure = self.figures.get(column.title)
        if figure is None:
            return Cell()
        std = published_std(figure, others)
        return Cell(figure.number, text=figure.text + (f" (std {std.text})" if std else ""))


def published_rows(layout: TableLayout, figures: Sequence[Figure]) -> list[PublishedRow]:
    """The models with a figure in at least one column, in the order of the figures."""
    found: dict[tuple[str, str, float | None], dict[str, Figure]] = {}
    for figure in figures:
        for column in layout.columns:
            if _belongs(figure, column):
                found.setdefault((figure.source, figure.model, figure.epochs), {}).setdefault(column.title, figure)
    rows: dict[tuple[object, ...], PublishedRow] = {}
    for (source, model, epochs), own in found.items():
        printed = model, epochs, tuple((title, figure.text, figure.place) for title, figure in own.items())
        before = rows.get(printed)
        rows[printed] = PublishedRow(model, epochs, own, (*(before.sources if before else ()), source))
    return list(rows.values())


def _belongs(figure: Figure, column: LayoutColumn) -> bool:
    place = figure.place
    if place is None or place.benchmark != column.benchmark or place.column != column.column:
        return False
    return place.statistic == "layer" if column.layer else place.statistic in ("value", "mean")


def filled_columns(layout: TableLayout, rows: Sequence[PublishedRow]) -> list[LayoutColumn]:
    """The columns in which at least one row has a figure."""
    return [column for column in layout.columns if any(column.title in row.figures for row in rows)]


def published_table(layout: TableLayout, figures: Sequence[Figure]) -> Table | None:
    """A table of a published page, cell by cell; None if no figure belongs in it."""
    rows = published_rows(layout, figures)
    if not rows:
        return None
    columns = filled_columns(layout, rows)
    several = len({row.model.partition("/")[0] for row in rows}) > 1
    return Table(
        layout.title,
        tuple(line for line in (layout.line, layout.protocol) if line),
        (CONFIG, *(column.title for column in columns)),
        tuple(Row(row.model if several else row.config, tuple(row.cell(column) for column in columns)) for row in rows),
        layout.decimals,
    )


def published_std(mean: Figure, others: Sequence[Figure]) -> Figure | None:
    """The published standard deviation that belongs to a published mean."""
    if mean.place is None or mean.place.statistic != "mean":
        return None
    wanted = mean.source, mean.model, mean.epochs, mean.place.protocol, mean.place.column
    return next(
        (
            f
            for f in others
            if f.place is not None
            and f.place.statistic == "std"
            and (f.source, f.model, f.epochs, f.place.protocol, f.place.column) == wanted
        ),
        None,
    )
