"""Write corrupted drawings in ImageNet-C's layout, and scenes in those of Pascal VOC, COCO, ADE20K and NYU Depth.

The corruptions are four of ImageNet-C's (Hendrycks and Dietterich 2019) whose strength does not depend on the size of
the picture, at its strengths for 224 pixels, read in hendrycks/robustness@29b1753, create_c/make_imagenet_c.py.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from io import BytesIO
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
from contourpy import FillType, contour_generator
from numpy.typing import NDArray
from PIL import Image

from benchmarks.demo.scenes import Instance, Mask, Scene, classes, generator

Floats = NDArray[np.float64]

JPEG_QUALITY = 85  # in which ImageNet-C is stored
SEVERITIES = (3, 5)
# The lists of the VOC devkit and the scene splits in each of them.
VOC_LISTS = {"train": ("train",), "val": ("val",), "trainval": ("train", "val"), "test": ("test",)}
VOID = 255
VOID_WIDTH = 2  # pixels of the border around objects, where strokes fade into the background

EVERY = 8  # scenes, of which one is in ADE20K and NYU Depth
BACKGROUND_DEPTH, FIRST_DEPTH, NEARER = 8.0, 4.0, 0.75  # metres, metres, and the ratio from one object to the next

Annotation = dict[str, Any]


def gaussian_noise(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    scale = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    x = _floats(image)
    return _image(x + rng.normal(scale=scale, size=x.shape))


def contrast(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    kept = (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]
    x = _floats(image)
    mean = x.mean((0, 1))
    return _image((x - mean) * kept + mean)


def pixelate(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    small = image.resize((int(image.width * share), int(image.height * share)), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.BOX)


def jpeg_compression(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    quality = (25, 18, 15, 10, 7)[severity - 1]
    stored = BytesIO()
    image.save(stored, "JPEG", quality=quality)
    return Image.open(stored).convert("RGB")


CORRUPTIONS: Mapping[str, Callable[[Image.Image, int, np.random.Generator], Image.Image]] = {
    each.__name__: each for each in (gaussian_noise, contrast, pixelate, jpeg_compression)
}


def write_corrupted(drawing: Path, folder: Path, seed: int) -> None:
    """Write every corruption of one drawing as `<corruption>/<severity>/<class>/<name>.jpg`.

    Args:
        drawing: `…/<class>/<name>.png`.
    """
    with Image.open(drawing) as opened:
        image = opened.convert("RGB")
    for name, corrupted in CORRUPTIONS.items():
        for severity in SEVERITIES:
            file = folder / name / str(severity) / drawing.parent.name / f"{drawing.stem}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            rng = generator(seed, name, severity, drawing.parent.name, drawing.stem)
            corrupted(image, severity, rng).save(file, quality=JPEG_QUALITY)


def _floats(image: Image.Image) -> Floats:
    return np.asarray(image, np.float64) / 255


def _image(x: Floats) -> Image.Image:
    return Image.fromarray((np.clip(x, 0, 1) * 255).astype(np.uint8))


class VocWriter:
    """Writes into `folder` = VOCdevkit/VOC<year>: one call of `add` per scene, then `finish`."""

    def __init__(self, folder: Path, year: str) -> None:
        self.folder, self.year = folder, year
        # (image id, split, class -> whether every instance of it is difficult)
        self._scenes: list[tuple[str, str, dict[str, bool]]] = []
        for name in ("JPEGImages", "Annotations", "SegmentationClass", "SegmentationObject"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def add(self, scene: Scene, image: Image.Image, objects: Sequence[Instance]) -> str:
        """Write picture, boxes and label images. Returns the image id."""
        image_id = f"{scene.number:06d}"
        image.save(self.folder / "JPEGImages" / f"{image_id}.jpg", quality=92)
        by_class, by_object = label_images(objects)
        by_class.save(self.folder / "SegmentationClass" / f"{image_id}.png")
        by_object.save(self.folder / "SegmentationObject" / f"{image_id}.png")
        tree = _annotation(self.year, f"{image_id}.jpg", scene, objects)
        ET.indent(tree, "\t")
        text = ET.tostring(tree, encoding="unicode") + "\n"
        (self.folder / "Annotations" / f"{image_id}.xml").write_text(text, encoding="utf-8")
        difficult: dict[str, bool] = {}
        for instance in objects:
            name = instance.drawing.class_name
            difficult[name] = difficult.get(name, True) and instance.difficult
        self._scenes.append((image_id, scene.split, difficult))
        return image_id

    def finish(self) -> None:
        """Write the lists of `ImageSets`."""
        self._scenes.sort()
        for name, splits in VOC_LISTS.items():
            scenes = [scene for scene in self._scenes if scene[1] in splits]
            ids = [image_id for image_id, _, _ in scenes]
            for kind in ("Main", "Segmentation"):
                _write_lines(self.folder / "ImageSets" / kind / f"{name}.txt", ids)
            for class_name in classes():
                lines = [f"{image_id} {_label(found, class_name):2d}" for image_id, _, found in scenes]
                _write_lines(self.folder / "ImageSets" / "Main" / f"{class_name}_{name}.txt", lines)


def _label(difficult: dict[str, bool], class_name: str) -> int:
    """1 present, 0 when all instances are difficult, -1 absent."""
    return -1 if class_name not in difficult else 0 if difficult[class_name] else 1


def _write_lines(file: Path, lines: Iterable[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _annotation(year: str, file_name: str, scene: Scene, objects: Sequence[Instance]) -> ET.Element:
    root = ET.Element("annotation")
    _fill(root, {"folder": f"VOC{year}", "filename": file_name})
    _fill(
        ET.SubElement(root, "source"),
        {"database": "openclipart12 scenes", "annotation": f"PASCAL VOC{year}", "image": "openclipart"},
    )
    _fill(ET.SubElement(root, "size"), {"width": scene.width, "height": scene.height, "depth": 3})
    _fill(root, {"segmented": 1})
    for instance in objects:
        element = ET.SubElement(root, "object")
        fields = {
            "name": instance.drawing.class_name,
            "pose": "Unspecified",
            "truncated": int(instance.truncated),
            "difficult": int(instance.difficult),
        }
        _fill(element, fields)
        left, top, right, bottom = (1 + edge for edge in instance.box)  # the devkit counts pixels from 1
        _fill(ET.SubElement(element, "bndbox"), {"xmin": left, "ymin": top, "xmax": right, "ymax": bottom})
    return root


def _fill(element: ET.Element, fields: Mapping[str, object]) -> None:
    for name, value in fields.items():
        ET.SubElement(element, name).text = str(value)


def label_images(objects: Sequence[Instance]) -> tuple[Image.Image, Image.Image]:
    """SegmentationClass and SegmentationObject: palette images, 0 background, 255 void, else class or object from 1.

    Void is the background next to objects. The devkit's void band also covers the edge of the objects; here it does
    not, because nothing would be left of line art.
    """
    shape = objects[0].mask.shape
    by_class, by_object = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    anything = np.logical_or.reduce([instance.mask for instance in objects])
    near = _grown(anything, VOID_WIDTH)
    by_class[near] = by_object[near] = VOID
    for number, instance in enumerate(objects, start=1):
        by_class[instance.mask] = 1 + classes().index(instance.drawing.class_name)
        by_object[instance.mask] = number
    return _with_palette(by_class), _with_palette(by_object)


@cache
def voc_palette() -> tuple[int, ...]:
    """The devkit's colour map: bit 3k + c of the index is bit 7 - k of channel c (0 red, 1 green, 2 blue)."""
    return tuple(
        sum((index >> (3 * k + channel) & 1) << (7 - k) for k in range(8))
        for index in range(256)
        for channel in range(3)
    )


