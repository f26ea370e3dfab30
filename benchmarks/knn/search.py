"""Exact k-nearest-neighbour search: quick proposals, scored again in float64 and certified by an error bound."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.knn.engines import Engine, choose, propose_faiss, propose_torch
from benchmarks.knn.rows import Rows, norms
from benchmarks.progress import progress

_QUERY_BLOCK = 16384  # queries per pass over the gallery: 128 MiB at 2,048 dimensions
_EXHAUSTIVE_QUERIES = 256
_EXHAUSTIVE_ROWS = 8192
_SPARE = 256  # candidates beyond twice k, so that small k have room for errors too
_TIE = 2.0**-30  # similarities of a float64 product that round to the same multiple of this are a tie


@dataclass(frozen=True)
class Neighbours:
    """The k nearest gallery rows of each query, nearest first, ties by smaller row.

    Attributes:
        indices: (Q, k) int64 gallery rows.
        similarities: (Q, k) float64.
        engine: what proposed them, as "torch bfloat16".
        fallbacks: number of queries that earlier stages left uncertified, by the stage that took them.
    """

    indices: NDArray[np.int64]
    similarities: NDArray[np.float64]
    engine: str
    fallbacks: dict[str, int] = field(default_factory=lambda: {"float32": 0, "float64": 0})


def search(
    gallery: NDArray[np.float32],
    queries: NDArray[np.float32],
    k: int,
    *,
    normalise: bool = True,
    excluded: NDArray[np.int64] | None = None,
    engine: Engine = "auto",
    device: str = "cpu",
    gallery_norms: NDArray[np.float64] | None = None,
    query_norms: NDArray[np.float64] | None = None,
    show: bool = False,
) -> Neighbours:
    """The k nearest rows by cosine (or by dot product), exactly.

    A quick product proposes candidates, which are scored again with float64 sums. Where its error bound shows that no
    other row can be among the first k, they are the answer; else the query goes on to float32, then to an exhaustive
    float64 product. The result equals a brute-force search in float64 wherever the similarities of neighbours k and
    k + 1 differ by more than 1e-9 (of the largest product of norms); the engine does not change it.

    Args:
        gallery: (N, D), possibly memory-mapped; it is read in tiles.
        queries: (Q, D).
        normalise: cosine; else dot product.
        excluded: (Q,) gallery row that is no neighbour of the query, or -1.
        gallery_norms, query_norms: (N,) and (Q,) L2 norms, finite and positive, where the caller has them.
        show: whether to show progress.

    Raises:
        ValueError: fewer than k rows are left for some query.
    """
    barred = np.full(len(queries), -1, np.int64) if excluded is None else excluded
    available = len(gallery) - int((barred >= 0).any())
    if not 1 <= k <= available:
        raise ValueError(f"k={k} with {available} gallery rows")
    chosen, dtype = choose(engine, torch.device(device))
    gallery_norms = norms(gallery) if gallery_norms is None else gallery_norms
    query_norms = norms(queries) if query_norms is None else query_norms
    largest = gallery_norms.max()
    target = Rows(gallery, 1 / gallery_norms if normalise else np.full(len(gallery), 1 / largest))
    source = Rows(queries, 1 / query_norms)
    out = Neighbours(
        np.empty((len(queries), k), np.int64),
        np.empty((len(queries), k)),
        f"{chosen} {str(dtype).removeprefix('torch.')}",
    )
    for start, stop in source.tiles(_QUERY_BLOCK):
        block = _Block(
            target,
            source.divided(start, stop, torch.float64, torch.device("cpu")),
            torch.from_numpy(barred[start:stop]),
            out.indices[start:stop],
            out.similarities[start:stop],
            torch.device(device),
            f"neighbours of {start:,} to {stop:,} of {len(queries):,}" if show else None,
        )
        block.certify(chosen, dtype)
        if dtype != torch.float32:
            out.fallbacks["float32"] += len(block.open)
            block.certify(chosen, torch.float32)
        out.fallbacks["float64"] += len(block.open)
        block.exhaust()
    if not normalise:
        out.similarities[:] *= largest * query_norms[:, None]
    return out


@dataclass
class _Block:
    """Queries that pass over the gallery together.

    Attributes:
        queries: (Q, D) float64, divided.
        indices, similarities: (Q, k), where the result goes.
        open: queries without certified neighbours so far.
    """

    gallery: Rows
    queries: Tensor
    excluded: Tensor
    indices: NDArray[np.int64]
    similarities: NDArray[np.float64]
    device: torch.device
    label: str | None

    def __post_init__(self) -> None:
        self.k = self.indices.shape[1]
        self.open = torch.arange(len(self.queries))

    def certify(self, engine: str, dtype: torch.dtype) -> None:
        """Settle the open queries whose candidates provably hold their k nearest rows."""
        if not len(self.open):
            return
        kept = min(len(self.gallery), 2 * self.k + _SPARE)
        queries, excluded = self.queries[self.open], self.excluded[self.open]
        if engine == "faiss":
            found = propose_faiss(self.gallery, queries.float(), kept, excluded=excluded, label=self.label)
        else:
            found = propose_torch(
                self.gallery,
                queries.float(),
                kept,
                excluded=excluded,
                dtype=dtype,
                device=self.device,
                label=self.label,
            )
        if kept == len(self.gallery):
            floor, listed = torch.full_like(found.slack, -torch.inf), torch.ones_like(found.slack, dtype=torch.bool)
        else:
            floor = found.values[:, self.k - 1] - found.slack - found.drift
            listed = found.values[:, -1] < floor
        candidates = (found.values >= floor[:, None]) & (found.values > -torch.inf) & listed[:, None]
        indices, scores = self._score(self.open, found.indices, candidates)
        # A row below the floor is no nearer than floor + slack. That the k-th moved by no more than its drift is likely
        # but not certain, hence the test.
        kth = scores[:, self.k - 1] - queries @ self.gallery.centre.double()
        certified = listed & (kth > floor + found.slack)
        self._write(self.open[certified], indices[certified], scores[certified])
        self.open = self.open[~certified]

    def exhaust(self) -> None:
        """Settle the rest by a float64 product with the whole gallery."""
        if not len(self.open):
            return
        blocks = self.open.split(_EXHAUSTIVE_QUERIES)
        for rows in progress(blocks, f"{self.label}, float64", show=self.label is not None):
            indices = self._float64(rows)
            self._write(rows, *self._score(rows, indices, torch.ones_like(indices, dtype=torch.bool)))
        self.open = self.open[:0]

    def _float64(self, rows: Tensor) -> Tensor:
        """(R, k) gallery rows nearest to the queries in `rows`."""
        on = self.device if self.device.type == "cuda" else torch.device("cpu")
        queries, excluded = self.queries[rows].to(on), self.excluded[rows]
        values = torch.empty((len(rows), 0), dtype=torch.float64, device=on)
        indices = torch.empty((len(rows), 0), dtype=torch.int64, device=on)
        for start, stop in self.gallery.tiles(_EXHAUSTIVE_ROWS):
            products = queries @ self.gallery.divided(start, stop, torch.float64, on).T
            own = ((excluded >= start) & (excluded < stop)).nonzero()[:, 0]
            products[own.to(on), (excluded[own] - start).to(on)] = -torch.inf
            # Equal rows may differ in the last bits of a matrix product; a tie must stay a tie.
            values = torch.cat([values, (products / _TIE).round_()], dim=1)
            indices = torch.cat([indices, torch.arange(start, stop, device=on).expand(len(rows), -1)], dim=1)
            # Equal values stand in the order of their rows, and a stable sort keeps it.
            values, order = values.sort(dim=1, descending=True, stable=True)
            values, indices = values[:, : self.k], indices.gather(1, order[:, : self.k])
        return indices.cpu()

    def _score(self, rows: Tensor, indices: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """Sort the candidates among `indices` (R, any) of the queries in `rows` by float64 similarity, descending.

        Returns:
            Gallery rows and similarities, both (R, any), with -inf behind the candidates.
        """
        indices, order = indices.sort(dim=1)
        query, place = candidates.gather(1, order).nonzero(as_tuple=True)
        scores = torch.full(indices.shape, -torch.inf, dtype=torch.float64)
        scores[query, place] = self.gallery.similarities(indices[query, place], self.queries, rows[query])
        scores, order = scores.sort(dim=1, descending=True, stable=True)  # ties by smaller row, as they ascend
        return indices.gather(1, order), scores

    def _write(self, rows: Tensor, indices: Tensor, scores: Tensor) -> None:
        self.indices[rows.numpy()] = indices[:, : self.k].numpy()
        self.similarities[rows.numpy()] = scores[:, : self.k].numpy()
