"""Normalised feature rows, split into mean and rest so that single precision carries the signal and not the mean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

NORM_OFFSET = 1e-5  # added to the L2 norm before the division, by every published variant
CHUNK_ROWS = 1024
_DOUBLE_ROWS = 128  # a block in double precision that stays in the cache


@dataclass(frozen=True)
class Rows:
    """n rows x / (|x| + 1e-5) of dimension d, to which the constant 1 of the penalised intercept is appended.

    Attributes:
        centred: (n, d) float32, the rows minus `mean`.
        mean: (d,) float64.
    """

    centred: Tensor
    mean: Tensor

    def __len__(self) -> int:
        return len(self.centred)

    @property
    def dim(self) -> int:
        """Of a row with its constant."""
        return self.centred.shape[1] + 1

    def select(self, rows: Tensor) -> Rows:
        return Rows(self.centred[rows], self.mean)

    def extended(self) -> Tensor:
        """(n, d + 1) float64 rows as they are, the constant last."""
        return functional.pad(self.centred.double() + self.mean, (0, 1), value=1.0)

    def weights(self, beta: Tensor) -> Tensor:
        """(m, d + 1) float64 primal weights, the intercept last, of m expansions `beta` (m, n) over the rows."""
        beta = beta.double()
        total = beta.sum(1, keepdim=True)
        centred = beta.new_zeros(len(beta), self.centred.shape[1])
        for part, block in zip(beta.split(_DOUBLE_ROWS, 1), self._in_double(), strict=True):
            centred.addmm_(part, block)
        return torch.cat([centred + total * self.mean, total], 1)

    def decisions(self, weights: Tensor) -> Tensor:
        """(m, n) float64 decision values of (m, d + 1) primal weights."""
        signal, constant = weights[:, :-1], weights[:, :-1] @ self.mean + weights[:, -1]
        return torch.cat([signal @ block.T for block in self._in_double()], 1) + constant[:, None]

    def _in_double(self) -> Iterator[Tensor]:
        """Blocks of `centred` in double precision, each in the place of the last."""
        place = self.centred.new_empty(_DOUBLE_ROWS, self.centred.shape[1], dtype=torch.float64)
        for block in self.centred.split(_DOUBLE_ROWS):
            yield place[: len(block)].copy_(block)


def normalised_rows(
    features: NDArray[np.float32], mean: Tensor | None = None, device: torch.device | str = "cpu"
) -> Rows:
    """Rows of (n, d) `features` divided by their L2 norm + 1e-5, centred on `mean` or else on their own mean.

    Reads the features in blocks, so that a memory map never becomes resident in double precision.
    """
    n, d = features.shape

    def block(start: int) -> Tensor:
        x = torch.from_numpy(np.array(features[start : start + CHUNK_ROWS], dtype=np.float64)).to(device)
        return x.div_(torch.linalg.vector_norm(x, dim=1, keepdim=True) + NORM_OFFSET)

    starts = range(0, n, CHUNK_ROWS)
    if mean is None:
        mean = torch.zeros(d, dtype=torch.float64, device=device)
        for start in starts:
            mean += block(start).sum(0)
        mean /= n
    centred = torch.empty(n, d, dtype=torch.float32, device=device)
    for start in starts:
        centred[start : start + CHUNK_ROWS] = (block(start) - mean).float()
    return Rows(centred, mean)
