"""Average precision against plain versions and the owners' programmes, and boxes that survive the way there."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.__main__ import main
from benchmarks.datasets.registry import find_dataset
from benchmarks.demo.compose import Counts, compose
from benchmarks.detection.data import read_scenes, training_scenes
from benchmarks.detection.metrics import (
    CityscapesPrecision,
    cityscapes_evaluator,
    coco_evaluator,
    coco_scores,
    voc_evaluator,
)
from benchmarks.detection.protocols import VOC_MMSELFSUP
from benchmarks.task import InputError, Labels
from tests.layouts.cityscapes import write_cityscapes
from tests.layouts.coco import write_coco
from tests.layouts.densepose import write_densepose
from tests.layouts.lvis import write_lvis
from tests.layouts.voc import write_voc
from tests.reference.detection_voc_ap import Detection, Truth, average_precision

pytestmark = [
    pytest.mark.skipif(not find_spec("detectron2"), reason="detectron2 is not installed: make setup-transfer"),
    pytest.mark.filterwarnings("ignore"),
]


def instances(size: tuple[int, int], boxes: Any, classes: Any, scores: Any, masks: Any = None) -> dict[str, Any]:
    from detectron2.structures import Boxes, Instances

    found = Instances(size)
    found.pred_boxes = Boxes(torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    found.pred_classes = torch.as_tensor(classes, dtype=torch.int64)
    found.scores = torch.as_tensor(scores, dtype=torch.float32)
    if masks is not None:
        found.pred_masks = torch.as_tensor(masks)
    return {"instances": found}


def measure(evaluator: Any, scenes: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> Any:
    evaluator.reset()
    for scene, output in zip(scenes, outputs, strict=True):
        evaluator.process([scene], [output])
    return evaluator.evaluate()


def perfect(scene: dict[str, Any]) -> dict[str, Any]:
    objects = scene["annotations"]
    return instances(
        (scene["height"], scene["width"]),
        [o["bbox"] for o in objects],
        [o["category_id"] for o in objects],
        [0.9] * len(objects),
    )


def shaken(scenes: list[dict[str, Any]], classes: int, seed: int) -> list[dict[str, Any]]:
    """Some boxes near the truth, some nowhere, some doubled; masks are the boxes, filled."""
    rng = np.random.default_rng(seed)
    outputs = []
    for scene in scenes:
        boxes, kinds = [], []
        for found in [*scene["annotations"], *scene["annotations"][:1]]:
            boxes.append(np.array(found["bbox"]) + rng.normal(0, 3, 4))
            kinds.append(found["category_id"] if rng.random() < 0.8 else int(rng.integers(classes)))
        boxes.append(np.array([2.0, 3.0, 20.0, 25.0]))
        kinds.append(int(rng.integers(classes)))
        corners = np.clip(np.array(boxes), 0, [scene["width"], scene["height"]] * 2)
        masks = np.zeros((len(boxes), scene["height"], scene["width"]), dtype=bool)
        for mask, (left, top, right, bottom) in zip(masks, corners.round().astype(int), strict=True):
            mask[top:bottom, left:right] = True
        size = (scene["height"], scene["width"])
        outputs.append(instances(size, corners, kinds, rng.random(len(boxes)), masks))
    return outputs


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Labels:
    root = tmp_path_factory.mktemp("voc")
    file = write_voc(root) / "Annotations" / "000014.xml"
    file.write_text(file.read_text().replace("<difficult>0", "<difficult>1", 1), encoding="utf-8")
    return find_dataset("voc2007_det", root).read("test")


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Labels:
    root = tmp_path_factory.mktemp("coco")
    write_coco(root)
    return find_dataset("coco", root).read("train")


@pytest.mark.parametrize(
    ("write", "name", "task"),
    [(write_coco, "coco", "coco"), (write_densepose, "coco_densepose", "densepose"), (write_lvis, "lvis_v1", "lvis")],
)
def test_a_part_of_the_images_of_one_json_has_their_scenes(write: Any, name: str, task: Any, tmp_path: Path) -> None:
    """As the tries of a dry run take it."""
    write(tmp_path)
    labels = find_dataset(name, tmp_path).read("train")
    whole = read_scenes(labels, task)
    assert read_scenes(labels.rows([0, 2, 3]), task) == [whole[0], whole[2], whole[3]]
    assert any(scene["annotations"] for scene in whole[:4])


@pytest.mark.parametrize("seed", range(3))
def test_voc_ap_is_the_devkits_rule(voc: Labels, seed: int) -> None:
    scenes = read_scenes(voc, "voc")
    outputs = shaken(scenes, 3, seed)
    found = measure(voc_evaluator(voc, False), scenes, outputs)
    assert any(a["difficult"] for s in scenes for a in s["annotations"])
    for kind in range(3):
        truths, detections = [], []
        for scene, output in zip(scenes, outputs, strict=True):
            for a in scene["annotations"]:
                left, top, right, bottom = a["bbox"]
                if a["category_id"] == kind:
                    box = (left + 1, top + 1, right, bottom)
                    truths.append(Truth(scene["image_id"], box, bool(a["difficult"])))
            of = output["instances"]
            for box, k, score in zip(of.pred_boxes.tensor.tolist(), of.pred_classes, of.scores.tolist(), strict=True):
                if k == kind:
                    x = [round(v, 1) for v in (box[0] + 1, box[1] + 1, box[2], box[3])]
                    detections.append(Detection(scene["image_id"], round(score, 3), (x[0], x[1], x[2], x[3])))
        name = voc.classes[kind]
        by_overlap = [100 * average_precision(truths, detections, overlap / 100) for overlap in range(50, 100, 5)]
        assert found.per_class["AP50"][name] == pytest.approx(by_overlap[0], abs=1e-6)
        assert found.per_class["AP75"][name] == pytest.approx(by_overlap[5], abs=1e-6)
        assert found.per_class["AP"][name] == pytest.approx(np.mean(by_overlap), abs=1e-6)
    assert found.columns["AP50"] == pytest.approx(np.mean(list(found.per_class["AP50"].values())))


def test_inclusive_boxes_are_a_pixel_narrower_in_training_and_perfect_in_testing(voc: Labels) -> None:
    wide, narrow = read_scenes(voc, "voc"), read_scenes(voc, "voc", inclusive=True)
    (left, top, right, bottom), ours = wide[0]["annotations"][0]["bbox"], narrow[0]["annotations"][0]["bbox"]
    assert ours == [left, top, right - 1, bottom - 1]
    for inclusive, scenes in ((False, wide), (True, narrow)):
        found = measure(voc_evaluator(voc, inclusive), scenes, [perfect(s) for s in scenes])
        shown = [found.per_class["AP"][name] for name in voc.classes[:3]]
        assert shown == pytest.approx([100, 100, 100])


def test_difficult_objects_are_no_boxes_to_learn_for_mmselfsup(voc: Labels) -> None:
    scenes = read_scenes(voc, "voc")
    kept = training_scenes(scenes, VOC_MMSELFSUP.changed(difficult_in_training="keep"))
    ignored = training_scenes(scenes, VOC_MMSELFSUP)
    assert len(kept) == len(ignored) == len(scenes)
    assert sum(len(s["annotations"]) for s in kept) > sum(len(s["annotations"]) for s in ignored)
    assert not any(a["difficult"] for s in ignored for a in s["annotations"])


def test_empty_predictions_have_ap_zero(voc: Labels, coco: Labels) -> None:
    for labels, task, evaluator, column in (
        (voc, "voc", voc_evaluator(voc, False), "AP50"),
        (coco, "coco", coco_evaluator(coco, ("bbox", "segm")), "AP_mask"),
    ):
        scenes = read_scenes(labels, task)  # type: ignore[arg-type]
        empty = [
            instances((s["height"], s["width"]), [], [], [], np.zeros((0, s["height"], s["width"]))) for s in scenes
        ]
        assert measure(evaluator, scenes, empty).columns[column] == 0


@pytest.mark.parametrize("seed", range(2))
def test_coco_ap_is_that_of_detectron2s_evaluator(coco: Labels, seed: int, tmp_path: Path) -> None:
    from detectron2.data import MetadataCatalog
    from detectron2.evaluation import COCOEvaluator

    scenes = read_scenes(coco, "coco")
    outputs = shaken(scenes, len(coco.classes), seed)
    found = measure(coco_evaluator(coco, ("bbox", "segm")), scenes, outputs)
    name = f"for-this-test-{tmp_path.name}-{seed}"
    ids = sorted(c["id"] for c in json.loads(coco.annotations[0].read_bytes())["categories"])
    MetadataCatalog.get(name).set(
        json_file=str(coco.annotations[0]), thing_classes=list(coco.classes),
        thing_dataset_id_to_contiguous_id={i: n for n, i in enumerate(ids)},
    )  # fmt: skip
    theirs = measure(COCOEvaluator(name, ("bbox", "segm"), use_fast_impl=False), scenes, outputs)
    for kind, suffix in (("bbox", "box"), ("segm", "mask")):
        for column in ("AP", "AP50", "AP75"):
            assert found.columns[f"{column}_{suffix}"] == pytest.approx(theirs[kind][column])
        for label in coco.classes:
            expected = theirs[kind][f"AP-{label}"]
            assert found.per_class[f"AP_{suffix}"].get(label, np.nan) == pytest.approx(expected, nan_ok=True)


def test_lvis_counts_only_what_was_looked_for(tmp_path: Path) -> None:
    write_lvis(tmp_path, "v1")
    labels = find_dataset("lvis_v1", tmp_path).read("val")
    scenes = read_scenes(labels, "lvis")
    right = [
        {"image_id": s["image_id"], "category_id": a["category_id"], "score": 0.5,
         "bbox": [a["bbox"][0], a["bbox"][1], a["bbox"][2] - a["bbox"][0], a["bbox"][3] - a["bbox"][1]]}
        for s in scenes for a in s["annotations"]
    ]  # fmt: skip

    def ap(extra: list[dict[str, Any]]) -> float:
        found = coco_scores(labels, [*right, *extra], ("bbox",), federated=True).columns["AP_box"]
        assert found is not None
        return found

    assert ap([]) == pytest.approx(100)
    shown = {a["category_id"] for a in scenes[0]["annotations"]}
    unseen = next(k for k in range(3) if k not in shown)
    box = [1.0, 1.0, 9.0, 9.0]
    assert ap([{"image_id": scenes[0]["image_id"], "category_id": unseen, "score": 0.9, "bbox": box}]) == ap([])
    mistake = {"image_id": scenes[0]["image_id"], "category_id": min(shown), "score": 0.9, "bbox": box}
    assert ap([mistake]) < ap([])
    content = json.loads(labels.annotations[0].read_bytes())
    for image in content["images"]:
        image["not_exhaustive_category_ids"] = [1 + min(shown)]
    labels.annotations[0].write_text(json.dumps(content), encoding="utf-8")
    assert ap([mistake]) == pytest.approx(100)


def test_cityscapes_ap_of_right_doubled_ignored_and_missed(tmp_path: Path) -> None:
    write_cityscapes(tmp_path)
    labels = find_dataset("cityscapes_instances", tmp_path).read("val")
    scenes = read_scenes(labels, "cityscapes")
    THING_IDS = {labels.classes.index("car"): 26_000, labels.classes.index("person"): 24_000}

    def aps(change: Any) -> Any:
        precision = CityscapesPrecision(labels.classes)
        for number, (scene, truth) in enumerate(zip(scenes, labels.annotations, strict=True)):
            with Image.open(truth) as image:
                instances = np.asarray(image)
            masks = np.stack([instances == THING_IDS[a["category_id"]] for a in scene["annotations"]])
            kinds = np.array([a["category_id"] for a in scene["annotations"]])
            precision.add(truth, *change(number, masks, kinds, np.full(len(masks), 0.8)))
        return precision.per_class()

    def doubled(number: int, masks: Any, kinds: Any, scores: Any) -> Any:
        return np.concatenate([masks, masks]), np.tile(kinds, 2), np.concatenate([scores, scores - 0.3])

    def missed(number: int, masks: Any, kinds: Any, scores: Any) -> Any:
        return masks[: 0 if number else None], kinds[: 0 if number else None], scores[: 0 if number else None]

    def on_a_group(number: int, masks: Any, kinds: Any, scores: Any) -> Any:
        with Image.open(labels.annotations[number]) as image:
            void = np.isin(np.asarray(image), [0, 4])  # unlabelled
        assert void.sum() > 100
        return np.concatenate([masks, void[None]]), np.append(kinds, kinds[0]), np.append(scores, 0.95)

    plain = aps(lambda number, *found: found)
    shown = np.isfinite(plain[0])
    assert {labels.classes[i] for i in np.flatnonzero(shown)} == {"car", "person"}
    assert plain[:, shown] == pytest.approx(1)
    assert aps(on_a_group)[:, shown] == pytest.approx(1)
    # One object of four, and precision 1 wherever there is a prediction: the area ends with the recall of 1/4.
    assert aps(missed)[:, shown] == pytest.approx(0.25)
    # Recall does not rise while precision falls to 1/2: half of the step's width counts at either end.
    assert 0.5 < aps(doubled)[0, shown][0] <= 1


def test_cityscapes_scores_are_means_over_overlaps_and_those_at_one_half(tmp_path: Path) -> None:
    """Masks without a third of their rows, which are right at the smaller overlaps alone."""
    from detectron2.structures import Instances

    write_cityscapes(tmp_path)
    labels = find_dataset("cityscapes_instances", tmp_path).read("val")
    evaluator, plain = cityscapes_evaluator(labels), CityscapesPrecision(labels.classes)
    evaluator.reset()
    for scene, truth in zip(read_scenes(labels, "cityscapes"), labels.annotations, strict=True):
        with Image.open(truth) as image:
            instances = np.asarray(image)
        (kind,) = {a["category_id"] for a in scene["annotations"][:1]}
        mask = instances == {"car": 26_000, "person": 24_000}[labels.classes[kind]]
        rows = np.flatnonzero(mask.any(1))
        mask[rows[: len(rows) // 3]] = False
        found = Instances(mask.shape)
        found.pred_masks, found.pred_classes = torch.from_numpy(mask[None]), torch.tensor([kind])
        found.scores = torch.tensor([0.9])
        evaluator.process([scene], [{"instances": found}])
        plain.add(truth, mask[None], np.array([kind]), np.array([0.9]))
    aps = 100 * plain.per_class()
    scores = evaluator.evaluate()
    assert scores.columns["AP50_mask"] == pytest.approx(np.nanmean(aps[0]))
    assert scores.columns["AP_mask"] == pytest.approx(np.nanmean(aps.mean(0)))
    assert 0 < scores.columns["AP_mask"] < 0.9 * scores.columns["AP50_mask"]


@pytest.mark.slow
def test_the_composed_scenes_have_the_same_boxes_in_both_layouts(tmp_path: Path) -> None:
    counts = Counts(train=24, val=8, test=16, drawings_per_class=2)
    compose(tmp_path, seed=0, progress=False, counts=counts)
    as_voc = find_dataset("voc2007_det", tmp_path).read("test")
    as_coco = find_dataset("coco", tmp_path).read("val")
    assert as_voc.classes == as_coco.classes

    def boxes(scene: dict[str, Any], crowd: int = 0) -> set[tuple[int, ...]]:
        of = [a for a in scene["annotations"] if a["iscrowd"] == crowd]
        return {(a["category_id"], *map(round, a["bbox"])) for a in of}

    alone = 0
    for one, other in zip(read_scenes(as_voc, "voc"), read_scenes(as_coco, "coco"), strict=True):
        assert (one["width"], one["height"]) == (other["width"], other["height"])
        assert boxes(other) <= boxes(one)
        alone += len(boxes(other))
        # Objects of a class that meet are one crowd in COCO, whose box holds theirs.
        for kind, left, top, right, bottom in boxes(one) - boxes(other):
            assert any(
                k == kind and x0 <= left and y0 <= top and right <= x1 and bottom <= y1
                for k, x0, y0, x1, y1 in boxes(other, crowd=1)
            )
    assert alone > 16
    scenes = read_scenes(as_voc, "voc")
    assert measure(voc_evaluator(as_voc, False), scenes, [perfect(s) for s in scenes]).per_class["AP50"]
    (coco_scenes, outputs) = (s := read_scenes(as_coco, "coco")), [perfect(one) for one in s]
    assert measure(coco_evaluator(as_coco, ("bbox",)), coco_scenes, outputs).columns["AP_box"] == pytest.approx(100)


@pytest.mark.parametrize("number", ["nan", "inf", "-1e999"])
def test_boxes_that_are_not_finite_are_refused(tmp_path: Path, number: str) -> None:
    file = write_voc(tmp_path) / "Annotations" / "000001.xml"
    file.write_text(re.sub(r"<xmin>[^<]*", f"<xmin>{number}", file.read_text(encoding="utf-8")), encoding="utf-8")
    labels = find_dataset("voc2007_det", tmp_path).read("trainval")
    with pytest.raises(InputError, match=r"000001\.xml is not a VOC annotation \(a box of .* four finite numbers"):
        read_scenes(labels, "voc")
    listing = write_coco(tmp_path) / "annotations" / "instances_val2017.json"
    content = json.loads(listing.read_text(encoding="utf-8"))
    content["annotations"][0]["bbox"][2] = float(number)
    listing.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=r"instances_val2017\.json: annotation \d+ of image \d+ has no usable box"):
        read_scenes(find_dataset("coco", tmp_path).read("val"), "coco")


def test_boxes_that_reach_out_of_their_images_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """detectron2 clips them in training, and so the number is that of the source."""
    file = write_voc(tmp_path) / "Annotations" / "000001.xml"
    labels = find_dataset("voc2007_det", tmp_path).read("trainval")
    read_scenes(labels, "voc")
    assert "reach outside" not in caplog.text
    text = file.read_text(encoding="utf-8")
    file.write_text(re.sub(r"<xmin>[^<]*", "<xmin>-5000", text, count=1), encoding="utf-8")
    read_scenes(labels, "voc")
    assert "1 boxes reach outside of their images; detectron2 clips them" in caplog.text


@pytest.mark.parametrize(
    ("edges", "fault"),
    [
        ((-5000, 3, -4900, 9), "a box outside of its image of 64 by 48 pixels"),
        ((3, -30, 9, 0), "a box outside of its image"),
        ((65, 3, 70, 9), "a box outside of its image"),
        ((3, 49, 9, 60), "a box outside of its image"),
        ((9, 3, 5, 9), "a box of negative size"),
    ],
    ids=["left", "above", "right", "below", "wrong way round"],
)
def test_a_box_that_shows_nothing_of_its_image_is_refused(
    tmp_path: Path, edges: tuple[int, ...], fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the benchmarks and by check-data, in both layouts, with the file, the annotation and the remedy."""
    file = write_voc(tmp_path) / "Annotations" / "000001.xml"
    text = file.read_text(encoding="utf-8")
    assert "<width>64</width>" in text
    for name, edge in zip(("xmin", "ymin", "xmax", "ymax"), edges, strict=True):
        text = re.sub(rf"<{name}>[^<]*", f"<{name}>{edge}", text, count=1)
    file.write_text(text, encoding="utf-8")
    with pytest.raises(
        InputError, match=rf"000001\.xml: object 1 has {fault}.*take it from its owner again, or remove"
    ):
        read_scenes(find_dataset("voc2007_det", tmp_path).read("trainval"), "voc")
    listing = write_coco(tmp_path) / "annotations" / "instances_val2017.json"
    content = json.loads(listing.read_text(encoding="utf-8"))
    first = content["annotations"][0]
    first.update(id=4711, bbox=[edges[0] - 1, edges[1] - 1, edges[2] - edges[0] + 1, edges[3] - edges[1] + 1])
    next(image for image in content["images"] if image["id"] == first["image_id"]).update(width=64, height=48)
    first["segmentation"] = None
    listing.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(
        InputError, match=rf"val2017\.json: annotation 4711 of image \d+ has no usable box \({fault}.*\);"
    ):
        read_scenes(find_dataset("coco", tmp_path).read("val"), "coco")
    for name, wrong in (("voc2007_det", "000001.xml: object 1"), ("coco", "instances_val2017.json: annotation 4711")):
        assert main(["check-data", "--data", str(tmp_path), "--dataset", name, "--quiet"]) == 1
        told = capsys.readouterr().out
        assert f"{wrong}" in told
        assert f"has {fault}" in told


