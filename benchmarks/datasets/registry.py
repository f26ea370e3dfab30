"""The data sets: folder below the data root, reader, published image counts, and where to get them."""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.datasets import classification, coco, imagenet_variants, retrieval, voc
from benchmarks.datasets.batch_files import CIFAR10, read_cifar10, read_cifar100
from benchmarks.datasets.dense_sets import read_ade20k, read_cityscapes, read_nyu
from benchmarks.datasets.lists import (
    FolderLayouts,
    class_folders,
    first_folder,
    has_classes,
    images_below,
    read_image_folder,
)
from benchmarks.datasets.transfer_sets import TRANSFER_SETS, read_voc2007
from benchmarks.task import InputError, Labels
from results.errors import did_you_mean

log = logging.getLogger(__name__)

# Written into the root of data composed from the project's own drawings.
EMBEDDED_STAMP = "embedded.json"


@dataclass(frozen=True)
class DatasetInfo:
    """A data set that the project can read.

    Attributes:
        folder: where it lies below the data root.
        reader: (folder, split) -> items. Raises InputError if the split is missing, empty or malformed.
        splits: published number of images of each split; None if no reliable count is known.
        how_to_get: where it can be downloaded and where to put it, for people.
        classes: published number of classes.
        optional: splits that a complete data set may lack.
        layouts: the layouts in which its folder may be found, if there are several.
        parts: subfolders that must exist.
        trains_on: the data set whose train split is this one's too; empty for a data set with its own.
    """

    folder: str
    reader: Callable[[Path, str], Labels]
    splits: Mapping[str, int | None]
    how_to_get: str
    classes: int | None = None
    optional: frozenset[str] = frozenset()
    layouts: FolderLayouts | None = None
    parts: tuple[str, ...] = ()
    trains_on: str = ""


@dataclass(frozen=True)
class Dataset:
    """A data set found below a data root.

    Attributes:
        id: its name in records.
        folder: where it lies.
        embedded: whether this project composed it, so that published counts do not apply.
    """

    id: str
    folder: Path
    info: DatasetInfo
    embedded: bool

    def read(self, split: str) -> Labels:
        """The items of a split. Logs a warning if their number is not the published one.

        Raises:
            InputError: the split is missing, empty or malformed.
        """
        labels = self.info.reader(self.folder, split)
        published = self.info.splits.get(split)
        if not self.embedded and published is not None and len(labels) != published:
            log.warning(
                "%s: split %s of %s has %d images, but its owner publishes %d; `encoder-bench check-data` says why",
                self.folder, split, self.id, len(labels), published,
            )  # fmt: skip
        return labels

    def layout(self, split: str) -> str:
        """The layout in which a split is found; empty for a data set with only one layout."""
        layout = self.info.layouts.find(self.folder, split) if self.info.layouts else None
        return layout.description.replace("{split}", split) if layout else ""


class MissingDataError(InputError):
    """A data set is not there at all."""

    def __init__(self, dataset: str, message: str) -> None:
        super().__init__(message)
        self.dataset = dataset


def missing_data(datasets: Iterable[str], data: Path) -> str:
    """Which data sets are not there, each with the number of protocols that read it, and how to get them.

    Args:
        datasets: one for each protocol.
    """
    counts = Counter(datasets)
    total = counts.total()
    listed = ", ".join(f"{name} ({count})" for name, count in counts.items())
    return (
        f"no data in {data} for {total} protocol{'s' * (total != 1)}: {listed}; "
        f"`encoder-bench check-data --data {data}` says where to get it"
    )


def find_dataset(name: str, root: Path) -> Dataset:
    """The data set `name` below `root`. `imagefolder` is the root itself.

    Raises:
        InputError: the name is unknown.
        MissingDataError: a folder does not exist.
    """
    info = DATASETS.get(name)
    if info is None:
        raise InputError(
            f"unknown data set {name!r}{did_you_mean(name, DATASETS)}\nknown: {', '.join(sorted(DATASETS))}"
        )
    folder = root / info.folder
    for needed in (folder, *(folder / part for part in info.parts)):
        if not needed.is_dir():
            raise MissingDataError(
                name,
                f"data set {name} not found: {needed} is not a folder; put the data there or change --data;\n"
                f"available from {info.how_to_get}",
            )
    return Dataset(name, folder, info, is_embedded(root))


