import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from benchmarks.demo.coco_writer import annotate, polygons, run_lengths
from benchmarks.demo.compose import Counts, plan
from benchmarks.demo.drawings import classes
from benchmarks.demo.scenes import instances


@pytest.mark.parametrize(("split", "voc_splits"), [("train2017", "trainval"), ("val2017", "test")])
def test_pycocotools_reads_the_same_objects(composed: Path, split: str, voc_splits: str) -> None:
    coco = COCO(str(composed / "coco" / "annotations" / f"instances_{split}.json"))
    voc = composed / "VOCdevkit" / "VOC2007"
    ids = [int(id) for id in (voc / "ImageSets" / "Main" / f"{voc_splits}.txt").read_text().split()]
    assert coco.getImgIds() == ids
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(classes())
    for image in coco.loadImgs(ids):
        picture = composed / "coco" / split / image["file_name"]
        assert picture.read_bytes() == (voc / "JPEGImages" / f"{image['id']:06d}.jpg").read_bytes()
        with Image.open(voc / "SegmentationClass" / f"{image['id']:06d}.png") as opened:
            labels = np.array(opened)
        painted = np.zeros_like(labels)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]])):
            mask = coco.annToMask(annotation).astype(bool)
            rows, columns = np.nonzero(mask)
            assert annotation["area"] == mask.sum()
            left, top, width, height = annotation["bbox"]
            assert [left, left + width - 1] == [columns.min(), columns.max()]
            assert [top, top + height - 1] == [rows.min(), rows.max()]
            assert not painted[mask].any()
            painted[mask] = annotation["category_id"]
        assert np.array_equal(painted, np.where(labels == 255, 0, labels))


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_there_are_crowds_and_polygons(composed: Path, split: str) -> None:
    content = json.loads((composed / "coco" / "annotations" / f"instances_{split}.json").read_text())
    crowds = [a for a in content["annotations"] if a["iscrowd"]]
    assert crowds
    assert all(isinstance(a["segmentation"], dict) for a in crowds)
    assert all(isinstance(a["segmentation"], list) for a in content["annotations"] if not a["iscrowd"])
    assert [a["id"] for a in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))


def test_a_crowd_holds_touching_objects_of_one_class() -> None:
    crowds = 0
    for scene in plan(2, Counts(train=60, val=0, test=0)):
        objects = instances(scene)
        annotations = annotate(objects)
        assert sum(a["area"] for a in annotations) == sum(int(o.mask.sum()) for o in objects)
        for annotation in annotations:
            own = [o for o in objects if 1 + classes().index(o.drawing.class_name) == annotation["category_id"]]
            if annotation["iscrowd"]:
                crowds += 1
                assert len(own) >= 2
                assert annotation["area"] > max(int(o.mask.sum()) for o in own)
    assert crowds > 0


def _decoded(encoded: object, shape: tuple[int, int]) -> np.ndarray:
    found = mask_api.frPyObjects(encoded, *shape)
    return mask_api.decode(mask_api.merge(found) if isinstance(found, list) else found).astype(bool)


@pytest.mark.parametrize("density", [0.02, 0.5, 0.6, 0.98])
def test_both_encodings_are_exact_on_any_mask(density: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        coarse = rng.random((9, 12)) < density
        coarse[rng.integers(9), rng.integers(12)] = True
        mask = np.kron(coarse, np.ones((2, 2), bool))  # holes, diagonal bridges and specks; no stroke of one pixel
        assert np.array_equal(_decoded(run_lengths(mask), mask.shape), mask)
        assert np.array_equal(_decoded(polygons(mask), mask.shape), mask)


def test_a_ring_keeps_its_hole() -> None:
    rows, columns = np.mgrid[:60, :80]
    radius = np.hypot(rows - 30, columns - 40)
    ring = (radius < 25) & (radius > 12)
    ring |= radius < 5
    found = polygons(ring)
    assert len(found) == 2
    assert np.array_equal(_decoded(found, ring.shape), ring)
