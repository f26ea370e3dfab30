"""Average precision as each data set's owner defines it, column by column and class by class."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.contract import Labels
from benchmarks.detection import densepose
from benchmarks.detection.cityscapes_precision import CityscapesPrecision
from benchmarks.detection.settings import DetectionSettings

VOC_OVERLAPS = range(50, 100, 5)


@dataclass
class Scores:
    """In percent. A class that the test images do not show has no entry, VOC apart."""

    columns: dict[str, float | None] = field(default_factory=dict)
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, column: str, classes: tuple[str, ...], values: NDArray[np.float64]) -> None:
        """A column that is the mean of a value per class; NaN where a class was not to be seen."""
        seen = np.isfinite(values)
        self.columns[column] = float(values[seen].mean()) if seen.any() else None
        self.per_class[column] = {classes[i]: float(values[i]) for i in np.flatnonzero(seen)}


def evaluator(settings: DetectionSettings, test: Labels) -> Any:
    """A detectron2 evaluator whose `evaluate` gives `Scores` on the first rank."""
    if settings.task == "voc":
        return voc_evaluator(test, settings.inclusive_boxes)
    if settings.task == "cityscapes":
        return _cityscapes_evaluator(test)
    if settings.task == "densepose":
        return _densepose_evaluator(test)
    kinds = ["bbox", *(["segm"] if settings.masks else []), *(["keypoints"] if settings.keypoints else [])]
    return coco_evaluator(test, tuple(kinds), federated=settings.task == "lvis")


def voc_evaluator(test: Labels, inclusive: bool) -> Any:
    """detectron2's 11-point AP at ten overlaps, with scores and corners rounded as it writes them.

    Args:
        inclusive: predictions have their right and bottom edges inside, as mmdetection's.
    """
    from collections import defaultdict

    from detectron2.evaluation import PascalVOCDetectionEvaluator
    from detectron2.evaluation.pascal_voc_evaluation import voc_eval
    from detectron2.utils import comm

    class VocEvaluator(PascalVOCDetectionEvaluator):
        """Its predictions are collected by detectron2; a class that is never predicted has AP 0, and no crash."""

        def __init__(self) -> None:
            import torch

            self._cpu_device = torch.device("cpu")

        def process(self, inputs: Any, outputs: Any) -> None:
            if inclusive:
                for output in outputs:
                    output["instances"].pred_boxes.tensor[:, 2:] += 1
            super().process(inputs, outputs)

        def evaluate(self) -> Scores | None:
            gathered = comm.gather(self._predictions, dst=0)
            if not comm.is_main_process():
                return None
            lines: dict[int, list[str]] = defaultdict(list)
            for of_rank in gathered:
                for kind, found in of_rank.items():
                    lines[kind].extend(found)
            return voc_scores(test, lines, voc_eval)

    return VocEvaluator()


def voc_scores(test: Labels, lines: dict[int, list[str]], voc_eval: Any) -> Scores:
    """Scores of detections in the devkit's text form, `id score left top right bottom` by class index.

    A class without any object has AP 0 and counts in the mean, as in detectron2.
    """
    aps = np.zeros((len(VOC_OVERLAPS), len(test.classes)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images.txt").write_text("".join(f"{i}\n" for i in test.ids), encoding="utf-8")
        template = str(test.annotations[0].parent / "{}.xml")
        for index, kind in enumerate(test.classes):
            if not lines.get(index):
                continue
            (folder / f"{kind}.txt").write_text("\n".join(lines[index]), encoding="utf-8")
            for row, overlap in enumerate(VOC_OVERLAPS):
                with np.errstate(invalid="ignore"):  # a class without any object
                    _, _, ap = voc_eval(
                        str(folder / "{}.txt"), template, str(folder / "images.txt"), kind, overlap / 100, True
                    )
                aps[row, index] = 100 * ap
    found = Scores()
    found.add("AP50", test.classes, aps[0])
    found.add("AP", test.classes, aps.mean(axis=0))
    found.add("AP75", test.classes, aps[VOC_OVERLAPS.index(75)])
    return found


_SUFFIX = {"bbox": "box", "segm": "mask", "keypoints": "kp"}


def coco_evaluator(test: Labels, kinds: tuple[str, ...], *, federated: bool = False) -> Any:
    """pycocotools' AP of boxes, masks and keypoints.

    Args:
        federated: LVIS: categories that nobody looked for in an image count neither way there, and what is found
            beyond an incomplete annotation is no mistake; 300 detections an image.
    """
    from detectron2.evaluation import DatasetEvaluator
    from detectron2.evaluation.coco_evaluation import instances_to_coco_json
    from detectron2.utils import comm

    class CocoEvaluator(DatasetEvaluator):
        def reset(self) -> None:
            self.found: list[dict[str, Any]] = []

        def process(self, inputs: Any, outputs: Any) -> None:
            for scene, output in zip(inputs, outputs, strict=True):
                self.found += instances_to_coco_json(output["instances"].to("cpu"), scene["image_id"])

        def evaluate(self) -> Scores | None:
            gathered = list(itertools.chain(*comm.gather(self.found, dst=0)))
            return coco_scores(test, gathered, kinds, federated=federated) if comm.is_main_process() else None

    return CocoEvaluator()


def coco_scores(test: Labels, found: list[dict[str, Any]], kinds: tuple[str, ...], *, federated: bool) -> Scores:
    """Scores of detections in COCO's result form, with class indices for category ids."""
    from pycocotools.coco import COCO

    content = json.loads(test.annotations[0].read_bytes())
    for annotation in content["annotations"]:
        annotation.setdefault("iscrowd", 0)  # LVIS has none
    categories = sorted(c["id"] for c in content["categories"])
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = content
        truth.createIndex()
        scores = Scores()
        for kind in kinds:
            precision = _coco_precision(truth, found, kind, categories, federated)
            for name, overlap in (("AP", None), ("AP50", 0), ("AP75", 5)):
                of = precision if overlap is None else precision[overlap : overlap + 1]
                shown = of >= 0
                counted = shown.sum(axis=(0, 1))
                # -1 where a category has no object
                sums = np.where(shown, of, 0).sum(axis=(0, 1))
                values = np.divide(sums, counted, out=np.full(len(categories), np.nan), where=counted > 0)
                scores.add(f"{name}_{_SUFFIX[kind]}", test.classes, 100 * values)
    return scores