def is_image_folder(root: Path) -> bool:
    """Whether `root` is an image folder of the user: `train/` and `val/`, each with a folder per class."""
    return not is_embedded(root) and all(
        (root / split).is_dir() and any(entry.is_dir() for entry in (root / split).iterdir())
        for split in ("train", "val")
    )


def almost_image_folder(root: Path) -> str:
    """What keeps `root` from being an image folder, and the remedy; empty where it does not look like one."""
    if has_classes(root / "train"):
        other = first_folder(root, ("validation", "valid", "test"))
        if not (root / "val").exists() and other:
            return f"{root} has train/ and {other.name}/, but no val/; rename {other} to {root / 'val'}"
        fault = "has no folders of classes" if (root / "val").is_dir() else "is missing"
        return f"{root} has train/, but {root / 'val'} {fault}; put the images to test on there, in a folder per class"
    if has_classes(root) and all(images_below(root / name) for name in class_folders(root)):
        return f"{root} has folders of images, but no train/ and val/; move the images of each class to train/ and val/"
    return ""


def is_official(labels: Labels, dataset: str, split: str) -> bool | None:
    """Whether a split is what the owner of the data set publishes; None where that cannot be told.

    The image ids decide where the owner's are known, else the numbers of images and classes.
    """
    info = DATASETS[dataset]
    if info.trains_on and split == "train":
        return is_official(labels, info.trains_on, split)
    published = info.splits.get(split)
    if not info.folder:  # an image folder of one's own
        return False
    if published is None:
        return None
    counts_agree = len(labels) == published and info.classes in (None, len(labels.classes))
    return counts_agree and _ids_agree(labels, dataset, split)


def _ids_agree(labels: Labels, dataset: str, split: str) -> bool:
    """Whether no image id contradicts the owner's lists."""
    if dataset == "imagenet" and split == "val":
        names = sorted(id.rpartition("/")[2].partition(".")[0] for id in labels.ids)
        return names == [f"ILSVRC2012_val_{number:08d}" for number in range(1, len(labels) + 1)]
    if dataset == "imagenet":
        return all(map(_IMAGENET_TRAIN.fullmatch, labels.ids))
    if dataset not in ("voc2007", "voc2007_det", "voc0712", "voc2007_seg", "voc2012", "voc2012_seg", "voc12aug"):
        return True
    of_2007 = sorted(id for id in labels.ids if _VOC_2007.fullmatch(id))
    of_2012 = sum(_VOC_2012.fullmatch(id) is not None for id in labels.ids)
    if len(of_2007) + of_2012 != len(labels) or (of_2012 > 0) != (dataset in _WITH_2012 and split != "test"):
        return False
    if dataset in ("voc2007", "voc2007_det", "voc0712"):
        return hashlib.sha256("\n".join(of_2007).encode()).hexdigest() == _VOC_2007_IDS[split]
    return True


def is_embedded(root: Path) -> bool:
    """Whether this project composed the data below `root`, which is a data root or a folder in one."""
    return any((folder / EMBEDDED_STAMP).is_file() for folder in (root, root.resolve().parent))


