"""COCO 2017: boxes, masks and keypoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.layouts.pictures import Box, boxes, save, scene

# Of the 80 categories, whose ids have gaps.
CATEGORIES = (
    {"id": 1, "name": "person", "supercategory": "person"},
    {"id": 3, "name": "car", "supercategory": "vehicle"},
    {"id": 17, "name": "cat", "supercategory": "animal"},
    {"id": 90, "name": "toothbrush", "supercategory": "indoor"},
)
KEYPOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip
SKELETON = [[16, 14], [14, 12], [17, 15], [15, 13], [12, 13]]
SIZE = (64, 48)
SPLITS = {"train2017": 12, "val2017": 6}


def write_coco(root: Path) -> Path:
    """Writes `root`/coco: 12 train and 6 val images, the last of each without any object. Returns the folder."""
    folder = root / "coco"
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    number = 0
    for split, count in SPLITS.items():
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for position in range(count):
            number += 1
            image_id = 139 + 146 * number
            name = f"{image_id:012d}.jpg"
            objects = [] if position == count - 1 else boxes(number, len(CATEGORIES), SIZE)
            save(scene(objects, number, SIZE), folder / split / name)
            images.append(
                {"license": 1, "file_name": name, "coco_url": f"http://images.cocodataset.org/{split}/{name}",
                 "height": SIZE[1], "width": SIZE[0], "id": image_id}
            )  # fmt: skip
            for kind, box in objects:
                annotations.append(_annotation(len(annotations) + 1, image_id, kind, box))
        if split == "train2017":
            annotations.append(_crowd(len(annotations) + 1, images[0]["id"]))
        common = {"info": {"year": 2017, "version": "1.0"}, "licenses": [{"id": 1, "name": "", "url": ""}]}
        plain = [{k: v for k, v in a.items() if "keypoints" not in k} for a in annotations]
        instances = {**common, "images": images, "annotations": plain, "categories": list(CATEGORIES)}
        _write(folder / "annotations" / f"instances_{split}.json", instances)
        people = [a for a in annotations if a["category_id"] == 1]
        person = {**CATEGORIES[0], "keypoints": list(KEYPOINTS), "skeleton": SKELETON}
        keypoints = {**common, "images": images, "annotations": people, "categories": [person]}
        _write(folder / "annotations" / f"person_keypoints_{split}.json", keypoints)
    return folder


def corners(box: Box) -> list[float]:
    """The box as a polygon, x, y, x, y …"""
    left, top, right, bottom = map(float, box)
    return [left, top, right, top, right, bottom, left, bottom]


def _annotation(number: int, image_id: int, kind: int, box: Box) -> dict[str, Any]:
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    found: dict[str, Any] = {
        "segmentation": [corners(box)],
        "area": float(width * height),
        "iscrowd": 0,
        "image_id": image_id,
        "bbox": [float(left), float(top), float(width), float(height)],
        "category_id": CATEGORIES[kind]["id"],
        "id": number,
    }
    if found["category_id"] == 1:
        points = [(left + width * (n % 5) / 5, top + height * (n // 5) / 4, 2) for n in range(len(KEYPOINTS))]
        found["keypoints"] = [int(value) for point in points for value in point]
        found["num_keypoints"] = len(KEYPOINTS)
    return found


def _crowd(number: int, image_id: int) -> dict[str, Any]:
    """Persons in the last two columns, as an uncompressed run-length encoding in column order."""
    width, height = SIZE
    return {
        "segmentation": {"counts": [(width - 2) * height, 2 * height], "size": [height, width]},
        "area": 2.0 * height,
        "iscrowd": 1,
        "image_id": image_id,
        "bbox": [float(width - 2), 0.0, 2.0, float(height)],
        "category_id": 1,
        "id": number,
        "keypoints": [0] * (3 * len(KEYPOINTS)),
        "num_keypoints": 0,
    }


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")
