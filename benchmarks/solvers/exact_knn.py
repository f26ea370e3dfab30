"""Exact k-nearest-neighbour search and weighted votes.

    exact_knn    the k nearest rows of every query; `search` does it block by block of queries
    _Block       the queries of a block: candidates, their float64 similarities, and the proof that no row is nearer
    propose_...  candidates by matrix products in half precision or float32, with a bound on the error of each product
    Tiles        the gallery in the precision of the products, tile by tile
    ScaledRows   features with what each row is divided by, and similarities in float64
    vote_ranks   from neighbours to the rank of each query's true class, for every k from one search

A query whose candidates cannot be proven goes on to float32, and from there to an exhaustive float64 product.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.solvers import Engine
from pretrain.distributed import (
    ONE_CORE,
    Cores,
    Sender,
    cores,
    free_memory,
    full_precision,
    has_fast_bf16,
    row_products,
    sent,
)

Track = Callable[[Sequence[Any], str], Iterable[Any]]  # yields the items and may report how far it is

# Queries and gallery rows of one step
QUERY_BLOCK = 16384  # queries per pass over the gallery: 128 MiB at 2,048 dimensions
GPU_BLOCKS = 4  # of these at most in one pass on a GPU, to which every pass copies the whole gallery
_QUERY_BYTES = 16  # of each number of a query on a GPU: in float64, in half precision, and a part in float32
_CANDIDATE_BYTES = 128  # of each candidate there: numbers, similarities, and the same in the order of the rows
TILE_ROWS = 16384  # of the gallery on a GPU and by faiss
QUERY_ROWS = 512  # of one product on a GPU
CPU_TILE_ROWS = 2048  # of the gallery by torch on a CPU: with CPU_QUERY_ROWS queries the shape of the fastest products
CPU_QUERY_ROWS = 1280
_CACHE_BYTES = 2 << 20  # what one step over rows touches: it stays in the cache, and is worth waking threads for
_PAIR_BYTES = 16 << 20  # of gallery rows in float64 whose pairs are scored together: half of a last-level cache
GPU_PAIR_BYTES = 32 << 20  # of products that are summed together on a GPU: launching takes less than summing
_EXHAUSTIVE_QUERIES = 256
_EXHAUSTIVE_ROWS = 8192
VOTE_CELLS = 1 << 18  # votes held at once, rows times classes: 2 MiB, which stays in the cache
NO_VOTE = np.iinfo(np.int64).max  # rank of a class without a vote, above any depth

# The search
SPARE = 256  # candidates in addition to twice k, so that small k have room for errors too
_SAMPLED = 64  # one gallery row of so many shows what a query's nearest rows are like
_TIE = 2.0**-30  # similarities of a float64 product that round to the same multiple of this are a tie
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32}  # by bytes of an element


def untracked(items: Sequence[Any], description: str) -> Iterable[Any]:
    """The items, without reporting progress."""
    return items


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


def exact_knn(
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
        gallery_norms, query_norms: (N,) and (Q,) L2 norms, finite and positive; computed where they are None.
        track: reports progress over tiles of the gallery, as a progress bar does.

    Raises:
        ValueError: fewer than k rows are left for some query.
    """
    excluded = np.full(len(queries), -1, np.int64) if excluded is None else excluded
    available = len(gallery) - int((excluded >= 0).any())
    if not 1 <= k <= available:
        raise ValueError(f"k={k} with {available} gallery rows")
    gallery_norms = norms(gallery) if gallery_norms is None else gallery_norms
    query_norms = norms(queries) if query_norms is None else query_norms
    largest = float(gallery_norms.max())
    scaled = ScaledRows(gallery, 1 / gallery_norms if normalise else np.full(len(gallery), 1 / largest))
    found = search(scaled, ScaledRows(queries, 1 / query_norms), k, excluded, engine, torch.device(device), track)
    if not normalise:
        found.similarities[:] *= largest * query_norms[:, None]
    return found


