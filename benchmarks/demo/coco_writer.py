"""Writes the same scenes as COCO: polygons for objects, one run-length encoded crowd where objects of a class meet."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from contourpy import FillType, contour_generator

from benchmarks.demo.drawings import classes
from benchmarks.demo.painting import touching
from benchmarks.demo.scenes import Instance, Mask, Scene

Annotation = dict[str, Any]


class CocoWriter:
    """Writes into `folder` = coco: one call of `add` per scene, then `finish`. Test scenes are val2017."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._images: dict[str, list[dict[str, Any]]] = {"train2017": [], "val2017": []}
        self._annotations: dict[str, list[Annotation]] = {"train2017": [], "val2017": []}
        for name in self._images:
            (folder / name).mkdir(parents=True, exist_ok=True)

    def add(self, scene: Scene, picture: Path, annotations: Sequence[Annotation]) -> None:
        """Links the picture (copies it where the file system cannot) and notes what `annotate` gave for the scene."""
        split = "val2017" if scene.split == "test" else "train2017"
        file_name = f"{scene.number:012d}.jpg"
        target = self.folder / split / file_name
        try:
            os.link(picture, target)
        except OSError:
            shutil.copyfile(picture, target)
        entry = {"id": scene.number, "file_name": file_name, "width": scene.width, "height": scene.height, "license": 1}
        self._images[split].append(entry)
        for annotation in annotations:
            number = 1 + len(self._annotations[split])
            self._annotations[split].append({"id": number, "image_id": scene.number, **annotation})

    def finish(self) -> None:
        """Writes the two json files."""
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


def annotate(objects: Sequence[Instance]) -> list[Annotation]:
    """Annotations of one scene, without ids: a crowd for each cluster of touching objects of a class, else one each."""
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

    COCO's polygons know no holes. A hole is cut from its outline's first point and back, so that the two edges of the
    cut cancel in the rasteriser.
    """
    padded = np.pad(mask, 1).astype(np.float64)
    generator = contour_generator(z=padded, fill_type=FillType.OuterOffset)
    paths: list[list[float]] = []
    for points, offsets in zip(*generator.filled(0.5, np.inf), strict=True):
        rings = [points[a:b] for a, b in pairwise(offsets)]
        joined = np.concatenate([ring for hole in rings[1:] for ring in (hole, rings[0][:1])] or [rings[0][:0]])
        path = np.concatenate([rings[0], joined]) - 0.5  # undoes the padding; the first pixel's centre is at 0.5
        paths.append([float(value) for value in path.ravel()])
    return paths


def _clusters(objects: Sequence[Instance]) -> list[list[Instance]]:
    clusters = [[instance] for instance in objects]
    for first, second in combinations(range(len(objects)), 2):
        same = objects[first].drawing.class_name == objects[second].drawing.class_name
        if same and touching(objects[first].mask, objects[second].mask):
            a, b = (next(c for c in clusters if any(i is objects[k] for i in c)) for k in (first, second))
            if a is not b:
                a.extend(b)
                clusters = [c for c in clusters if c is not b]
    return clusters
