"""Proposals of nearest neighbours by matrix products in float32 or half precision, with a bound on their error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

from benchmarks.contract import InputError
from benchmarks.knn.rows import Rows
from benchmarks.progress import progress

Engine = Literal["auto", "faiss", "torch"]

_TILE_ROWS = 16384
_FIRST_ROWS = 4096  # selected from in full; later tiles only by what beats the running least
_QUERY_ROWS = 512  # of one product, so that what a tile gives stays in the last-level cache


@dataclass(frozen=True)
class Proposal:
    """The `kept` best gallery rows of each query by an approximate similarity to the centred rows.

    Attributes:
        values: (Q, kept) float32, descending; -inf fills rows with fewer candidates.
        indices: (Q, kept) int64 gallery rows.
        slack: (Q,) float32: no value is further than this from what it approximates, those of unlisted rows included.
        drift: (Q,) float32: how far the values mostly are from it at the furthest. Rounding errors of D components
            cancel and stay near their bound / sqrt(D); the rounding of the sum has nothing to cancel with.
    """

    values: Tensor
    indices: Tensor
    slack: Tensor
    drift: Tensor


def choose(engine: Engine, device: torch.device) -> tuple[Literal["faiss", "torch"], torch.dtype]:
    """The engine and the precision of its products that are quickest on this hardware.

    Half precision where the hardware multiplies it faster: float16 on CUDA, as it has three bits more than bfloat16
    and unit vectors stay in its range; bfloat16 on CPUs with AVX512-BF16 or AMX.

    Raises:
        InputError: faiss was asked for and is not installed.
    """
    if engine == "faiss" and find_spec("faiss") is None:
        raise InputError("--engine faiss needs faiss: install faiss-cpu, or use --engine torch")
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    fastest = torch.float32
    if device.type == "cuda":
        fastest = torch.float16
    elif capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"):
        fastest = torch.bfloat16
    if engine == "auto":
        plain_cpu = device.type == "cpu" and fastest == torch.float32
        engine = "faiss" if plain_cpu and find_spec("faiss") else "torch"
    return engine, fastest if engine == "torch" else torch.float32


def propose_torch(
    gallery: Rows,
    queries: Tensor,
    kept: int,
    *,
    excluded: Tensor,
    dtype: torch.dtype,
    device: torch.device,
    label: str | None = None,
) -> Proposal:
    """Products tile by tile in `dtype`, with a running top `kept`.

    Args:
        queries: (Q, D) float32, divided.
        excluded: (Q,) int64 gallery row that is no neighbour of the query, or -1.
        label: of the progress bar; none without.
    """
    q = queries.to(device)
    q_low = q.to(dtype)
    best = _Best(len(q), kept, device)
    sizes = torch.zeros(2, device=device)
    low = torch.empty((min(_TILE_ROWS, len(gallery)), gallery.dim), dtype=dtype, device=device)
    products = torch.empty(_QUERY_ROWS * len(low), dtype=_product_dtype(dtype, device), device=device)
    tiles = list(gallery.tiles(_TILE_ROWS, first=max(_FIRST_ROWS, kept)))
    with _full_precision():
        for start, stop in progress(tiles, label or "", show=label is not None):
            g = low[: stop - start]
            sizes = torch.maximum(sizes, _convert(gallery, start, stop, g))
            for part in torch.arange(len(q)).split(_QUERY_ROWS):
                first, last = int(part[0]), int(part[-1]) + 1
                tile = products[: (last - first) * len(g)].view(last - first, len(g))
                _multiply(q_low[first:last], g, tile)
                own = ((excluded[part] >= start) & (excluded[part] < stop)).nonzero()[:, 0]
                if len(own):
                    tile[own.to(device), (excluded[part][own] - start).to(device)] = -torch.inf
                best.update(first, tile, start)
    values, indices = best.sorted()
    slack = _slack(_norm(q - q_low), _norm(q_low), sizes[0], sizes[1], gallery.dim)
    # Where the sum is rounded too, it is so in proportion to its size; unlisted values that are larger are negative.
    largest = values[:, [0, -1]].abs().nan_to_num(posinf=0).amax(dim=1)
    rounding = torch.finfo(products.dtype).eps / 2 * largest
    drift = 3 / gallery.dim**0.5 * slack + rounding
    return Proposal(values.cpu(), indices.cpu(), (slack + rounding).cpu(), drift.cpu())


def propose_faiss(gallery: Rows, queries: Tensor, kept: int, *, excluded: Tensor, label: str | None = None) -> Proposal:
    """The same by faiss's exact inner-product search in float32."""
    import faiss

    q = queries.numpy()
    best = _Best(len(q), kept, torch.device("cpu"))
    low = torch.empty((min(_TILE_ROWS, len(gallery)), gallery.dim))
    sizes = torch.zeros(2)
    tiles = list(gallery.tiles(_TILE_ROWS))
    for start, stop in progress(tiles, label or "", show=label is not None):
        g = low[: stop - start]
        sizes = torch.maximum(sizes, _convert(gallery, start, stop, g))
        # One more than is kept, as the query's own row may be among them.
        count = min(kept + 1, stop - start)
        found = faiss.knn(q, g.numpy(), count, metric=faiss.METRIC_INNER_PRODUCT)
        values, rows = torch.from_numpy(found[0]), torch.from_numpy(found[1]) + start
        values[rows == excluded[:, None]] = -torch.inf
        best.merge(slice(0, len(q)), values, rows)
    values, indices = best.sorted()
    slack = _slack(torch.zeros(len(q)), _norm(queries), sizes[0], sizes[1], gallery.dim)
    return Proposal(values, indices, slack, 3 / gallery.dim**0.5 * slack)