def search(
    gallery: ScaledRows,
    queries: ScaledRows,
    k: int,
    excluded: NDArray[np.int64],
    engine: Engine,
    device: torch.device,
    track: Track,
) -> Neighbours:
    """`exact_knn` of rows with their divisors; similarities are those of the divided rows.

    Args:
        excluded: (Q,) as in `exact_knn`, -1 where no row is.
    """
    chosen, dtype = choose_engine(engine, device)
    found = Neighbours(
        np.empty((len(queries), k), np.int64),
        np.empty((len(queries), k)),
        f"{chosen} {str(dtype).removeprefix('torch.')}",
    )
    propose, on = (propose_torch, device) if chosen == "torch" else (propose_faiss, torch.device("cpu"))
    blocks = list(queries.tiles(_block_rows(queries.dim, _kept(gallery, k), on)))
    tile_rows = CPU_TILE_ROWS if chosen == "torch" and device.type == "cpu" else TILE_ROWS
    tiles = Tiles(gallery, dtype, on, tile_rows, again=len(blocks) > 1)
    for start, stop in blocks:
        block = _Block(
            gallery,
            queries.divided(start, stop, torch.float64, on),
            torch.from_numpy(excluded[start:stop]).to(on),
            found.indices[start:stop],
            found.similarities[start:stop],
            f"neighbours of {start:,} to {stop:,} of {len(queries):,}",
            track,
        )
        block.certify(propose, tiles)
        if dtype != torch.float32:
            found.fallbacks["float32"] += len(block.open)
            block.certify(propose, Tiles(gallery, torch.float32, on, tile_rows))
        found.fallbacks["float64"] += len(block.open)
        block.exhaust()
    return found


def _kept(gallery: ScaledRows, k: int) -> int:
    """Candidates that a proposal keeps of each query."""
    return min(len(gallery), 2 * k + SPARE)


def _block_rows(dim: int, kept: int, device: torch.device) -> int:
    """Queries of one pass over the gallery. On a GPU they and their candidates fill a quarter of the free memory."""
    if device.type != "cuda":
        return QUERY_BLOCK
    room = free_memory(device) // 4 // (_QUERY_BYTES * dim + _CANDIDATE_BYTES * kept)
    return min(GPU_BLOCKS * QUERY_BLOCK, max(QUERY_ROWS, room))


