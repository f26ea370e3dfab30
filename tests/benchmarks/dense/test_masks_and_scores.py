"""Masks, areas, IoU and depth errors against plain loops, scikit-learn and mmsegmentation."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import jaccard_score

from benchmarks.datasets.dense_sets import ADE20K_CLASSES
from benchmarks.dense.masks import (
    VOID,
    MaskFormat,
    add_segmentation,
    areas,
    areas_of_confusions,
    areas_of_each,
    class_ious,
    confusions,
    matched,
    mean_iou,
    pixel_accuracy,
)
from benchmarks.dense.patches import blocks_of, counts_of, masks_of, modes_of, read_masks
from benchmarks.dense.problems import depth_errors, scored_depth
from benchmarks.task import InputError, Labels, Outcome
from results.bootstrap import replicates


def labels(classes: tuple[str, ...], annotations: tuple[Path, ...] = ()) -> Labels:
    return Labels((), (), classes, np.zeros((0, 0), np.int8), (), annotations)


FIVE = MaskFormat.of("voc2012_seg", labels(("background", "a", "b", "c", "d")))
ADE = MaskFormat.of("ade20k", labels(("a", "b", "c")))


def random_masks(style: MaskFormat, seed: int, images: int = 6, side: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    values = np.array(style.values, np.uint8)
    truth = values[rng.integers(len(values), size=(images, side, side))]
    predicted = np.where(rng.random(truth.shape) < 0.5, truth, values[rng.integers(len(values), size=truth.shape)])
    return predicted, truth


@pytest.mark.parametrize("style", [FIVE, ADE])
def test_mean_iou_is_scikit_learns_jaccard_over_all_pixels(style: MaskFormat) -> None:
    predicted, truth = random_masks(style, 0)
    counted = ~np.isin(truth, style.ignored)
    found = areas_of_each(predicted, truth, style)
    assert mean_iou(found) == pytest.approx(100 * jaccard_score(truth[counted], predicted[counted], average="macro"))
    assert pixel_accuracy(found) == pytest.approx(100 * (truth == predicted)[counted].mean())


@pytest.mark.slow  # its import takes seconds
def test_ious_are_mmsegmentations() -> None:
    metric = pytest.importorskip("mmseg.evaluation.metrics").IoUMetric
    import torch

    predicted, truth = random_masks(FIVE, 1)
    predicted[predicted == VOID] = 0
    found = areas_of_each(predicted, truth, FIVE)
    each = [
        metric.intersect_and_union(torch.from_numpy(p).long(), torch.from_numpy(t).long(), 5, VOID)
        for p, t in zip(predicted, truth, strict=True)
    ]
    union = sum(part[1] for part in each).numpy()
    inter = sum(part[0] for part in each).numpy()
    assert class_ious(found)[:5] == pytest.approx(inter / union)


def test_a_class_that_is_nowhere_counts_zero_only_where_every_class_counts() -> None:
    truth = np.zeros((1, 4, 4), np.uint8)
    predicted = truth.copy()
    predicted[0, 0] = 1
    found = areas_of_each(predicted, truth, FIVE)[:, :, :5]
    assert mean_iou(found) == pytest.approx(100 * (12 / 16 + 0) / 2)
    assert mean_iou(found, "every") == pytest.approx(100 * (12 / 16) / 5)
    for rule in ("present", "every"):
        outcome = Outcome()
        add_segmentation(outcome, "mIoU", found, FIVE.classes, "x", rule)  # type: ignore[arg-type]
        items = {**outcome.items, "group_offsets": np.array([0, 1]), "group_members": np.array(["a"])}
        value = replicates(items, ["mIoU"], resamples=3)["mIoU"].value
        assert 100 * value == pytest.approx(outcome.scores["mIoU"].value)


def test_a_predicted_ignored_value_is_a_class_that_is_never_right() -> None:
    predicted, truth = np.full((1, 2, 2), 1, np.uint8), np.full((1, 2, 2), 1, np.uint8)
    predicted[0, 0, 0] = 0  # ADE20K's other
    outcome = Outcome()
    add_segmentation(outcome, "mIoU", areas_of_each(predicted, truth, ADE), ADE.classes, "x")
    assert outcome.scores["mIoU"].value == pytest.approx(100 * (3 / 4 + 0) / 2)
    assert outcome.items["iou/mIoU"].shape == (1, 3, 4)
    assert outcome.per_class["mIoU"] == {"a": pytest.approx(75.0)}


def test_areas_by_plain_counting() -> None:
    predicted, truth = random_masks(ADE, 2, images=1)
    for place, value in enumerate(ADE.values[:3]):
        pairs = [(p, t) for p, t in zip(predicted.ravel(), truth.ravel(), strict=True) if t not in ADE.ignored]
        expected = [
            sum(p == t == value for p, t in pairs), sum(p == value for p, _ in pairs), sum(t == value for _, t in pairs)
        ]  # fmt: skip
        assert areas(predicted[0], truth[0], ADE)[:, place].tolist() == expected


def test_matching_is_the_best_renaming_of_the_predicted_classes() -> None:
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 4, (5, 9, 9)).astype(np.uint8)
    predicted = np.array([2, 0, 3, 1], np.uint8)[truth]
    flips = rng.random(truth.shape) < 0.3
    predicted[flips] = rng.integers(0, 4, int(flips.sum()))
    confusion = confusions(predicted, truth, 4, VOID)
    total = confusion.sum(0).astype(float)
    overlap = total / (total.sum(0) + total.sum(1)[:, None] - total)
    best = max(permutations(range(4)), key=lambda names: sum(overlap[t, names[t]] for t in range(4)))
    renamed = np.argsort(best).astype(np.uint8)[predicted]
    assert np.array_equal(matched(confusion), confusions(renamed, truth, 4, VOID))
    assert mean_iou(areas_of_confusions(matched(confusion))) > mean_iou(areas_of_confusions(confusion))
    assert np.array_equal(
        areas_of_confusions(confusion),
        areas_of_each(predicted, truth, MaskFormat.of("x", labels(tuple("abcd"))))[:, :, :4],
    )


def test_blocks_are_the_pixels_of_each_patch_and_come_back() -> None:
    masks = np.random.default_rng(4).integers(0, 7, (3, 12, 12)).astype(np.uint8)
    blocks = blocks_of(masks, 4)
    assert np.array_equal(blocks[1 * 16 + 2 * 4 + 3], masks[1, 6:9, 9:12].ravel())
    assert np.array_equal(masks_of(blocks, 4), masks)
    counts = counts_of(blocks, 7)
    for row, block in enumerate(blocks):
        assert counts[row].tolist() == [int((block == value).sum()) for value in range(7)]
        assert modes_of(blocks)[row] == min(range(7), key=lambda v: (-(block == v).sum(), v))


def test_the_numbers_of_each_data_set(tmp_path: Path) -> None:
    assert len(ADE20K_CLASSES) == 150
    assert ADE.indices(np.array([0, 1, 3, 255], np.uint8)).tolist() == [255, 0, 2, 255]
    assert FIVE.indices(np.array([0, 4, 255], np.uint8)).tolist() == [0, 4, 255]
    city = MaskFormat.of("cityscapes", labels(tuple(map(str, range(19))), (tmp_path / "aachen_gtFine_labelIds.png",)))
    Image.fromarray(np.array([[7, 33, 0]], np.uint8)).save(tmp_path / "mask.png")
    assert city.read(tmp_path / "mask.png").tolist() == [[0, 18, 255]]
    with pytest.raises(InputError, match=r"has the value 7, which is not one of the 3 classes"):
        ADE.read(tmp_path / "mask.png")
    Image.new("RGB", (2, 2)).save(tmp_path / "colour.png")
    with pytest.raises(InputError, match="expected 8-bit class numbers"):
        ADE.read(tmp_path / "colour.png")
    (tmp_path / "damaged.png").write_bytes(b"x")
    with pytest.raises(InputError, match="cannot be decoded"):
        ADE.read(tmp_path / "damaged.png")


def test_masks_are_squashed_as_torchvision_does(tmp_path: Path) -> None:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as TF

    mask = Image.fromarray(np.random.default_rng(5).integers(0, 5, (37, 21)).astype(np.uint8))
    mask.save(tmp_path / "mask.png")
    expected = np.asarray(TF.resize(mask, [16, 16], InterpolationMode.NEAREST))
    assert np.array_equal(read_masks([tmp_path / "mask.png"], FIVE, 16)[0], expected)


def test_depth_errors_by_their_definitions() -> None:
    rng = np.random.default_rng(6)
    truth = rng.uniform(0.5, 12, (48, 64)).astype(np.float32)
    predicted = (truth * rng.uniform(0.6, 1.7, truth.shape)).astype(np.float32)
    scored = scored_depth(truth, 1e-3, 10)
    pairs = [
        (float(predicted[y, x]), float(truth[y, x]))
        for y in range(4, 47) for x in range(4, 60) if truth[y, x] < 10
    ]  # fmt: skip
    assert int(scored.sum()) == len(pairs)
    rmse, within, relative = depth_errors(predicted, truth, scored)
    assert rmse == pytest.approx((sum((p - t) ** 2 for p, t in pairs) / len(pairs)) ** 0.5)
    assert within == pytest.approx(sum(max(p / t, t / p) < 1.25 for p, t in pairs) / len(pairs))
    assert relative == pytest.approx(sum(abs(p - t) / t for p, t in pairs) / len(pairs))
    assert np.isnan(depth_errors(predicted, truth, np.zeros_like(scored))).all()
