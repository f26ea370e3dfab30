"""Logistic regression for every cost at once against scikit-learn's, one fit at a time, on coefficients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from benchmarks.solvers.logistic import Block, Fits, fit_logistic
from results.errors import InputError

N, DIM, CLASSES = 240, 12, 4
COSTS = (1.0, 1e-4, 0.1, 1e-2)
Array = NDArray[Any]


@pytest.fixture(scope="module")
def data() -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, CLASSES, N)
    # Correlated dimensions of unlike scale, away from the origin.
    spread = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0] * np.logspace(-0.7, 0.7, DIM)
    features = (rng.normal(size=(CLASSES, DIM))[targets] + 1.5 * rng.normal(size=(N, DIM))) @ spread + 2
    return features, targets


def fit(features: Array, targets: Array, costs: Any = COSTS, **changes: Any) -> Fits:
    how = {"dtype": torch.float64, "tolerance": 1e-8, "max_iterations": 5000, **changes}
    return fit_logistic(features, targets, how.pop("classes", CLASSES), costs, **how)


def reference(features: Array, targets: Array, cost: float) -> tuple[Array, Array]:
    model = LogisticRegression(C=cost, tol=1e-10, max_iter=1000, solver="newton-cholesky").fit(features, targets)
    return model.coef_, model.intercept_


def agree(found: tuple[Any, Any], expected: tuple[Array, Array]) -> None:
    (weights, bias), (coefficients, intercept) = found, expected
    assert np.asarray(weights) == pytest.approx(coefficients, abs=1e-4 * np.abs(coefficients).max())
    if len(intercept) > 1:  # only differences between biases matter
        bias, intercept = bias - bias.mean(), intercept - intercept.mean()
    assert np.asarray(bias) == pytest.approx(intercept, abs=1e-4 * (1 + 5 * DIM * np.abs(coefficients).max()))


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"chunk": 37}, {"chunk": 37, "resident_bytes": 0}], ids=str)
def test_every_cost_has_scikit_learns_coefficients(data: tuple[Array, Array], how: dict[str, int]) -> None:
    fits = fit(*data, **how)
    assert fits.converged.all()
    assert fits.gradient.max() <= 1e-8
    for index, cost in enumerate(COSTS):
        agree((fits.weights[index], fits.bias[index]), reference(*data, cost))


@pytest.mark.slow
def test_costs_that_start_between_their_neighbours_end_where_they_end_alone(data: tuple[Array, Array]) -> None:
    costs = 10.0 ** np.linspace(-5, 0, 15)
    together = fit(*data, costs)
    for index in (0, 1, 11, 14):
        alone = fit(*data, costs[index : index + 1])
        assert together.weights[index].numpy() == pytest.approx(alone.weights[0].numpy(), abs=1e-5)


def largest_gradient(features: Array, targets: Array, fits: Fits, index: int) -> float:
    """By autograd."""
    weights, bias = fits.weights[index].clone().requires_grad_(), fits.bias[index].clone().requires_grad_()
    logits = torch.from_numpy(features) @ weights.T + bias
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets))
    (loss + weights.square().sum() / (2 * fits.costs[index] * N)).backward()
    assert weights.grad is not None
    assert bias.grad is not None
    return max(weights.grad.abs().max().item(), bias.grad.abs().max().item())


def test_the_gradient_that_it_states_is_that_of_the_objective(data: tuple[Array, Array]) -> None:
    fits = fit(*data, (0.3,), tolerance=1e-4)
    assert fits.gradient[0] == pytest.approx(largest_gradient(*data, fits, 0), rel=1e-6)


@pytest.mark.parametrize("tolerance", [1e-3, 3e-6])
def test_weights_that_serve_the_next_cost_too_meet_the_tolerance(
    tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.solvers.logistic.SMALL_WORK", 0)
    features, targets = np.random.default_rng(3).normal(size=(N, 300)), np.arange(N) % CLASSES  # separable
    fits = fit(features, targets, 10.0 ** np.linspace(-2, 7, 19), tolerance=tolerance)
    assert fits.converged.all()
    assert torch.equal(fits.weights[-1], fits.weights[-2])
    assert not torch.equal(fits.weights[0], fits.weights[1])
    for index in range(len(fits.costs)):
        found = largest_gradient(features, targets, fits, index)
        assert found <= fits.gradient[index] + 1e-9
        assert found <= tolerance


def test_two_classes_are_scikit_learns_single_logit(data: tuple[Array, Array]) -> None:
    features, targets = data[0], (data[1] > 1).astype(np.int64)
    fits = fit(features, targets, classes=2)
    for index, cost in enumerate(COSTS):
        weights, bias = fits.weights[index], fits.bias[index]
        agree((weights[1:] - weights[:1], bias[1:] - bias[:1]), reference(features, targets, cost))


def test_one_against_the_rest_leaves_out_unknown_labels(data: tuple[Array, Array]) -> None:
    features, targets = data
    labels = (targets[:, None] == np.arange(CLASSES)).astype(np.int8)
    labels[np.random.default_rng(1).random(labels.shape) < 0.1] = -1
    fits = fit(features, labels, loss="one_vs_rest")
    for index, cost in enumerate(COSTS):
        for column in range(CLASSES):
            known = labels[:, column] >= 0
            expected = reference(features[known], labels[known, column], cost)
            agree((fits.weights[index, column][None], fits.bias[index, column][None]), expected)
    plain = fit(features, targets, loss="one_vs_rest")
    agree((plain.weights[0, 2][None], plain.bias[0, 2][None]), reference(features, targets == 2, COSTS[0]))


@pytest.mark.slow
def test_blocks_give_each_fit_rows_of_its_own(data: tuple[Array, Array]) -> None:
    features, targets = data
    blocks = [Block(np.arange(80), (0, 1)), Block(np.arange(80, 160), (1,)), Block(np.arange(120, 240), (2,))]
    fits = fit(features, targets, (1.0, 1.0, 0.1), sample_rows=blocks)
    for index, rows in enumerate((np.arange(80), np.arange(160), np.arange(120, 240))):
        expected = reference(features[rows], targets[rows], fits.costs[index])
        agree((fits.weights[index], fits.bias[index]), expected)


@pytest.mark.parametrize("rows", [None, np.arange(0, 60, 2)], ids=["all", "some"])
def test_more_dimensions_than_rows_and_standardised(rows: Array | None) -> None:
    rng = np.random.default_rng(2)
    features, targets = rng.normal(size=(60, 200)) * np.logspace(-1, 1, 200) + 1, np.arange(60) % 3
    features[:, 7] = 4  # says nothing
    fits = fit(features, targets, (0.01, 1.0), classes=3, standardise=True, sample_rows=rows)
    used = slice(None) if rows is None else rows
    deviation = features[used].std(axis=0)
    deviation[7] = 1
    scaled = (features[used] - features[used].mean(axis=0)) / deviation
    for index, cost in enumerate((0.01, 1.0)):
        coefficients, intercept = reference(scaled, targets[used], cost)
        assert fits.weights[index].numpy() * deviation == pytest.approx(coefficients, abs=1e-5)
        logits = fits.logits(features[used])[:, index].numpy()
        expected = scaled @ coefficients.T + intercept
        assert logits - logits.mean(axis=1, keepdims=True) == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_a_start_saves_steps_and_moves_nothing(data: tuple[Array, Array]) -> None:
    features, targets = data
    for changes in ({}, {"standardise": True}, {"loss": "one_vs_rest"}):
        part = fit(features, targets, sample_rows=np.arange(0, N, 2), **changes)
        cold, warm = fit(features, targets, **changes), fit(features, targets, start=part, **changes)
        assert warm.weights.numpy() == pytest.approx(cold.weights.numpy(), abs=1e-5)
        again = fit(features, targets, start=warm, **changes)
        assert again.iterations.max() <= 1


@pytest.mark.slow
def test_single_precision_finds_the_same_classifier_and_double_can_start_from_it(
    data: tuple[Array, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    features, targets = data
    exact = fit(features, targets)
    single = fit(features.astype(np.float32), targets, dtype=torch.float32, tolerance=1e-5)
    assert single.weights.dtype == torch.float32
    assert single.converged.all()
    assert single.weights.numpy() == pytest.approx(exact.weights.numpy(), abs=0.02)
    polished = fit(features, targets, float32_first=True)
    assert polished.converged.all()
    assert polished.single_passes > polished.passes > 0
    assert polished.weights.numpy() == pytest.approx(exact.weights.numpy(), abs=1e-5)


@pytest.mark.slow
def test_the_starts_of_a_large_grid_save_passes_and_move_nothing(
    data: tuple[Array, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    features, targets = data
    costs = tuple(np.logspace(-4, -0.75, 14))
    plain = fit(features, targets, costs)
    monkeypatch.setattr("benchmarks.solvers.logistic.SMALL_WORK", 0)
    started = fit(features, targets, costs)
    assert started.converged.all()
    assert started.weights.numpy() == pytest.approx(plain.weights.numpy(), abs=2e-5)
    assert started.passes < plain.passes
    for place in (5, 12):
        coefficients, intercept = reference(features, targets, costs[place])
        agree((started.weights[place], started.bias[place]), (coefficients, intercept))


def test_a_fit_that_runs_out_of_steps_says_so(data: tuple[Array, Array]) -> None:
    fits = fit(*data, max_iterations=2)
    assert not fits.converged.any()
    assert (fits.gradient > 1e-8).all()
    assert (fits.iterations == 2).all()


@pytest.mark.slow
def test_ranks_count_the_classes_above_the_true_one_from_a_mapped_file(
    data: tuple[Array, Array], tmp_path: Path
) -> None:
    features, targets = data
    np.save(tmp_path / "rows.npy", features.astype(np.float16))
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    fits = fit(mapped, targets, resident_bytes=0, chunk=50)
    assert fits.select([2, 0]).costs == (COSTS[2], COSTS[0])
    rows = np.arange(3, N, 3)
    ranks = fits.select([2, 0]).ranks(mapped, targets, rows)
    logits = fits.logits(mapped[rows])[:, [2, 0]].numpy()
    own = np.take_along_axis(logits, targets[rows][:, None, None], axis=2)
    assert np.array_equal(ranks.numpy(), (logits > own).sum(axis=2).T)


def test_what_cannot_be_fitted_is_refused(data: tuple[Array, Array]) -> None:
    features, targets = data
    with pytest.raises(ValueError, match="costs must be positive"):
        fit(features, targets, (1.0, 0.0))
    with pytest.raises(ValueError, match="a fit has no rows"):
        fit(features, targets, sample_rows=[Block(np.arange(9), (0, 1))])
    broken = features.copy()
    broken[3, 1] = np.inf
    with pytest.raises(InputError, match="not a finite number"):
        fit(broken, targets)


def test_classes_without_rows_are_left_out_as_in_scikit_learn(data: tuple[Array, Array]) -> None:
    x, y = data[0], 2 * data[1] + 1  # 1, 3, 5 and 7 of nine
    present, absent = np.unique(y), np.array([0, 2, 4, 6, 8])
    found = fit(x, y, classes=9)
    assert found.converged.all()
    assert (found.weights[:, absent] == 0).all()
    for index, cost in enumerate(COSTS):
        agree((found.weights[index, present], found.bias[index, present]), reference(x, y, cost))
    logits = found.logits(x)
    assert float(logits[..., absent].max()) < float(logits[..., present].min()) - 100
    assert np.isfinite(found.losses(x, np.full(N, 4), np.arange(N)).numpy()).all()
    y[:30] = 4
    again = fit(x, y, classes=9, start=found)  # a class may have rows here that had none there
    for index, cost in enumerate(COSTS):
        agree((again.weights[index, np.unique(y)], again.bias[index, np.unique(y)]), reference(x, y, cost))


def test_classes_that_are_certain_everywhere_do_not_keep_the_others_from_converging() -> None:
    """Two rows a class are told apart at once; a class without curvature must not take steps without bounds."""
    rng = np.random.default_rng(0)
    y = np.resize(rng.permutation(390), 800)
    x = (rng.standard_normal((390, 256))[y] + rng.standard_normal((800, 256))).astype(np.float32)
    found = fit_logistic(x, y, 390, [10.0], dtype=torch.float64, tolerance=1e-6)
    assert found.converged.all()
