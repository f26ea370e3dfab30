"""Cholesky factors of the active images, kept from one Newton step to the next.

After a step or two the active set changes by a handful of images. The system of the new set is then that of the old
one, bordered by the images that came in and by the constraint that those that went out stay at zero, and costs a few
triangular solves instead of a factorisation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.svm.gram import Gram

_FEWER = 6  # a border is worth it while it is this many times smaller than what was factorised
_KEPT = 1 << 27  # numbers in the factors that are kept: 512 MB


@dataclass(frozen=True)
class _Factor:
    """Of K + 1/D on some images: lower triangular, single precision, or double where that did not do."""

    images: Tensor
    lower: Tensor


class ActiveFactors:
    """For (g, m) problems on (g, m, n) images.

    Attributes:
        images: (g, m, n) those of each problem's factor, none where it has none.
    """

    def __init__(self, gram: Gram, problems: int) -> None:
        self._gram = gram
        self._found: dict[tuple[int, int], _Factor] = {}
        self._kept = 0
        shift = gram.shift
        self.images = torch.zeros(len(shift), problems, gram.size, dtype=torch.bool, device=shift.device)

    def operations(self, active: Tensor, names: Tensor) -> Tensor:
        """(g, m) float64, about how many a solve takes for the (g, m, n) active images of the problems `names`.

        A factorisation runs at half the speed of a product and its matrix has to be picked out of K, but it serves a
        later step as well.
        """
        count = active.sum(-1).double()
        known = self.images[:, names]
        border, factorised = (active ^ known).sum(-1), known.sum(-1)
        anew = count**3 / 4 + 75 * count**2
        return torch.where(border * _FEWER <= factorised, 2 * count**2 * (border + 20), anew)

    def solve(self, place: int, name: int, images: Tensor, diagonal: Tensor, right: Tensor) -> Tensor:
        """(a,) float64 solution of (K + diag(diagonal)) x = right on `images` (ascending) of one problem."""
        known = self._found.get((place, name))
        if known is not None:
            left, entered = self._border(place, name, images)
            if (len(left) + len(entered)) * _FEWER <= len(known.images):
                return self._bordered(place, known, images, left, entered, diagonal, right)
        matrix = self._gram.block(place, images, images)
        matrix.diagonal().add_(diagonal.to(matrix.dtype))
        lower, failed = torch.linalg.cholesky_ex(matrix)
        if failed:
            lower = torch.linalg.cholesky(matrix.double())
        self._keep(place, name, _Factor(images, lower))
        return torch.cholesky_solve(right.to(lower.dtype)[:, None], lower)[:, 0].double()

    def _border(self, place: int, name: int, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images that left the factorised set, and those that entered."""
        now = torch.zeros_like(self.images[place, name])
        now[images] = True
        before = self.images[place, name]
        return (before & ~now).nonzero()[:, 0], (now & ~before).nonzero()[:, 0]

    def _bordered(
        self, place: int, known: _Factor, images: Tensor, left: Tensor, entered: Tensor, diagonal: Tensor, right: Tensor
    ) -> Tensor:
        """By the Schur complement of the factorised block; the border's own rows are the last."""
        dtype, old, q = known.lower.dtype, known.images, len(left) + len(entered)
        stays, comes = torch.isin(images, entered, invert=True), torch.isin(images, entered)
        remaining = torch.isin(old, left, invert=True)
        columns = torch.zeros(len(old), q + 1, dtype=dtype, device=right.device)
        columns[remaining, 0] = right[stays].to(dtype)
        columns[:, 1 : len(entered) + 1] = self._gram.block(place, old, entered).to(dtype)
        columns[torch.searchsorted(old, left), torch.arange(len(entered) + 1, q + 1, device=right.device)] = 1
        half = torch.linalg.solve_triangular(known.lower, columns, upper=False)
        if q:
            inner = half.double().mT @ half.double()
            border = torch.zeros(q, q, dtype=torch.float64, device=right.device)
            border[: len(entered), : len(entered)] = self._gram.block(place, entered, entered).double()
            border.diagonal()[: len(entered)] += diagonal[comes]
            beyond = torch.cat([right[comes], right.new_zeros(len(left))])
            last = torch.linalg.solve(border - inner[1:, 1:], beyond - inner[1:, 0])
            half = half[:, :1] - half[:, 1:] @ last.to(dtype)[:, None]
        first = torch.linalg.solve_triangular(known.lower.mT, half, upper=True)[:, 0].double()
        solution = torch.empty_like(right)
        solution[stays] = first[remaining]
        if q:
            solution[comes] = last[: len(entered)]
        return solution

    def _keep(self, place: int, name: int, factor: _Factor) -> None:
        before = self._found.pop((place, name), None)
        self._kept -= 0 if before is None else before.lower.numel()
        self.images[place, name] = False
        if self._kept + factor.lower.numel() > _KEPT:
            return
        self._kept += factor.lower.numel()
        self._found[place, name] = factor
        self.images[place, name, factor.images] = True
