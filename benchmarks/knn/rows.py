"""Feature rows that may lie in a memory map: norms, scaled tiles and pairwise similarities, without a second copy."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_CACHE_BYTES = 1 << 20  # what one step over rows touches: it stays in a core's own cache
_PAIR_BYTES = 8 << 20  # of gallery rows in float64 whose pairs are scored together


class Rows:
    """(N, D) float32 features and what each row is divided by.

    Attributes:
        inverse: (N,) float64, 1 / divisor. The divisor is the row's L2 norm, or one number for all rows.
        centre: (D,) float32, roughly the mean of the divided rows. Without it the rows are shorter, so that a bound
            on the error of a product is tighter, and every query's order of rows stays what it was.
    """

    def __init__(self, features: NDArray[np.float32], inverse: NDArray[np.float64], *, sample: int = 1024) -> None:
        self.features = features
        self.inverse = inverse
        some = np.unique(np.linspace(0, len(features) - 1, sample).astype(np.int64))
        self.centre = torch.from_numpy((features[some] * inverse[some, None]).mean(axis=0).astype(np.float32))

    def __len__(self) -> int:
        return len(self.features)

    @property
    def dim(self) -> int:
        return int(self.features.shape[1])

    def tiles(self, rows: int, *, first: int | None = None) -> Iterator[tuple[int, int]]:
        """Ranges [start, stop) of at most `rows` that cover all rows; from `first` on each as long as all before."""
        start = 0
        while start < len(self):
            stop = min(start + min(rows, start or first or rows), len(self))
            yield start, stop
            start = stop

    def chunks(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The range in steps that fit a core's cache."""
        step = max(1, _CACHE_BYTES // (4 * self.dim))
        for first in range(start, stop, step):
            yield first, min(first + step, stop)

    def divided(self, start: int, stop: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Rows [start, stop), divided, as a fresh tensor."""
        raw = torch.from_numpy(np.array(self.features[start:stop])).to(device, dtype)
        return raw.mul_(torch.from_numpy(self.inverse[start:stop, None]).to(device, dtype))

    def similarities(self, rows: Tensor, queries: Tensor, of: Tensor) -> Tensor:
        """(P,) float64 similarity of each pair (`rows[i]`, `queries[of[i]]`).

        Every pair is a sum of its own in the same order, unlike in a matrix product, so that equal rows get equal
        similarities.

        Args:
            rows, of: (P,) int64.
            queries: (Q, D) float64, divided.
        """
        out = torch.empty(len(rows), dtype=torch.float64)
        tile = max(1, _PAIR_BYTES // (8 * self.dim))
        # Tile by tile a memory map is read once, front to back, and its rows are in the cache when they come again.
        in_tile = rows // tile
        order = (in_tile * len(queries) + of).argsort()
        present, counts = in_tile[order].unique_consecutive(return_counts=True)
        for number, pairs in zip(present.tolist(), order.split(counts.tolist()), strict=True):
            start = number * tile
            gallery = torch.from_numpy(np.array(self.features[start : start + tile], np.float64))
            starts = torch.zeros(len(queries) + 1, dtype=torch.int64)
            torch.cumsum(of[pairs].bincount(minlength=len(queries)), 0, out=starts[1:])
            out[pairs] = _sampled_product(queries, gallery, starts, rows[pairs] - start)
        return out.mul_(torch.from_numpy(self.inverse)[rows])


def _sampled_product(left: Tensor, right: Tensor, starts: Tensor, columns: Tensor) -> Tensor:
    """Elements of `left @ right.T` at the places that the CSR indices `starts` and `columns` name, and no others."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
        values = left.new_zeros(len(columns))
        where = torch.sparse_csr_tensor(starts, columns, values, (len(left), len(right)), check_invariants=False)
        return torch.sparse.sampled_addmm(where, left, right.T, beta=0).values()


def norms(features: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N,) L2 norms; NaN or inf where a row holds such a value."""
    out = np.empty(len(features))
    step = max(1, _CACHE_BYTES // (4 * features.shape[1]))
    for start in range(0, len(features), step):
        chunk = torch.from_numpy(features[start : start + step].astype(np.float64))
        out[start : start + step] = chunk.square_().sum(dim=1).sqrt_().numpy()
    return out
