"""kNN against the loop that DINO and mmselfsup use and against faiss, at 100,000 x 2,048 and 5,000 queries.

The baselines search for a part of the queries, as their time is in proportion to it.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.solvers.exact_knn import CPU_QUERY_ROWS, CPU_TILE_ROWS, choose_engine, exact_knn, vote_ranks
from pretrain.distributed import row_products

from .measurement import Entries, SpeedEntry, entry, peak_private_bytes, rounds, seconds_of, timed

KS = (10, 20, 100, 200)
TEMPERATURE = 0.07
CHUNK_QUERIES = 50  # a hundredth of them
MOST_ROUNDS, SECONDS = 3, 30.0
SHARE = 10  # of the queries a tenth is what a baseline searches for
GALLERY_SHARE = 4  # of the gallery a quarter is what the bare product is timed with
GROWTH_ROWS, GROWTH_QUERIES, GROWTH_DIM = 200_000, 1_000, 512
IMAGENET_ROWS = 1_281_167
# Queries and rows of one product: the limit is the fastest of these.
SHAPES = ((CPU_QUERY_ROWS, CPU_TILE_ROWS), (512, 16_384))

Top1 = dict[int, NDArray[np.bool_]]


@dataclass(frozen=True)
class KnnProblem:
    """Features as a ResNet pools them: non-negative, about one centre per class."""

    gallery: NDArray[np.float32]
    gallery_classes: NDArray[np.int64]
    queries: NDArray[np.float32]
    query_classes: NDArray[np.int64]
    num_classes: int


Baseline = Callable[[KnnProblem], Callable[[KnnProblem], Top1]]  # prepares the gallery once, then searches


@cache
def knn_problem(rows: int = 100_000, queries: int = 5_000, dim: int = 2_048, num_classes: int = 1_000) -> KnnProblem:
    """The same features every time."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((num_classes, dim), dtype=np.float32)
    classes = rng.integers(0, num_classes, rows + queries)
    features = rng.standard_normal((rows + queries, dim), dtype=np.float32)
    features *= 2
    for start in range(0, len(features), 1000):
        features[start : start + 1000] += centres[classes[start : start + 1000]]
    np.maximum(features, 0, out=features)
    return KnnProblem(features[:rows], classes[:rows], features[rows:], classes[rows:], num_classes)


def entries() -> Entries:
    return {
        "knn": lambda: measure_knn("knn", loop_per_k, "100 query chunks, one-hot votes, once per k (DINO, mmselfsup)"),
        "knn-faiss": lambda: measure_knn(
            "knn-faiss", faiss_flat, "faiss IndexFlatIP over all rows, then the same votes"
        ),
        "knn-growth": measure_growth,
    }


def measure_knn(
    name: str,
    baseline: Baseline,
    described: str,
    *,
    data: KnnProblem | None = None,
    most: int = MOST_ROUNDS,
    share: int = SHARE,
) -> SpeedEntry:
    """Time ours and the baseline alternately, from raw features to hits for every k, and the bare product beside."""
    data = knn_problem() if data is None else data
    part = replace(data, queries=data.queries[::share].copy(), query_classes=data.query_classes[::share].copy())
    _, dtype = choose_engine("auto", torch.device("cpu"))
    seconds: dict[str, list[float]] = {"ours": [], "baseline": [], "limit": []}
    for _ in rounds(most, SECONDS):
        seconds["limit"].append(product_seconds(data, dtype))
        took, found = timed(lambda: ours(data))
        seconds["ours"].append(took)
        prepared, search = timed(lambda: baseline(data))
        took, expected = timed(lambda: search(part))  # noqa: B023 - called at once
        seconds["baseline"].append(prepared + took * len(data.queries) / len(part.queries))
    median = {key: statistics.median(values) for key, values in seconds.items()}
    fastest = min(seconds["limit"])
    same = min(int((found[k][::share] == expected[k]).sum()) for k in KS)
    rows, dim = data.gallery.shape
    precision = str(dtype).removeprefix("torch.")
    float32 = fastest if dtype == torch.float32 else product_seconds(data, torch.float32)
    return entry(
        name,
        ours=median["ours"],
        baseline=median["baseline"],
        described=described,
        limit_s=fastest,
        limit=f"the bare {precision} product",
        note=f"{median['ours'] / median['limit']:.2f} times the bare product, by medians; {rows:,} x {dim:,} gallery, "
        f"{len(data.queries):,} queries, k = {', '.join(map(str, KS))}; the baseline searches for "
        f"{len(part.queries):,} of them, times {len(data.queries) / len(part.queries):g}; the bare float32 product "
        f"takes {float32:.2f} s; "
        f"top-1 hits agree for {same:,} queries or more of {len(part.queries):,}",
    )


