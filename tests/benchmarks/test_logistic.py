"""The logistic benchmark: the choice of C against a loop over scikit-learn, the search, and the held-out part."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression as Reference
from sklearn.metrics import log_loss

from benchmarks.logistic import COLUMNS, SPLIT_SEED, LogisticRegression, coarse_to_fine
from benchmarks.registry import find_protocol
from benchmarks.task import InputError, Outcome, RunOptions, Split
from benchmarks.training.task import held_out
from results.schema import Protocol
from tests.builders import bare_split

CLASSES, COSTS = 4, (1e-3, 1e-2, 0.1, 1.0)


def split(n: int, seed: int, name: str) -> Split:
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, CLASSES, n)
    features = np.random.default_rng(0).normal(size=(CLASSES, 10))[targets] + 1.5 * rng.normal(size=(n, 10)) + 1
    return bare_split(features, targets, "abcd", part=name)


@pytest.fixture(scope="module")
def data() -> tuple[Split, Split]:
    return split(160, 1, "train"), split(120, 2, "val")


def protocol(**changes: Any) -> Protocol:
    return find_protocol("logistic.demo@2").changed(
        **{"costs": COSTS, "heldout": 0.25, "choose_cost": "accuracy", **changes}
    )


def run(protocol: Protocol, train: Split, test: Split) -> Outcome:
    return LogisticRegression().run(protocol, train, test, RunOptions(device="cpu", progress=False))


def accuracies(train: Split, rows: np.ndarray, test: Split, tested: np.ndarray) -> list[float]:
    found = []
    for cost in COSTS:
        model = Reference(C=cost, tol=1e-8, max_iter=1000)
        model.fit(train.features["embed"][rows].astype(np.float64), train.labels.targets[rows])
        found.append(100 * model.score(test.features["embed"][tested], test.labels.targets[tested]))
    return found


@pytest.mark.parametrize("how", ["stratified", "random"])
def test_scores_are_those_of_a_choice_made_without_test(data: tuple[Split, Split], how: str) -> None:
    train, test = data
    outcome = run(protocol(heldout_split=how, dtype="float64", tolerance=1e-7), train, test)
    if how == "stratified":
        kept, held = held_out(train.labels, 0.25, SPLIT_SEED)
    else:
        order = np.random.default_rng(SPLIT_SEED).permutation(160)
        kept, held = order[40:], order[:40]
    heldout = accuracies(train, kept, train, held)
    final = accuracies(train, np.arange(160), test, np.arange(120))
    chosen = int(np.argmax(heldout))
    assert [row["heldout_top1"] for row in outcome.runs] == pytest.approx(heldout)
    assert [row["top1"] for row in outcome.runs] == pytest.approx(final)
    assert [row["chosen"] for row in outcome.runs] == [place == chosen for place in range(len(COSTS))]
    assert outcome.scores["Logistic"].value == pytest.approx(final[chosen])
    assert outcome.scores["Logistic oracle"].value == pytest.approx(max(final))
    assert outcome.scores["Logistic oracle"].selection == "best cost on test (oracle)"
    assert set(outcome.scores) == set(COLUMNS)
    assert all(row["converged"] for row in outcome.runs)
    logits = (
        test.features["embed"] @ outcome.tensors["Logistic/weight"].numpy().T + outcome.tensors["Logistic/bias"].numpy()
    )
    assert np.array_equal(logits.argmax(axis=1) == test.labels.targets, outcome.items["correct/Logistic"])


def test_the_loss_on_the_held_out_part_may_choose_the_cost(data: tuple[Split, Split]) -> None:
    """Against scikit-learn's log loss; of equal losses the most regularised cost is chosen."""
    train, test = data
    kept, held = held_out(train.labels, 0.25, SPLIT_SEED)
    rows, targets = train.features["embed"].astype(np.float64), train.labels.targets
    losses = []
    for cost in COSTS:
        model = Reference(C=cost, tol=1e-8, max_iter=1000).fit(rows[kept], targets[kept])
        losses.append(log_loss(targets[held], model.predict_proba(rows[held])))
    demo = protocol(choose_cost="loss", tolerance=1e-7)
    outcome = run(demo, train, test)
    assert [row["heldout_loss"] for row in outcome.runs] == pytest.approx(losses, abs=1e-6)
    assert [row["chosen"] for row in outcome.runs] == [place == np.argmin(losses) for place in range(len(COSTS))]
    assert outcome.scores["Logistic"].value == outcome.runs[int(np.argmin(losses))]["top1"]
    assert outcome.scores["Logistic"].selection.startswith("cost with the lowest loss on a held-out part of train")
    wide = demo.changed(costs=tuple(10.0 ** np.linspace(-4, 2, 13)), search="coarse_to_fine", tolerance=1e-4)
    searched = run(wide, train, test)
    assert [row["heldout_loss"] for row in searched.runs if row["chosen"]] == [
        min(row["heldout_loss"] for row in searched.runs)
    ]
    blank = Split(train.labels, {"embed": np.ones_like(train.features["embed"])})
    assert [row["chosen"] for row in run(demo, blank, blank).runs] == [True, False, False, False]


