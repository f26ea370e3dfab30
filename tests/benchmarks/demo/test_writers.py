import json
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from benchmarks.demo.compose import Counts, plan_scenes
from benchmarks.demo.scenes import classes, instances
from benchmarks.demo.writers import VOC_LISTS, coco_annotations, polygons, run_lengths, voc_palette


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
    for scene in plan_scenes(2, Counts(train=60, val=0, test=0)):
        objects = instances(scene)
        annotations = coco_annotations(objects)
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


@pytest.fixture(scope="module")
def voc(composed: Path) -> Path:
    return composed / "VOCdevkit" / "VOC2007"


def _pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        assert image.mode == "P"
        return np.array(image)


def test_the_folders_are_those_of_the_devkit(voc: Path, counts: Counts) -> None:
    folders = {path.name for path in voc.iterdir() if path.is_dir()}
    assert folders == {"JPEGImages", "Annotations", "ImageSets", "SegmentationClass", "SegmentationObject"}
    total = counts.train + counts.val + counts.test
    ids = [f"{number:06d}" for number in range(1, total + 1)]
    for folder, suffix in (("JPEGImages", "jpg"), ("Annotations", "xml"), ("SegmentationClass", "png")):
        assert sorted(path.name for path in (voc / folder).iterdir()) == [f"{id}.{suffix}" for id in ids]
    for kind in ("Main", "Segmentation"):
        lists = {name: (voc / "ImageSets" / kind / f"{name}.txt").read_text().split() for name in VOC_LISTS}
        assert lists["trainval"] == lists["train"] + lists["val"]
        assert lists["trainval"] + lists["test"] == ids
        assert len(lists["val"]) == counts.val


def test_annotations_have_the_devkits_fields(voc: Path) -> None:
    for file in (voc / "Annotations").iterdir():
        tree = ET.parse(file).getroot()
        assert [child.tag for child in tree][:5] == ["folder", "filename", "source", "size", "segmented"]
        assert tree.findtext("folder") == "VOC2007"
        assert tree.findtext("filename") == f"{file.stem}.jpg"
        assert {child.tag for child in tree.find("source") or ()} == {"database", "annotation", "image"}
        with Image.open(voc / "JPEGImages" / f"{file.stem}.jpg") as image:
            size = [image.width, image.height, 3]
            assert image.mode == "RGB"
        assert [int(tree.findtext(f"size/{side}", "")) for side in ("width", "height", "depth")] == size
        objects = tree.findall("object")
        assert 1 <= len(objects) <= 5
        for element in objects:
            assert [child.tag for child in element] == ["name", "pose", "truncated", "difficult", "bndbox"]
            assert [child.tag for child in element.find("bndbox") or ()] == ["xmin", "ymin", "xmax", "ymax"]


def test_boxes_are_the_extents_of_the_masks_counted_from_one(voc: Path) -> None:
    for file in (voc / "Annotations").iterdir():
        masks = _pixels(voc / "SegmentationObject" / f"{file.stem}.png")
        names = _pixels(voc / "SegmentationClass" / f"{file.stem}.png")
        objects = ET.parse(file).getroot().findall("object")
        assert set(np.unique(masks)) <= {0, 255, *range(1, len(objects) + 1)}
        for number, element in enumerate(objects, start=1):
            rows, columns = np.nonzero(masks == number)
            box = [int(element.findtext(f"bndbox/{edge}", "")) for edge in ("xmin", "ymin", "xmax", "ymax")]
            assert box == [columns.min() + 1, rows.min() + 1, columns.max() + 1, rows.max() + 1]
            assert 1 <= box[0] <= box[2] <= masks.shape[1]
            assert 1 <= box[1] <= box[3] <= masks.shape[0]
            assert set(names[masks == number]) == {1 + classes().index(element.findtext("name", ""))}
        assert np.array_equal(names == 255, masks == 255)
        assert np.array_equal(names == 0, masks == 0)


def test_void_separates_every_object_from_the_background(voc: Path) -> None:
    for file in (voc / "SegmentationObject").iterdir():
        labels = _pixels(file)
        assert (labels == 255).any()
        padded = np.pad(labels, 1, mode="edge")
        objects = (padded != 0) & (padded != 255)
        for dy in (0, 1, 2):
            for dx in (0, 1, 2):
                neighbour = objects[dy : dy + labels.shape[0], dx : dx + labels.shape[1]]
                assert not (neighbour & (labels == 0)).any()


def test_the_palette_is_the_devkits(voc: Path) -> None:
    palette = np.array(voc_palette()).reshape(256, 3)
    # aeroplane, bicycle, bird, boat, bottle, …, tv/monitor and void, as the devkit's VOClabelcolormap gives them
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128), 5: (128, 0, 128),
             8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}  # fmt: skip
    assert {index: tuple(palette[index]) for index in known} == known
    with Image.open(voc / "SegmentationClass" / "000001.png") as image:
        assert (image.getpalette() or [])[: 3 * 13] == list(voc_palette())[: 3 * 13]
        assert np.asarray(image.convert("RGB"))[np.asarray(image) == 255].tolist()[0] == [224, 224, 192]


def test_class_files_agree_with_the_annotations(voc: Path) -> None:
    difficult: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for file in (voc / "Annotations").iterdir():
        for element in ET.parse(file).getroot().findall("object"):
            difficult[file.stem, element.findtext("name", "")].append(element.findtext("difficult") == "1")
    seen = set()
    for split in VOC_LISTS:
        ids = (voc / "ImageSets" / "Main" / f"{split}.txt").read_text().split()
        for name in classes():
            lines = (voc / "ImageSets" / "Main" / f"{name}_{split}.txt").read_text().splitlines()
            assert [line[:6] for line in lines] == ids
            for line in lines:
                flags = difficult.get((line[:6], name))
                assert line[6:] == {None: " -1", False: "  1", True: "  0"}[None if flags is None else all(flags)]
                seen.add(line[6:])
    assert seen == {" -1", "  1", "  0"}
