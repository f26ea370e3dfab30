"""`exact_knn` with a divided gallery: over ranks, each of which searches its own rows; or in parts, one at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.solvers import Engine
from benchmarks.solvers.exact_knn import Neighbours, ScaledRows, Track, exact_knn, norms, search, untracked
from pretrain import distributed

MERGE_CELLS = 1 << 22  # neighbours of all ranks that are merged at once: 64 MiB


def sharded_knn(
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
    track: Track = untracked,
) -> Neighbours:
    """`exact_knn` by all ranks together; every rank calls it with the same arguments and gets the same neighbours.

    A rank reads only its own rows of the gallery, and keeps only their neighbours until they are merged. Similarities
    are sums of float64 in the same order on every rank, so the result is that of one process, bit for bit, wherever
    that is exact (see `exact_knn`). `fallbacks` counts searches of all ranks.

    Args:
        gallery, queries, k, normalise, excluded, engine, device, gallery_norms, query_norms, track: see `exact_knn`.

    Raises:
        ValueError: fewer than k rows are left for some query.
    """
    barred = np.full(len(queries), -1, np.int64) if excluded is None else excluded
    some_barred = bool((barred >= 0).any())
    if not 1 <= k <= len(gallery) - some_barred:
        raise ValueError(f"k={k} with {len(gallery) - some_barred} gallery rows")
    own = distributed.own_slice(len(gallery))
    gallery_norms = norms_of_all(gallery, device) if gallery_norms is None else gallery_norms
    query_norms = norms(queries) if query_norms is None else query_norms
    largest = float(gallery_norms.max())
    inverse = 1 / gallery_norms[own] if normalise else np.full(own.stop - own.start, 1 / largest)
    # A query's own row is left out of the merged list: a rank may have no more than k rows, of which others need all.
    wide = min(k + some_barred, -(-len(gallery) // distributed.world_size()))
    found = _empty(len(queries), engine)
    if own.stop > own.start:
        found = search(
            ScaledRows(gallery[own], inverse),
            ScaledRows(queries, 1 / query_norms),
            min(wide, own.stop - own.start),
            np.full(len(queries), -1, np.int64),
            engine,
            torch.device(device),
            track,
        )
    merged = _merged(found, own.start, wide, k, barred, torch.device(device))
    if not normalise:
        merged.similarities[:] *= largest * query_norms[:, None]
    return merged


def knn_in_parts(
    parts: Iterable[tuple[int, NDArray[np.float32]]],
    queries: NDArray[np.float32],
    k: int,
    *,
    engine: Engine = "auto",
    device: str = "cpu",
) -> Neighbours:
    """`exact_knn` by cosine, bit for bit, where the gallery comes in parts and is never here as a whole.

    Args:
        parts: the number of the first row, and the rows; in any order. All are taken, even without queries.

    Raises:
        ValueError: the parts have fewer than k rows.
    """
    best, query_norms = _empty(len(queries), engine), norms(queries)
    for first, rows in parts:
        if not len(rows) or not len(queries):
            continue
        found = exact_knn(
            rows, queries, min(k, len(rows)), engine=engine, device=device, query_norms=query_norms
        )  # fmt: skip
        values = np.concatenate([best.similarities, found.similarities], axis=1)
        indices = np.concatenate([best.indices, found.indices + first], axis=1)
        order = np.lexsort((indices, -values), axis=1)[:, :k]
        best = replace(
            found,
            indices=np.take_along_axis(indices, order, 1),
            similarities=np.take_along_axis(values, order, 1),
            fallbacks={stage: count + found.fallbacks[stage] for stage, count in best.fallbacks.items()},
        )
    if len(queries) and best.indices.shape[1] < k:
        raise ValueError(f"k={k} with {best.indices.shape[1]} gallery rows")
    return best


def norms_of_all(features: NDArray[np.float32], device: str) -> NDArray[np.float64]:
    """`norms`, of which every rank computes those of its own rows."""
    own = torch.from_numpy(norms(features[distributed.own_slice(len(features))]))
    found: NDArray[np.float64] = distributed.everyones_rows(own.to(device), len(features)).cpu().numpy()
    return found


def _empty(queries: int, engine: Engine) -> Neighbours:
    return Neighbours(np.empty((queries, 0), np.int64), np.empty((queries, 0)), engine)


def _merged(
    found: Neighbours, first: int, wide: int, k: int, barred: NDArray[np.int64], device: torch.device
) -> Neighbours:
    """The k nearest of all ranks' neighbours: by similarity, of equal ones by the smaller row.

    Args:
        found: this rank's, numbered from its row `first` on, at most `wide` of each query.
    """
    out = replace(found, indices=np.empty((len(barred), k), np.int64), similarities=np.empty((len(barred), k)))
    step = max(1, MERGE_CELLS // (wide * distributed.world_size()))
    missing = (0, wide - found.indices.shape[1])
    for start in range(0, len(barred), step):
        part = slice(start, start + step)
        values = torch.nn.functional.pad(torch.from_numpy(found.similarities[part]), missing, value=-torch.inf)
        rows = torch.nn.functional.pad(torch.from_numpy(found.indices[part] + first), missing)
        values, rows = _side_by_side(values.to(device)), _side_by_side(rows.to(device))
        values[rows == torch.from_numpy(barred[part, None])] = -torch.inf
        rows, order = rows.sort(dim=1)
        values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
        out.indices[part] = rows.gather(1, order)[:, :k].numpy()
        out.similarities[part] = values[:, :k].numpy()
    counted = distributed.sum_(torch.tensor(list(found.fallbacks.values()), device=device))
    return replace(out, fallbacks=dict(zip(found.fallbacks, counted.tolist(), strict=True)))


def _side_by_side(own: Tensor) -> Tensor:
    """(n, ranks * wide) on the CPU, from every rank's (n, wide)."""
    return torch.cat(distributed.gather(own).cpu().split(len(own)), dim=1)
