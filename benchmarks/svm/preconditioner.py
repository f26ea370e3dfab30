"""The leading eigenspace of a Gram matrix, as a preconditioner for I + D K."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.svm.gram import Gram

_MAX_RANK = 128
_IMAGES_PER_DIRECTION = 32


@dataclass(frozen=True)
class Preconditioner:
    """The inverse of I + t K on a subspace of leading eigenvectors, the identity elsewhere; a stack as the Gram matrix.

    In the coordinates beta, whose inner product is K. `basis` Q and `image` Q K are (g, r, n) with Q K Q' = 1 and
    Q K K Q' = diag(`eigenvalues`), ascending, so that the map is self-adjoint however rough the eigenvectors are.
    """

    basis: Tensor
    image: Tensor
    eigenvalues: Tensor

    def __call__(self, residual: Tensor, scale: Tensor) -> Tensor:
        """(I + scale K)^-1 residual for (g, m, n) residual and (g, m) scale."""
        stretched = scale[..., None] * self.eigenvalues[:, None]
        return residual - (stretched / (1 + stretched) * (residual @ self.image.mT)) @ self.basis

    def expected_steps(self, scale: Tensor) -> Tensor:
        """(g, m) conjugate gradient steps to expect: they go with the root of what is left of the condition number."""
        return 6 * (1 + scale * self.eigenvalues[:, :1]).sqrt()

    def restricted(self, rows: Tensor) -> Tensor:
        """(g, r', n) guess of the leading eigenvectors of the Gram matrices of (g, n) rows of this single one."""
        return self.basis[0][-_rank(rows.shape[1]) :, rows].movedim(0, 1)


def preconditioner(gram: Gram, guess: Tensor | None = None) -> Preconditioner:
    """By a randomised range finder (Halko, Martinsson and Tropp 2011), or from (g, r, n) `guess`, and Rayleigh-Ritz."""
    if guess is None:
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(len(gram.shift), _rank(gram.size), gram.size, generator=generator).to(gram.shift.device)
        guess = torch.linalg.qr(gram.product(start).mT)[0].mT.contiguous()
    image = gram.product(guess)
    inner, outer = (image @ guess.mT).double(), (image @ image.mT).double()
    # Directions that K nearly annihilates have no place in the basis: they carry rounding only.
    values, vectors = torch.linalg.eigh((inner + inner.mT) / 2)
    whiten = vectors * torch.where(values > 1e-5 * values[:, -1:], values, torch.inf).rsqrt()[:, None]
    ritz, rotation = torch.linalg.eigh(whiten.mT @ outer @ whiten)
    mix = (whiten @ rotation).mT.float()
    return Preconditioner(mix @ guess, mix @ image, ritz.clamp(min=0).float())


def _rank(images: int) -> int:
    return min(_MAX_RANK, 1 + images // _IMAGES_PER_DIRECTION)
