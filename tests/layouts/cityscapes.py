"""Cityscapes: leftImg8bit and gtFine, with and without the derived labelTrainIds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.layouts.pictures import Box, save, scene

SIZE = (128, 64)
CITIES = {"train": ("aachen", "bochum"), "val": ("frankfurt",), "test": ("berlin",)}
PER_CITY = 4
# name, labelId, trainId of what the pictures show: road below, sky above, a car and a person in between.
ROAD, SKY, CAR, PERSON = ("road", 7, 0), ("sky", 23, 10), ("car", 26, 13), ("person", 24, 11)


def write_cityscapes(root: Path, train_ids: bool = True) -> Path:
    """Writes `root`/cityscapes: 8 train, 4 val and 4 test images of 128×64. Returns the folder.

    The ground truth of test is one ignored rectangle, as the owner publishes it.
    """
    folder = root / "cityscapes"
    number = 0
    for split, cities in CITIES.items():
        for city in cities:
            for frame in range(PER_CITY):
                number += 1
                name = f"{city}_{number:06d}_{frame + 19:06d}"
                objects = _objects(number)
                picture = scene([(kind, box) for kind, (_, box) in enumerate(objects)], number, SIZE)
                save(picture, folder / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png")
                _write_truth(folder / "gtFine" / split / city, name, objects if split != "test" else [], train_ids)
    return folder


def _objects(number: int) -> list[tuple[tuple[str, int, int], Box]]:
    width, height = SIZE
    left = 8 + 5 * (number % 8)
    return [
        (SKY, (0, 0, width, 24)),
        (ROAD, (0, 44, width, height)),
        (CAR, (left, 28, left + 30, 50)),
        (PERSON, (left + 40, 20, left + 50, 52)),
    ]


def _write_truth(folder: Path, name: str, objects: list[tuple[tuple[str, int, int], Box]], train_ids: bool) -> None:
    shape = (SIZE[1], SIZE[0])
    label_ids, train, instances = np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8), np.zeros(shape, np.uint16)
    for (thing, label_id, train_id), (left, top, right, bottom) in objects:
        inside = np.s_[top:bottom, left:right]
        label_ids[inside], train[inside] = label_id, train_id
        instances[inside] = label_id * 1000 if thing in ("car", "person") else label_id
    save(Image.fromarray(label_ids), folder / f"{name}_gtFine_labelIds.png")
    save(Image.fromarray(instances), folder / f"{name}_gtFine_instanceIds.png")
    save(Image.fromarray(label_ids).convert("RGBA"), folder / f"{name}_gtFine_color.png")
    if train_ids:
        save(Image.fromarray(train), folder / f"{name}_gtFine_labelTrainIds.png")
    polygons = {
        "imgHeight": SIZE[1],
        "imgWidth": SIZE[0],
        "objects": [
            {"label": thing[0], "polygon": [[box[0], box[1]], [box[2], box[1]], [box[2], box[3]], [box[0], box[3]]]}
            for thing, box in objects
        ],
    }
    (folder / f"{name}_gtFine_polygons.json").write_text(json.dumps(polygons), encoding="utf-8")
