from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from sklearn.svm import LinearSVC

from benchmarks.solvers import squared_hinge
from benchmarks.solvers.gram import CentredRows, Gram, gram, normalised_rows
from benchmarks.solvers.squared_hinge import NotConvergedError, solve, solve_costs
from scripts.speed.svm import synthetic_voc
from tests.reference import svm_newton

COSTS = (0.5**19, 0.5**13, 0.5**8, 0.5**4, 1.0, 10.0, 100.0)
POSITIVES = (150, 400, 900, 2000)  # of 5011: 18 of the 600 rows for the rarest


def problem(
    images: int, dim: int, positives: tuple[int, ...] = POSITIVES, signal: tuple[float, float] = (1.0, 3.0)
) -> tuple[CentredRows, np.ndarray, CentredRows, np.ndarray, np.ndarray, np.ndarray]:
    """Rows, (C, n) signs, test rows, (C, n) test signs, and both as plain normalised float64 arrays."""
    train, test = synthetic_voc(images, 500, dim, positives=positives, signal=signal)
    rows = normalised_rows(train.features)
    plain = [
        x.features / (np.linalg.norm(x.features.astype(np.float64), axis=1, keepdims=True) + 1e-5)
        for x in (train, test)
    ]
    signs = [np.where(x.targets.T == 1, 1.0, -1.0) for x in (train, test)]
    return rows, signs[0], normalised_rows(test.features, rows.mean), signs[1], plain[0], plain[1]


def class_weights(signs: np.ndarray) -> np.ndarray:
    return np.where(signs > 0, 2.0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(("images", "dim"), [(600, 150), (400, 700), (60, 100), (100, 20)])
def test_every_cost_agrees_with_liblinear_at_its_tightest(images: int, dim: int) -> None:
    rows, signs, test_rows, test_signs, plain, plain_test = problem(images, dim)
    y, weights = torch.from_numpy(signs)[None], torch.from_numpy(class_weights(signs))[None]
    for i, beta in solve_costs(gram(rows), y, weights, COSTS, tolerance=1e-5):
        ours = test_rows.decisions(rows.weights(beta[0])).numpy()
        for c, sign in enumerate(signs):
            theirs = LinearSVC(C=COSTS[i], class_weight={1: 2, -1: 1}, tol=1e-8, max_iter=100_000, dual=False)
            expected = theirs.fit(plain, sign).decision_function(plain_test)
            assert np.abs(ours[c] - expected).max() < 1e-3
            aps = [average_precision_score(test_signs[c] > 0, decisions) for decisions in (ours[c], expected)]
            assert aps[0] == pytest.approx(aps[1], abs=2e-4)


def test_liblinears_dual_has_the_same_optimum() -> None:
    rows, signs, test_rows, _, plain, plain_test = problem(300, 400)
    y, weights = torch.from_numpy(signs)[None], torch.from_numpy(class_weights(signs))[None]
    beta = solve(gram(rows), y, weights).beta[0]
    ours = test_rows.decisions(rows.weights(beta)).numpy()
    for c, sign in enumerate(signs):
        theirs = LinearSVC(C=1.0, class_weight={1: 2, -1: 1}, tol=1e-8, max_iter=200_000, dual=True, random_state=0)
        assert np.abs(ours[c] - theirs.fit(plain, sign).decision_function(plain_test)).max() < 1e-3


@pytest.mark.parametrize(("images", "dim", "cost"), [(900, 40, 100.0), (900, 40, 1000.0), (500, 300, 1000.0)])
def test_hard_problems_at_high_cost_keep_their_precision(images: int, dim: int, cost: float) -> None:
    """Inseparable classes: coefficients of thousands that cancel out, where single precision alone loses 1e-2."""
    rows, signs, test_rows, _, plain, plain_test = problem(images, dim, signal=(0.2, 1.0))
    y, weights = torch.from_numpy(signs)[None], torch.from_numpy(class_weights(signs))[None]
    beta = solve(gram(rows), y, cost * weights).beta[0]
    ours = test_rows.decisions(rows.weights(beta)).numpy()
    for c, sign in enumerate(signs):
        w = svm_newton.solve(plain, sign, cost * class_weights(sign))
        assert np.abs(ours[c] - (plain_test @ w[:-1] + w[-1])).max() < 1e-3


@pytest.mark.parametrize(("cost", "left"), [(0.1, 1e-4), (1.0, 1e-4), (30.0, 1e-12)])
def test_weight_zero_is_the_same_as_leaving_an_image_out(cost: float, left: float) -> None:
    """But for what conjugate gradients leave of a coefficient; a factorisation, used at high cost, leaves nothing."""
    rows, signs, test_rows, _, _, _ = problem(400, 300)
    kept = torch.arange(400) % 3 != 0
    whole, y = gram(rows), torch.from_numpy(signs)[None]
    weights = torch.from_numpy(cost * class_weights(signs))[None]
    masked = solve(whole, y, weights * kept).beta[0]
    images = kept.nonzero().T
    without = solve(whole.select(images), y[:, :, kept], weights[:, :, kept]).beta[0]
    assert masked[:, ~kept].abs().max() < left * masked.abs().max()
    decisions = [
        test_rows.decisions(rows.weights(masked)),
        test_rows.decisions(rows.select(images[0]).weights(without)),
    ]
    torch.testing.assert_close(decisions[0], decisions[1], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("size", "dim"), [(40, 200), (150, 200), (300, 200), (40, 8), (150, 8), (300, 8)])
def test_a_stack_gives_what_its_problems_give_alone(size: int, dim: int) -> None:
    """Also where its problems are finished after different numbers of steps."""
    rows, signs, _, _, _, _ = problem(600, dim)
    rng = np.random.default_rng(1)
    images = torch.from_numpy(np.stack([np.sort(rng.choice(600, size, replace=False)) for _ in range(3)]))
    whole, y = gram(rows), torch.from_numpy(signs[2])[images][:, None]
    weights = torch.where(y > 0, 2.0, 1.0).double()
    for factor in (0.01, 1.0, 100.0):
        stacked = solve(whole.select(images), y, factor * weights).beta
        for place in range(3):
            alone = whole.select(images[place : place + 1])
            beta = solve(alone, y[place, None], factor * weights[place, None]).beta
            difference = alone.rows().weights(beta[0] - stacked[place])
            assert difference.norm() < 1e-4 * alone.rows().weights(beta[0]).norm()


def test_rows_kept_as_factor_give_what_the_matrix_gives() -> None:
    rows, signs, _, _, _, _ = problem(500, 60)
    whole = gram(rows)
    factored = Gram(whole.whole, None, None, whole.shift, whole.constant)
    y, weights = torch.from_numpy(signs)[None], torch.from_numpy(class_weights(signs))[None]
    for factor in (0.01, 1.0, 30.0):
        found = [rows.weights(solve(kernel, y, factor * weights).beta[0]) for kernel in (whole, factored)]
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-3)


