"""mIoU against a plain count and against mmsegmentation's own metric, on seeded masks."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from benchmarks.segmentation.train import areas, score
from benchmarks.training.trials import TrialScores
from tests.reference.segmentation_plain import plain_iou

CLASSES = 6


def seeded_masks(images: int = 5, absent: int = 4) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Class `absent` is nowhere in the truth of any image, class 5 in neither; a tenth of the truth is ignored."""
    generator = torch.Generator().manual_seed(0)
    truth, predicted = [], []
    for size in range(17, 17 + images):
        true = torch.randint(0, absent, (size, size + 3), generator=generator)
        guess = torch.where(torch.rand(true.shape, generator=generator) < 0.6, true,
                            torch.randint(0, absent + 1, true.shape, generator=generator))  # fmt: skip
        truth.append(torch.where(torch.rand(true.shape, generator=generator) < 0.1, 255, true))
        predicted.append(guess)
    return predicted, truth


def scores_of(predicted: list[torch.Tensor], truth: list[torch.Tensor]) -> TrialScores:
    per_image = np.stack([areas(p, t, CLASSES).numpy() for p, t in zip(predicted, truth, strict=True)])
    return score(per_image, tuple(map(str, range(CLASSES))))


def test_it_is_the_plain_count() -> None:
    predicted, truth = seeded_masks()
    found = scores_of(predicted, truth)
    iou, accuracy, pixels = plain_iou([p.numpy() for p in predicted], [t.numpy() for t in truth], CLASSES)
    for column, expected in (("mIoU", iou), ("mAcc", accuracy)):
        values = [found.per_class[column].get(str(kind), np.nan) for kind in range(CLASSES)]
        np.testing.assert_allclose(values, expected, rtol=1e-12)
        assert found.columns[column] == pytest.approx(np.nanmean(expected), rel=1e-12)
    assert found.columns["aAcc"] == pytest.approx(pixels, rel=1e-12)
    assert "5" not in found.per_class["mIoU"]
    assert found.per_class["mIoU"]["4"] == 0  # predicted, and nowhere true


@pytest.mark.skipif(not find_spec("mmseg"), reason="mmsegmentation is not installed: make setup-transfer")
@pytest.mark.filterwarnings("ignore")
def test_it_is_mmsegmentations_own_metric() -> None:
    from mmseg.evaluation import IoUMetric

    predicted, truth = seeded_masks()
    found = scores_of(predicted, truth)
    metric = IoUMetric()
    metric.dataset_meta = {"classes": tuple(map(str, range(CLASSES)))}
    metric.process(
        {}, [{"pred_sem_seg": {"data": p}, "gt_sem_seg": {"data": t}} for p, t in zip(predicted, truth, strict=True)]
    )
    theirs = metric.compute_metrics(metric.results)  # rounded to 2 decimals, and float32 inside
    assert found.columns["mIoU"] == pytest.approx(theirs["mIoU"], abs=0.006)
    assert found.columns["mAcc"] == pytest.approx(theirs["mAcc"], abs=0.006)
    assert found.columns["aAcc"] == pytest.approx(theirs["aAcc"], abs=0.006)


def test_ignored_pixels_count_nowhere() -> None:
    truth = torch.full((4, 4), 255)
    truth[0] = 1
    predicted = torch.ones(4, 4, dtype=torch.int64)
    assert areas(predicted, truth, 2).tolist() == [[0, 4], [0, 4], [0, 4]]
