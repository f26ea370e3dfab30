"""Label-free numerics on spectra whose answer is known in closed form, and against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.solvers import spectra
from benchmarks.solvers.spectra import (
    alignment,
    dimension_deviations,
    entropy_rank,
    lidar,
    singular_values,
    spectral_decay,
    stable_rank,
    uniformity,
)


def with_spectrum(values: NDArray[np.float64], rows: int, seed: int = 0) -> NDArray[np.float64]:
    """(rows, len(values)) with these singular values."""
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.normal(size=(rows, len(values))))[0]
    right = np.linalg.qr(rng.normal(size=(len(values), len(values))))[0]
    return (left * values) @ right.T


@pytest.mark.parametrize(("rows", "chunk"), [(200, 8192), (200, 7), (200, 64), (5, 2)])
@pytest.mark.parametrize("centred", [False, True])
def test_singular_values_are_numpys_whatever_the_chunk(rows: int, chunk: int, centred: bool) -> None:
    x = np.random.default_rng(1).normal(size=(rows, 12)) + 3
    expected = np.linalg.svd(x - x.mean(0) * centred, compute_uv=False)
    np.testing.assert_allclose(singular_values(x, centred=centred, chunk=chunk), expected, rtol=1e-10, atol=1e-10)


def test_small_singular_values_keep_their_digits() -> None:
    values = 10.0 ** -np.arange(12)  # a Gram matrix would lose all below 1e-8
    np.testing.assert_allclose(singular_values(with_spectrum(values, 50), chunk=20), values, rtol=1e-3)


def test_equal_singular_values_have_full_rank() -> None:
    flat = torch.full((16,), 2.5, dtype=torch.float64)
    assert entropy_rank(flat) == pytest.approx(16)
    assert stable_rank(flat) == pytest.approx(16)


def test_one_direction_has_rank_one() -> None:
    collapsed = np.outer(np.arange(1.0, 9.0), np.ones(5))
    values = singular_values(collapsed)
    assert stable_rank(values) == pytest.approx(1)
    assert entropy_rank(values) == pytest.approx(1, abs=1e-12)
    assert entropy_rank(torch.zeros(3)) == 1


def test_geometric_spectrum_has_the_entropy_of_the_geometric_distribution() -> None:
    ratio, count = 0.5, 60
    p = (1 - ratio) * ratio ** np.arange(count)  # sums to 1 - 2^-60
    entropy = -math.log(1 - ratio) - ratio / (1 - ratio) * math.log(ratio)
    assert entropy_rank(torch.from_numpy(p)) == pytest.approx(math.exp(entropy), rel=1e-10)
    assert stable_rank(torch.from_numpy(p)) == pytest.approx(1 / (1 - ratio**2), rel=1e-10)


def test_rankme_adds_eps_to_every_share_and_a_term_to_the_sum() -> None:
    values = torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64)
    shares = [0.75 + 1e-2, 0.25 + 1e-2, 1e-2]
    assert entropy_rank(values, eps=1e-2) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))
    shares = [3 / 5, 1 / 5]
    assert entropy_rank(values, denominator=1) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.3])
def test_decay_of_a_power_law_is_its_exponent(alpha: float) -> None:
    eigenvalues = torch.arange(1, 101, dtype=torch.float64) ** -alpha
    assert spectral_decay(eigenvalues) == pytest.approx(alpha)
    assert spectral_decay(eigenvalues, first=11, last=50) == pytest.approx(alpha)


def test_decay_is_the_weighted_least_squares_slope_without_numerical_zeros() -> None:
    eigenvalues = np.array([5.0, 1.0, 0.7, 0.1, 1e-15])
    n = np.arange(1, 5)
    slope = np.polyfit(np.log(n), np.log(eigenvalues[:4]), 1, w=np.sqrt(1 / n))[0]  # polyfit squares its weights
    for scale in (1, 1e6, 1e-6):
        assert spectral_decay(torch.from_numpy(scale * eigenvalues)) == pytest.approx(-slope)
    assert spectral_decay(torch.tensor([1.0, 0.0])) is None
    assert spectral_decay(torch.zeros(4)) is None


def test_uniformity_and_alignment_are_those_of_plain_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectra, "PAIRS", 4 * 30)  # in parts, the last of which is shorter
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 30, 4))
    unit, other = x / np.linalg.norm(x, axis=1)[:, None], y / np.linalg.norm(y, axis=1)[:, None]
    pairs = [math.exp(-2 * float(((unit[i] - unit[j]) ** 2).sum())) for i in range(30) for j in range(i)]
    assert uniformity(x) == pytest.approx(math.log(sum(pairs) / len(pairs)))
    assert alignment(x, y) == pytest.approx(np.mean([((unit[i] - other[i]) ** 2).sum() for i in range(30)]))


def test_uniformity_of_a_point_and_of_two_opposite_ones() -> None:
    assert uniformity(np.ones((5, 3))) == pytest.approx(0)
    assert uniformity(np.array([[1.0, 0], [-2, 0]])) == pytest.approx(-8)
    assert alignment(np.array([[1.0, 0]]), np.array([[-3.0, 0]])) == pytest.approx(4)


def test_lidar_of_orthogonal_images_with_isotropic_noise_is_closed_form() -> None:
    # Means a_k on orthogonal axes, views at +-b along every axis: S_b is diagonal, S_w a multiple of the identity.
    width, b = 6, 0.5
    means = np.vstack([np.eye(width), -np.eye(width)]) * np.arange(1, width + 1)
    views = np.stack([means[:, None] + b * sign * axis for axis in np.eye(width) for sign in (1, -1)], axis=2)
    eigenvalues = np.arange(1.0, width + 1) ** 2  # of S_b, up to a factor that the entropy does not see
    p = eigenvalues / eigenvalues.sum()
    expected = math.exp(-(p * np.log(p)).sum())
    assert lidar(views.reshape(12, -1, width), delta=1e-8) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("delta", [1e-8, 1e-4, 10.0])
@pytest.mark.parametrize("width", [5, 40])
def test_lidar_is_that_of_the_matrices(delta: float, width: int) -> None:
    x = np.random.default_rng(3).normal(size=(7, 4, width)) + np.random.default_rng(4).normal(size=(7, 1, width))
    means = x.mean(1)
    s_b = np.cov(means.T)
    s_w = sum(np.outer(v - m, v - m) for views, m in zip(x, means, strict=True) for v in views) / (7 * 3)
    values, vectors = np.linalg.eigh(s_w + delta * np.eye(width))
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    eigenvalues = np.linalg.eigvalsh(root @ s_b @ root)
    eigenvalues = eigenvalues[eigenvalues > 1e-9 * eigenvalues.max()]  # the rank of S_b is 6 at most
    p = eigenvalues / eigenvalues.sum()
    assert lidar(x, delta) == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-5)


def test_deviations_are_numpys_even_far_from_zero() -> None:
    x = np.random.default_rng(5).normal(size=(50, 3)) * [1, 1e-3, 0] + 1e4
    np.testing.assert_allclose(dimension_deviations(x, unit_length=False, chunk=8), x.std(0), rtol=1e-9, atol=1e-12)
    unit = x / np.linalg.norm(x, axis=1)[:, None]
    np.testing.assert_allclose(dimension_deviations(x, unit_length=True), unit.std(0), rtol=1e-6, atol=1e-12)
