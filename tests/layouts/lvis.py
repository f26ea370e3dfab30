"""LVIS: its json beside the images of COCO 2017."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from tests.layouts.coco import SIZE, corners, write_coco
from tests.layouts.pictures import boxes

NAMES = ("acorn", "aerosol_can", "air_conditioner", "airplane")


def write_lvis(root: Path, version: Literal["v1", "v0.5"] = "v1") -> Path:
    """Writes `root`/lvis (the json) and `root`/coco (the images): 10 train and 5 val images. Returns `root`/lvis.

    v1 names an image by its coco_url alone, and its val holds an image of COCO's train2017. v0.5 has 2014's file names.
    """
    coco = write_coco(root)
    folder = root / "lvis"
    folder.mkdir(parents=True, exist_ok=True)
    train = sorted(file.name for file in (coco / "train2017").iterdir())
    val = sorted(file.name for file in (coco / "val2017").iterdir())
    chosen = {"train": [("train2017", name) for name in train[:10]], "val": [("val2017", name) for name in val[:4]]}
    chosen["val"].append(("train2017", train[10]) if version == "v1" else ("val2017", val[4]))
    for split, files in chosen.items():
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, (coco_split, name) in enumerate(files):
            image: dict[str, Any] = {
                "id": int(name[:-4]),
                "height": SIZE[1],
                "width": SIZE[0],
                "coco_url": f"http://images.cocodataset.org/{coco_split}/{name}",
                "not_exhaustive_category_ids": [],
                "neg_category_ids": [4],
                "license": 1,
            }
            if version == "v0.5":
                image["file_name"] = f"COCO_{coco_split.removesuffix('2017')}2014_{name}"
            images.append(image)
            for kind, (left, top, right, bottom) in boxes(number, len(NAMES) - 1, SIZE):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image["id"],
                        "category_id": 1 + kind,
                        "bbox": [float(left), float(top), float(right - left), float(bottom - top)],
                        "area": float((right - left) * (bottom - top)),
                        "segmentation": [corners((left, top, right, bottom))],
                    }
                )
        categories = [
            {"id": 1 + n, "name": name, "synset": f"{name}.n.01", "frequency": "fcr"[n % 3], "image_count": 5,
             "instance_count": 5, "synonyms": [name], "def": name}
            for n, name in enumerate(NAMES)
        ]  # fmt: skip
        content = {
            "info": {"version": version},
            "annotations": annotations,
            "images": images,
            "licenses": [{"id": 1, "name": "", "url": ""}],
            "categories": categories,
        }
        (folder / f"lvis_{version}_{split}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
