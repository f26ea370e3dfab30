"""Images and their objects as detectron2 takes them, and the batches of training and testing.

A scene is detectron2's dict of one image. A training batch is a function of the seed and its number alone, so that a
resumed run gives the same result as an uninterrupted one.
"""

from __future__ import annotations

import json
import logging
import math
import random
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from benchmarks.datasets.cityscapes import read_visible_objects
from benchmarks.detection import densepose
from benchmarks.detection.protocols import DetectionParams, TaskName
from benchmarks.task import InputError, Labels
from pretrain.distributed import DataLoader, sent
from results.files import MAX_PIXELS, require_regular

log = logging.getLogger(__name__)

ImageDict = dict[str, Any]


def read_scenes(labels: Labels, task: TaskName, *, inclusive: bool = False) -> list[ImageDict]:
    """One dict per image, in the order of `labels`: file_name, image_id, height, width and annotations.

    Boxes are left, top, right, bottom in pixels from 0; right and bottom are outside. An annotation has `category_id`
    (an index into `labels.classes`), `iscrowd` and, where the data set has them, `segmentation`, `keypoints`,
    `difficult` of VOC, and the surface points of DensePose.

    Args:
        inclusive: take VOC's right and bottom edges as inside, so that a width is right - left.

    Raises:
        InputError: an annotation file cannot be read.
    """
    scenes = _scenes(labels, task, inclusive)
    outside = sum(_reaches_outside(scene, a["bbox"]) for scene in scenes for a in scene["annotations"])
    if outside:
        log.warning("%d boxes reach outside of their images; detectron2 clips them in training", outside)
    return scenes


def _reaches_outside(scene: ImageDict, box: list[float]) -> bool:
    """Whether a box is beyond an edge by more than the rounding of published boxes."""
    left, top, right, bottom = box
    return min(left, top) < -2 or right > scene["width"] + 2 or bottom > scene["height"] + 2


def _scenes(labels: Labels, task: TaskName, inclusive: bool) -> list[ImageDict]:
    if task in ("voc", "cityscapes"):
        each = zip(labels.ids, labels.paths, labels.annotations, strict=True)
        known = {name: index for index, name in enumerate(labels.classes)}
        if task == "voc":
            return [_voc(image_id, path, file, known, inclusive) for image_id, path, file in each]
        return [_cityscapes(image_id, path, file, known) for image_id, path, file in each]
    return _coco(labels, with_masks=task != "densepose")