_VOC_PAGE = (
    "the Pascal VOC page (host.robots.ox.ac.uk/pascal/VOC): trainval and test archives of the year, unpacked so that "
    "VOCdevkit is here"
)
_SBD = (
    f"{_VOC_PAGE}; and the Semantic Boundaries Dataset (Hariharan et al. 2011, benchmark_RELEASE) as VOCdevkit/VOCaug, "
    "then encoder-bench prepare-voc12aug --data DATA"
)
_COCO_PAGE = "the COCO page (cocodataset.org): {train,val}2017.zip and annotations_trainval2017.zip, unpacked in coco/"
_DENSEPOSE_PAGE = (
    "the DensePose page (densepose.org): densepose_{train,valminusminival,minival}2014.json, in coco/annotations/; its "
    "images are those of COCO 2017, in coco/"
)
_LVIS_PAGE = "the LVIS page (lvisdataset.org): the json of train and val, in lvis/; its images are COCO's, in coco/"
_ADE20K_PAGE = "the ADE20K page of MIT (sceneparsing.csail.mit.edu): ADEChallengeData2016.zip, unpacked here"
_NYU_PAGE = (
    "the NYU Depth v2 page (cs.nyu.edu) as cleinc/bts prepares it: 8-bit images and 16-bit depth maps in nyu/, and its "
    "lists nyudepthv2_{train,test}_files_with_gt.txt as nyu/nyu_{train,test}.txt"
)
_CITYSCAPES_PAGE = "the Cityscapes page (cityscapes-dataset.com, registration): leftImg8bit and gtFine, in cityscapes/"


def _voc_labels(folder: Path, split: str) -> Labels:
    return voc.read_voc_classification(folder.parent, folder.name.removeprefix("VOC"), split)


def _voc_boxes(folder: Path, split: str) -> Labels:
    return voc.read_voc_detection(folder.parent, [(folder.name.removeprefix("VOC"), split)])


# SHA-256 of the sorted ids of ImageSets/Main, joined by line feeds. Together the two are 000001 to 009963.
_VOC_2007_IDS = {
    "trainval": "03ed77dae14e62ddd1f986ee026261d4ae581adcc04f5c382603d1484de59cf0",
    "test": "e14f93dac92f03b31afd79b82a98589e371f754067c026b2b20ab512afb9dd07",
}
_VOC_2007 = re.compile(r"\d{6}")
_VOC_2012 = re.compile(r"20(0[7-9]|1[01])_\d{6}")
_WITH_2012 = ("voc0712", "voc2012", "voc2012_seg", "voc12aug")
_IMAGENET_TRAIN = re.compile(r"train/(n\d{8})/\1_\d+\.JPEG")