def _coco_precision(truth: Any, found: list[dict[str, Any]], kind: str, categories: list[int], federated: bool) -> Any:
    """(T overlaps, R recalls, K categories), over all sizes of objects."""
    from pycocotools.cocoeval import COCOeval

    # With boxes beside masks the areas would be those of the boxes.
    dropped = {"segm": ("bbox",), "bbox": ("segmentation",)}.get(kind, ())
    results = [
        {**{k: v for k, v in r.items() if k not in dropped}, "category_id": categories[r["category_id"]]} for r in found
    ]
    if not results:
        counts = np.array([bool(truth.getAnnIds(catIds=[c], iscrowd=False)) for c in categories])
        return np.broadcast_to(np.where(counts, 0.0, -1.0), (10, 101, len(categories)))
    kind_of = _federated(truth) if federated else COCOeval
    measured = kind_of(truth, truth.loadRes(results), kind)
    if federated:
        measured.params.maxDets = [1, 10, 300]
    measured.evaluate()
    measured.accumulate()
    return measured.eval["precision"][..., 0, -1]


def _federated(truth: Any) -> Any:
    from pycocotools.cocoeval import COCOeval

    looked_for = {i: set(image.get("neg_category_ids", ())) for i, image in truth.imgs.items()}
    for annotation in truth.anns.values():
        looked_for[annotation["image_id"]].add(annotation["category_id"])
    incomplete = {i: set(image.get("not_exhaustive_category_ids", ())) for i, image in truth.imgs.items()}

    class Federated(COCOeval):
        def evaluateImg(self, imgId: int, catId: int, aRng: Any, maxDet: int) -> Any:  # noqa: N802 - pycocotools'
            if catId not in looked_for[imgId]:
                return None
            found = super().evaluateImg(imgId, catId, aRng, maxDet)
            if found is not None and catId in incomplete[imgId]:
                found["dtIgnore"] = np.logical_or(found["dtIgnore"], found["dtMatches"] == 0)
            return found

    return Federated


def _densepose_evaluator(test: Labels) -> Any:
    def scores(found: dict[str, float | None]) -> Scores:
        given = Scores()
        for name, value in found.items():
            given.add(f"{name}_dp", test.classes, np.array([np.nan if value is None else value]))
        return given

    return densepose.evaluator(test, scores)


def _cityscapes_evaluator(test: Labels) -> Any:
    from detectron2.evaluation import DatasetEvaluator
    from detectron2.utils import comm

    truths = dict(zip(test.ids, test.annotations, strict=True))

    class CityscapesEvaluator(DatasetEvaluator):
        def reset(self) -> None:
            self.precision = CityscapesPrecision(test.classes)

        def process(self, inputs: Any, outputs: Any) -> None:
            for scene, output in zip(inputs, outputs, strict=True):
                found = output["instances"].to("cpu")
                self.precision.add(
                    truths[scene["image_id"]], found.pred_masks.numpy(), found.pred_classes.numpy(),
                    found.scores.numpy(),
                )  # fmt: skip

        def evaluate(self) -> Scores | None:
            parts = comm.gather(self.precision.images, dst=0)
            if not comm.is_main_process():
                return None
            self.precision.images = list(itertools.chain(*parts))
            aps = 100 * self.precision.per_class()
            scores = Scores()
            # The owner's mean is over all pairs of class and overlap, which is the same.
            scores.add("AP_mask", test.classes, aps.mean(axis=0))
            scores.add("AP50_mask", test.classes, aps[0])
            return scores

    return CityscapesEvaluator()
