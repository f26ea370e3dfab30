"""Cityscapes objects as polygons against detectron2's loader, and against masks painted as the owner paints them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks.datasets.dense_sets import read_visible_objects
from benchmarks.task import InputError

pytest.importorskip("cv2")

SIZE = (200, 100)
# From back to front.
OBJECTS = [
    {"label": "road", "polygon": [[0, 50], [199, 50], [199, 99], [0, 99]]},
    {"label": "car", "polygon": [[10, 40], [80, 35], [90, 80], [12, 78]]},
    {"label": "person", "polygon": [[30, 45], [50, 45], [50, 70], [30, 70]]},  # leaves a hole in the car
    {"label": "pole", "polygon": [[120, 5], [124, 5], [124, 95], [120, 95]]},
    {"label": "bus", "polygon": [[100, 20], [150, 20], [150, 80], [100, 80]], "deleted": 1},
    {"label": "persongroup", "polygon": [[150, 60], [180, 50], [190, 90], [155, 92]]},
    {"label": "truck", "polygon": [[95, 60], [140, 62], [138, 90], [96, 88]]},
    {"label": "static", "polygon": [[110, 50], [118, 50], [118, 99], [110, 99]]},  # cuts the truck in two
    {"label": "rider", "polygon": [[112, 60], [116, 60], [116, 90], [112, 90]]},
    {"label": "license plate", "polygon": [[100, 80], [106, 80], [106, 83], [100, 83]]},
    {"label": "dynamic", "polygon": [[111, 58], [117, 58], [117, 92], [111, 92]]},  # hides the rider
    {"label": "sky", "polygon": [[0, 0], [199, 0], [199, 5], [0, 5]]},
]
# detectron2's _cityscapes_files_to_dict (sal-detectron2 0.7.2, from_json, to_polygons) on the same file: class, group,
# box, and area of all polygons.
DETECTRON2 = [
    ("truck", False, 2, (95.0, 60.0, 141.0, 91.0), 1030.2),
    ("person", True, 1, (150.01, 50.0, 190.99, 93.0), 1285.9),
    ("person", False, 1, (30.0, 45.0, 51.0, 71.0), 545.8),
    ("car", False, 1, (10.0, 35.0, 90.99, 81.0), 3196.9),
]


def written(folder: Path, objects: object = OBJECTS) -> Path:
    content = {"imgHeight": SIZE[1], "imgWidth": SIZE[0], "objects": objects}
    (folder / "a_gtFine_polygons.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "a_gtFine_instanceIds.png"


def area(part: NDArray[np.float64]) -> float:
    x, y = part.T
    return float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2)


def test_objects_are_those_of_detectron2s_loader(tmp_path: Path) -> None:
    found, size = read_visible_objects(written(tmp_path))
    assert size == SIZE[::-1]
    assert [(each.name, each.group, len(each.polygons)) for each in found] == [each[:3] for each in DETECTRON2]
    for each, (*_, box, of_all) in zip(found, DETECTRON2, strict=True):
        assert each.box == pytest.approx(box, abs=0.26)  # the grid is a quarter of a pixel wide
        circumference = 2 * (box[2] - box[0] + box[3] - box[1])
        assert sum(map(area, each.polygons)) == pytest.approx(of_all, abs=0.25 * circumference)


def test_objects_are_those_of_masks_painted_from_back_to_front(tmp_path: Path) -> None:
    from pycocotools import mask as rle

    found, _ = read_visible_objects(written(tmp_path))
    canvas = Image.new("L", SIZE)
    for number, each in enumerate(OBJECTS, 1):
        if "deleted" not in each and each["label"] != "license plate":
            ImageDraw.Draw(canvas).polygon([tuple(corner) for corner in each["polygon"]], fill=number)  # type: ignore[arg-type]
    painted = np.asarray(canvas)
    for name, number, hole in (("car", 2, 3), ("person", 3, None), ("truck", 7, None), ("person", 6, None)):
        (seen,) = (each for each in found if each.name == name and each.group == (number == 6))
        parts = rle.frPyObjects([part.reshape(-1).tolist() for part in seen.polygons], SIZE[1], SIZE[0])
        ours = rle.decode(rle.merge(parts)).astype(bool)
        theirs = (painted == number) | (painted == hole)  # polygons have no holes
        assert (ours & theirs).sum() / (ours | theirs).sum() > 0.95, name


def test_polygons_that_are_missing_or_no_polygons_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a_gtFine_polygons\.json is missing; unpack gtFine_trainvaltest\.zip again"):
        read_visible_objects(tmp_path / "a_gtFine_instanceIds.png")
    for wrong in (
        [{"label": "car"}],
        [{"label": "car", "polygon": [1, 2]}],
        5,
        [{"label": "car", "polygon": [[1e9, 0]]}],
    ):
        with pytest.raises(InputError, match=r"a_gtFine_polygons\.json has no polygons of Cityscapes"):
            read_visible_objects(written(tmp_path, wrong))
    for size in ("1e99", "1000000", "-1"):  # never allocated
        content = f'{{"imgHeight": {size}, "imgWidth": 1000000, "objects": []}}'
        (tmp_path / "a_gtFine_polygons.json").write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=r"a_gtFine_polygons\.json has no polygons of Cityscapes"):
            read_visible_objects(tmp_path / "a_gtFine_instanceIds.png")
    (tmp_path / "a_gtFine_polygons.json").write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(InputError, match=r"a_gtFine_polygons\.json has no polygons of Cityscapes"):
        read_visible_objects(tmp_path / "a_gtFine_instanceIds.png")