# To add a data set, write a reader of (folder, split) and an entry here.
DATASETS: Mapping[str, DatasetInfo] = {
    "drawings": DatasetInfo(
        "drawings", read_image_folder, {"train": None, "val": None}, "this project: encoder-bench demo-data"
    ),
    "imagefolder": DatasetInfo(
        "",
        read_image_folder,
        {"train": None, "val": None},
        "your own images: <root>/train/<class>/<image> and <root>/val/<class>/<image>",
    ),
    # Russakovsky et al. 2015; the subsets are counted in google-research/simclr, imagenet_subsets.
    "imagenet": DatasetInfo(
        "imagenet",
        classification.read_imagenet,
        {"train": 1_281_167, "val": 50_000, "train-1pct": 12_811, "train-10pct": 128_116},
        "image-net.org (registration): ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, with one folder per class "
        "in train/ and in val/; the semi-supervised lists are imagenet_subsets/*.txt of google-research/simclr",
        1000,
        frozenset(classification.IMAGENET_SUBSETS),
        classification.IMAGENET,
    ),
    # Test sets for a classifier of ImageNet's classes. Counts as far as a readable source states them.
    "imagenet_real": DatasetInfo(
        "imagenet",
        imagenet_variants.read_real,
        {"val": 46_837},
        "github.com/google-research/reassessed-imagenet: real.json, in imagenet/, beside train/ and val/",
        trains_on="imagenet",
    ),
    "imagenet_v2": DatasetInfo(
        "imagenetv2-matched-frequency-format-val",
        imagenet_variants.read_v2,
        {"val": 10_000},
        "the ImageNet V2 page (github.com/modestyachts/ImageNetV2): the matched-frequency archive, beside imagenet/",
        trains_on="imagenet",
    ),
    "imagenet_a": DatasetInfo(
        "imagenet-a",
        partial(imagenet_variants.read_subset, classes="imagenet-a"),
        {"val": 7_500},
        "github.com/hendrycks/natural-adv-examples: imagenet-a.tar, beside imagenet/",
        trains_on="imagenet",
    ),
    "imagenet_r": DatasetInfo(
        "imagenet-r",
        partial(imagenet_variants.read_subset, classes="imagenet-r"),
        {"val": 30_000},
        "github.com/hendrycks/imagenet-r: imagenet-r.tar, beside imagenet/",
        trains_on="imagenet",
    ),
    "imagenet_sketch": DatasetInfo(
        "imagenet-sketch",
        imagenet_variants.read_subset,
        {"val": None},
        "github.com/HaohanWang/ImageNet-Sketch: its 1000 folders as imagenet-sketch/, beside imagenet/",
        trains_on="imagenet",
    ),
    "objectnet": DatasetInfo(
        "objectnet-1.0",
        imagenet_variants.read_objectnet,
        {"val": None},
        "objectnet.dev: objectnet-1.0.zip as objectnet-1.0/images/, beside imagenet/",
        trains_on="imagenet",
        parts=("images",),
    ),
    "imagenet_c": DatasetInfo(
        "imagenet-c",
        imagenet_variants.read_imagenet_c,
        {"val": 3_750_000},
        "github.com/hendrycks/robustness: the archives of ImageNet-C, unpacked as imagenet-c/<corruption>/<severity>/",
        trains_on="imagenet",
    ),
    "drawings_c": DatasetInfo(
        "drawings-c",
        imagenet_variants.read_drawings_c,
        {"val": None},
        "this project: encoder-bench demo-data",
        trains_on="drawings",
    ),
    # Zhou et al. 2014: 2,448,873 images of 205 categories for training, 100 per category for validation.
    "places205": DatasetInfo(
        "places205",
        classification.PLACES205.read,
        {"train": 2_448_873, "val": 20_500},
        "the Places page of MIT (places.csail.mit.edu): imagesPlaces205_resize.tar.gz and "
        "trainvalsplit_places205.tar.gz, unpacked in places205/",
        205,
        layouts=classification.PLACES205,
    ),
    # The table of github.com/visipedia/inat_comp/tree/master/2018.
    "inat18": DatasetInfo(
        "inat2018",
        classification.INAT18.read,
        {"train": 437_513, "val": 24_426},
        "github.com/visipedia/inat_comp, folder 2018: train_val2018.tar.gz, train2018.json, val2018.json, in inat2018/",
        8142,
        layouts=classification.INAT18,
    ),
    # Krizhevsky 2009.
    "cifar10": DatasetInfo(
        "cifar10",
        read_cifar10,
        {"train": 50_000, "test": 10_000},
        "the CIFAR-10 page of Alex Krizhevsky (cs.toronto.edu): the Python or the binary version, unpacked in cifar10/",
        10,
        layouts=CIFAR10,
    ),
    "cifar100": DatasetInfo(
        "cifar-100-python",
        read_cifar100,
        {"train": 50_000, "test": 10_000},
        "the CIFAR page of Alex Krizhevsky (cs.toronto.edu): CIFAR-100, the Python version, as cifar-100-python/",
        100,
    ),
    **{
        name: DatasetInfo(
            one.folder, one.read, dict(zip(one.parts, one.images, strict=True)), one.how_to_get, one.classes
        )
        for name, one in TRANSFER_SETS.items()
    },
    "voc2007_cls": DatasetInfo(
        "VOCdevkit/VOC2007",
        read_voc2007,
        {"trainval": 5011, "test": 4952},
        "the Pascal VOC page (host.robots.ox.ac.uk/pascal/VOC): trainval and test archives of 2007",
        20,
    ),
    **{
        name: DatasetInfo(
            name,
            retrieval.read_revisited,
            {"database": images, "queries": None},
            f"github.com/filipradenovic/revisitop: gnd_{name}.pkl, and the images in {name}/jpg/",
        )
        for name, images in (("roxford5k", None), ("rparis6k", None))
    },
    "copydays": DatasetInfo(
        "copydays",
        retrieval.read_copydays,
        {"database": 157, "queries": 229, retrieval.WITH_OTHERS: None},
        "the Copydays page of INRIA (lear.inrialpes.fr/~jegou/data.php): original/ and strong/ in copydays/",
        optional=frozenset({retrieval.WITH_OTHERS}),
    ),
    "drawings_copies": DatasetInfo(
        "drawings-c",
        retrieval.read_drawing_copies,
        {"database": None, "queries": None},
        "this project: encoder-bench demo-data",
    ),
    # Everingham et al.; the image sets of the devkits.
    "voc2007": DatasetInfo("VOCdevkit/VOC2007", _voc_labels, {"trainval": 5011, "test": 4952}, _VOC_PAGE, 20),
    "voc2012": DatasetInfo(
        "VOCdevkit/VOC2012", _voc_labels, {"train": 5717, "val": 5823, "trainval": 11_540}, _VOC_PAGE, 20
    ),
    "voc2007_det": DatasetInfo("VOCdevkit/VOC2007", _voc_boxes, {"trainval": 5011, "test": 4952}, _VOC_PAGE, 20),
    "voc0712": DatasetInfo(
        "VOCdevkit",
        voc.read_voc_joint,
        {"trainval": 16_551, "test": 4952},
        _VOC_PAGE,
        20,
        parts=("VOC2007", "VOC2012"),
    ),
    "voc2007_seg": DatasetInfo(
        "VOCdevkit/VOC2007", voc.read_voc_segmentation, {"trainval": 422, "test": 210}, _VOC_PAGE, 21
    ),
    "voc2012_seg": DatasetInfo(
        "VOCdevkit/VOC2012", voc.read_voc_segmentation, {"train": 1464, "val": 1449}, _VOC_PAGE, 21
    ),
    # Chen et al. 2018 (DeepLab): 1,464 + 9,118.
    "voc12aug": DatasetInfo("VOCdevkit/VOC2012", voc.read_voc12aug, {"train_aug": 10_582, "val": 1449}, _SBD, 21),
    # cocodataset.org
    "coco": DatasetInfo("coco", coco.read_coco, {"train": 118_287, "val": 5000}, _COCO_PAGE, 80),
    "coco_keypoints": DatasetInfo(
        "coco", partial(coco.read_coco, kind="person_keypoints"), {"train": None, "val": None}, _COCO_PAGE, 1
    ),
    "coco_densepose": DatasetInfo("coco", coco.read_densepose, {"train": None, "val": None}, _DENSEPOSE_PAGE, 1),
    # lvisdataset.org, which rounds; v1's train as the Hugging Face copy (winvoker/lvis) counts it.
    "lvis_v1": DatasetInfo("lvis", coco.read_lvis, {"train": 100_170, "val": None}, _LVIS_PAGE, 1203),
    "lvis_v0.5": DatasetInfo(
        "lvis", partial(coco.read_lvis, version="v0.5"), {"train": None, "val": 5000}, _LVIS_PAGE, 1230
    ),
    # Cordts et al. 2016.
    "cityscapes": DatasetInfo(
        "cityscapes",
        read_cityscapes,
        {"train": 2975, "val": 500, "test": 1525},
        _CITYSCAPES_PAGE,
        19,
        frozenset({"test"}),
    ),
    "cityscapes_instances": DatasetInfo(
        "cityscapes", partial(read_cityscapes, truth="instances"), {"train": 2975, "val": 500}, _CITYSCAPES_PAGE, 8
    ),
    # Zhou et al. 2017. No count of images or pairs was found in a readable source, for this set and the next.
    "ade20k": DatasetInfo(
        "ADEChallengeData2016", read_ade20k, {"training": None, "validation": None}, _ADE20K_PAGE, 150
    ),
    # Silberman et al. 2012.
    "nyu_depth": DatasetInfo("nyu", read_nyu, {"train": None, "test": None}, _NYU_PAGE),
}