def _voc(image_id: str, path: Path, file: Path, known: dict[str, int], inclusive: bool) -> ImageDict:
    try:
        require_regular(file)
        root = ElementTree.parse(file).getroot()  # noqa: S314 - the user's own file, read as every VOC reader does
        size = {part: int(_text(root, f"size/{part}")) for part in ("width", "height")}
        annotations = []
        for found in root.iter("object"):
            corners = _finite(_text(found, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax"))
            # The devkit counts pixels from 1 and has both edges inside.
            box = [corners[0] - 1, corners[1] - 1, corners[2] - inclusive, corners[3] - inclusive]
            annotations.append(
                {"bbox": box, "bbox_mode": 0, "category_id": known[_text(found, "name")], "iscrowd": 0,
                 "difficult": int(found.findtext("difficult") or 0)}
            )  # fmt: skip
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        raise InputError(f"{file} is not a VOC annotation ({error}); unpack the devkit again") from error
    return {"file_name": str(path), "image_id": image_id, **size, "annotations": annotations}


def _finite(numbers: Iterable[Any]) -> list[float]:
    """Four numbers of a box. Raises ValueError for nan and inf, and for another number of them."""
    found = [float(number) for number in numbers]
    if len(found) != 4 or not all(map(math.isfinite, found)):
        raise ValueError(f"a box of {found}, where four finite numbers are expected")
    return found


def _numbers(values: list[float]) -> list[float]:
    """The list. Raises TypeError, ValueError or OverflowError where it is not one of finite numbers."""
    if not isinstance(values, list) or not all(map(math.isfinite, values)):
        raise ValueError("it is no list of finite numbers")
    return values


def _text(element: ElementTree.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"no {path}")
    return text


def _coco(labels: Labels, *, with_masks: bool) -> list[ImageDict]:
    """COCO and LVIS: the images in the order of their ids, as in `labels`."""
    parts = [json.loads(file.read_bytes()) for file in labels.annotations]
    images = sorted((image for part in parts for image in part["images"]), key=lambda image: image["id"])
    category = {c["id"]: number for number, c in enumerate(sorted(parts[0]["categories"], key=lambda c: c["id"]))}
    scenes: dict[int, ImageDict] = {}
    for number, image in enumerate(images):
        height, width = image["height"], image["width"]
        if type(height) is not int or type(width) is not int or min(height, width) < 1 or height * width > MAX_PIXELS:
            raise InputError(
                f"{labels.annotations[0]} has an image {image['id']} of {str(width)[:20]} by {str(height)[:20]} "
                "pixels, which no image has; take it from its owner again"
            )
        scenes[image["id"]] = {
            "file_name": str(labels.paths[number]), "image_id": image["id"], "height": image["height"],
            "width": image["width"], "annotations": [],
            **{key: image[key] for key in ("not_exhaustive_category_ids", "neg_category_ids") if key in image},
        }  # fmt: skip
    for found in chain.from_iterable(part["annotations"] for part in parts):
        scene, part = scenes[found["image_id"]], "box"
        try:
            left, top, width, height = _finite(found["bbox"])
            part = "mask"
            mask = _usable_mask(found.get("segmentation"), scene) if with_masks else None
            part = "keypoints"
            points = np.array(_numbers(found["keypoints"]), float).reshape(-1, 3) if "keypoints" in found else None
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"{labels.annotations[0]} has an annotation of image {found['image_id']} without a usable {part} "
                f"({error}); take it from its owner again"
            ) from error
        annotation: dict[str, Any] = {
            "bbox": [left, top, left + width, top + height],
            "bbox_mode": 0,
            "category_id": category[found["category_id"]],
            "iscrowd": found.get("iscrowd", 0),
        }
        if mask == []:
            continue
        if mask:
            annotation["segmentation"] = mask
        if points is not None:
            points[:, :2] += 0.5  # COCO's are pixel indices, detectron2's coordinates
            annotation["keypoints"] = points.reshape(-1).tolist()
        annotation |= {key: found[key] for key in (*densepose.SURFACE_POINTS, "dp_masks") if key in found}
        scene["annotations"].append(annotation)
    return list(scenes.values())


def _usable_mask(mask: Any, scene: ImageDict) -> Any:
    """The polygons with an area, or run lengths as pycocotools packs them; for some others it ends the interpreter.

    Raises:
        KeyError, TypeError, ValueError: neither.
    """
    if mask is None:
        return None
    if isinstance(mask, list):
        # A polygon of fewer than three corners has no area.
        return [polygon for polygon in mask if len(_numbers(polygon)) % 2 == 0 and len(polygon) >= 6]
    size = [scene["height"], scene["width"]]
    if mask["size"] != size:
        raise ValueError(f"its size is {str(mask['size'])[:40]}, the image's {size}")
    from pycocotools import mask as rle

    if isinstance(mask["counts"], list):
        if (
            any(type(count) is not int or count < 0 for count in mask["counts"])
            or sum(mask["counts"]) != size[0] * size[1]
        ):
            raise ValueError("its run lengths do not fill the image")
        return rle.frPyObjects(mask, *size)
    rle.decode(mask)  # raises ValueError or TypeError where packed run lengths are not valid
    return mask


def _cityscapes(image_id: str, path: Path, file: Path, known: dict[str, int]) -> ImageDict:
    found, (height, width) = read_visible_objects(file)
    annotations = [
        {"bbox": list(each.box), "bbox_mode": 0, "category_id": known[each.name], "iscrowd": int(each.group),
         "segmentation": [part.reshape(-1).tolist() for part in each.polygons]}
        for each in found
    ]  # fmt: skip
    return {"file_name": str(path), "image_id": image_id, "height": height, "width": width, "annotations": annotations}


def training_scenes(scenes: list[ImageDict], params: DetectionParams) -> list[ImageDict]:
    """The scenes and objects that a detector is trained on.

    Images without objects are left out, as in detectron2. Images with difficult objects only are kept.

    Raises:
        InputError: no scene is left.
    """
    from detectron2.data.build import filter_images_with_few_keypoints, filter_images_with_only_crowd_annotations

    kept: list[ImageDict] = filter_images_with_only_crowd_annotations(scenes)
    if params.keypoints:
        kept = filter_images_with_few_keypoints(kept, 1)
    if params.task == "densepose":
        kept = [scene for scene in kept if any(map(densepose.has_surface_points, scene["annotations"]))]
    if not kept:
        raise InputError("no image of the train split shows an object; look at it with `make check-data`")
    if params.difficult_in_training == "keep":
        return kept
    return [{**s, "annotations": [a for a in s["annotations"] if not a.get("difficult")]} for s in kept]


class SceneDataset(Dataset[Any]):
    """Scenes through a detectron2 mapper, which loads, resizes and flips.

    In training an item is (number of the draw, index of the scene), and the generators of numpy and Python are seeded
    by `seed` and that number. In testing (no seed) it is the index.
    """

    def __init__(self, scenes: list[ImageDict], mapper: Any, seed: int | None = None) -> None:
        self.scenes, self.mapper, self.seed = scenes, mapper, seed

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, item: Any) -> Any:
        if self.seed is None:
            return self.mapper(self.scenes[item])
        draw, index = item
        state = np.random.SeedSequence([self.seed, draw]).generate_state(2)
        np.random.seed(int(state[0]))
        random.seed(int(state[1]))
        return self.mapper(self.scenes[index])


