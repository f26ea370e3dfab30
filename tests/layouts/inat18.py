"""iNaturalist 2018 as the competition publishes it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.layouts.pictures import plain, save

# Category -> the folder it lies in; the names of 2018 are the numbers.
SUPERCATEGORIES = ("Actinopterygii", "Plantae", "Plantae")


def write_inat18(root: Path) -> Path:
    """Writes `root`/inat2018: 3 categories with 8 train and 4 val images each. Returns the folder."""
    folder = root / "inat2018"
    categories = [
        {"id": number, "name": str(number), "supercategory": name} for number, name in enumerate(SUPERCATEGORIES)
    ]
    image_id = 0
    for split, per_class in (("train", 8), ("val", 4)):
        images, annotations = [], []
        for number in range(per_class * len(SUPERCATEGORIES)):
            image_id += 1
            target = number % len(SUPERCATEGORIES)
            name = f"train_val2018/{SUPERCATEGORIES[target]}/{target}/{image_id * 104729:032x}.jpg"
            save(plain(target, image_id), folder / name)
            images.append(
                {"id": image_id, "file_name": name, "width": 48, "height": 40, "license": 0, "rights_holder": "nobody"}
            )
            annotations.append({"id": image_id, "image_id": image_id, "category_id": target})
        annotations.reverse()  # joined on the id, not on the order
        content = {
            "info": {"year": 2018, "version": "1"},
            "images": images,
            "categories": categories,
            "annotations": annotations,
            "licenses": [{"id": 0, "name": "Public Domain", "url": ""}],
        }
        (folder / f"{split}2018.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