def test_the_order_of_costs_and_a_warm_start_change_nothing() -> None:
    rows, signs, _, _, _, _ = problem(300, 100)
    kernel, y = gram(rows), torch.from_numpy(signs)[None]
    weights = torch.from_numpy(class_weights(signs))[None]
    path = dict(solve_costs(kernel, y, weights, (10.0, 0.01, 1.0), tolerance=1e-6))
    for i, cost in enumerate((10.0, 0.01, 1.0)):
        cold = rows.weights(solve(kernel, y, cost * weights, tolerance=1e-6).beta[0])
        torch.testing.assert_close(rows.weights(path[i][0]), cold, rtol=1e-3, atol=1e-4)


def test_a_step_that_leaves_the_active_set_as_it_is_needs_no_second_one() -> None:
    rows, signs, test_rows, _, plain, plain_test = problem(50, 100)
    y, weights = torch.from_numpy(signs)[None], torch.from_numpy(0.01 * class_weights(signs))[None]
    solution = solve(gram(rows), y, weights)
    assert solution.newton_steps.eq(1).all()  # every image is inside the margin throughout
    ours = test_rows.decisions(rows.weights(solution.beta[0])).numpy()
    for c, sign in enumerate(signs):
        w = svm_newton.solve(plain, sign, 0.01 * class_weights(sign))
        assert np.abs(ours[c] - (plain_test @ w[:-1] + w[-1])).max() < 1e-5


