"""How tables show each benchmark and suite: title, order, decimals. Outside protocols, and so outside their hashes.

A benchmark without an entry here gets a title from its name and stands after the others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class TablePart:
    """Some columns of a benchmark, which stand in a table of their own where all of them would be too wide to read.

    Attributes:
        columns: shell pattern of their names.
        name: what the title of their table ends with; empty to leave the title as it is.
        selection: how their scores were selected, if not as the protocol says.
    """

    columns: str
    name: str = ""
    selection: str = ""


@dataclass(frozen=True)
class Family:
    """How tables show a benchmark.

    Attributes:
        short: column title in the summary; empty where the summary leaves the benchmark out.
        line: explanation above its table.
        best_layer: the table names the best layer of each encoder.
        grid: a protocol may be a grid, whose cells have records of their own that the grid's record sums up.
        outcomes: records keep what happened to each test item.
        opposite: columns whose better direction is not that of the protocol.
        undirected: columns in which neither a high nor a low number is better; nothing is ranked by them.
        parts: the tables that a wide table is split into; a column that none of them names is in the first.
    """

    title: str
    decimals: int = 2
    short: str = ""
    line: str = ""
    best_layer: bool = False
    grid: bool = False
    outcomes: bool = True
    opposite: tuple[str, ...] = ()
    undirected: tuple[str, ...] = ()
    parts: tuple[TablePart, ...] = ()

    def direction(self, columns: Collection[str], *, higher_is_better: bool) -> str:
        """Which numbers of these columns are better, in words: `higher is better, in Uniformity lower`."""
        own, other = ("higher", "lower") if higher_is_better else ("lower", "higher")
        parts = [f"{own} is better"]
        for names, word in ((self.opposite, other), (self.undirected, "neither")):
            if shown := [name for name in names if name in columns]:
                parts.append(f"in {' and '.join(shown)} {word}")
        return ", ".join(parts)


POOLED = (
    "One vector per image: after global average pooling for a ResNet, and for a vision transformer the tokens that its "
    "card names."
)
AP = "AP is average precision, the mean over overlaps from 0.50 to 0.95; AP50 and AP75 are those at one overlap."
PARTS = {"_box": "boxes", "_mask": "instance masks", "_kp": "keypoints", "_dp": "DensePose"}  # by the end of a column
PARTS_LINE = f"{AP} {', '.join(f'{end}: of {part}' for end, part in PARTS.items())}."

LOW_SHOT_PARTS = (
    TablePart("k=*[0-9]"),
    TablePart("k=* fixed", "fixed cost", "layer by mAP on training images outside the set, cost fixed"),
    TablePart(
        "k=* heldout", "held-out choice",
        "layer and cost by mAP on training images outside the set, which uses more labels than k",
    ),
)  # fmt: skip

SEGMENTATION = {  # of frozen features
    "linear": "linear heads",
    "linear_cached": "linear heads without augmentation",
    "knn": "kNN",
    "logistic": "logistic regression",
    "incontext": "in-context retrieval",
}

# In the order of a model-zoo page. An entry `coco` also holds for `coco_keypoints`, unless that has its own.
FAMILIES = {
    "voc07_svm": Family(
        "VOC07 SVM",
        short="VOC07 SVM",
        line="feature1 is the map of the stem, feature2 to feature5 are those of the stages; embed is one vector, "
        "after global average pooling for a ResNet, and for a vision transformer the tokens that its card names. Best "
        "Layer names the map with the highest mAP on test, and best_oracle is its mAP, as published tables give it; "
        "best is the mAP of the map that cross-validation on trainval chose.",
        best_layer=True,
    ),
    "voc07_low_shot_svm": Family("VOC07 low-shot SVM", parts=LOW_SHOT_PARTS),
    "places205_low_shot_svm": Family("Places205 low-shot SVM", parts=LOW_SHOT_PARTS),
    "imagefolder_low_shot_svm": Family("Low-shot SVM on image folders", line=POOLED, parts=LOW_SHOT_PARTS),
    "linear_multihead": Family(
        "Linear evaluation, Feature1 to Feature5",
        line="Maps are pooled to fixed sizes, without global average pooling.",
    ),
    "linear_avgpool": Family("Linear evaluation, AvgPool", short="Linear", line=POOLED),
    "linear_grid": Family(
        "Linear evaluation, DINOv2's grid",
        line="Class tokens of the last or the last four blocks, with and without the mean patch token, at 13 rates.",
    ),
    "attentive": Family(
        "Attentive probing",
        line="Heads that pool patch tokens, or the map of a ResNet's last stage, by attention. Rate and epoch are "
        "chosen on a held-out part of train.",
    ),
    "linear_stored": Family("Linear evaluation on stored features", line=POOLED),
    "logistic": Family("Logistic regression", line=POOLED),
    "knn": Family("Nearest-neighbour classification", decimals=1, short="kNN", line=POOLED),
    "transfer": Family("Transfer", line=POOLED),
    "retrieval": Family("Retrieval", line=POOLED),
    "robustness": Family("Robustness", line=POOLED, opposite=("mCE",)),
    "ncm": Family("Nearest class mean", decimals=1, line=POOLED),
    "few_shot": Family(
        "Few images per class",
        decimals=1,
        line=POOLED,
        parts=(
            TablePart("kNN *", "kNN"),
            TablePart("NCM *", "class means"),
            TablePart("Logistic *", "logistic regression"),
        ),
    ),
    "label_free": Family(
        "Label-free measures",
        outcomes=False,
        line=POOLED,
        opposite=("Uniformity", "Dead share"),
        undirected=("alpha-ReQ",),
    ),
    "label_free_views": Family("Label-free measures of views", outcomes=False, line=POOLED, opposite=("Alignment",)),
    **{
        f"{dataset}_seg_{kind}": Family(f"{title} segmentation on frozen patches, {what}", decimals=1)
        for kind, what in SEGMENTATION.items()
        for dataset, title in (("ade20k", "ADE20K"), ("voc12aug", "VOC2012"), ("cityscapes", "Cityscapes"))
    },
    "nyu_depth_linear": Family(
        "NYU Depth v2, linear heads",
        decimals=3,
        line="RMSE in metres, AbsRel and the share δ1 of pixels within a factor of 1.25; means over images.",
        opposite=("δ1", "δ1 published", "δ1 oracle"),
    ),
    "semi_supervised_1pct": Family("Semi-supervised classification, 1% of the labels", grid=True),
    "semi_supervised_10pct": Family("Semi-supervised classification, 10% of the labels", grid=True),
    "finetune": Family("Fine-tuning", grid=True),
    "voc0712_det": Family("VOC07+12 detection", outcomes=False, line=AP),
    "voc07_det": Family("VOC07 detection", outcomes=False, line=AP),
    "coco_mask_rcnn": Family("COCO detection and instance segmentation", decimals=1, outcomes=False, line=PARTS_LINE),
    "coco_vitdet": Family(
        "COCO detection and instance segmentation with a ViT, ViTDet", decimals=1, outcomes=False, line=PARTS_LINE
    ),
    "coco": Family("COCO", decimals=1, outcomes=False, line=PARTS_LINE),
    "lvis": Family("LVIS", decimals=1, outcomes=False, line=PARTS_LINE),
    "cityscapes_mask_rcnn": Family("Cityscapes instance segmentation", decimals=1, outcomes=False, line=PARTS_LINE),
    "voc12aug_fcn": Family("VOC2012 semantic segmentation"),
    "cityscapes_fcn": Family("Cityscapes semantic segmentation"),
    "ade20k_upernet": Family("ADE20K semantic segmentation with a ViT, UPerNet"),
    "ade20k_linear_vit": Family("ADE20K semantic segmentation with a ViT, linear head in mmsegmentation"),
}
SUMMARY = ("knn", "linear_avgpool", "voc07_svm")  # columns of the summary, from left to right


def family_key(benchmark: str) -> str | None:
    """The key in `FAMILIES` of a benchmark: its name, or the longest entry that its name continues after a `_`."""
    key = benchmark
    while key and key not in FAMILIES:
        key = key.rpartition("_")[0]
    return key or None


def family_of(benchmark: str) -> Family:
    """How tables show a benchmark, listed or not."""
    key = family_key(benchmark)
    return Family(benchmark.replace("_", " ")) if key is None else FAMILIES[key]


def column_words(column: str) -> str:
    """A column's name for an axis or a sentence, as `AP of boxes` for `AP_box`."""
    name, mark, end = column.partition("_")
    if column == "best_oracle":
        return "best layer on test"
    return f"{name} of {PARTS[mark + end]}" if mark + end in PARTS else column


