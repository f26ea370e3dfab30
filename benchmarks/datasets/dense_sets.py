"""Sets with a mask or a depth map per image: ADE20K scene parsing (ADEChallengeData2016), and NYU Depth v2.

NYU Depth v2 comes in the layout of BTS: lists of image, depth map and focal length, and depth maps in millimetres.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.lists import folder_contents, labels_below, read_lines, require_files, require_unique
from benchmarks.task import InputError, Labels
from results.files import PathList, open_image

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
