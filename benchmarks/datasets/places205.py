"""Places205: the owner's two archives, mm's lists, or class folders."""

from __future__ import annotations

from pathlib import Path

from benchmarks.contract import InputError, Labels
from benchmarks.datasets.imagenet import generic_layouts
from benchmarks.datasets.layout import Layout, contents, first_folder, recognise
from benchmarks.datasets.lists import class_names, labels_of, read_list
from benchmarks.datasets.paths import require

OWNER = "the Places page of MIT (places.csail.mit.edu)"
LISTS = "trainvalsplit_places205/{split}_places205.csv"
# Where imagesPlaces205_resize.tar.gz unpacks to, and what people make of it.
IMAGES = ("data/vision/torralba/deeplearning/images256", "images256", "images")


def read_places205(folder: Path, split: str) -> Labels:
    """Items of `train` or `val`, sorted by id: the name in the owner's list, as `a/abbey/gsun_….jpg`.

    Raises:
        InputError: no such split, a malformed list, a missing image, or a label that is no class.
    """
    return recognise(folder, split, LAYOUTS, OWNER).read(folder, split)


def _list(folder: Path, split: str) -> Path:
    return folder / LISTS.format(split=split)


def _read(folder: Path, split: str) -> Labels:
    file = _list(folder, split)
    names, targets = read_list(file)
    train = _list(folder, "train")
    # Both lists name images by their class folder, and a val that lacks a class keeps the indices.
    classes = class_names(train, *read_list(train)) if train.is_file() else class_names(file, names, targets)
    images = first_folder(folder, IMAGES)
    if images is None:
        raise InputError(
            f"{folder} has {file.name} but no images: expected {IMAGES[0]}, found {contents(folder)}; unpack "
            "imagesPlaces205_resize.tar.gz there"
        )
    require(images, names, file.name, "unpack imagesPlaces205_resize.tar.gz again")
    return labels_of(file, images, names, names, targets, classes)


LAYOUTS = (
    Layout(f"{LISTS} and the images in {IMAGES[0]}", lambda folder, split: _list(folder, split).is_file(), _read),
    *generic_layouts(("meta/{split}_places205.txt", "meta/{split}_places205.csv")),
)
