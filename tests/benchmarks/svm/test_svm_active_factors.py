from __future__ import annotations

import pytest
import torch

from benchmarks.svm import active_factors
from benchmarks.svm.active_factors import ActiveFactors
from benchmarks.svm.gram import Gram, gram
from benchmarks.svm.rows import normalised_rows
from scripts.speed.synthetic import synthetic_voc

IMAGES = 200


@pytest.fixture
def kernel() -> Gram:
    return gram(normalised_rows(synthetic_voc(IMAGES, 1, 300)[0].features))


def expected(kernel: Gram, images: torch.Tensor, diagonal: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    plain = kernel.rows().extended()[images]
    return torch.linalg.solve(plain @ plain.T + diagonal.diag(), right)


@pytest.mark.parametrize(
    ("gone", "new"), [((), ()), ((3, 50), ()), ((), (150, 199)), ((0, 7, 99), (100, 120)), (range(60), (150,))]
)
def test_a_changed_set_is_solved_as_if_anew(kernel: Gram, gone: tuple[int, ...], new: tuple[int, ...]) -> None:
    factors = ActiveFactors(kernel, 2)
    generator = torch.Generator().manual_seed(0)
    diagonal, right = (0.1 + torch.rand(2, IMAGES, generator=generator, dtype=torch.float64)).unbind()
    first = torch.arange(100)
    then = torch.tensor(sorted({*range(100), *new} - set(gone)))
    for images in (first, then, first):
        found = factors.solve(0, 1, images, diagonal[images], right[images])
        wanted = expected(kernel, images, diagonal[images], right[images])
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert factors.images[0, 1].nonzero()[:, 0].tolist() == first.tolist()
    assert not factors.images[0, 0].any()


def test_a_small_change_is_cheaper(kernel: Gram) -> None:
    factors = ActiveFactors(kernel, 1)
    active = torch.zeros(1, 1, IMAGES, dtype=torch.bool)
    active[..., :100] = True
    before = factors.operations(active, torch.tensor([0]))
    factors.solve(0, 0, torch.arange(100), torch.ones(100, dtype=torch.float64), torch.ones(100, dtype=torch.float64))
    assert factors.operations(active, torch.tensor([0])) < before
    assert factors.operations(~active, torch.tensor([0])) == before


def test_what_would_not_fit_is_not_kept(kernel: Gram, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(active_factors, "_KEPT", 150**2)
    factors = ActiveFactors(kernel, 2)
    ones = torch.ones(IMAGES, dtype=torch.float64)
    for name, count in ((0, 120), (1, 120), (0, 140)):
        images = torch.arange(count)
        found = factors.solve(0, name, images, ones[:count], ones[:count])
        torch.testing.assert_close(found, expected(kernel, images, ones[:count], ones[:count]), rtol=1e-4, atol=1e-5)
    assert not factors.images[0, 1].any()


def test_decisions_on_other_images(kernel: Gram) -> None:
    rows, columns = torch.arange(0, 90), torch.arange(120, 200, 3)
    vectors = torch.randn(4, 90, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain = kernel.rows().extended()
    wanted = vectors @ plain[rows] @ plain[columns].T
    factored = Gram(kernel.whole, None, None, kernel.shift, kernel.constant)
    for of in (kernel, factored):
        torch.testing.assert_close(of.across(vectors, rows, columns), wanted, atol=1e-4, rtol=0)