def _grown(mask: Mask, by: int) -> Mask:
    """The mask and all pixels at most `by` rows and columns away."""
    grown = mask.copy()
    for _ in range(by):
        grown[1:] |= grown[:-1].copy()
        grown[:-1] |= grown[1:].copy()
        grown[:, 1:] |= grown[:, :-1].copy()
        grown[:, :-1] |= grown[:, 1:].copy()
    return grown


def _with_palette(values: NDArray[np.uint8]) -> Image.Image:
    image = Image.fromarray(values).convert("P")
    image.putpalette(list(voc_palette()))
    return image


class CocoWriter:
    """Writes into `folder` = coco: one call of `add` per scene, then `finish`. Test scenes are val2017."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._images: dict[str, list[dict[str, Any]]] = {"train2017": [], "val2017": []}
        self._annotations: dict[str, list[Annotation]] = {"train2017": [], "val2017": []}
        for name in self._images:
            (folder / name).mkdir(parents=True, exist_ok=True)

    def add(self, scene: Scene, picture: Path, annotations: Sequence[Annotation]) -> None:
        """Link the picture (or copy it if the file system has no links) and keep the scene's `coco_annotations`."""
        split = "val2017" if scene.split == "test" else "train2017"
        file_name = f"{scene.number:012d}.jpg"
        target = self.folder / split / file_name
        _link(picture, target)
        entry = {"id": scene.number, "file_name": file_name, "width": scene.width, "height": scene.height, "license": 1}
        self._images[split].append(entry)
        for annotation in annotations:
            number = 1 + len(self._annotations[split])
            self._annotations[split].append({"id": number, "image_id": scene.number, **annotation})

    def finish(self) -> None:
        """Write the two json files."""
        (self.folder / "annotations").mkdir(exist_ok=True)
        for split, images in self._images.items():
            content = {
                "info": {"description": "openclipart12 scenes", "version": "1"},
                "licenses": [{"id": 1, "name": "Public Domain Dedication", "url": ""}],
                "categories": [
                    {"id": 1 + index, "name": name, "supercategory": name.split("_")[0]}
                    for index, name in enumerate(classes())
                ],
                "images": images,
                "annotations": self._annotations[split],
            }
            file = self.folder / "annotations" / f"instances_{split}.json"
            file.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")


