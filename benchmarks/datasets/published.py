"""What each data set's owner publishes: images per split, classes, and where it is to be had."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Published:
    """A data set as its owner describes it.

    Attributes:
        splits: images by split; None where no count is known to be right.
        get: where and how, for people.
        classes: their number.
        optional: splits whose absence is no fault.
    """

    splits: Mapping[str, int | None]
    get: str
    classes: int | None = None
    optional: frozenset[str] = field(default=frozenset())


_VOC_PAGE = "host.robots.ox.ac.uk/pascal/VOC"
_VOC = f"the Pascal VOC page ({_VOC_PAGE}): trainval and test archives of the year, unpacked so that VOCdevkit is here"
_SBD = (
    f"{_VOC}; and the Semantic Boundaries Dataset (Hariharan et al. 2011, benchmark_RELEASE) as VOCdevkit/VOCaug, then "
    "python scripts/prepare_voc12aug.py --data DATA"
)
_COCO = "the COCO page (cocodataset.org): {train,val}2017.zip and annotations_trainval2017.zip, unpacked in coco/"
_DENSEPOSE = (
    "the DensePose page (densepose.org): densepose_{train,valminusminival,minival}2014.json, in coco/annotations/; its "
    "images are those of COCO 2017, in coco/"
)
_LVIS = "the LVIS page (lvisdataset.org): the json of train and val, in lvis/; its images are COCO's, in coco/"
_CITYSCAPES = "the Cityscapes page (cityscapes-dataset.com, registration): leftImg8bit and gtFine, in cityscapes/"
_FOLDER = "you: lay it out as <root>/train/<class>/<image> and <root>/val/<class>/<image>"

PUBLISHED: Mapping[str, Published] = {
    "drawings": Published({"train": None, "val": None}, "this project: python -m benchmarks demo-data"),
    "imagefolder": Published({"train": None, "val": None}, _FOLDER),
    # Russakovsky et al. 2015; the subsets are counted in google-research/simclr, imagenet_subsets.
    "imagenet": Published(
        {"train": 1_281_167, "val": 50_000, "train-1pct": 12_811, "train-10pct": 128_116},
        "image-net.org (registration): ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, with one folder per class "
        "in train/ and in val/; the semi-supervised lists are imagenet_subsets/*.txt of google-research/simclr",
        1000,
        frozenset({"train-1pct", "train-10pct"}),
    ),
    # Zhou et al. 2014: 2,448,873 images of 205 categories for training, 100 per category for validation.
    "places205": Published(
        {"train": 2_448_873, "val": 20_500},
        "the Places page of MIT (places.csail.mit.edu): imagesPlaces205_resize.tar.gz and "
        "trainvalsplit_places205.tar.gz, unpacked in places205/",
        205,
    ),
    # The table of github.com/visipedia/inat_comp/tree/master/2018.
    "inat18": Published(
        {"train": 437_513, "val": 24_426},
        "github.com/visipedia/inat_comp, folder 2018: train_val2018.tar.gz, train2018.json, val2018.json, in inat2018/",
        8142,
    ),
    # Krizhevsky 2009.
    "cifar10": Published(
        {"train": 50_000, "test": 10_000},
        "the CIFAR-10 page of Alex Krizhevsky (cs.toronto.edu): the Python or the binary version, unpacked in cifar10/",
        10,
    ),
    # Everingham et al.; the image sets of the devkits.
    "voc2007": Published({"trainval": 5011, "test": 4952}, _VOC, 20),
    "voc2012": Published({"train": 5717, "val": 5823, "trainval": 11_540}, _VOC, 20),
    "voc2007_det": Published({"trainval": 5011, "test": 4952}, _VOC, 20),
    "voc0712": Published({"trainval": 16_551, "test": 4952}, _VOC, 20),
    "voc2007_seg": Published({"trainval": 422, "test": 210}, _VOC, 21),
    "voc2012_seg": Published({"train": 1464, "val": 1449}, _VOC, 21),
    # Chen et al. 2018 (DeepLab): 1,464 + 9,118.
    "voc12aug": Published({"train_aug": 10_582, "val": 1449}, _SBD, 21),
    # cocodataset.org
    "coco": Published({"train": 118_287, "val": 5000}, _COCO, 80),
    "coco_keypoints": Published({"train": None, "val": None}, _COCO, 1),
    "coco_densepose": Published({"train": None, "val": None}, _DENSEPOSE, 1),
    # lvisdataset.org, which rounds; v1's train as the Hugging Face copy (winvoker/lvis) counts it.
    "lvis_v1": Published({"train": 100_170, "val": None}, _LVIS, 1203),
    "lvis_v0.5": Published({"train": None, "val": 5000}, _LVIS, 1230),
    # Cordts et al. 2016.
    "cityscapes": Published({"train": 2975, "val": 500, "test": 1525}, _CITYSCAPES, 19, frozenset({"test"})),
    "cityscapes_instances": Published({"train": 2975, "val": 500}, _CITYSCAPES, 8),
}
