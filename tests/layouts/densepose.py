"""DensePose-COCO: json of people with points on the body's surface, beside the images of COCO 2017."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle

from tests.layouts.coco import write_coco

POINTS = 12


def write_densepose(root: Path) -> Path:
    """Writes `root`/coco with 12 train images, two of them in the list of valminusminival, and 6 of val.

    The last person of every list has no points. Returns the folder.
    """
    folder = write_coco(root)
    split_of = {"train": "train2017", "valminusminival": "train2017", "minival": "val2017"}
    for part, split in split_of.items():
        content = json.loads((folder / "annotations" / f"person_keypoints_{split}.json").read_bytes())
        images = content["images"]
        if split == "train2017":
            images = images[:10] if part == "train" else images[10:]
        year = "val2014" if part != "train" else "train2014"
        images = [{**image, "file_name": f"COCO_{year}_{image['file_name']}"} for image in images]
        shown = {image["id"] for image in images}
        people = [a for a in content["annotations"] if a["image_id"] in shown and not a["iscrowd"]]
        annotations = [{**a, **(_surface(a["id"]) if a is not people[-1] else {})} for a in people]
        written = {**content, "images": images, "annotations": annotations}
        (folder / "annotations" / f"densepose_{part}2014.json").write_text(json.dumps(written), encoding="utf-8")
    return folder


def _surface(seed: int) -> dict[str, Any]:
    """Points in 256ths of the box, of 24 parts, and a torso that fills it."""
    rng = np.random.default_rng(seed)
    torso = rle.encode(np.asfortranarray(np.ones((256, 256), dtype=np.uint8)))
    mask = {"size": torso["size"], "counts": torso["counts"].decode()}
    return {
        "dp_x": rng.uniform(5, 250, POINTS).tolist(),
        "dp_y": rng.uniform(5, 250, POINTS).tolist(),
        "dp_I": rng.integers(1, 25, POINTS).astype(float).tolist(),
        "dp_U": rng.uniform(0, 1, POINTS).tolist(),
        "dp_V": rng.uniform(0, 1, POINTS).tolist(),
        "dp_masks": [mask] + [[]] * 13,
    }