def measure_growth(rows: int = GROWTH_ROWS, queries: int = GROWTH_QUERIES, dim: int = GROWTH_DIM) -> SpeedEntry:
    """Time and memory of a search in a memory-mapped gallery, and in twice as many rows."""
    rng = np.random.default_rng(0)
    asked = rng.standard_normal((queries, dim), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "gallery.npy")
        written = np.lib.format.open_memmap(path, "w+", np.float32, (2 * rows, dim))
        for start in range(0, 2 * rows, 10_000):
            part = written[start : start + 10_000]
            part[:] = rng.standard_normal(part.shape, dtype=np.float32)
        del written
        gallery = np.load(path, mmap_mode="r")
        search = {count: partial(exact_knn, gallery[:count], asked, KS[-1]) for count in (rows, 2 * rows)}
        peaks = [peak_private_bytes(search[count]) / 2**20 for count in search]
        seconds: dict[int, list[float]] = {count: [] for count in search}
        for count in (*search, *search):
            seconds[count].append(seconds_of(search[count]))
        classes = np.zeros(0, np.int64)
        _, dtype = choose_engine("auto", torch.device("cpu"))
        limit = product_seconds(KnnProblem(np.array(gallery), classes, asked, classes, 1), dtype)
    one, two = (min(times) for times in seconds.values())
    per_row = (two - one) / rows
    return entry(
        "knn-growth",
        ours=two,
        baseline=2 * one,
        described="twice the time of half the rows",
        limit_s=limit,
        limit=f"the bare {str(dtype).removeprefix('torch.')} product",
        note=f"{queries:,} queries, {dim} dimensions, k = {KS[-1]}, from a memory map: {rows:,} rows {one:.2f} s and "
        f"{peaks[0]:.0f} MiB at most, {2 * rows:,} rows {two:.2f} s and {peaks[1]:.0f} MiB; at this rate "
        f"{IMAGENET_ROWS:,} rows take {two + per_row * (IMAGENET_ROWS - 2 * rows):.1f} s",
    )


def ours(data: KnnProblem) -> Top1:
    """What the benchmark does: one search, then votes for every k."""
    found = exact_knn(data.gallery, data.queries, KS[-1])
    return _votes(data, found.similarities, found.indices)


def loop_per_k(data: KnnProblem) -> Callable[[KnnProblem], Top1]:
    """The usual loop: for each k, a product and a selection per query chunk, and votes through a B x k x C one-hot."""
    gallery = torch.nn.functional.normalize(torch.from_numpy(data.gallery), dim=1).T
    classes = torch.from_numpy(data.gallery_classes)

    def search(part: KnnProblem) -> Top1:
        queries = torch.nn.functional.normalize(torch.from_numpy(part.queries), dim=1)
        targets = torch.from_numpy(part.query_classes)
        hits: Top1 = {}
        for k in KS:
            first, one_hot = [], torch.empty(0)
            for chunk in queries.split(CHUNK_QUERIES):
                similarities, indices = (chunk @ gallery).topk(k, dim=1)
                one_hot.resize_(len(chunk) * k, data.num_classes).zero_().scatter_(1, classes[indices].view(-1, 1), 1)
                weights = (similarities / TEMPERATURE).exp_()
                votes = (one_hot.view(len(chunk), k, -1) * weights[:, :, None]).sum(dim=1)
                first.append(votes.sort(dim=1, descending=True).indices[:, 0])
            hits[k] = (torch.cat(first) == targets).numpy()
        return hits

    return search


def faiss_flat(data: KnnProblem) -> Callable[[KnnProblem], Top1]:
    """One search of faiss's exact index, then our votes."""
    import faiss

    gallery = data.gallery.copy()
    faiss.normalize_L2(gallery)
    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(gallery)

    def search(part: KnnProblem) -> Top1:
        queries = part.queries.copy()
        faiss.normalize_L2(queries)
        return _votes(part, *index.search(queries, KS[-1]))

    return search


def product_seconds(data: KnnProblem, dtype: torch.dtype) -> float:
    """Seconds of the matrix product alone, block by block in the same memory, at the fastest shape.

    A quarter of the gallery is multiplied, times 4.
    """
    rows = data.gallery[: -(-len(data.gallery) // GALLERY_SHARE)]
    gallery, queries = torch.from_numpy(rows).to(dtype), torch.from_numpy(data.queries).to(dtype)
    found = []
    for part_rows, tile_rows in SHAPES:
        out = torch.empty(part_rows * tile_rows, dtype=dtype)

        def products() -> None:
            for tile in gallery.split(tile_rows):  # noqa: B023 - called at once
                for part in queries.split(part_rows):  # noqa: B023
                    if dtype == torch.float32:
                        row_products(part, tile)
                    else:
                        torch.mm(part, tile.T, out=out[: len(part) * len(tile)].view(len(part), len(tile)))  # noqa: B023

        found.append(seconds_of(products))
    return min(found) * len(data.gallery) / len(rows)


def _votes(data: KnnProblem, similarities: NDArray[np.floating], indices: NDArray[np.int64]) -> Top1:
    ranks = vote_ranks(
        similarities,
        data.gallery_classes[indices],
        data.query_classes,
        ks=KS,
        temperature=TEMPERATURE,
        num_classes=data.num_classes,
    )
    return {k: ranks[k] == 0 for k in KS}
