"""Logistic regression on stored features against scikit-learn's logistic regression."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from benchmarks.logistic import SPLIT_SEED, STORED_COLUMNS, STORED_PROTOCOLS, LogisticParams, StoredLogistic
from benchmarks.solvers.logistic import PathFit, logistic_path
from benchmarks.task import InputError, Labels, Outcome, RunOptions, Split
from benchmarks.training.task import held_out
from results.schema import Protocol
from tests.builders import bare_split

PENALTIES = (1.0, 0.1, 0.01, 1e-3)
CLASSES = 4


def split(n: int, seed: int, name: str) -> Split:
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, CLASSES, n)
    centres = np.random.default_rng(0).normal(size=(CLASSES, 10))
    features = (centres[targets] + 1.5 * rng.normal(size=(n, 10))) * np.logspace(-2, 2, 10) + 5
    features[:, 3] = 7  # a dimension that says nothing
    return bare_split(features, targets, "abcd", part=name)


@pytest.fixture(scope="module")
def data() -> tuple[Split, Split]:
    return split(160, 1, "train"), split(120, 2, "val")


def protocol(**changes: Any) -> Protocol:
    given = {"penalties": PENALTIES, "heldout": 0.25, "dtype": "float64", "tolerance": 1e-8, **changes}
    return STORED_PROTOCOLS[0].changed(**given)


def run(protocol: Protocol, train: Split, test: Split) -> Outcome:
    return StoredLogistic().run(protocol, train, test, RunOptions(device="cpu", progress=False))


def path(train: Split, items: np.ndarray, **changes: Any) -> list[PathFit]:
    how = {"dtype": torch.float64, "chunk": 65536, "max_iterations": 500, "tolerance": 1e-8, "history": 10, **changes}
    rows, targets = train.features["embed"], train.labels.targets
    return list(logistic_path(rows, items, targets, CLASSES, PENALTIES, device=torch.device("cpu"), **how))


def standardised(rows: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    return (rows.astype(np.float64) - mean) / np.where(deviation == 0, 1, deviation)


def sklearn_path(data: Split, items: np.ndarray) -> list[tuple[Any, LogisticRegression]]:
    rows = data.features["embed"][items].astype(np.float64)
    mean, deviation = rows.mean(axis=0), rows.std(axis=0)
    found = []
    for penalty in PENALTIES:
        model = LogisticRegression(C=1 / (penalty * len(items)), tol=1e-10, max_iter=10_000)
        model.fit(standardised(rows, mean, deviation), data.labels.targets[items])
        found.append((lambda x: standardised(x, mean, deviation), model))
    return found


@pytest.mark.parametrize(("chunk", "resident"), [(1000, 2**30), (37, 2**30), (37, 0)])
def test_the_path_is_scikit_learns(data: tuple[Split, Split], chunk: int, resident: int) -> None:
    train, _ = data
    items = np.arange(0, 160, 2)
    fits = path(train, items, chunk=chunk, resident_bytes=resident)
    for fit, (_, model) in zip(fits, sklearn_path(train, items), strict=True):
        assert fit.weights[:, :-1].numpy() == pytest.approx(model.coef_, abs=1e-5)
        assert fit.gradient < 1e-8
        bias = fit.weights[:, -1].numpy()  # only differences between biases matter
        assert bias - bias.mean() == pytest.approx(model.intercept_ - model.intercept_.mean(), abs=1e-5)


def test_single_precision_finds_the_same_classifier(data: tuple[Split, Split]) -> None:
    train, _ = data
    fine = path(train, np.arange(160))
    coarse = path(train, np.arange(160), dtype=torch.float32, tolerance=1e-5)
    for a, b in zip(fine, coarse, strict=True):
        assert b.weights.double().numpy() == pytest.approx(a.weights.numpy(), abs=2e-2)


def test_scores_are_those_of_a_choice_made_without_test(data: tuple[Split, Split]) -> None:
    train, test = data
    outcome = run(protocol(), train, test)
    kept, held = held_out(train.labels, 0.25, SPLIT_SEED)
    heldout = [
        model.score(scale(train.features["embed"][held]), train.labels.targets[held])
        for scale, model in sklearn_path(train, kept)
    ]
    final = [
        model.score(scale(test.features["embed"]), test.labels.targets)
        for scale, model in sklearn_path(train, np.arange(160))
    ]
    chosen = int(np.argmax(heldout))
    assert [row["heldout_top1"] for row in outcome.runs] == pytest.approx([100 * x for x in heldout])
    assert [row["top1"] for row in outcome.runs] == pytest.approx([100 * x for x in final])
    assert [row["chosen"] for row in outcome.runs] == [n == chosen for n in range(len(PENALTIES))]
    assert outcome.scores["Stored"].value == pytest.approx(100 * final[chosen])
    assert outcome.scores["Stored oracle"].value == pytest.approx(100 * max(final))
    assert set(outcome.scores) == set(STORED_COLUMNS)
    assert outcome.items["correct/Stored"].mean() == pytest.approx(final[chosen])
    assert all(row["converged"] for row in outcome.runs)
    assert not any("converged" in score.selection for score in outcome.scores.values())


def test_a_fit_that_stopped_at_its_limit_is_told(data: tuple[Split, Split]) -> None:
    outcome = run(protocol(max_iterations=2), *data)
    assert not any(row["converged"] for row in outcome.runs)
    assert all("(not converged: gradient " in score.selection for score in outcome.scores.values())


def test_the_saved_classifier_takes_features_as_they_are(data: tuple[Split, Split]) -> None:
    train, test = data
    outcome = run(protocol(), train, test)
    logits = torch.nn.functional.linear(
        torch.from_numpy(test.features["embed"]), outcome.tensors["Stored/weight"], outcome.tensors["Stored/bias"]
    )
    assert np.array_equal(logits.argmax(dim=1).numpy() == test.labels.targets, outcome.items["correct/Stored"])


def test_what_cannot_be_fitted_is_said_in_a_sentence(data: tuple[Split, Split]) -> None:
    train, test = data
    rows = train.features["embed"].copy()
    rows[3, 1] = np.inf
    with pytest.raises(InputError, match="not a finite number"):
        run(protocol(), Split(train.labels, {"embed": rows}), test)
    labels = test.labels
    several = Labels(labels.ids, labels.paths, labels.classes, np.zeros((120, 4), np.int8), labels.groups)
    with pytest.raises(InputError, match="one class per image"):
        run(protocol(), train, Split(several, test.features))


def test_what_the_labels_show_is_refused_before_features_are_extracted(data: tuple[Split, Split]) -> None:
    train, test = data[0].labels, data[1].labels
    StoredLogistic().check(protocol(), train, test)
    one_each = train.rows([int(np.flatnonzero(train.targets == c)[0]) for c in range(CLASSES)])
    with pytest.raises(InputError, match="none can be held out"):
        StoredLogistic().check(protocol(), one_each, test)


def test_it_reads_one_vector_and_no_map_and_has_columns_of_its_own() -> None:
    assert StoredLogistic().default_protocol(embedded=False).id == "linear_stored.imagefolder@1"
    assert StoredLogistic().default_protocol(embedded=True).id == "linear_stored.demo@1"
    for declared in STORED_PROTOCOLS:
        assert StoredLogistic().outputs(declared) == {"embed": ("embed", None)}
        penalties = LogisticParams.model_validate(declared.params).penalties
        assert list(penalties) == sorted(penalties, reverse=True)
        assert not any("AvgPool" in column for column in declared.columns)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"penalties": ()}, "at least 1 item"),
        ({"penalties": (-1.0,)}, "greater than or equal to 0"),
        ({"output": "feature5"}, "'embed' or 'head'"),
        ({"max_iterations": 0}, "greater than 0"),
    ],
)
def test_it_refuses_what_means_nothing(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        STORED_PROTOCOLS[1].changed(**changes)
