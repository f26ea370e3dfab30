"""Average precision as the owner of each data set defines it, by column and by class.

VOC: detectron2's 11-point rule. COCO and LVIS: pycocotools. Cityscapes: written here after the owner's evaluation
(Cordts et al. 2016, section 4.2). DensePose: detectron2's project.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.dense_sets import CITYSCAPES_LABEL_IDS
from benchmarks.detection import densepose
from benchmarks.detection.protocols import DetectionParams, VitDetectionParams
from benchmarks.task import Labels
from benchmarks.training.trials import TrialScores
from results.files import open_image

OVERLAPS = np.arange(0.5, 0.951, 0.05)  # of Cityscapes
VOC_OVERLAPS = range(50, 100, 5)  # percent


def evaluator(params: DetectionParams | VitDetectionParams, test: Labels) -> Any:
    """A detectron2 evaluator whose `evaluate` gives `TrialScores` on the first rank."""
    if params.task == "voc":
        return voc_evaluator(test, params.inclusive_boxes)
    if params.task == "cityscapes":
        return cityscapes_evaluator(test)
    if params.task == "densepose":
        return densepose.evaluator(test)
    kinds = ["bbox", *(["segm"] if params.masks else []), *(["keypoints"] if params.keypoints else [])]
    return coco_evaluator(test, tuple(kinds), federated=params.task == "lvis")


def voc_evaluator(test: Labels, inclusive: bool) -> Any:
    """11-point AP at ten overlaps, with scores and corners rounded as detectron2 writes them.

    Args:
        inclusive: the right and bottom edges of predictions are inside the box, as in mmdetection.
    """
    import torch
    from detectron2.evaluation import PascalVOCDetectionEvaluator
    from detectron2.evaluation.pascal_voc_evaluation import voc_eval
    from detectron2.utils import comm

    class VocEvaluator(PascalVOCDetectionEvaluator):
        """detectron2's, except that a class without predictions has AP 0 instead of an exception."""

        def __init__(self) -> None:
            self._cpu_device = torch.device("cpu")

        def process(self, inputs: Any, outputs: Any) -> None:
            if inclusive:
                for output in outputs:
                    output["instances"].pred_boxes.tensor[:, 2:] += 1
            super().process(inputs, outputs)

        def evaluate(self) -> TrialScores | None:
            gathered = comm.gather(self._predictions, dst=0)
            if not comm.is_main_process():
                return None
            lines: dict[int, list[str]] = defaultdict(list)
            for of_rank in gathered:
                for kind, found in of_rank.items():
                    lines[kind].extend(found)
            return _voc_scores(test, lines, voc_eval)

    return VocEvaluator()


def _voc_scores(test: Labels, lines: dict[int, list[str]], voc_eval: Any) -> TrialScores:
    """Scores of detections in the devkit's text form, `id score left top right bottom` by class index.

    A class without objects has AP 0 and counts in the mean, as in detectron2.
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
                with np.errstate(invalid="ignore"):  # a class without objects
                    _, _, ap = voc_eval(
                        str(folder / "{}.txt"), template, str(folder / "images.txt"), kind, overlap / 100, True
                    )
                aps[row, index] = 100 * ap
    scores = TrialScores()
    scores.add("AP50", test.classes, aps[0])
    scores.add("AP", test.classes, aps.mean(axis=0))
    scores.add("AP75", test.classes, aps[VOC_OVERLAPS.index(75)])
    return scores


def coco_evaluator(test: Labels, kinds: tuple[str, ...], *, federated: bool = False) -> Any:
    """pycocotools' AP of boxes (`bbox`), masks (`segm`) and keypoints (`keypoints`).

    Args:
        federated: as LVIS. A category is evaluated only in the images in which annotators looked for it, detections
            beyond an incomplete annotation are no mistakes, and an image may have 300 detections.
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

        def evaluate(self) -> TrialScores | None:
            gathered = list(itertools.chain(*comm.gather(self.found, dst=0)))
            return coco_scores(test, gathered, kinds, federated=federated) if comm.is_main_process() else None

    return CocoEvaluator()


