"""Images and their objects as detectron2 takes them, and the batches of training and testing.

A scene is detectron2's dict of one image. A training batch is a function of the seed and its number alone, so that a
resumed run gives the same result as an uninterrupted one.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from benchmarks.datasets.coco import (
    REMEDY,
    reaches_outside,
    read_coco_box,
    require_finite,
    require_size,
    usable_run_lengths,
)
from benchmarks.datasets.dense_sets import read_visible_objects
from benchmarks.datasets.voc import read_voc_objects
from benchmarks.detection import densepose
from benchmarks.detection.protocols import DetectionParams, TaskName, VitDetectionParams
from benchmarks.task import InputError, Labels
from pretrain.distributed import DataLoader, sent
from results.schema import EncoderCard

log = logging.getLogger(__name__)

ImageDict = dict[str, Any]
KEYPOINTS = 17  # of a person in COCO


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
    outside = sum(reaches_outside(a["bbox"], s["width"], s["height"]) for s in scenes for a in s["annotations"])
    if outside:
        log.warning("%d boxes reach outside of their images; detectron2 clips them in training", outside)
    return scenes


def _scenes(labels: Labels, task: TaskName, inclusive: bool) -> list[ImageDict]:
    if task in ("voc", "cityscapes"):
        each = zip(labels.ids, labels.paths, labels.annotations, strict=True)
        known = {name: index for index, name in enumerate(labels.classes)}
        if task == "voc":
            return [_voc(image_id, path, file, known, inclusive) for image_id, path, file in each]
        return [_cityscapes(image_id, path, file, known) for image_id, path, file in each]
    return _coco(labels, with_masks=task != "densepose")


def _voc(image_id: str, path: Path, file: Path, known: dict[str, int], inclusive: bool) -> ImageDict:
    (width, height), objects = read_voc_objects(file, inclusive=inclusive)
    unknown = next((name for name, _, _ in objects if name not in known), None)
    if unknown is not None:
        raise InputError(f"{file} shows a {unknown[:100]!r}, of which the devkit has no list; unpack it again")
    annotations = [
        {"bbox": box, "bbox_mode": 0, "category_id": known[name], "iscrowd": 0, "difficult": difficult}
        for name, difficult, box in objects
    ]
    return {"file_name": str(path), "image_id": image_id, "width": width, "height": height, "annotations": annotations}


def _coco(labels: Labels, *, with_masks: bool) -> list[ImageDict]:
    """COCO and LVIS: the images in the order of their ids, as in `labels`, which may hold some of the json's images."""
    parts = [(file, json.loads(file.read_bytes())) for file in labels.annotations]
    images = sorted(((i["id"], file, i) for file, part in parts for i in part["images"]), key=lambda each: each[0])
    if len(labels) < len(images):
        rows = {name: row for row, name in enumerate(labels.ids)}
        chosen = [(rows[name], each) for each in images for name in _possible_ids(each[2]) if name in rows]
        images = [each for _, each in sorted(chosen, key=lambda pair: pair[0])]
    category = {c["id"]: number for number, c in enumerate(sorted(parts[0][1]["categories"], key=lambda c: c["id"]))}
    scenes: dict[int, ImageDict] = {}
    for number, (_, file, image) in enumerate(images):
        try:
            require_size(image["width"], image["height"])
        except ValueError as error:
            raise InputError(f"{file} has an image {image['id']} of {error}; take it from its owner again") from error
        scenes[image["id"]] = {
            "file_name": str(labels.paths[number]), "image_id": image["id"], "height": image["height"],
            "width": image["width"], "annotations": [],
            **{key: image[key] for key in ("not_exhaustive_category_ids", "neg_category_ids") if key in image},
        }  # fmt: skip
    for file, part in parts:
        keypoints = KEYPOINTS if file.name.startswith("person_keypoints_") else 0
        for found in part["annotations"]:
            scene = scenes.get(found["image_id"])
            if scene is None:
                continue
            annotation = _coco_object(found, scene, file, with_masks=with_masks, keypoints=keypoints)
            if annotation is not None:
                annotation["category_id"] = category[found["category_id"]]
                scene["annotations"].append(annotation)
    return list(scenes.values())


def _possible_ids(image: dict[str, Any]) -> set[str]:
    """The ids that `benchmarks.datasets.coco` may give an image: its name, and the end of a name of 2014."""
    name = Path(image.get("coco_url") or image["file_name"]).stem
    return {name, name.rpartition("_")[2]}


