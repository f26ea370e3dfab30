"""Nearest class mean and few-shot classification against scikit-learn, one draw and one number of images at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.preprocessing import normalize

import benchmarks.solvers.class_means as class_means_module
from benchmarks.few_shot import FewShot, Ncm
from benchmarks.registry import find_protocol
from benchmarks.solvers.class_means import class_means, nearest_mean_ranks, sample_per_class
from benchmarks.task import InputError, Outcome, RunOptions, Split
from results.bootstrap import replicates
from results.schema import Protocol
from tests.builders import bare_split

CLASSES, OPTIONS = 4, RunOptions(device="cpu", progress=False)


def split(per_class: int, seed: int, name: str) -> Split:
    rng = np.random.default_rng(seed)
    targets = rng.permutation(np.arange(CLASSES * per_class) % CLASSES)
    features = np.random.default_rng(0).normal(size=(CLASSES, 12))[targets]
    features = features + rng.normal(size=(len(targets), 12)) + 0.5
    return bare_split(features, targets, "abcd", part=name)


@pytest.fixture(scope="module")
def data() -> tuple[Split, Split]:
    return split(10, 1, "train"), split(30, 2, "val")


def protocol(**changes: Any) -> Protocol:
    return find_protocol("few_shot.demo@1").changed(**{"shots": (1, 2, 4), "draws": 3, "tolerance": 1e-7, **changes})


@pytest.fixture(scope="module")
def outcome(data: tuple[Split, Split]) -> Outcome:
    return FewShot().run(protocol(), *data, OPTIONS)


def test_ncm_is_the_nearest_centroid_of_unit_rows(data: tuple[Split, Split], monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = data
    monkeypatch.setattr("benchmarks.solvers.class_means.CHUNK_ROWS", 7)
    found = Ncm().run(find_protocol("ncm.demo@1"), train, test, OPTIONS)
    model = NearestCentroid().fit(normalize(train.features["embed"]), train.labels.targets)
    hits = model.predict(normalize(test.features["embed"])) == test.labels.targets
    assert found.items["correct/NCM"].tolist() == hits.tolist()
    assert found.scores["NCM"].value == pytest.approx(100 * hits.mean())
    assert 50 < hits.mean() * 100 < 100


def test_a_class_without_images_is_never_the_nearest() -> None:
    means = class_means(np.eye(3, dtype=np.float32)[:2], np.array([0, 2]), 3)
    assert np.isnan(means[1].numpy()).all()
    ranks = nearest_mean_ranks(means[None], np.eye(3, dtype=np.float32), np.array([0, 1, 1]))
    assert ranks.tolist() == [[0, 2, 2]]


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")  # NearestCentroid of one image per class
@pytest.mark.parametrize("n", [1, 2, 4])
def test_every_classifier_is_scikit_learns_on_the_mean_of_the_draws(
    data: tuple[Split, Split], outcome: Outcome, n: int
) -> None:
    train, test = data
    drawn = sample_per_class(train.labels.targets, CLASSES, 4, range(3))
    queries, truth = normalize(test.features["embed"]), test.labels.targets
    models = {
        "NCM": NearestCentroid(),
        "Logistic": LogisticRegression(C=10.0, tol=1e-8, max_iter=2000),
        # Unit rows at distance d have the cosine 1 - d² / 2.
        "kNN": KNeighborsClassifier(n, weights=lambda d: np.exp((1 - d**2 / 2) / 0.07), algorithm="brute"),
    }
    for name, model in models.items():
        hits = []
        for draw in drawn:
            rows = draw[:n].reshape(-1)
            assert np.bincount(train.labels.targets[rows]).tolist() == [n] * CLASSES
            model.fit(normalize(train.features["embed"][rows]), train.labels.targets[rows])
            hits.append(model.predict(queries) == truth)
        of_draws = 100 * np.mean(hits, axis=1)
        score = outcome.scores[f"{name} n={n}"]
        assert score.value == pytest.approx(of_draws.mean())
        assert score.std == pytest.approx(of_draws.std())
        assert outcome.items[f"pseudo_value/{name} n={n}"] == pytest.approx(np.mean(hits, axis=0))
        runs = [row[name] for row in outcome.runs if row["n"] == n]
        assert runs == pytest.approx(of_draws.tolist())


def test_the_size_of_the_parts_changes_nothing(
    data: tuple[Split, Split], outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(class_means_module, "CHUNK_ROWS", 50)  # of 120 queries
    monkeypatch.setattr(class_means_module, "LOGITS_BYTES", 4 * 4 * CLASSES * 7)
    parts = FewShot().run(protocol(), *data, OPTIONS)
    for name, values in outcome.items.items():
        np.testing.assert_array_equal(parts.items[name], values)


def test_the_noise_of_the_test_images_follows_from_the_items(outcome: Outcome) -> None:
    items = len(outcome.items["pseudo_value/NCM n=2"])
    arrays = {**outcome.items, "group_offsets": np.arange(items + 1), "group_members": np.arange(items).astype(str)}
    found = replicates(arrays, ["NCM n=2"], resamples=50)["NCM n=2"]
    assert 100 * found.value == pytest.approx(outcome.scores["NCM n=2"].value, abs=1e-4)


def test_an_image_folder_leaves_out_what_its_smallest_class_does_not_have(data: tuple[Split, Split]) -> None:
    train, test = data[0].labels, data[1].labels
    folder = find_protocol("few_shot.imagefolder@1")
    adapted = FewShot().adapted(folder, train, test)
    assert adapted.params["shots"] == (1, 2, 4, 8)
    assert adapted.id == "few_shot.imagefolder@1+shots=1,2,4,8"
    assert "Logistic n=16" not in adapted.columns
    FewShot().check(adapted, train, test)
    with pytest.raises(InputError, match=r"draws 16 images of each class.*has only 10: use shots up to 10"):
        FewShot().check(find_protocol("few_shot.imagenet@1"), train, test)


def test_only_an_image_folder_without_chosen_shots_is_adapted_to_its_smallest_class() -> None:
    folder, imagenet = (find_protocol(f"few_shot.{variant}@1") for variant in ("imagefolder", "imagenet"))
    labels = bare_split(np.ones((43, 2)), np.repeat(np.arange(4), (16, 3, 8, 16)), "abcd").labels
    assert FewShot().adapted(folder, labels, labels).params["shots"] == (1, 2)
    for unchanged in (folder.changed(shots=(1, 8)), imagenet):
        assert FewShot().adapted(unchanged, labels, labels) == unchanged
        with pytest.raises(InputError, match="has only 3: use shots up to 3"):
            FewShot().check(unchanged, labels, labels)
    FewShot().check(folder.changed(shots=(1, 3)), labels, labels)


@pytest.mark.parametrize("shots", [(), (0, 1), (2, 2)])
def test_shots_that_mean_nothing_are_refused(shots: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"at least 1 item|must be positive and without repeats"):
        protocol(shots=shots)


def test_a_row_without_direction_is_refused(data: tuple[Split, Split]) -> None:
    train, test = data
    rows = train.features["embed"].copy()
    rows[:] = 0
    with pytest.raises(InputError, match="zero or not finite"):
        Ncm().run(find_protocol("ncm.demo@1"), Split(train.labels, {"embed": rows}), test, OPTIONS)
