"""The label-free benchmarks: known features, views that are drawn alike, and end to end on the embedded data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.encoders.load import load_encoder
from benchmarks.evaluate import evaluate
from benchmarks.label_free import LabelFree, LabelFreeViews, evenly_spaced, view_features, view_measures
from benchmarks.registry import find_protocol
from benchmarks.solvers.spectra import lidar
from benchmarks.task import InputError, Outcome, RunOptions
from results.schema import Protocol
from tests.builders import bare_split

DEMO = find_protocol("label_free.demo@1")
VIEWS = find_protocol("label_free_views.demo@1").changed(images=6, views=4)
QUIET = RunOptions(device="cpu", progress=False)


def measured(features: np.ndarray, protocol: Protocol = DEMO) -> Outcome:
    split = bare_split(features, np.zeros(len(features), np.int64), "a")
    return LabelFree().run(protocol, split, split, QUIET)


def value(outcome: Outcome, column: str) -> float:
    found = outcome.scores[column].value
    assert found is not None
    return found


def test_orthogonal_features_have_full_rank_and_no_dead_dimension() -> None:
    outcome = measured(np.vstack([np.eye(8), -np.eye(8)]))
    for column in ("RankMe", "Effective rank", "Stable rank"):
        assert value(outcome, column) == pytest.approx(8, rel=2e-3)
    assert value(outcome, "alpha-ReQ") == pytest.approx(0, abs=1e-6)
    assert value(outcome, "Deviation") == pytest.approx(1)
    assert value(outcome, "Dead share") == 0
    pairs = [0.0] * 14 + [-4.0]  # of each vector: 14 orthogonal at squared distance 2, one opposite at 4
    expected = np.log((14 * np.exp(-4) + np.exp(-8)) / len(pairs))
    assert value(outcome, "Uniformity") == pytest.approx(expected)


def test_collapsed_features_show() -> None:
    outcome = measured(np.outer(np.ones(20), [1, 2, 3]))
    assert value(outcome, "Effective rank") == pytest.approx(1, abs=1e-4)
    assert value(outcome, "Dead share") == 1
    assert value(outcome, "Deviation") == pytest.approx(0, abs=1e-6)
    assert value(outcome, "Uniformity") == pytest.approx(0, abs=1e-6)
    assert outcome.scores["alpha-ReQ"].value is None


def test_half_dead() -> None:
    rows = np.random.default_rng(0).normal(size=(64, 6))
    rows[:, ::2] = 1
    assert value(measured(rows), "Dead share") == 0.5


def test_every_measure_is_that_of_its_formula_on_rows_of_unequal_length() -> None:
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(50, 4)) * [1, 0.5, 2, 1e-4] + [3, 0, 1, 0]
    rows *= rng.uniform(500, 2000, (50, 1))
    rows = rows.astype(np.float32).astype(float)
    outcome = measured(rows)
    plain, centred = (np.linalg.svd(x, compute_uv=False) for x in (rows, rows - rows.mean(0)))
    p = plain / plain.sum()
    smoothed = p + 1e-5
    n = np.arange(1, 5)
    slope = np.polyfit(np.log(n), np.log(centred**2), 1, w=np.sqrt(1 / n))[0]
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    pairs = [np.exp(-2 * ((unit[i] - unit[j]) ** 2).sum()) for i in range(50) for j in range(i)]
    for column, expected in {
        "RankMe": np.exp(-(smoothed * np.log(smoothed)).sum()),
        "Effective rank": np.exp(-(p * np.log(p)).sum()),
        "Stable rank": (plain**2).sum() / plain[0] ** 2,
        "alpha-ReQ": -slope,
        "Uniformity": np.log(np.mean(pairs)),
        "Deviation": unit.std(0).mean() * 2,
        "Dead share": (rows.std(0) < 1e-3 * rows.std(0).max()).mean(),
    }.items():
        assert value(outcome, column) == pytest.approx(expected, rel=1e-6), column
    assert value(outcome, "Dead share") == 0.25


def test_views_of_an_image_are_compared_in_pairs_and_an_odd_one_is_left_over() -> None:
    features = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert view_measures(features[:, :4], 1e-4)["Alignment"] == view_measures(features, 1e-4)["Alignment"]
    unit = (features / features.norm(dim=2, keepdim=True)).numpy()
    pairs = [((unit[i, a] - unit[i, a + 1]) ** 2).sum() for i in range(6) for a in (0, 2)]
    found = view_measures(features, 1e-4)
    assert found["Alignment"] == pytest.approx(np.mean(pairs))
    assert found["LiDAR"] == pytest.approx(lidar(features, 1e-4))


def test_samples_are_evenly_spaced() -> None:
    assert evenly_spaced(10, 4).tolist() == [0, 3, 6, 9]
    assert evenly_spaced(9, 4).tolist() == [0, 3, 5, 8]  # of 0, 2.67, 5.33 and 8
    assert evenly_spaced(3, 10).tolist() == [0, 1, 2]
    rows = np.random.default_rng(1).normal(size=(40, 5))
    few = measured(rows, DEMO.changed(samples=7))
    assert few.scores["RankMe"].n == 7
    assert value(few, "Stable rank") == pytest.approx(value(measured(rows[evenly_spaced(40, 7)]), "Stable rank"))


def test_refuses_one_image_and_features_that_are_not_finite() -> None:
    with pytest.raises(InputError, match="at least 2 images"):
        measured(np.ones((1, 3)))
    with pytest.raises(InputError, match="embed has NaN or infinity for some images"):
        measured(np.array([[1.0, 2.0], [np.nan, 3.0], [4.0, 5.0]]))
    assert measured(np.eye(2)).scores["RankMe"].n == 2


def test_views_depend_on_the_seed_alone(small_data: Path) -> None:
    from benchmarks.datasets.registry import find_dataset

    encoder = load_encoder("pixels")
    labels = find_dataset("drawings", small_data).read("train")
    task = LabelFreeViews()
    params = task.params(VIEWS)
    first = view_features(encoder, labels, VIEWS.geometry, params, QUIET)
    again = view_features(encoder, labels, VIEWS.geometry, params, RunOptions(progress=False, batch_size=5))
    other = view_features(encoder, labels, VIEWS.geometry, params, RunOptions(progress=False, seed=1))
    assert first.shape[:2] == (6, 4)
    assert (first == again).all()
    assert not (first == other).all()
    assert not (first[:, 0] == first[:, 1]).all()


@pytest.mark.slow
def test_both_run_on_the_embedded_data(small_data: Path, tmp_path: Path) -> None:
    options = RunOptions(progress=False, records=tmp_path / "records", features=tmp_path / "features", workers=0)
    for protocol in (DEMO, VIEWS):
        record = evaluate("pixels", protocol, small_data, options=options)
        assert set(record.scores) == set(protocol.columns)
        assert all(score.unit == "1" for score in record.scores.values())
        assert record.dataset.train_items == record.dataset.test_items