def test_constant_features_leave_the_intercept_alone() -> None:
    rows = normalised_rows(np.ones((30, 8), np.float32))
    y = torch.ones(1, 1, 30, dtype=torch.float64)
    y[..., 10:] = -1
    w = rows.weights(solve(gram(rows), y, torch.where(y > 0, 2.0, 1.0)).beta[0])[0]
    expected = svm_newton.solve(np.ones((30, 8)) / (8**0.5 + 1e-5), y[0, 0].numpy(), np.where(y[0, 0] > 0, 2.0, 1.0))
    np.testing.assert_allclose(w, expected, atol=1e-6)


@pytest.mark.parametrize("images", [50, 300])
def test_reaching_the_limit_is_an_error(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(squared_hinge, "MAX_NEWTON", 1)
    rows, signs, _, _, _, _ = problem(images, 100)
    y, weights = torch.from_numpy(signs)[None], torch.from_numpy(class_weights(signs))[None]
    with pytest.raises(NotConvergedError, match="did not converge in 1 Newton"):
        solve(gram(rows), y, 10 * weights)


def test_products_agree_with_plain_double_precision() -> None:
    rows, _, _, _, plain, _ = problem(200, 90)
    kernel = plain @ plain.T + 1
    whole = gram(rows)
    vectors = torch.randn(1, 5, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = vectors.numpy()[0] @ kernel
    np.testing.assert_allclose(whole.product(vectors)[0], expected, atol=1e-4)
    np.testing.assert_allclose(whole.exact_product(vectors)[0], expected, atol=1e-6)
    images = torch.tensor([3, 5, 199])
    factored = Gram(whole.whole, None, None, whole.shift, whole.constant)
    for form in (whole, factored):
        np.testing.assert_allclose(form.block(0, images), kernel[np.ix_(images, images)], atol=1e-6)
        few = vectors[0, 0, images]
        np.testing.assert_allclose(form.combination(0, images, few), few.numpy() @ kernel[images], atol=1e-5)
        assert not form.combination(0, images[:0], few[:0]).any()


def test_memory_mapped_features_are_read_in_blocks_and_left_alone(tmp_path: object) -> None:
    features = np.lib.format.open_memmap(f"{tmp_path}/x.npy", mode="w+", dtype=np.float32, shape=(1500, 4))
    features[:] = np.random.default_rng(0).random((1500, 4))
    before = features.copy()
    rows = normalised_rows(np.load(f"{tmp_path}/x.npy", mmap_mode="r"))
    plain = before / (np.linalg.norm(before.astype(np.float64), axis=1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(rows.centred + rows.mean, plain, atol=1e-7)
    np.testing.assert_array_equal(features, before)


@pytest.mark.parametrize(("images", "dim"), [(150, 40), (600, 64), (400, 90)])
def test_random_labels_at_the_highest_published_cost_agree_with_liblinear(images: int, dim: int) -> None:
    """Nothing to learn and fewer dimensions than images: K is singular and its coefficients are large."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((images, dim), dtype=np.float32)
    signs = np.where(rng.random((4, images)) < 0.4, 1.0, -1.0)
    rows = normalised_rows(features)
    y, weights = torch.from_numpy(signs)[None], torch.from_numpy(class_weights(signs))[None]
    plain = features / (np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True) + 1e-5)
    for i, beta in solve_costs(gram(rows), y, weights, (1.0, 100.0, 1000.0)):
        ours = rows.decisions(rows.weights(beta[0])).numpy()
        cost = (1.0, 100.0, 1000.0)[i]
        for c, sign in enumerate(signs):
            theirs = LinearSVC(C=cost, class_weight={1: 2, -1: 1}, tol=1e-10, max_iter=100_000, dual=False)
            assert np.abs(ours[c] - theirs.fit(plain, sign).decision_function(plain)).max() < 1e-3


def test_decisions_on_other_images() -> None:
    whole = gram(normalised_rows(synthetic_voc(200, 1, 300)[0].features))
    rows, columns = torch.arange(0, 90), torch.arange(120, 200, 3)
    vectors = torch.randn(4, 90, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain = whole.rows().extended()
    expected = vectors @ plain[rows] @ plain[columns].T
    factored = Gram(whole.whole, None, None, whole.shift, whole.constant)
    for kernel in (whole, factored):
        torch.testing.assert_close(kernel.across(vectors, rows, columns), expected, atol=1e-4, rtol=0)