def place_of(benchmark: str) -> int:
    """Where a benchmark stands on a page, from 0; one without an entry stands last."""
    key = family_key(benchmark)
    return len(FAMILIES) if key is None else list(FAMILIES).index(key)


@dataclass(frozen=True)
class Suite:
    """How a table shows a suite.

    Attributes:
        sets: data set -> column title, in the order of the table; others follow.
        baseline: the data set that the drop of the others is measured against; empty for none.
        mean_over: data sets whose mean is a column, where all of them are there.
    """

    title: str
    sets: Mapping[str, str]
    baseline: str = ""
    mean_over: tuple[str, ...] = ()


# The sets of SimCLR's and BYOL's tables.
_TWELVE = (
    "food101", "cifar10", "cifar100", "birdsnap", "sun397", "cars", "aircraft", "voc2007", "dtd", "pets", "caltech101",
    "flowers102",
)  # fmt: skip
SUITES = {
    "transfer": Suite(
        "Transfer",
        {
            "food101": "Food-101", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "birdsnap": "Birdsnap",
            "sun397": "SUN397", "cars": "Cars", "aircraft": "Aircraft", "voc2007": "VOC2007", "dtd": "DTD",
            "pets": "Pets", "caltech101": "Caltech-101", "flowers102": "Flowers", "eurosat": "EuroSAT",
            "resisc45": "RESISC45", "country211": "Country211", "rendered_sst2": "SST2", "gtsrb": "GTSRB",
            "cub200": "CUB-200", "stl10": "STL-10", "svhn": "SVHN", "pcam": "PCAM",
        },
        mean_over=_TWELVE,
    ),
    "retrieval": Suite(
        "Retrieval", {"roxford5k": "ROxford", "rparis6k": "RParis", "copydays": "Copydays", "drawings": "drawings"}
    ),
    "robustness": Suite(
        "Robustness",
        {
            "val": "val", "real": "ReaL", "v2": "V2", "a": "A", "r": "R", "sketch": "Sketch", "objectnet": "ObjectNet",
            "c": "C",
        },
        baseline="val",
    ),
}  # fmt: skip


def suite_of(benchmark: str) -> tuple[str, str] | None:
    """The suite of a benchmark and its data set; None for a benchmark of its own."""
    name, _, data_set = benchmark.partition("_")
    return (name, data_set) if name in SUITES and data_set else None
