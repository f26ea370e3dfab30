"""Which data sets there are, where they lie below a data root and how they are read."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.contract import InputError, Labels
from benchmarks.datasets import cifar10, coco, imagenet, inat18, places205, voc_scenes
from benchmarks.datasets.cityscapes import read_cityscapes
from benchmarks.datasets.imagefolder import read_image_folder
from benchmarks.datasets.layout import Layout, recognise
from benchmarks.datasets.published import PUBLISHED
from benchmarks.datasets.voc import read_voc_classification

log = logging.getLogger(__name__)

# Written into the root of data that was composed from the project's own drawings.
EMBEDDED_STAMP = "embedded.json"


@dataclass(frozen=True)
class DatasetSpec:
    """A data set on disk.

    Attributes:
        id: its name in records.
        folder: where it lies.
        read: split name -> items. Raises InputError when the split is missing, empty or malformed.
        layout: split name -> which of several layouts it is found in; empty where there is one alone.
    """

    id: str
    folder: Path
    read: Callable[[str], Labels]
    layout: Callable[[str], str]


@dataclass(frozen=True)
class _Place:
    below_root: str
    reader: Callable[[Path, str], Labels]
    layouts: tuple[Layout, ...] = ()
    owner: str = ""
    parts: tuple[str, ...] = ()  # folders below that it is joined of

    def layout(self, folder: Path, split: str) -> str:
        if not self.layouts or split in imagenet.SUBSETS:
            return ""
        return recognise(folder, split, self.layouts, self.owner).about.replace("{split}", split)


def _imagenet(folder: Path, split: str) -> Labels:
    if split in imagenet.SUBSETS:
        return imagenet.read_subset(folder, split)
    return imagenet.read_imagenet(folder, split)


def _voc(year: str, reader: Callable[[Path, str, str], Labels]) -> _Place:
    return _Place(f"VOCdevkit/VOC{year}", lambda folder, split: reader(folder.parent, year, split))


# To add a data set: its folder below the root, a reader of (folder, split), and a line in `published`.
_PLACES = {
    "drawings": _Place("drawings", read_image_folder),
    "imagefolder": _Place("", read_image_folder),
    "imagenet": _Place("imagenet", _imagenet, imagenet.LAYOUTS, imagenet.OWNER),
    "places205": _Place("places205", places205.read_places205, places205.LAYOUTS, places205.OWNER),
    "inat18": _Place("inat2018", inat18.read_inat18, inat18.LAYOUTS, inat18.OWNER),
    "cifar10": _Place("cifar10", cifar10.read_cifar10, cifar10.LAYOUTS, cifar10.OWNER),
    "voc2007": _voc("2007", read_voc_classification),
    "voc2012": _voc("2012", read_voc_classification),
    "voc2007_det": _voc("2007", lambda devkit, year, split: voc_scenes.read_voc_detection(devkit, [(year, split)])),
    "voc0712": _Place("VOCdevkit", voc_scenes.read_voc_joint, parts=("VOC2007", "VOC2012")),
    "voc2007_seg": _Place("VOCdevkit/VOC2007", voc_scenes.read_voc_segmentation),
    "voc2012_seg": _Place("VOCdevkit/VOC2012", voc_scenes.read_voc_segmentation),
    "voc12aug": _Place("VOCdevkit/VOC2012", voc_scenes.read_voc12aug),
    "coco": _Place("coco", coco.read_coco),
    "coco_keypoints": _Place("coco", partial(coco.read_coco, kind="person_keypoints")),
    "coco_densepose": _Place("coco", coco.read_densepose),
    "lvis_v1": _Place("lvis", coco.read_lvis),
    "lvis_v0.5": _Place("lvis", partial(coco.read_lvis, version="v0.5")),
    "cityscapes": _Place("cityscapes", read_cityscapes),
    "cityscapes_instances": _Place("cityscapes", partial(read_cityscapes, truth="instances")),
}

DATASETS = tuple(_PLACES)


def find_dataset(name: str, root: Path) -> DatasetSpec:
    """The data set `name` below `root`. `imagefolder` is the root itself.

    Raises:
        InputError: an unknown name, or no such folder.
    """
    place = _PLACES.get(name)
    if place is None:
        raise InputError(f"no data set is called {name!r}; there are {', '.join(sorted(_PLACES))}")
    folder = root / place.below_root
    for needed in (folder, *(folder / part for part in place.parts)):
        if not needed.is_dir():
            raise InputError(
                f"data set {name} was looked for in {needed}, which is no folder; put it there or change --data; it "
                f"comes from {PUBLISHED[name].get}"
            )
    return DatasetSpec(
        name,
        folder,
        lambda split: _read(name, place, folder, split, told=is_embedded(root)),
        partial(place.layout, folder),
    )


def _read(name: str, place: _Place, folder: Path, split: str, *, told: bool) -> Labels:
    labels = place.reader(folder, split)
    published = PUBLISHED[name].splits.get(split)
    if not told and published is not None and len(labels) != published:
        log.warning(
            "%s: %s of %s has %d images, not the %d that its owner publishes; `make check-data` looks closer",
            folder, split, name, len(labels), published,
        )  # fmt: skip
    return labels


def is_embedded(root: Path) -> bool:
    """Whether the data below `root` (or the data root that `root` is a folder of) was composed by this project."""
    return any((folder / EMBEDDED_STAMP).is_file() for folder in (root, root.resolve().parent))