def test_older_protocols_keep_their_hashes() -> None:
    assert "choose_cost" not in find_protocol("logistic.dinov2@1").params
    assert find_protocol("logistic.demo@2").params["choose_cost"] == "loss"
    assert find_protocol("logistic.dinov2@1").changed(choose_cost="loss").id.endswith("+choose_cost=loss")


def test_single_precision_scores_the_same(data: tuple[Split, Split]) -> None:
    fine, coarse = (run(protocol(dtype=dtype), *data) for dtype in ("float64", "float32"))
    assert [row["top1"] for row in coarse.runs] == [row["top1"] for row in fine.runs]


def test_a_fit_that_stopped_at_its_limit_is_told(data: tuple[Split, Split]) -> None:
    outcome = run(protocol(max_iterations=1), *data)
    assert not any(row["converged"] for row in outcome.runs)
    assert all("(not converged: gradient " in score.selection for score in outcome.scores.values())


def test_the_search_from_coarse_to_fine_finds_a_single_peak_in_few_fits(data: tuple[Split, Split]) -> None:
    for peak in (0, 1, 37, 48, 95, 96):
        found = coarse_to_fine(lambda places, peak=peak: [-abs(place - peak) for place in places], 97, 16)
        assert max(found, key=lambda place: found[place]) == peak
        assert len(found) <= 15
    costs = tuple(10.0 ** np.linspace(-4, 0, 13))
    outcome = run(protocol(costs=costs, search="coarse_to_fine"), *data)
    tried = [row["cost"] for row in outcome.runs]
    assert 7 <= len(tried) < 13
    assert set(costs[::2]) <= set(tried)
    assert tried == sorted(tried)


def test_the_published_grids_are_their_sources() -> None:
    grid = 10 ** np.linspace(-6, 5, 45)
    for variant in ("dinov2@1", "dinov3@1", "imagefolder@1", "demo@2"):
        assert find_protocol(f"logistic.{variant}").params["costs"] == pytest.approx(tuple(grid))
    assert find_protocol("logistic.ssl_transfer@1").params["costs"] == pytest.approx(tuple(1 / grid[::-1]))
    clip = find_protocol("logistic.clip@1").params["costs"]
    assert clip[::16] == pytest.approx((1e-6, 1e-4, 1e-2, 1, 1e2, 1e4, 1e6))
    assert np.diff(np.log10(clip)) == pytest.approx(np.full(96, 1 / 8))
    held = {v: find_protocol(f"logistic.{v}@1").params["heldout_split"] for v in ("dinov2", "dinov3", "ssl_transfer")}
    assert held == {"dinov2": "random", "dinov3": "stratified", "ssl_transfer": "random"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"costs": (1.0, 0.1)}, "costs must be in ascending order"),
        ({"costs": (0.0, 0.1)}, "greater than 0"),
        ({"search": "coarse_to_fine"}, "coarse-to-fine search needs n \\* 6 \\+ 1 costs"),
    ],
)
def test_it_refuses_what_means_nothing(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        protocol(**changes)


def test_too_few_images_are_refused_before_features_are_extracted(data: tuple[Split, Split]) -> None:
    train, test = data[0].labels, data[1].labels
    LogisticRegression().check(protocol(heldout_split="random"), train, test)
    with pytest.raises(InputError, match="leaves one part empty: add images"):
        LogisticRegression().check(protocol(heldout_split="random", heldout=0.1), train.rows([0, 1, 2]), test)
