"""Sets with a mask or a depth map per image: ADE20K (ADEChallengeData2016), Cityscapes, and NYU Depth v2.

Cityscapes comes as leftImg8bit with the fine annotations of gtFine, NYU Depth v2 in the layout of BTS: lists of image,
depth map and focal length, and depth maps in millimetres.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.lists import (
    class_folders,
    folder_contents,
    labels_below,
    read_lines,
    require_files,
    require_unique,
)
from benchmarks.task import InputError, Labels
from results.files import PathList, open_image, require_regular

# In the order of the mask values from 1 on, under the names of mmsegmentation; 0 is everything else and is ignored.
ADE20K_CLASSES = (
    "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed ", "windowpane", "grass", "cabinet",
    "sidewalk", "person", "earth", "door", "table", "mountain", "plant", "curtain", "chair", "car", "water",
    "painting", "sofa", "shelf", "house", "sea", "mirror", "rug", "field", "armchair", "seat", "fence", "desk",
    "rock", "wardrobe", "lamp", "bathtub", "railing", "cushion", "base", "box", "column", "signboard",
    "chest of drawers", "counter", "sand", "sink", "skyscraper", "fireplace", "refrigerator", "grandstand", "path",
    "stairs", "runway", "case", "pool table", "pillow", "screen door", "stairway", "river", "bridge", "bookcase",
    "blind", "coffee table", "toilet", "flower", "book", "hill", "bench", "countertop", "stove", "palm",
    "kitchen island", "computer", "swivel chair", "boat", "bar", "arcade machine", "hovel", "bus", "towel", "light",
    "truck", "tower", "chandelier", "awning", "streetlight", "booth", "television receiver", "airplane",
    "dirt track", "apparel", "pole", "land", "bannister", "escalator", "ottoman", "bottle", "buffet", "poster",
    "stage", "van", "ship", "fountain", "conveyer belt", "canopy", "washer", "plaything", "swimming pool", "stool",
    "barrel", "basket", "waterfall", "tent", "bag", "minibike", "cradle", "oven", "ball", "food", "step", "tank",
    "trade name", "microwave", "pot", "animal", "bicycle", "lake", "dishwasher", "screen", "blanket", "sculpture",
    "hood", "sconce", "vase", "traffic light", "tray", "ashcan", "fan", "pier", "crt screen", "plate", "monitor",
    "bulletin board", "shower", "radiator", "glass", "clock", "flag",
)  # fmt: skip
CLASSES_FILE = "classes.txt"  # of another data set in this layout: one name per line, for the values from 1 on

# The 19 classes in the order of their trainIds, with the labelIds of the owner's own masks (cityscapesscripts).
CITYSCAPES_LABEL_IDS = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19,
    "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27,
    "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip
# The classes with instance masks, in the same order.
CITYSCAPES_THINGS = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
_IGNORED = 255
_OUTSIDE = "license plate"  # of vehicles; the owner gives it no id and paints it over nothing
_STEPS = 4  # per pixel: polygons are cut from each other on a grid of points so far apart
_MOST_BYTES, _MOST_OBJECTS = 1 << 24, 5000  # of a file of outlines
_MOST_PIXELS = 1 << 25  # of an image, 16 times those of Cityscapes; the grid has 16 bytes for each
_IMAGE = "_leftImg8bit.png"  # the end of its name

MILLIMETRES = 1000.0  # per metre, in NYU's depth maps


def read_ade20k(folder: Path, split: str) -> Labels:
    """Items of `training` or `validation`, sorted by name, with their masks as annotations.

    Mask values are 0 (other, ignored) and 1 to 150; `classes` names those from 1 on.

    Args:
        folder: ADEChallengeData2016, with images/SPLIT/NAME.jpg and annotations/SPLIT/NAME.png.

    Raises:
        InputError: the split does not exist, or an image has no mask.
    """
    images, masks = folder / "images" / split, folder / "annotations" / split
    if not images.is_dir() or not masks.is_dir():
        raise InputError(
            f"{folder} has no split {split}: expected images/{split}/*.jpg and annotations/{split}/*.png, found "
            f"{folder_contents(folder)}; unpack ADEChallengeData2016.zip there"
        )
    names = sorted(file.name for file in images.iterdir() if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not names:
        raise InputError(f"{images} has no images; unpack ADEChallengeData2016.zip again")
    ids = tuple(Path(name).stem for name in names)
    require_unique(images, ids)
    files = [f"{id}.png" for id in ids]
    require_files(masks, files, f"images/{split}", "unpack ADEChallengeData2016.zip again")
    own = folder / CLASSES_FILE
    classes = tuple(read_lines(own)) if own.is_file() else ADE20K_CLASSES
    if not 0 < len(classes) < 255:
        raise InputError(f"{own} lists {len(classes)} classes, expected 1 to 254; correct the list")
    return labels_below(images, names, classes, ids=ids, groups_in=folder, annotations=PathList(masks, files))


def read_cityscapes(folder: Path, split: str, truth: str = "labels") -> Labels:
    """Items of `train`, `val` or `test` over all cities, sorted by id, such as `aachen_000000_000019`.

    Args:
        truth: which masks are the annotations. `labels`: labelTrainIds if the first image has them, else the owner's
            labelIds, which `label_map` translates. `instances`: instanceIds, 16-bit, id * 1000 + number for objects.

    Raises:
        InputError: the split does not exist, or an image has no mask.
    """
    images = folder / "leftImg8bit" / split
    cities = class_folders(images)
    if not cities:
        raise InputError(
            f"{folder} has no split {split}: expected leftImg8bit/{split}/<city>/*{_IMAGE}, found "
            f"{folder_contents(folder)}; unpack the files of the Cityscapes page (cityscapes-dataset.com) there"
        )
    names = sorted(
        f"{city}/{file.name}" for city in cities for file in (images / city).iterdir() if file.name.endswith(_IMAGE)
    )
    if not names:
        raise InputError(f"{images} has no *{_IMAGE} in its cities; unpack leftImg8bit_trainvaltest.zip again")
    ids = tuple(name.rpartition("/")[2].removesuffix(_IMAGE) for name in names)
    masks = folder / "gtFine" / split
    stems = [name.removesuffix(_IMAGE) for name in names]
    if truth == "instances":
        kind = "instanceIds"
    else:
        kind = "labelTrainIds" if (masks / f"{stems[0]}_gtFine_labelTrainIds.png").is_file() else "labelIds"
    files = [f"{stem}_gtFine_{kind}.png" for stem in stems]
    require_files(masks, files, f"the masks of leftImg8bit/{split}", "unpack gtFine_trainvaltest.zip again")
    classes = CITYSCAPES_THINGS if truth == "instances" else tuple(CITYSCAPES_LABEL_IDS)
    return labels_below(images, names, classes, ids=ids, groups_in=folder, annotations=PathList(masks, files))


def label_map(labels: Labels) -> dict[int, int] | None:
    """Mask value -> class index, 255 for ignored pixels. None if the masks already hold class indices."""
    if not labels.annotations or not labels.annotations[0].name.endswith("_labelIds.png"):
        return None
    index = {label_id: number for number, label_id in enumerate(CITYSCAPES_LABEL_IDS.values())}
    return {value: index.get(value, _IGNORED) for value in range(256)}


@dataclass(frozen=True)
class VisibleObject:
    """What is to be seen of one object, or of a group of touching ones of a class.

    Attributes:
        name: its class.
        group: whether it is a group, which detectors are not trained on.
        polygons: outlines of its parts as (P, 2) of x and y in pixels, without holes.
        box: left, top, right and bottom of all parts.
    """

    name: str
    group: bool
    polygons: tuple[NDArray[np.float64], ...]
    box: tuple[float, float, float, float]


def read_visible_objects(masks: Path) -> tuple[list[VisibleObject], tuple[int, int]]:
    """The objects of an image from its gtFine_polygons.json, as detectron2's loader defines them, and (height, width).

    The file lists outlines from back to front. Each is widened by half a pixel, as the owner's own masks are, and loses
    what later ones cover; holes that this leaves are filled. detectron2 does so in exact geometry, here it is done on a
    grid of a quarter of a pixel. Objects are in detectron2's order, from front to back.

    Args:
        masks: the image's instanceIds, beside which the polygons are.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    import cv2

    file = masks.with_name(masks.name.replace("_instanceIds.png", "_polygons.json"))
    try:
        require_regular(file)
        if file.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it has {file.stat().st_size:,} bytes")
        content = json.loads(file.read_bytes())
        height, width = int(content["imgHeight"]), int(content["imgWidth"])
        if min(height, width) < 1 or height * width > _MOST_PIXELS:
            raise ValueError(f"an image of {width} x {height} pixels")
        if len(content["objects"]) > _MOST_OBJECTS:
            raise ValueError(f"{len(content['objects']):,} objects")
        outlines = [(str(o["label"]), _corners(o["polygon"])) for o in content["objects"] if "deleted" not in o]
    except FileNotFoundError as error:
        raise InputError(f"{file} is missing; unpack gtFine_trainvaltest.zip again") from error
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(
            f"{file} has no polygons of Cityscapes ({error}); unpack gtFine_trainvaltest.zip again"
        ) from error
    drawn = [(label, corners) for label, corners in reversed(outlines) if label != _OUTSIDE]
    last = max(
        (i for i, (label, _) in enumerate(drawn) if label.removesuffix("group") in CITYSCAPES_THINGS), default=-1
    )
    covered = np.zeros((height * _STEPS + 1, width * _STEPS + 1), np.uint8)
    found = []
    for label, corners in drawn[: last + 1]:  # what lies behind the last object hides nothing
        points = np.rint((corners + 0.5) * _STEPS).astype(np.int32)  # corners are centres of pixels
        left, top = np.clip(points.min(0) - _STEPS, 0, (covered.shape[1], covered.shape[0]))
        right, bottom = np.clip(points.max(0) + _STEPS + 1, 0, (covered.shape[1], covered.shape[0]))
        if left == right or top == bottom:
            continue
        shape = np.zeros((bottom - top, right - left), np.uint8)
        points = points - (left, top)
        cv2.fillPoly(shape, [points], 1)
        cv2.polylines(shape, [points], isClosed=True, color=1, thickness=_STEPS)  # half a pixel to each side
        before = covered[top:bottom, left:right]
        if label.removesuffix("group") in CITYSCAPES_THINGS:
            contours, _ = cv2.findContours(shape & ~before, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            parts = tuple((c[:, 0] + (left, top)) / _STEPS for c in contours if len(c) > 2)
            if parts:
                edges = np.concatenate([[part.min(0), part.max(0)] for part in parts])
                box = (*edges.min(0).tolist(), *edges.max(0).tolist())
                found.append(VisibleObject(label.removesuffix("group"), label.endswith("group"), parts, box))
        before |= shape
    return found, (height, width)


def _corners(polygon: Any) -> NDArray[np.float64]:
    corners = np.asarray(polygon, dtype=np.float64)
    if corners.ndim != 2 or corners.shape[1] != 2 or not len(corners) or not (np.abs(corners) < 1e5).all():
        raise ValueError("a polygon is a list of x and y")
    return corners


def read_nyu(folder: Path, split: str) -> Labels:
    """Items of `train` or `test`, sorted by image, with their depth maps as annotations.

    Each line of `nyu_SPLIT.txt` names an image, its depth map and a focal length, which is not used. Paths are relative
    to the folder, with or without a slash before them.

    Raises:
        InputError: the list is missing, a line is malformed, or a file does not exist.
    """
    file = folder / f"nyu_{split}.txt"
    if not file.is_file():
        raise InputError(
            f"{folder} has no nyu_{split}.txt, only {folder_contents(folder)}; copy the lists of cleinc/bts "
            "(train_test_inputs/nyudepthv2_*_files_with_gt.txt) there as nyu_train.txt and nyu_test.txt"
        )
    pairs: list[tuple[str, str]] = []
    for number, line in enumerate(read_lines(file), start=1):
        fields = line.split()
        if len(fields) != 3 or not all(name.lstrip("/") for name in fields[:2]):
            raise InputError(
                f"{file} line {number}: expected an image, a depth map and a focal length, found {line[:200]!r}; "
                "restore the list"
            )
        pairs.append((fields[0].lstrip("/"), fields[1].lstrip("/")))
    pairs.sort()
    images, depths = [image for image, _ in pairs], [depth for _, depth in pairs]
    ids = tuple(str(Path(image).with_suffix("")) for image in images)
    require_unique(file, ids)
    remedy = "unpack NYU Depth v2 as BTS prepares it"
    require_files(folder, images, file.name, remedy)
    require_files(folder, depths, file.name, remedy)
    return labels_below(folder, images, ids=ids, annotations=PathList(folder, depths))


def read_depth(file: Path) -> NDArray[np.float32]:
    """(H, W) metres; 0 where the depth is unknown.

    Raises:
        InputError: the file is not a 16-bit PNG of one channel.
    """
    try:
        with open_image(file) as image:
            image.load()
            mode, values = image.mode, np.asarray(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{file} cannot be decoded as a depth map ({error}); unpack the data set again") from error
    if not mode.startswith("I") or values.ndim != 2:
        raise InputError(f"{file} has {mode} pixels; expected a 16-bit PNG with the depth in millimetres")
    return (values / MILLIMETRES).astype(np.float32)