def coco_scores(test: Labels, found: list[dict[str, Any]], kinds: tuple[str, ...], *, federated: bool) -> TrialScores:
    """Scores of detections in COCO's result form, with class indices in place of category ids."""
    from pycocotools.coco import COCO

    content = json.loads(test.annotations[0].read_bytes())
    for annotation in content["annotations"]:
        annotation.setdefault("iscrowd", 0)  # LVIS has none
    categories = sorted(c["id"] for c in content["categories"])
    scores = TrialScores()
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = content
        truth.createIndex()
        for kind in kinds:
            precision = _coco_precision(truth, found, kind, categories, federated)
            suffix = {"bbox": "box", "segm": "mask", "keypoints": "kp"}[kind]
            for name, of in (("AP", precision), ("AP50", precision[:1]), ("AP75", precision[5:6])):
                counted = (of >= 0).sum(axis=(0, 1))  # pycocotools has -1 where a category has no object
                sums = np.where(of >= 0, of, 0).sum(axis=(0, 1))
                values = np.divide(sums, counted, out=np.full(len(categories), np.nan), where=counted > 0)
                scores.add(f"{name}_{suffix}", test.classes, 100 * values)
    return scores


def _coco_precision(truth: Any, found: list[dict[str, Any]], kind: str, categories: list[int], federated: bool) -> Any:
    """Precision at (T overlaps, R recalls, K categories), over objects of all sizes."""
    from pycocotools.cocoeval import COCOeval

    # pycocotools takes areas from boxes where a result has both a box and a mask.
    dropped = {"segm": ("bbox",), "bbox": ("segmentation",)}.get(kind, ())
    results = [
        {**{k: v for k, v in r.items() if k not in dropped}, "category_id": categories[r["category_id"]]} for r in found
    ]
    if not results:
        shown = np.array([bool(truth.getAnnIds(catIds=[c], iscrowd=False)) for c in categories])
        return np.broadcast_to(np.where(shown, 0.0, -1.0), (10, 101, len(categories)))
    evaluation = (_federated(truth) if federated else COCOeval)(truth, truth.loadRes(results), kind)
    if federated:
        evaluation.params.maxDets = [1, 10, 300]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"][..., 0, -1]


def _federated(truth: Any) -> Any:
    from pycocotools.cocoeval import COCOeval

    looked_for = {i: set(image.get("neg_category_ids", ())) for i, image in truth.imgs.items()}
    for annotation in truth.anns.values():
        looked_for[annotation["image_id"]].add(annotation["category_id"])
    incomplete = {i: set(image.get("not_exhaustive_category_ids", ())) for i, image in truth.imgs.items()}

    class FederatedEvaluation(COCOeval):
        def evaluateImg(self, imgId: int, catId: int, aRng: Any, maxDet: int) -> Any:  # noqa: N802 - pycocotools'
            if catId not in looked_for[imgId]:
                return None
            found = super().evaluateImg(imgId, catId, aRng, maxDet)
            if found is not None and catId in incomplete[imgId]:
                found["dtIgnore"] = np.logical_or(found["dtIgnore"], found["dtMatches"] == 0)
            return found

    return FederatedEvaluation


def cityscapes_evaluator(test: Labels) -> Any:
    """AP of instance masks; see `CityscapesPrecision`."""
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

        def evaluate(self) -> TrialScores | None:
            parts = comm.gather(self.precision.images, dst=0)
            if not comm.is_main_process():
                return None
            self.precision.images = list(itertools.chain(*parts))
            aps = 100 * self.precision.per_class()
            scores = TrialScores()
            # The owner's mean is over all pairs of class and overlap, which is the same.
            scores.add("AP_mask", test.classes, aps.mean(axis=0))
            scores.add("AP50_mask", test.classes, aps[0])
            return scores

    return CityscapesEvaluator()


SMALLEST = 100  # pixels
VOID = [label for label in range(34) if label not in CITYSCAPES_LABEL_IDS.values()]


@dataclass(frozen=True)
class _Matches:
    """One class in one image: P predictions, G objects that count.

    Attributes:
        scores: (P,).
        overlaps: (P, G) intersection over union.
        ignored: (P,) fraction of a prediction that lies on void, groups and small objects.
    """

    scores: NDArray[np.float64]
    overlaps: NDArray[np.float64]
    ignored: NDArray[np.float64]