class _Best:
    """The running `kept` largest values of each query, in no order, and their gallery rows."""

    def __init__(self, queries: int, kept: int, device: torch.device) -> None:
        self.values = torch.full((queries, kept), -torch.inf, device=device)
        self.indices = torch.full((queries, kept), -1, dtype=torch.int64, device=device)
        self.least = torch.full((queries, 1), -torch.inf, device=device)

    def update(self, first: int, products: Tensor, start: int) -> None:
        """Take in products (queries from `first` on, gallery rows from `start` on)."""
        part = slice(first, first + len(products))
        width = products.shape[1]
        if start and products.device.type == "cpu":
            # After the first tile few products beat the running least, and a selection over all of them would take
            # longer than the products themselves. On a GPU it is cheap, and counting survivors would stall it.
            beats = _true_positions(products > self.least[part].to(products.dtype))
            counts = (beats // width).bincount(minlength=len(products))
            most = int(counts.max())
            if most <= width // 4:
                if most:
                    values, columns = _ragged(products, beats, counts, most)
                    self.merge(part, values, columns + start)
                return
        values, columns = products.float().topk(min(self.values.shape[1], width), dim=1, sorted=False)
        self.merge(part, values, columns + start)

    def merge(self, part: slice, values: Tensor, rows: Tensor) -> None:
        """Take in candidates (n, any) of the queries in `part`."""
        kept = self.values.shape[1]
        best, order = torch.cat([self.values[part], values], dim=1).topk(kept, dim=1, sorted=False)
        self.values[part] = best
        self.indices[part] = torch.cat([self.indices[part], rows], dim=1).gather(1, order)
        self.least[part] = best.amin(dim=1, keepdim=True)

    def sorted(self) -> tuple[Tensor, Tensor]:
        """Values, descending, and gallery rows."""
        values, order = self.values.sort(dim=1, descending=True)
        return values, self.indices.gather(1, order)


def _true_positions(mask: Tensor) -> Tensor:
    """Ascending flat positions of each True; eight at a time, as few are."""
    flat = mask.view(-1)
    if len(flat) % 8:
        return flat.nonzero()[:, 0]
    eights = flat.view(torch.int64).nonzero()[:, 0]
    within = flat.view(-1, 8)[eights].view(-1).nonzero()[:, 0]
    return eights[within >> 3] * 8 + (within & 7)


def _ragged(products: Tensor, beats: Tensor, counts: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Values and columns of the products at flat positions `beats`, (Q, most) each, filled with -inf and 0."""
    row = beats // products.shape[1]
    place = row * most + torch.arange(len(beats)) - (counts.cumsum(0) - counts)[row]
    values = torch.full((len(products), most), -torch.inf)
    columns = torch.zeros((len(products), most), dtype=torch.int64)
    values.view(-1)[place] = products.view(-1)[beats].float()
    columns.view(-1)[place] = beats - row * products.shape[1]
    return values, columns


def _convert(gallery: Rows, start: int, stop: int, out: Tensor) -> Tensor:
    """Write the centred rows into `out` and give the largest (error, norm) of a written row."""
    centre = gallery.centre.to(out.device)
    sizes = torch.zeros(2, device=out.device)
    steps = [(start, stop)] if out.is_cuda else gallery.chunks(start, stop)
    for first, last in steps:
        rows = gallery.divided(first, last, torch.float32, out.device).sub_(centre)
        low = out[first - start : last - start].copy_(rows)
        sizes = torch.maximum(sizes, torch.stack([_norm(rows - low).max(), _norm(low).max()]))
    return sizes


def _multiply(q: Tensor, g: Tensor, out: Tensor) -> None:
    if q.is_cuda and q.dtype != out.dtype:
        torch.mm(q, g.T, out_dtype=out.dtype, out=out)
    else:
        torch.mm(q, g.T, out=out)


def _product_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "cuda" else dtype


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x.float(), dim=1)


def _slack(q_error: Tensor, q_norm: Tensor, g_error: Tensor, g_norm: Tensor, dim: int) -> Tensor:
    """How far a product of rounded vectors may be from that of the unrounded ones, by Cauchy-Schwarz.

    A float32 sum of `dim` products errs by at most dim * 2^-23 of the sum of their sizes, in any order, even where the
    hardware truncates (Higham 2002, section 4.2). The per mille covers the measured norms' own error, and 3e-6 the
    rounding of the divided and centred rows to float32.
    """
    conversion = q_error * (g_norm + g_error) + q_norm * g_error
    return 1.001 * (conversion + dim * 2.0**-23 * q_norm * g_norm) + 3e-6


@contextmanager
def _full_precision() -> Iterator[None]:
    """No TF32 or bfloat16 in place of float32, no float16 sums: the bound counts on exact products and float32 sums."""
    cuda, cpu = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = cuda.fp32_precision, cpu.fp32_precision, cuda.allow_fp16_reduced_precision_reduction
    cuda.fp32_precision = cpu.fp32_precision = "ieee"
    cuda.allow_fp16_reduced_precision_reduction = False
    try:
        yield
    finally:
        cuda.fp32_precision, cpu.fp32_precision, cuda.allow_fp16_reduced_precision_reduction = before