def _coco_object(
    found: dict[str, Any], scene: ImageDict, file: Path, *, with_masks: bool, keypoints: int
) -> dict[str, Any] | None:
    """An annotation without its category; None where no polygon of its mask has an area.

    Args:
        keypoints: how many each object has; 0 for any number.
    """
    width, height, what = scene["width"], scene["height"], "box"
    try:
        annotation: dict[str, Any] = {"bbox": read_coco_box(found["bbox"], width, height), "bbox_mode": 0}
        what = "iscrowd"
        annotation["iscrowd"] = _crowd(found.get("iscrowd", 0))
        what = "mask"
        if with_masks and (mask := found.get("segmentation")) is not None:
            if isinstance(mask, list):
                # A polygon of fewer than three corners has no area.
                mask = [each for each in mask if len(require_finite(each)) % 2 == 0 and len(each) >= 6]
            else:
                mask = usable_run_lengths(mask, height, width)
            if not mask:
                return None
            annotation["segmentation"] = mask
        what = "keypoints"
        if "keypoints" in found:
            points = np.array(require_finite(found["keypoints"]), float).reshape(-1, 3)
            if keypoints and len(points) != keypoints:
                raise ValueError(f"{len(points)} in place of {keypoints}")
            points[:, :2] += 0.5  # COCO's are pixel indices, detectron2's coordinates
            annotation["keypoints"] = points.reshape(-1).tolist()
        what = "points on the body's surface"
        annotation |= densepose.surface_points(found)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(
            f"{file}: annotation {str(found.get('id'))[:40]} of image {found['image_id']} has no usable {what} "
            f"({reason}); {REMEDY}"
        ) from error
    return annotation


def _crowd(value: Any) -> int:
    if value not in (0, 1):
        raise ValueError(f"it is {str(value)[:40]}, not 0 or 1")
    return int(value)


def _cityscapes(image_id: str, path: Path, file: Path, known: dict[str, int]) -> ImageDict:
    found, (height, width) = read_visible_objects(file)
    annotations = [
        {"bbox": list(each.box), "bbox_mode": 0, "category_id": known[each.name], "iscrowd": int(each.group),
         "segmentation": [part.reshape(-1).tolist() for part in each.polygons]}
        for each in found
    ]  # fmt: skip
    return {"file_name": str(path), "image_id": image_id, "height": height, "width": width, "annotations": annotations}


def training_scenes(scenes: list[ImageDict], params: DetectionParams | VitDetectionParams) -> list[ImageDict]:
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
        raise InputError("no image of the train split shows an object; look at it with `encoder-bench check-data`")
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


def mappers(cfg: Any) -> tuple[Any, Any]:
    """What turns a scene into an input in training and in testing, as `cfg` describes it."""
    from detectron2.data import DatasetMapper
    from detectron2.data.detection_utils import build_augmentation

    testing = DatasetMapper(
        is_train=False, augmentations=build_augmentation(cfg, is_train=False), image_format=cfg.INPUT.FORMAT
    )
    if densepose.is_on(cfg):
        return densepose.train_mapper(cfg), testing
    training = DatasetMapper(
        is_train=True,
        augmentations=build_augmentation(cfg, is_train=True),
        image_format=cfg.INPUT.FORMAT,
        use_instance_mask=cfg.MODEL.MASK_ON,
        instance_mask_format=cfg.INPUT.MASK_FORMAT,
        use_keypoint=cfg.MODEL.KEYPOINT_ON,
        keypoint_hflip_indices=_flipped_keypoints() if cfg.MODEL.KEYPOINT_ON else None,
    )
    return training, testing


def vit_mappers(params: VitDetectionParams, card: EncoderCard) -> tuple[Any, Any]:
    """The mappers of training (large-scale jitter, cut to the square) and of testing."""
    from detectron2.data import DatasetMapper
    from detectron2.data import transforms as T

    side = params.image_size
    training = [
        T.RandomFlip(horizontal=True),
        T.ResizeScale(params.scales[0], params.scales[1], target_height=side, target_width=side),
        T.FixedSizeCrop(crop_size=(side, side), pad=False),
    ]
    testing = [T.ResizeShortestEdge(short_edge_length=side, max_size=side)]
    train: Any = DatasetMapper(
        is_train=True, augmentations=training, image_format=card.channels, use_instance_mask=True,
        instance_mask_format="bitmask", recompute_boxes=True,
    )  # fmt: skip
    return Bitmaps(train), DatasetMapper(is_train=False, augmentations=testing, image_format=card.channels)


class Bitmaps:
    """A mapper that gets polygons as bitmaps: detectron2 needs another package to cut polygons."""

    def __init__(self, mapper: Any) -> None:
        self.mapper = mapper

    def __call__(self, scene: ImageDict) -> Any:
        from pycocotools import mask as rle

        annotations = []
        for found in scene["annotations"]:
            shape = found.get("segmentation")
            if isinstance(shape, list):
                parts = rle.frPyObjects(shape, scene["height"], scene["width"])
                found = {**found, "segmentation": rle.merge(parts)}
            annotations.append(found)
        return self.mapper({**scene, "annotations": annotations})


def train_loader(
    scenes: list[ImageDict], cfg: Any, mapper: Any, *, seed: int, rank: int, ranks: int, workers: int, first: int
) -> DataLoader[Any]:
    """Endless batches (lists of dicts) for one rank.

    Args:
        first: batches to skip, which the run was trained on before.
    """
    from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler

    order: Any
    if cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            scenes, cfg.DATALOADER.REPEAT_THRESHOLD
        )
        order = RepeatFactorTrainingSampler(factors, seed=seed)
    else:
        order = TrainingSampler(len(scenes), seed=seed)
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
    scenes: list[ImageDict], cfg: Any, mapper: Any, *, rank: int, ranks: int, workers: int
) -> DataLoader[Any]:
    """This rank's share of the scenes, one image at a time."""
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