def test_boxes_that_the_owners_publish_are_taken_as_they_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """VOC's whole image from pixel 1 to the last; of COCO boxes without an area, at an edge and a pixel over it."""
    file = write_voc(tmp_path) / "Annotations" / "000001.xml"
    text = file.read_text(encoding="utf-8")
    for name, edge in zip(("xmin", "ymin", "xmax", "ymax"), (1, 1, 64, 48), strict=True):
        text = re.sub(rf"<{name}>[^<]*", f"<{name}>{edge}", text, count=1)
    file.write_text(text, encoding="utf-8")
    labels = find_dataset("voc2007_det", tmp_path).read("trainval")
    scene = next(s for s in read_scenes(labels, "voc") if s["image_id"] == "000001")
    assert scene["annotations"][0]["bbox"] == [0, 0, 64, 48]
    one_pixel = text.replace("<xmin>1<", "<xmin>64<", 1).replace("<ymin>1<", "<ymin>48<", 1)
    file.write_text(one_pixel, encoding="utf-8")
    for inclusive, right in ((False, 64), (True, 63)):
        scene = next(s for s in read_scenes(labels, "voc", inclusive=inclusive) if s["image_id"] == "000001")
        assert scene["annotations"][0]["bbox"] == [63, 47, right, 48 - inclusive]
    listing = write_coco(tmp_path) / "annotations" / "instances_val2017.json"
    content = json.loads(listing.read_text(encoding="utf-8"))
    image = content["images"][0]
    wide, high = image["width"], image["height"]
    published = [
        [3.5, 4.5, 1.03, 0.0], [0.0, 0.0, wide, high], [wide, 2.0, 0.0, 0.0], [-0.5, 0.0, wide + 1.2, high + 0.01],
        [wide - 0.5, 0.0, 0.5, high],
    ]  # fmt: skip
    example = {**content["annotations"][0], "image_id": image["id"]}
    content["annotations"] += [{**example, "id": 900 + n, "bbox": box} for n, box in enumerate(published)]
    listing.write_text(json.dumps(content), encoding="utf-8")
    scenes = read_scenes(find_dataset("coco", tmp_path).read("val"), "coco")
    found = next(s for s in scenes if s["image_id"] == image["id"])["annotations"][-len(published) :]
    assert [a["bbox"] for a in found] == [[x, y, x + w, y + h] for x, y, w, h in published]
    assert "reach outside" not in caplog.text
    main(["check-data", "--data", str(tmp_path), "--quiet"])
    for name in ("coco", "voc2007_det"):
        main(["check-data", "--data", str(tmp_path), "--dataset", name, "--quiet"])
    assert "cannot be right" not in capsys.readouterr().out