class Batches(Sampler[list[tuple[int, int]]]):
    """Endless batches of (draw, index) for one rank, whose images are all wide or all tall.

    As detectron2's loader: a random order for every epoch, dealt out to the ranks, and two buckets by aspect that give
    a batch when full. Here the buckets hold indices, so that a resumed run skips batches without loading images.

    Args:
        order: endless indices of this rank.
        batch_size: of this rank.
        first: batches to skip.
    """

    def __init__(
        self,
        scenes: list[ImageDict],
        order: Any,
        batch_size: int,
        *,
        rank: int = 0,
        ranks: int = 1,
        first: int = 0,
    ) -> None:
        self.tall = [scene["height"] >= scene["width"] for scene in scenes]
        self.order, self.batch_size, self.first = order, batch_size, first
        self.rank, self.ranks = rank, ranks

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        buckets: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
        given = 0
        for position, index in enumerate(self.order):
            bucket = buckets[self.tall[index]]
            bucket.append((position * self.ranks + self.rank, index))
            if len(bucket) == self.batch_size:
                if given >= self.first:
                    yield list(bucket)
                given += 1
                bucket.clear()


def train_loader(
    scenes: list[ImageDict],
    cfg: Any,
    *,
    seed: int,
    rank: int,
    ranks: int,
    workers: int,
    first: int,
    mapper: Any = None,
) -> DataLoader[Any]:
    """Endless batches (lists of dicts) for one rank.

    Args:
        first: batches to skip, which the run was trained on before.
        mapper: of detectron2, in place of the one that follows from `cfg`.
    """
    from detectron2.data import DatasetMapper
    from detectron2.data.detection_utils import build_augmentation
    from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler

    order: Any
    if cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            scenes, cfg.DATALOADER.REPEAT_THRESHOLD
        )
        order = RepeatFactorTrainingSampler(factors, seed=seed)
    else:
        order = TrainingSampler(len(scenes), seed=seed)
    if mapper is None and densepose.is_on(cfg):
        mapper = densepose.train_mapper(cfg)
    elif mapper is None:
        mapper = DatasetMapper(
            is_train=True,
            augmentations=build_augmentation(cfg, is_train=True),
            image_format=cfg.INPUT.FORMAT,
            use_instance_mask=cfg.MODEL.MASK_ON,
            instance_mask_format=cfg.INPUT.MASK_FORMAT,
            use_keypoint=cfg.MODEL.KEYPOINT_ON,
            keypoint_hflip_indices=_flipped_keypoints() if cfg.MODEL.KEYPOINT_ON else None,
        )
    batches = Batches(scenes, order, cfg.SOLVER.IMS_PER_BATCH // ranks, rank=rank, ranks=ranks, first=first)
    return DataLoader(
        # Its own generator: starting an iterator draws a number, and a resumed run starts it at another time.
        generator=torch.Generator(),
        dataset=SceneDataset(scenes, mapper, seed), batch_sampler=batches, num_workers=workers, collate_fn=list,
        persistent_workers=workers > 0, pin_memory=cfg.MODEL.DEVICE.startswith("cuda"),
    )  # fmt: skip


def on_device(inputs: list[ImageDict], device: torch.device) -> list[ImageDict]:
    """The batch on the device. A GPU copies it from page-locked memory, and the host does not wait.

    What detectron2 would copy itself, one blocking copy at a time: images, and the boxes, classes, masks and keypoints
    of their objects. Polygons and surface points stay in main memory.
    """
    if device.type != "cuda":
        return inputs
    from detectron2.structures import BitMasks, Boxes, Instances, Keypoints

    moved = []
    for scene in inputs:
        scene = {**scene, "image": sent(scene["image"], device)}
        if "instances" in scene:
            objects = Instances(scene["instances"].image_size)
            for name, value in scene["instances"].get_fields().items():
                if isinstance(value, torch.Tensor | BitMasks | Boxes | Keypoints):
                    tensor = value if isinstance(value, torch.Tensor) else value.tensor
                    on_gpu = sent(tensor, device)
                    value = on_gpu if value is tensor else type(value)(on_gpu)
                objects.set(name, value)
            scene["instances"] = objects
        moved.append(scene)
    return moved


def inference_loader(
    scenes: list[ImageDict], cfg: Any, *, rank: int, ranks: int, workers: int, mapper: Any = None
) -> DataLoader[Any]:
    """This rank's share of the scenes, one image at a time; `mapper` as for `train_loader`."""
    from detectron2.data import DatasetMapper
    from detectron2.data.detection_utils import build_augmentation

    if mapper is None:
        mapper = DatasetMapper(
            is_train=False, augmentations=build_augmentation(cfg, is_train=False), image_format=cfg.INPUT.FORMAT
        )
    return DataLoader(
        SceneDataset(scenes[rank::ranks], mapper), batch_size=1, num_workers=workers, collate_fn=list,
        pin_memory=cfg.MODEL.DEVICE.startswith("cuda"),
    )  # fmt: skip


def _flipped_keypoints() -> Any:
    """For each of COCO's person keypoints, the index of the keypoint that it becomes in a flipped image."""
    from detectron2.data.datasets.builtin_meta import COCO_PERSON_KEYPOINT_FLIP_MAP, COCO_PERSON_KEYPOINT_NAMES

    names = list(COCO_PERSON_KEYPOINT_NAMES)
    mirror = dict(COCO_PERSON_KEYPOINT_FLIP_MAP)
    mirror |= {right: left for left, right in mirror.items()}
    return np.array([names.index(mirror.get(name, name)) for name in names])
