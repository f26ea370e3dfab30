"""The Pascal VOC devkit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tests.layouts.pictures import Box, boxes, save, scene

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
SIZE = (64, 48)
KINDS = 3  # the classes that the pictures show; all 20 have list files


def write_voc(root: Path, year: str = "2007") -> Path:
    """Writes `root`/VOCdevkit/VOC<year>: 8 train, 4 val and (2007) 8 test images. Returns the folder of the year.

    Every image has boxes and masks. The only aeroplane of the first image of each list is difficult.
    """
    folder = root / "VOCdevkit" / f"VOC{year}"
    splits = {"train": 8, "val": 4, **({"test": 8} if year == "2007" else {})}
    ids: dict[str, list[str]] = {}
    shown: dict[str, list[tuple[int, Box]]] = {}
    number = 0
    for split, count in splits.items():
        ids[split] = []
        for _ in range(count):
            number += 1
            image_id = f"{number:06d}" if year == "2007" else f"2008_{number:06d}"
            ids[split].append(image_id)
            shown[image_id] = boxes(number, KINDS, SIZE)
            save(scene(shown[image_id], number, SIZE), folder / "JPEGImages" / f"{image_id}.jpg")
            _write_xml(folder, year, image_id, shown[image_id], difficult=image_id == ids[split][0])
            _write_masks(folder, image_id, shown[image_id])
    ids["trainval"] = ids["train"] + ids["val"]
    for split, names in ids.items():
        write_lines(folder / "ImageSets" / "Segmentation" / f"{split}.txt", names)
        write_lines(folder / "ImageSets" / "Main" / f"{split}.txt", names)
        firsts = {image_ids[0] for image_ids in ids.values()}
        for index, name in enumerate(CLASSES):
            lines = [f"{i} {_value(index, shown[i], i in firsts):2d}" for i in names]
            write_lines(folder / "ImageSets" / "Main" / f"{name}_{split}.txt", lines)
    return folder


def write_lines(file: Path, lines: Iterable[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def palette_png(pixels: np.ndarray, file: Path) -> None:
    """Label indices with the colours of the devkit: bits of the index spread over red, green, blue."""
    image = Image.fromarray(pixels.astype(np.uint8), mode="P")
    colours = []
    for index in range(256):
        for channel in range(3):
            colours.append(sum(((index >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(8)))
    image.putpalette(colours)
    save(image, file)


def class_mask(objects: Sequence[tuple[int, Box]], size: tuple[int, int]) -> np.ndarray:
    """(H, W): class index + 1 inside, 255 on the outlines, 0 elsewhere."""
    mask = np.zeros((size[1], size[0]), np.uint8)
    for kind, (left, top, right, bottom) in objects:
        mask[top:bottom, left:right] = 255
        mask[top + 1 : bottom - 1, left + 1 : right - 1] = kind + 1
    return mask


def _value(index: int, objects: Sequence[tuple[int, Box]], difficult: bool) -> int:
    if index not in {kind for kind, _ in objects}:
        return -1
    return 0 if difficult and index == 0 else 1


def _write_masks(folder: Path, image_id: str, objects: Sequence[tuple[int, Box]]) -> None:
    by_object = [(number, box) for number, (_, box) in enumerate(objects)]
    palette_png(class_mask(objects, SIZE), folder / "SegmentationClass" / f"{image_id}.png")
    palette_png(class_mask(by_object, SIZE), folder / "SegmentationObject" / f"{image_id}.png")


def _write_xml(folder: Path, year: str, image_id: str, objects: Sequence[tuple[int, Box]], difficult: bool) -> None:
    parts = [
        f"<annotation>\n\t<folder>VOC{year}</folder>\n\t<filename>{image_id}.jpg</filename>\n\t<source>\n"
        f"\t\t<database>The VOC{year} Database</database>\n\t</source>\n\t<size>\n\t\t<width>{SIZE[0]}</width>\n"
        f"\t\t<height>{SIZE[1]}</height>\n\t\t<depth>3</depth>\n\t</size>\n\t<segmented>1</segmented>\n"
    ]
    for kind, (left, top, right, bottom) in objects:
        parts.append(
            f"\t<object>\n\t\t<name>{CLASSES[kind]}</name>\n\t\t<pose>Unspecified</pose>\n\t\t<truncated>0</truncated>\n"
            f"\t\t<difficult>{int(difficult and kind == 0)}</difficult>\n\t\t<bndbox>\n\t\t\t<xmin>{left + 1}</xmin>\n"
            f"\t\t\t<ymin>{top + 1}</ymin>\n\t\t\t<xmax>{right}</xmax>\n\t\t\t<ymax>{bottom}</ymax>\n\t\t</bndbox>\n"
            "\t</object>\n"
        )
    file = folder / "Annotations" / f"{image_id}.xml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(parts) + "</annotation>\n", encoding="utf-8")
