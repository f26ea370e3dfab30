"""Writes scenes in the layout of the Pascal VOC devkit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

from PIL import Image

from benchmarks.demo.drawings import classes
from benchmarks.demo.painting import label_images
from benchmarks.demo.scenes import Instance, Scene

# The lists of the devkit and the scenes that each of them holds.
LISTS = {"train": ("train",), "val": ("val",), "trainval": ("train", "val"), "test": ("test",)}


class VocWriter:
    """Writes into `folder` = VOCdevkit/VOC<year>: one call of `add` per scene, then `finish`."""

    def __init__(self, folder: Path, year: str) -> None:
        self.folder, self.year = folder, year
        # (image id, split, class -> whether every instance of it is difficult)
        self._scenes: list[tuple[str, str, dict[str, bool]]] = []
        for name in ("JPEGImages", "Annotations", "SegmentationClass", "SegmentationObject"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def add(self, scene: Scene, image: Image.Image, objects: Sequence[Instance]) -> str:
        """Writes picture, boxes and label images. Returns the image id."""
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
        """Writes the lists of `ImageSets`."""
        self._scenes.sort()
        for name, splits in LISTS.items():
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