@dataclass
class _Block:
    """Queries that pass over the gallery together, until each has its certified neighbours.

    Attributes:
        queries: (Q, D) float64, divided, on the device of the search.
        indices, similarities: (Q, k), where the result goes.
        label: what the progress bar says.
        k: neighbours of each query.
        kept: candidates that a proposal keeps of each query.
        open: (R,) numbers of the queries without certified neighbours so far.
    """

    gallery: ScaledRows
    queries: Tensor
    excluded: Tensor
    indices: NDArray[np.int64]
    similarities: NDArray[np.float64]
    label: str
    track: Track

    def __post_init__(self) -> None:
        self.k = self.indices.shape[1]
        self.kept = _kept(self.gallery, self.k)
        self.device = self.queries.device
        self.open = torch.arange(len(self.queries), device=self.device)

    def certify(self, propose: Callable[..., Proposal], tiles: Tiles) -> None:
        """Settle the open queries whose candidates provably hold their k nearest rows."""
        if not len(self.open):
            return
        queries = self.queries if len(self.open) == len(self.queries) else self.queries[self.open]
        found = propose(tiles, queries, self.kept, track=self.track, label=self.label)
        excluded = self.excluded[self.open, None]
        if (excluded >= 0).any():
            found.values.masked_fill_(found.indices == excluded, -torch.inf)
        kth = _largest(found.values, self.k)[:, 0]
        if self.kept == len(self.gallery):
            floor = limit = torch.full_like(kth, -torch.inf)
        else:
            # Rounding errors of D components cancel: they are mostly below a bound / sqrt(D) on them, times 3.
            drift = 3 / self.gallery.dim**0.5 * found.slack + 2 * found.rounding * kth.abs()
            floor = torch.maximum(kth - found.slack - drift, found.cut)
            # Only candidates have values above the floor, so that no other row is nearer than the limit.
            limit = floor + found.slack + found.rounding * floor.abs()
        candidates = (found.values > floor[:, None]) & (kth > limit)[:, None]
        indices, scores = self._score(self.open, found.indices, candidates)
        certified = scores[:, -1] - queries @ self.gallery.centre.to(self.device).double() > limit
        self._write(self.open[certified], indices[certified], scores[certified])
        self.open = self.open[~certified]

    def exhaust(self) -> None:
        """Settle the rest by a float64 product with the whole gallery."""
        if not len(self.open):
            return
        blocks = self.open.split(_EXHAUSTIVE_QUERIES)
        for rows in self.track(blocks, f"{self.label}, float64"):
            indices = self._nearest_in_float64(rows).sort(dim=1).values
            self._write(rows, *self._score(rows, indices, torch.ones_like(indices, dtype=torch.bool)))
        self.open = self.open[:0]

    def _nearest_in_float64(self, rows: Tensor) -> Tensor:
        """(R, k) gallery rows nearest to the queries in `rows`."""
        on, queries, excluded = self.device, self.queries[rows], self.excluded[rows]
        values = torch.empty((len(rows), 0), dtype=torch.float64, device=on)
        indices = torch.empty((len(rows), 0), dtype=torch.int64, device=on)
        for start, stop in self.gallery.tiles(_EXHAUSTIVE_ROWS):
            products = queries @ self.gallery.divided(start, stop, torch.float64, on).T
            own = ((excluded >= start) & (excluded < stop)).nonzero()[:, 0]
            products[own, excluded[own] - start] = -torch.inf
            # Equal rows may differ in the last bits of a matrix product; a tie must stay a tie.
            values = torch.cat([values, (products / _TIE).round_()], dim=1)
            indices = torch.cat([indices, torch.arange(start, stop, device=on).expand(len(rows), -1)], dim=1)
            # Equal values stand in the order of their rows, and a stable sort keeps it.
            values, order = values.sort(dim=1, descending=True, stable=True)
            values, indices = values[:, : self.k], indices.gather(1, order[:, : self.k])
        return indices

    def _score(self, rows: Tensor, indices: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """Of the candidates among `indices` (R, any), the k that float64 finds nearest to each query of `rows`.

        Args:
            indices: gallery rows, ascending where they are candidates.

        Returns:
            Gallery rows and similarities, both (R, k), nearest first, with -inf behind the candidates.
        """
        positions, starts = _true_positions(candidates)
        counts = starts.diff()
        shape = len(rows), max(self.k, int(counts.max()))
        place = _places(starts, shape[1], torch.zeros_like(counts))
        chosen, out = indices.take(positions).long(), torch.zeros(shape, dtype=torch.int64, device=self.device)
        scores = torch.full(shape, -torch.inf, dtype=torch.float64, device=self.device)
        out.put_(place, chosen)
        of = rows.repeat_interleave(counts, output_size=len(chosen))
        scores.put_(place, self.gallery.similarities(chosen, self.queries, of))
        scores, order = scores.sort(dim=1, descending=True, stable=True)  # ties by smaller row, as they ascend
        return out.gather(1, order[:, : self.k]), scores[:, : self.k]

    def _write(self, rows: Tensor, indices: Tensor, scores: Tensor) -> None:
        """Put the neighbours of the queries `rows` into the result."""
        written = rows.cpu().numpy()
        self.indices[written], self.similarities[written] = indices.cpu().numpy(), scores.cpu().numpy()


# ---- candidates by an approximate product ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Proposal:
    """The best gallery rows of each query by an approximate similarity to the centred rows.

    Attributes:
        values: (Q, k or more) float32; -inf where there is no candidate.
        indices: (Q, k or more) int64 or int32 gallery rows, ascending where there are candidates.
        cut: (Q,) float32: no unlisted row has a larger value.
        slack: (Q,) float32: how far what a value approximates may be from the value before its last rounding.
        rounding: the error of the last rounding, relative to the value.
    """

    values: Tensor
    indices: Tensor
    cut: Tensor
    slack: Tensor
    rounding: float = 0.0


def choose_engine(engine: Engine, device: torch.device) -> tuple[Literal["faiss", "torch"], torch.dtype]:
    """The engine and the precision of its products that are fastest on this hardware.

    Half precision where the hardware multiplies it faster: float16 on CUDA, as it has three bits more than bfloat16
    and unit vectors stay in its range; bfloat16 on CPUs that multiply it themselves, as with AVX512-BF16 or AMX.
    """
    fastest = torch.float32
    if device.type == "cuda" and hasattr(torch.ops.aten.mm, "dtype"):  # sums in float32: of torch 2.8
        fastest = torch.float16
    elif device.type == "cpu" and has_fast_bf16(device):
        fastest = torch.bfloat16
    if engine == "auto":
        plain_cpu = device.type == "cpu" and fastest == torch.float32
        engine = "faiss" if plain_cpu and find_spec("faiss") else "torch"
    return engine, fastest if engine == "torch" else torch.float32


def propose_torch(tiles: Tiles, queries: Tensor, kept: int, *, track: Track = untracked, label: str = "") -> Proposal:
    """Products in the precision of the tiles, with a running top `kept`, or a few more.

    Args:
        queries: (Q, D) float64 or float32, divided.
        track, label: report progress over tiles.
    """
    gallery, dtype, device = tiles.gallery, tiles.dtype, tiles.device
    q, dim = torch.zeros(len(queries), tiles.width, dtype=dtype, device=device), gallery.dim
    parts = ((queries[i:j].to(device, torch.float32, copy=True), q[i:j, :dim]) for i, j in _steps(0, len(q), dim))
    q_sizes = torch.cat([_round(rows, out, torch.empty_like(rows)) for rows, out in parts], dim=1)
    with full_precision():
        best = (_best_on_gpu if device.type == "cuda" else _survivors)(tiles, q, kept, track, label)
    rounding = torch.finfo(torch.float32 if device.type == "cuda" else dtype).eps / 2
    return Proposal(*best.found(), _slack(q_sizes, tiles.sizes, dim), rounding)


def propose_faiss(tiles: Tiles, queries: Tensor, kept: int, *, track: Track = untracked, label: str = "") -> Proposal:
    """`propose_torch` by faiss's exact inner-product search in float32."""
    import faiss

    q = queries.float()
    best = _Best(len(q), kept, torch.device("cpu"))
    for start, stop in track(tiles.ranges, label):
        g = tiles.rows(start, stop)
        values, rows = faiss.knn(q.numpy(), g.numpy(), min(kept, len(g)), metric=faiss.METRIC_INNER_PRODUCT)
        best.merge(slice(0, len(q)), torch.from_numpy(values), torch.from_numpy(rows) + start)
    q_sizes = torch.stack([torch.zeros(len(q)), torch.linalg.vector_norm(q, dim=1)])
    return Proposal(*best.found(), _slack(q_sizes, tiles.sizes, tiles.gallery.dim))


# ---- of all products, those that may be among the largest ------------------------------------------------------------


def _best_on_gpu(tiles: Tiles, q: Tensor, kept: int, track: Track, label: str) -> _Best:
    """The `kept` largest products of each query."""
    best, products = _Best(len(q), kept, q.device), torch.empty(QUERY_ROWS * tiles.longest, device=q.device)
    for start, stop in track(tiles.ranges, label):
        g = tiles.rows(start, stop)
        for first in range(0, len(q), QUERY_ROWS):
            part = q[first : first + QUERY_ROWS]
            tile = products[: len(part) * len(g)].view(len(part), len(g))
            multiply(part, g, tile)
            best.update(first, tile, start)
    return best


class _Best:
    """The running `kept` largest values of each query, in no order, and their gallery rows."""

    def __init__(self, queries: int, kept: int, device: torch.device) -> None:
        self.values = torch.full((queries, kept), -torch.inf, device=device)
        self.indices = torch.full((queries, kept), -1, dtype=torch.int64, device=device)

    def update(self, first: int, products: Tensor, start: int) -> None:
        """Take in products (queries from `first` on, gallery rows from `start` on)."""
        values, columns = products.topk(min(self.values.shape[1], products.shape[1]), dim=1, sorted=False)
        self.merge(slice(first, first + len(products)), values, columns + start)

    def merge(self, part: slice, values: Tensor, rows: Tensor) -> None:
        """Take in candidates (n, any) of the queries in `part`."""
        kept = self.values.shape[1]
        self.values[part], order = torch.cat([self.values[part], values], dim=1).topk(kept, dim=1, sorted=False)
        self.indices[part] = torch.cat([self.indices[part], rows], dim=1).gather(1, order)

    def found(self) -> tuple[Tensor, Tensor, Tensor]:
        """Values, their gallery rows, ascending, and what no unlisted row exceeds."""
        indices, order = self.indices.sort(dim=1)
        values = self.values.gather(1, order)
        return values, indices, values.amin(dim=1)


def _survivors(tiles: Tiles, q: Tensor, kept: int, track: Track, label: str) -> _Survivors:
    """On a CPU: products of each query among which are the `kept` largest.

    Every thread has queries of its own: the work on one tile is too small to be divided operation by operation.
    """
    blocks = -(-len(q) // CPU_QUERY_ROWS)
    with cores(blocks) as threads:
        turns = -(-blocks // threads.count)
        rows = -(-len(q) // (turns * threads.count))  # of one product: the same for all threads and turns
        scratch = torch.empty((threads.count, 2, rows * tiles.longest), dtype=q.dtype)
        best = _Survivors(kept, _first_cut(tiles.gallery, q, kept, scratch, rows, threads))

        def work(g: Tensor, start: int, thread: int) -> None:
            for first in range(thread * rows, len(q), threads.count * rows):
                part = q[first : first + rows]
                products, beats = scratch[thread, :, : len(part) * len(g)].view(2, len(part), len(g))
                multiply(part, g, products)
                best.update(first, products, start, beats)

        for start, stop in track(tiles.ranges, label):
            threads.run(partial(work, tiles.rows(start, stop, threads), start), range(threads.count))
    return best


def _first_cut(gallery: ScaledRows, q: Tensor, kept: int, scratch: Tensor, rows: int, threads: Cores) -> Tensor:
    """(Q, 1) products that rather more than `kept` rows beat, by a sample; -inf where the gallery is too small for one.

    The sample is spread over the gallery, as its rows may be sorted by class. Where so many of a query's nearest rows
    are in it that the cut is too high, this proposal does not certify the query.

    Args:
        scratch: (threads, 2, any) memory for the products.
        rows: queries of one product.
    """
    count = len(gallery) // _SAMPLED
    expected = kept / _SAMPLED
    rank = int(expected + 2 * expected**0.5) + 1
    if rank > count:
        return torch.full((len(q), 1), -torch.inf, dtype=q.dtype)
    best = torch.full((len(q), rank), -torch.inf)

    def work(g: Tensor, thread: int) -> None:
        for first in range(thread * rows, len(q), threads.count * rows):
            part, known = q[first : first + rows], best[first : first + rows]
            products = scratch[thread, 0, : len(part) * len(g)].view(len(part), len(g))
            multiply(part, g, products)
            known.copy_(_largest(torch.cat([known, products], dim=1), rank))

    for sample in torch.arange(count).mul_(_SAMPLED).split(CPU_TILE_ROWS // 4):
        threads.run(partial(work, gallery.sampled(sample).to(q.dtype)), range(threads.count))
    return best[:, :1].to(q.dtype)


class _Survivors:
    """On a CPU: the products of each query that beat its cut, in the order of the gallery's rows.

    Few do, and to compare all products with a cut is a fraction of the time that a selection takes. Where more than
    `kept` of a tile beat it, or twice as many in all, the cut rises to the `kept`-th largest of them.

    Attributes:
        cut: (Q, 1): no product that was left out is larger.
        filled: (Q,) columns of `values` and `indices` that are in use.
    """

    def __init__(self, kept: int, cut: Tensor) -> None:
        self.kept, self.cut = kept, cut
        self.values = torch.full((len(cut), 2 * kept), -torch.inf)
        self.indices = torch.zeros((len(cut), 2 * kept), dtype=torch.int32)
        self.filled = torch.zeros(len(cut), dtype=torch.int64)

    def update(self, first: int, products: Tensor, start: int, beats: Tensor) -> None:
        """Take in products (queries from `first` on, gallery rows from `start` on).

        Args:
            beats: memory for as many numbers of that type, in which 1 comes to stand where a product beats the cut.
        """
        part = slice(first, first + len(products))
        cut, values, indices, filled = self.cut[part], self.values[part], self.indices[part], self.filled[part]
        # A comparison into the type of the products is several times as fast as one into bool.
        positions, starts = _true_positions(torch.gt(products, cut, out=beats))
        if int(starts.diff().max()) > self.kept:
            torch.maximum(cut, _largest(products.float(), self.kept)[:, :1].to(cut.dtype), out=cut)
            positions, starts = _true_positions(torch.gt(products, cut, out=beats))
        counts = starts.diff()
        full = (filled + counts > values.shape[1]).nonzero()[:, 0]
        if len(full):
            self._thin(full + first)
        place = _places(starts, values.shape[1], filled)
        values.view(-1).scatter_(0, place, products.view(-1).index_select(0, positions).float())
        indices.view(-1).scatter_(0, place, positions.remainder_(products.shape[1]).add_(start).int())
        filled += counts

    def _thin(self, queries: Tensor) -> None:
        """Raise the cut of these queries and drop what it leaves out."""
        values = self.values[queries]
        cut = _largest(values, self.kept)[:, :1]
        dropped, order = (values <= cut).sort(dim=1, stable=True)
        self.values[queries] = values.gather(1, order).masked_fill_(dropped, -torch.inf)
        self.indices[queries] = self.indices[queries].gather(1, order)
        self.filled[queries] = (~dropped).sum(dim=1)
        self.cut[queries] = cut.to(self.cut.dtype)

    def found(self) -> tuple[Tensor, Tensor, Tensor]:
        """Values, their gallery rows, ascending, and what no unlisted row exceeds."""
        return self.values, self.indices, self.cut[:, 0].float()


# ---- the gallery in the precision of the products, and what rounding it costs ----------------------------------------


class Tiles:
    """The gallery's centred rows in the precision of the products, tile by tile on the device.

    On a GPU that has room for all of them they stay there, if other queries read them again. Else every tile is
    converted into the same memory, however long the gallery is. Neither changes a result: the rows only propose.

    Args:
        rows: of a tile.
        again: whether the tiles are read more than once.

    Attributes:
        ranges: [start, stop) of each tile.
        longest: rows of the longest tile.
        width: columns of a tile. On a GPU zeros fill rows up to 16 bytes, with which tensor cores run at full speed.
        sizes: the largest (rounding error, norm) of a row so far.
        resident: the tiles that stay on the device; None where they do not.
    """

    def __init__(
        self, gallery: ScaledRows, dtype: torch.dtype, device: torch.device, rows: int, *, again: bool = False
    ) -> None:
        self.gallery, self.dtype, self.device = gallery, dtype, device
        self.ranges = list(gallery.tiles(rows))
        self.longest = min(rows, len(gallery))
        unit = 16 // dtype.itemsize if device.type == "cuda" else 1
        self.width = -(-gallery.dim // unit) * unit
        self.sizes = torch.zeros(2, device=device)
        self.resident: dict[int, Tensor] | None = None
        if again and device.type == "cuda" and len(gallery) * self.width * dtype.itemsize <= free_memory(device) // 2:
            self.resident = {}
        self._tile = torch.zeros(self.longest if self.resident is None else 0, self.width, dtype=dtype, device=device)
        self._scratch = torch.empty(0)  # in which the threads of a CPU convert
        self._send = Sender(device)

    def rows(self, start: int, stop: int, threads: Cores = ONE_CORE) -> Tensor:
        """(stop - start, width) of one of the `ranges`; without `resident`, valid until the next call.

        Args:
            threads: that divide the conversion among them, on a CPU.
        """
        if self.resident is None:
            tile = self._tile[: stop - start]
        elif start in self.resident:
            return self.resident[start]
        else:
            tile = self.resident[start] = self._tile.new_zeros(stop - start, self.width)
        found = self._convert(start, stop, tile[:, : self.gallery.dim], threads)
        self.sizes = torch.maximum(self.sizes, found)
        return tile

    def _convert(self, start: int, stop: int, out: Tensor, threads: Cores) -> Tensor:
        """Write the centred rows into `out` and give the largest (rounding error, norm) of a row."""
        if out.is_cuda:
            rows = self.gallery.centred(start, stop, torch.empty(out.shape, device=out.device), self._send)
            return _round(rows, out, torch.empty_like(rows)).amax(dim=1)
        steps = list(_steps(start, stop, self.gallery.dim))
        shape = threads.count, 2, steps[0][1] - start, self.gallery.dim
        if self._scratch.shape != shape:
            self._scratch = torch.empty(shape)

        def work(thread: int) -> Tensor:
            sizes = torch.zeros(2)
            for first, last in steps[thread :: threads.count]:
                rows, rounded = self._scratch[thread, :, : last - first]
                self.gallery.centred(first, last, rows, self._send)
                sizes = torch.maximum(sizes, _round(rows, out[first - start : last - start], rounded).amax(dim=1))
            return sizes

        return torch.stack(threads.run(work, range(threads.count))).amax(dim=0)


def _steps(start: int, stop: int, dim: int) -> Iterator[tuple[int, int]]:
    """The range of rows in steps that fit the cache."""
    step = max(1, _CACHE_BYTES // (4 * dim))
    for first in range(start, stop, step):
        yield first, min(first + step, stop)


def _round(rows: Tensor, out: Tensor, rounded: Tensor) -> Tensor:
    """Write the float32 rows into `out`, in its precision, and give (2, n) norms: of the errors, and of the rows.

    Args:
        rounded: memory like that of `rows`, in which the errors are left: fresh memory takes as long as the work.
    """
    norm = torch.linalg.vector_norm(rows, dim=1)
    rounded.copy_(out.copy_(rows))
    return torch.stack([torch.linalg.vector_norm(rows.sub_(rounded), dim=1), norm])


def _slack(q_sizes: Tensor, g_sizes: Tensor, dim: int) -> Tensor:
    """How far a product of rounded vectors may be from that of the unrounded ones, by Cauchy-Schwarz.

    A float32 sum of `dim` products errs by at most dim * 2^-23 of the sum of their sizes, in any order, even where the
    hardware truncates (Higham 2002, section 4.2). The per mille covers the measured norms' own error, and 3e-6 the
    rounding of the divided and centred rows to float32.

    Args:
        q_sizes: (2, Q) norms of the queries' rounding errors and of the queries.
        g_sizes: (2,) the same of gallery rows, the largest.
    """
    (q_error, q_norm), (g_error, g_norm) = q_sizes, g_sizes
    sums = dim * 2.0**-23 * (q_norm + q_error) * (g_norm + g_error)
    return 1.001 * (q_error * g_norm + (q_norm + q_error) * g_error + sums) + 3e-6


def multiply(q: Tensor, g: Tensor, out: Tensor) -> None:
    """Write the products of all rows of `q` and `g` into `out`, in the fastest way for their dtype and device."""
    if q.is_cuda and q.dtype != out.dtype:
        torch.mm(q, g.T, out_dtype=out.dtype, out=out)
    elif q.dtype == torch.float32 and not q.is_cuda:
        out.copy_(row_products(q, g))
    else:
        torch.mm(q, g.T, out=out)


# ---- rows and their similarities in float64 --------------------------------------------------------------------------


class ScaledRows:
    """(N, D) float32 features and what each row is divided by.

    Attributes:
        inverse: (N,) float64, 1 / divisor. The divisor is the row's L2 norm, or one number for all rows.
        centre: (D,) float32, roughly the mean of the divided rows. Without it the rows are shorter, so that a bound
            on the error of a product is tighter, and every query's order of rows stays what it was.
    """

    def __init__(self, features: NDArray[np.float32], inverse: NDArray[np.float64]) -> None:
        self.features = features
        self.inverse = inverse
        some = np.unique(np.linspace(0, len(features) - 1, 1024).astype(np.int64))
        self.centre = torch.from_numpy((features[some] * inverse[some, None]).mean(axis=0).astype(np.float32))

    def __len__(self) -> int:
        return len(self.features)

    @property
    def dim(self) -> int:
        return int(self.features.shape[1])

    def tiles(self, rows: int) -> Iterator[tuple[int, int]]:
        """Ranges [start, stop) of at most `rows` that cover all rows."""
        return ((start, min(start + rows, len(self))) for start in range(0, len(self), rows))

    def divided(self, start: int, stop: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Rows [start, stop), divided, as a fresh tensor."""
        inverse = torch.from_numpy(self.inverse[start:stop, None]).to(device, dtype)
        # Converted there: a GPU is sent half the bytes, and the CPU would take longer for it.
        return _read(self.features[start:stop]).to(device).to(dtype, copy=True).mul_(inverse)

    def centred(self, start: int, stop: int, out: Tensor, send: Sender) -> Tensor:
        """Rows [start, stop), divided and less the centre, in `out`, which is float32."""
        raw, inverse = _read(self.features[start:stop]), torch.from_numpy(self.inverse[start:stop, None])
        centre, factors = (sent(each, out.device) for each in (-self.centre, inverse.to(out.dtype)))
        return torch.addcmul(centre, send(raw), factors, out=out)

    def sampled(self, rows: Tensor) -> Tensor:
        """(R, D) float32 of these rows, divided and less the centre."""
        raw = torch.from_numpy(self.features[rows.numpy()])
        return raw.mul_(torch.from_numpy(self.inverse)[rows, None].float()).sub_(self.centre)

    def similarities(self, rows: Tensor, queries: Tensor, of: Tensor) -> Tensor:
        """(P,) float64 similarity of each pair (`rows[i]`, `queries[of[i]]`).

        Every pair is a sum of its own in the same order, unlike in a matrix product, so that equal rows get equal
        similarities.

        Args:
            rows, of: (P,) int64; `of` ascends.
            queries: (Q, D) float64, divided.
        """
        on_gpu, send = queries.is_cuda, Sender(queries.device)
        tile = TILE_ROWS if on_gpu else max(1, _PAIR_BYTES // (8 * self.dim))
        product = _pairs_on_gpu if on_gpu else _sampled_product
        gallery = torch.empty((0 if on_gpu else min(tile, len(self)), self.dim), dtype=torch.float64)
        # Tile by tile a memory map is read once, front to back, and its rows are in the cache when they come again.
        in_tile, order = (rows // tile).to(torch.int32).sort(stable=True)
        present, counts = in_tile.unique_consecutive(return_counts=True)
        sorted_rows, sorted_of, values = rows.take(order), of.take(order), queries.new_empty(len(rows))
        last = 0
        for number, count in zip(present.tolist(), counts.tolist(), strict=True):
            pairs = slice(last, last := last + count)
            start, stop = number * tile, min((number + 1) * tile, len(self))
            raw = _read(self.features[start:stop])
            part = send(raw) if on_gpu else gallery[: stop - start].copy_(raw)
            values[pairs] = product(queries, part, sorted_of[pairs], sorted_rows[pairs] - start)
        inverse = sent(torch.from_numpy(self.inverse), rows.device)
        return torch.empty_like(values).put_(order, values).mul_(inverse[rows])


def _sampled_product(left: Tensor, right: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Elements of `left @ right.T` in these rows, which ascend, and columns, and no others."""
    starts = torch.zeros(len(left) + 1, dtype=torch.int64)
    torch.cumsum(rows.bincount(minlength=len(left)), 0, out=starts[1:])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
        values = left.new_zeros(len(columns))
        where = torch.sparse_csr_tensor(starts, columns, values, (len(left), len(right)), check_invariants=False)
        return torch.sparse.sampled_addmm(where, left, right.T, beta=0).values()


def _pairs_on_gpu(left: Tensor, right: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`_sampled_product` on a GPU, in steps of as many pairs: the order of a GPU's sums depends on the shape alone."""
    dim = left.shape[1]
    width = -(-dim // 4) * 4  # whole vectors of four numbers, so that every row begins with one
    products = left.new_zeros(max(1, GPU_PAIR_BYTES // (8 * width)), width)
    out, n = left.new_empty(len(rows)), len(products)
    for some_rows, some_columns, some in zip(rows.split(n), columns.split(n), out.split(n), strict=True):
        torch.mul(left[some_rows], right[some_columns], out=products[: len(some), :dim])
        some.copy_(products.sum(dim=1)[: len(some)])
    return out


def norms(features: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N,) L2 norms; NaN or inf where a row holds such a value."""
    out = np.empty(len(features))
    for start, stop in _steps(0, *features.shape):
        rows = _read(features[start:stop]).to(torch.float64, copy=True)
        out[start:stop] = rows.square_().sum(dim=1).sqrt_().numpy()
    return out


def _read(rows: NDArray[np.float32]) -> Tensor:
    """The rows in the same memory, which nobody may write to: torch warns where a file is mapped for reading only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(rows)


# ---- rows of unequal length ------------------------------------------------------------------------------------------


def _true_positions(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Flat positions of the non-zero elements of (n, w), and the (n + 1,) first ones of each row among them."""
    size = mask.element_size()
    flat, several = mask.reshape(-1).view(_INTEGERS[size]), 8 // size  # integers are compared faster than floats
    if len(flat) % several:
        positions = _nonzero(flat)
    else:  # several at a time, as few are
        words = flat.view(torch.int64)
        some = _nonzero(words)
        within = _nonzero(words.index_select(0, some).view(flat.dtype))
        shift = several.bit_length() - 1
        positions = (some.index_select(0, within >> shift) << shift) + (within & (several - 1))
    rows = torch.arange(len(mask) + 1, device=mask.device)
    return positions, torch.searchsorted(positions, rows * mask.shape[1])


def _nonzero(values: Tensor) -> Tensor:
    """Where they are; numpy finds the true ones of bools in half the time that torch takes for integers on a CPU."""
    if values.is_cuda:
        return values.nonzero()[:, 0]
    return torch.from_numpy(values.ne(0).numpy().nonzero()[0])


def _largest(values: Tensor, k: int) -> Tensor:
    """(n, k) largest float32 of each row, the smallest of them first."""
    if values.is_cuda:
        return values.topk(k, dim=1).values.flip(1)
    # numpy selects several times as fast as torch on a CPU.
    return torch.from_numpy(np.partition(values.numpy(), -k, axis=1)[:, -k:])


def _places(starts: Tensor, width: int, filled: Tensor) -> Tensor:
    """Flat places in (n, width) of ragged rows that begin at `starts`, behind the `filled` columns of each."""
    counts, total, device = starts.diff(), int(starts[-1]), starts.device
    offsets = torch.arange(len(counts), device=device) * width + filled - starts[:-1]
    return torch.arange(total, device=device) + offsets.repeat_interleave(counts, output_size=total)


# ---- votes -----------------------------------------------------------------------------------------------------------


def vote_ranks(
    similarities: NDArray[np.floating],
    neighbour_classes: NDArray[np.integer],
    targets: NDArray[np.integer],
    *,
    ks: Sequence[int],
    temperature: float,
    num_classes: int,
) -> dict[int, NDArray[np.int64]]:
    """Rank of the true class among the classes by votes, 0 the winner, for every k.

    A neighbour votes with exp(similarity / T) (Wu et al. 2018, section 3.4). Equal votes go to the smaller class
    index. A class without a vote has rank `NO_VOTE`: it is no hit, at whatever depth one counts.

    Args:
        similarities: (Q, K) of each query's neighbours, nearest first, K at least the largest k.
        neighbour_classes: (Q, K) class indices.
        targets: (Q,) true class indices.
    """
    ranks = {k: np.empty(len(targets), np.int64) for k in ks}
    rows = max(1, VOTE_CELLS // num_classes)
    for start in range(0, len(targets), rows):
        part = slice(start, start + rows)
        # Only ratios of weights matter, and exp of an unnormalised similarity overflows: scale by the nearest one's.
        weights = np.exp((similarities[part] - similarities[part, :1]) / temperature, dtype=np.float64)
        # The furthest of many unnormalised neighbours may underflow, yet it voted.
        weights = np.maximum(weights, np.finfo(np.float64).tiny)
        n = len(weights)
        cells = np.arange(n)[:, None] * num_classes + neighbour_classes[part]
        votes = np.zeros(n * num_classes)
        counted = 0
        for k in sorted(ks):
            added = slice(counted, k)
            votes += np.bincount(cells[:, added].ravel(), weights[:, added].ravel(), minlength=n * num_classes)
            ranks[k][part] = _ranks(votes.reshape(n, num_classes), targets[part])
            counted = k
    return ranks


def _ranks(votes: NDArray[np.float64], targets: NDArray[np.integer]) -> NDArray[np.int64]:
    """(Q,) rank of the true class by votes (Q, classes); `NO_VOTE` where it has none."""
    true = np.take_along_axis(votes, targets[:, None], axis=1)
    before = np.arange(votes.shape[1]) < targets[:, None]
    ahead = (votes > true) | ((votes == true) & before)
    return np.where(true[:, 0] > 0, ahead.sum(axis=1), NO_VOTE)