def _link(file: Path, target: Path) -> None:
    """Link a file, or copy it if the file system has no links."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


def coco_annotations(objects: Sequence[Instance]) -> list[Annotation]:
    """Annotations of a scene, without ids: polygons of an object, or a run-length crowd of touching ones of a class."""
    found = []
    for cluster in _clusters(objects):
        mask: Mask = np.logical_or.reduce([instance.mask for instance in cluster])
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        left, top = int(columns[0]), int(rows[0])
        crowd = len(cluster) > 1
        found.append(
            {
                "category_id": 1 + classes().index(cluster[0].drawing.class_name),
                "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
                "area": int(mask.sum()),
                "iscrowd": int(crowd),
                "segmentation": run_lengths(mask) if crowd else polygons(mask),
            }
        )
    return found


def run_lengths(mask: Mask) -> dict[str, list[int]]:
    """COCO's uncompressed encoding: lengths of runs in column order, the first one of zeros."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    lengths = np.diff([0, *changes, mask.size])
    return {"counts": [int(n) for n in lengths], "size": [int(side) for side in mask.shape]}


def polygons(mask: Mask) -> list[list[float]]:
    """Outlines that rasterise to the mask: x, y, x, y … with pixel centres at half integers, half a pixel outside them.

    COCO's polygons have no holes. The outline is cut open from its first point to the hole and back, so that the two
    edges of the cut cancel in the rasteriser.
    """
    padded = np.pad(mask, 1).astype(np.float64)
    outlines = contour_generator(z=padded, fill_type=FillType.OuterOffset)
    paths: list[list[float]] = []
    for points, offsets in zip(*outlines.filled(0.5, np.inf), strict=True):
        rings = [points[a:b] for a, b in pairwise(offsets)]
        joined = np.concatenate([ring for hole in rings[1:] for ring in (hole, rings[0][:1])] or [rings[0][:0]])
        path = np.concatenate([rings[0], joined]) - 0.5  # undoes the padding; the first pixel's centre is at 0.5
        paths.append([float(value) for value in path.ravel()])
    return paths


def _clusters(objects: Sequence[Instance]) -> list[list[Instance]]:
    clusters = [[instance] for instance in objects]
    for first, second in combinations(range(len(objects)), 2):
        same = objects[first].drawing.class_name == objects[second].drawing.class_name
        if same and _touching(objects[first].mask, objects[second].mask):
            a, b = (next(c for c in clusters if any(i is objects[k] for i in c)) for k in (first, second))
            if a is not b:
                a.extend(b)
                clusters = [c for c in clusters if c is not b]
    return clusters


def _touching(first: Mask, second: Mask) -> bool:
    """Whether there is at most one pixel of something else between two objects."""
    return bool((_grown(first, 1) & _grown(second, 1)).any())


def write_ade20k(voc: Path, folder: Path) -> dict[str, str]:
    """Write masks with the background as value 1, the classes after it, and the void around objects as 0.

    Args:
        voc: VOCdevkit/VOC<year>, already composed.

    Returns:
        The id of each item and its scene's id in `voc`.
    """
    ids: dict[str, str] = {}
    for listed, split in (("trainval", "training"), ("test", "validation")):
        for kind in ("images", "annotations"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for scene in _some_scenes(voc, listed):
            _link(voc / "JPEGImages" / f"{scene}.jpg", folder / "images" / split / f"{scene}.jpg")
            mask = _values(voc / "SegmentationClass" / f"{scene}.png") + 1  # void wraps from 255 to 0
            Image.fromarray(mask).save(folder / "annotations" / split / f"{scene}.png")
            ids[scene] = scene
    _write_lines(folder / "classes.txt", ("background", *classes()))
    return ids


def write_nyu(voc: Path, folder: Path) -> dict[str, str]:
    """Write depth maps of the order in which objects were painted: a composed depth, not a measured one.

    The background is 8 m away, the first object 4 m, and each later one, which covers those before it, three quarters
    of the distance of the one before.

    Args:
        voc: VOCdevkit/VOC<year>, already composed.

    Returns:
        The id of each item and its scene's id in `voc`.
    """
    ids: dict[str, str] = {}
    for listed, split in (("trainval", "train"), ("test", "test")):
        (folder / split).mkdir(parents=True, exist_ok=True)
        lines = []
        for scene in _some_scenes(voc, listed):
            _link(voc / "JPEGImages" / f"{scene}.jpg", folder / split / f"{scene}.jpg")
            order = _values(voc / "SegmentationObject" / f"{scene}.png").astype(np.float64)
            depth = np.where((order == 0) | (order == VOID), BACKGROUND_DEPTH, FIRST_DEPTH * NEARER ** (order - 1))
            Image.fromarray((1000 * depth).round().astype(np.uint16)).save(folder / split / f"{scene}.png")
            lines.append(f"/{split}/{scene}.jpg /{split}/{scene}.png 1.0")
            ids[f"{split}/{scene}"] = scene
        _write_lines(folder / f"nyu_{split}.txt", lines)
    return ids


def _some_scenes(voc: Path, listed: str) -> list[str]:
    return (voc / "ImageSets" / "Segmentation" / f"{listed}.txt").read_text(encoding="utf-8").split()[::EVERY]


def _values(file: Path) -> NDArray[np.uint8]:
    with Image.open(file) as image:
        return np.array(image, dtype=np.uint8)