class CityscapesPrecision:
    """The owner's average precision of instances, computed over all images that were added.

    Objects below 100 pixels, groups and void areas are ignored. The area below the curve of precision over recall is
    taken with central differences, without an envelope.

    Args:
        classes: names, in the order of the class indices.
    """

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.classes = classes
        self.images: list[list[_Matches]] = []

    def add(self, truth: Path, masks: NDArray[Any], classes: NDArray[Any], scores: NDArray[Any]) -> None:
        """Add an image: its instanceIds file, (P, H, W) boolean masks, (P,) class indices and (P,) scores."""
        with open_image(truth) as image:
            instances = np.asarray(image)
        self.images.append(
            [
                _match(instances, CITYSCAPES_LABEL_IDS[name], masks[classes == index], scores[classes == index])
                for index, name in enumerate(self.classes)
            ]
        )

    def per_class(self) -> NDArray[np.float64]:
        """(10 overlaps, C classes) fractions; NaN for a class that no image shows."""
        by_class = list(zip(*self.images, strict=True)) if self.images else [()] * len(self.classes)
        return np.array([[_average_precision(images, overlap) for images in by_class] for overlap in OVERLAPS])


def _match(instances: NDArray[Any], label: int, masks: NDArray[Any], scores: NDArray[Any]) -> _Matches:
    filled = masks.astype(bool).any(axis=(1, 2)) if len(masks) else np.zeros(0, dtype=bool)
    masks, scores = masks[filled].astype(bool), scores[filled]
    values, counts = np.unique(instances, return_counts=True)
    own = [(v, n) for v, n in zip(values.tolist(), counts.tolist(), strict=True) if v == label or v // 1000 == label]
    counted = [(v, n) for v, n in own if v >= 1000 and n >= SMALLEST]
    # A small group counts twice here, as in the owner's evaluation.
    passed_over = [v for v, n in own if v < 1000] + [v for v, n in own if n < SMALLEST]
    void = np.isin(instances, VOID)
    overlaps, ignored = np.zeros((len(masks), len(counted))), np.zeros(len(masks))
    for row, mask in enumerate(masks):
        inside, size = instances[mask], int(mask.sum())
        shared = [int((inside == value).sum()) for value, _ in counted]
        overlaps[row] = [s / (size + n - s) for s, (_, n) in zip(shared, counted, strict=True)]
        ignored[row] = (void[mask].sum() + sum(int((inside == value).sum()) for value in passed_over)) / size
    return _Matches(scores.astype(np.float64), overlaps, ignored)


def _average_precision(images: tuple[_Matches, ...], overlap: float) -> float:
    """AP of one class at one overlap."""
    right: list[bool] = []
    scores: list[float] = []
    missed = 0
    for image in images:
        used = np.zeros(len(image.scores), dtype=bool)
        for column in image.overlaps.T:
            candidates = np.flatnonzero((column > overlap) & ~used)
            if not len(candidates):
                missed += 1
                continue
            used[candidates[0]] = True
            # The prediction with the highest score is the match, the others of the same object are mistakes.
            best, *others = sorted(image.scores[candidates].tolist(), reverse=True)
            right += [True] + [False] * len(others)
            scores += [best, *others]
        alone = ~(image.overlaps > overlap).any(axis=1) & (image.ignored <= overlap)
        right += [False] * int(alone.sum())
        scores += image.scores[alone].tolist()
    objects = sum(image.overlaps.shape[1] for image in images)
    if not objects:
        return float("nan")
    if not scores:
        return 0.0
    order = np.argsort(scores)
    hits = np.array(right)[order]
    _, starts = np.unique(np.array(scores)[order], return_index=True)
    below = np.concatenate(([0], np.cumsum(hits)))[starts]  # hits that a threshold at this score leaves out
    found = hits.sum() - below
    precision = np.append(found / (len(hits) - starts), 1.0)
    recall = np.append(found / (hits.sum() + missed), 0.0)
    widths = np.convolve(np.concatenate(([recall[0]], recall, [0.0])), [-0.5, 0.0, 0.5], "valid")
    return float(precision @ widths)
