"""Images and their objects as detectron2 takes them: one dict per image, from the lists that the data room reads."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from benchmarks.contract import InputError, Labels
from benchmarks.datasets.cityscapes import LABEL_IDS
from benchmarks.detection.settings import DetectionSettings, Task

Scene = dict[str, Any]

SURFACE_POINTS = ("dp_x", "dp_y", "dp_I", "dp_U", "dp_V")  # of DensePose: where, which part, where on the part


def read_scenes(labels: Labels, task: Task, *, inclusive: bool = False) -> list[Scene]:
    """One dict per image, in the order of `labels`: file_name, image_id, height, width and annotations.

    Boxes are left, top, right, bottom in pixels from 0, the last two outside. An annotation has `category_id` (an index
    into `labels.classes`), `iscrowd` and, where there are any, `segmentation`, `keypoints`, `difficult` of VOC, and
    what DensePose adds.

    Args:
        inclusive: VOC's right and bottom edges are taken as inside, so that a width is right - left.

    Raises:
        InputError: an annotation that cannot be read.
    """
    if task == "voc":
        known = {name: index for index, name in enumerate(labels.classes)}
        return [
            _voc(labels.ids[n], labels.paths[n], labels.annotations[n], known, inclusive) for n in range(len(labels))
        ]
    if task == "cityscapes":
        return [_cityscapes(labels.ids[n], labels.paths[n], labels.annotations[n], labels) for n in range(len(labels))]
    return _coco(labels, with_masks=task != "densepose")


def _voc(image_id: str, path: Path, file: Path, known: dict[str, int], inclusive: bool) -> Scene:
    try:
        root = ElementTree.parse(file).getroot()  # noqa: S314 - the owner's file, read as every VOC reader does
        size = {part: int(_text(root, f"size/{part}")) for part in ("width", "height")}
        annotations = []
        for found in root.iter("object"):
            corners = [float(_text(found, f"bndbox/{edge}")) for edge in ("xmin", "ymin", "xmax", "ymax")]
            # The devkit counts pixels from 1 and has both edges inside.
            box = [corners[0] - 1, corners[1] - 1, corners[2] - inclusive, corners[3] - inclusive]
            annotations.append(
                {"bbox": box, "bbox_mode": 0, "category_id": known[_text(found, "name")], "iscrowd": 0,
                 "difficult": int(found.findtext("difficult") or 0)}
            )  # fmt: skip
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        raise InputError(f"{file} is no annotation of VOC ({error}); unpack the devkit again") from error
    return {"file_name": str(path), "image_id": image_id, **size, "annotations": annotations}


def _text(element: ElementTree.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"no {path}")
    return text


def _coco(labels: Labels, *, with_masks: bool) -> list[Scene]:
    """COCO and LVIS: the images in the order of their ids, as `labels` has them."""
    parts = [json.loads(file.read_bytes()) for file in labels.annotations]
    images = sorted((image for part in parts for image in part["images"]), key=lambda image: image["id"])
    category = {c["id"]: number for number, c in enumerate(sorted(parts[0]["categories"], key=lambda c: c["id"]))}
    scenes: dict[int, Scene] = {}
    for number, image in enumerate(images):
        scenes[image["id"]] = {
            "file_name": str(labels.paths[number]), "image_id": image["id"], "height": image["height"],
            "width": image["width"], "annotations": [],
            **{key: image[key] for key in ("not_exhaustive_category_ids", "neg_category_ids") if key in image},
        }  # fmt: skip
    for found in chain.from_iterable(part["annotations"] for part in parts):
        left, top, width, height = map(float, found["bbox"])
        annotation: dict[str, Any] = {
            "bbox": [left, top, left + width, top + height],
            "bbox_mode": 0,
            "category_id": category[found["category_id"]],
            "iscrowd": found.get("iscrowd", 0),
        }
        mask = found.get("segmentation") if with_masks else None
        if isinstance(mask, list):
            # A polygon of fewer than three corners has no area.
            mask = [polygon for polygon in mask if len(polygon) % 2 == 0 and len(polygon) >= 6]
            if not mask:
                continue
        elif isinstance(mask, dict) and isinstance(mask["counts"], list):
            mask = _compressed(mask)
        if mask:
            annotation["segmentation"] = mask
        if "keypoints" in found:
            points = np.array(found["keypoints"], dtype=float).reshape(-1, 3)
            points[:, :2] += 0.5  # COCO's are pixel indices, detectron2's coordinates
            annotation["keypoints"] = points.reshape(-1).tolist()
        annotation |= {key: found[key] for key in (*SURFACE_POINTS, "dp_masks") if key in found}
        scenes[found["image_id"]]["annotations"].append(annotation)
    return list(scenes.values())


def _compressed(mask: dict[str, Any]) -> Any:
    from pycocotools import mask as rle

    return rle.frPyObjects(mask, *mask["size"])


def _cityscapes(image_id: str, path: Path, file: Path, labels: Labels) -> Scene:
    from pycocotools import mask as rle

    known = {LABEL_IDS[name]: index for index, name in enumerate(labels.classes)}
    with Image.open(file) as image:
        instances = np.asarray(image)
    annotations = []
    for value in np.unique(instances):
        label = int(value) // 1000 if value >= 1000 else int(value)
        if label not in known:
            continue
        inside = instances == value
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        annotations.append(
            {"bbox": [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)], "bbox_mode": 0,
             "category_id": known[label], "iscrowd": int(value < 1000),
             "segmentation": rle.encode(np.asfortranarray(inside.astype(np.uint8)))}
        )  # fmt: skip
    height, width = instances.shape
    return {"file_name": str(path), "image_id": image_id, "height": height, "width": width, "annotations": annotations}


def for_training(scenes: list[Scene], settings: DetectionSettings) -> list[Scene]:
    """Those that a detector is trained on, without the objects that it does not see.

    Images without objects are left out, as detectron2 does; those that only show difficult ones stay.

    Raises:
        InputError: none is left.
    """
    from detectron2.data.build import filter_images_with_few_keypoints, filter_images_with_only_crowd_annotations

    kept: list[Scene] = filter_images_with_only_crowd_annotations(scenes)
    if settings.keypoints:
        kept = filter_images_with_few_keypoints(kept, 1)
    if settings.task == "densepose":
        kept = [s for s in kept if any(all(key in a for key in SURFACE_POINTS) for a in s["annotations"])]
    if not kept:
        raise InputError("no image of the train split shows an object; look at it with `make check-data`")
    if settings.difficult_in_training == "keep":
        return kept
    return [{**s, "annotations": [a for a in s["annotations"] if not a.get("difficult")]} for s in kept]
