"""ADE20K scene parsing (ADEChallengeData2016): images, masks of 150 classes, and what the masks' values mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.datasets.lists import folder_contents, read_groups, read_lines, require_files, require_unique
from benchmarks.task import InputError, Labels
from results.files import PathList

# In the order of the mask values from 1 on, under the names of mmsegmentation; 0 is everything else and is ignored.
CLASSES = (
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
    classes = tuple(read_lines(own)) if own.is_file() else CLASSES
    if not 0 < len(classes) < 255:
        raise InputError(f"{own} lists {len(classes)} classes, expected 1 to 254; correct the list")
    targets = np.zeros((len(ids), 0), dtype=np.int8)
    return Labels(ids, PathList(images, names), classes, targets, read_groups(folder, ids),
                  tuple(PathList(masks, files)))  # fmt: skip
