"""VOC 2012 with the masks of the Semantic Boundaries Dataset (SBD): raw, or converted to SegmentationClassAug."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.io import savemat
from scipy.sparse import csc_matrix

from tests.layouts.pictures import boxes, save, scene
from tests.layouts.voc import KINDS, SIZE, class_mask, palette_png, write_lines, write_voc

ADDED = 6  # images that only SBD has masks for


def write_voc12aug(root: Path, layout: Literal["aug", "sbd"] = "aug") -> Path:
    """Writes `root`/VOCdevkit/VOC2012, train_aug of 8 + 6 images and val of 4. Returns the folder.

    `aug` has SegmentationClassAug and the lists that mm's converter makes; `sbd` has neither, but
    `root`/VOCdevkit/VOCaug/dataset as SBD unpacks: cls/*.mat, train.txt, val.txt, with the VOC images among them.
    """
    folder = write_voc(root, "2012")
    lists = folder / "ImageSets" / "Segmentation"
    train, val = ((lists / f"{split}.txt").read_text(encoding="utf-8").split() for split in ("train", "val"))
    added = [f"2009_{number:06d}" for number in range(101, 101 + ADDED)]
    masks = {}
    for number, image_id in enumerate([*train, *val, *added], start=1):
        objects = boxes(number, KINDS, SIZE)
        if image_id in added:
            save(scene(objects, number, SIZE), folder / "JPEGImages" / f"{image_id}.jpg")
        mask = class_mask(objects, SIZE)
        mask[mask == 255] = 0  # SBD has no ignored outline
        masks[image_id] = mask
    if layout == "aug":
        for image_id in (*train, *added):
            palette_png(masks[image_id], folder / "SegmentationClassAug" / f"{image_id}.png")
        write_lines(lists / "aug.txt", added)
        write_lines(lists / "trainaug.txt", [*train, *added])
        return folder
    sbd = root / "VOCdevkit" / "VOCaug" / "dataset"
    (sbd / "cls").mkdir(parents=True, exist_ok=True)
    for image_id, mask in masks.items():
        sbd_mat(sbd / "cls" / f"{image_id}.mat", mask)
    # SBD's own split does not heed VOC's: images of VOC's val are in its train.
    write_lines(sbd / "train.txt", [*train[:4], *val[:2], *added[:4]])
    write_lines(sbd / "val.txt", [*train[4:], *val[2:], *added[4:]])
    return folder


def sbd_mat(file: Path, mask: NDArray[np.uint8]) -> None:
    """A .mat file as SBD has them: the boundaries of each class are sparse matrices."""
    boundaries = np.empty((20, 1), dtype=object)
    for number in range(20):
        boundaries[number, 0] = csc_matrix(mask == number + 1)
    fields = {"Boundaries": boundaries, "Segmentation": mask, "CategoriesPresent": np.unique(mask[mask > 0])}
    savemat(file, {"GTcls": fields}, do_compression=True)
