"""Solvers on a GPU: what stays there, how rows get there, and that the host does not wait where it need not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.dense.neighbours import votes
from benchmarks.solvers import exact_knn as knn
from benchmarks.solvers import logistic
from benchmarks.solvers.attentive_heads import JepaBank
from benchmarks.solvers.exact_knn import exact_knn
from benchmarks.solvers.half_precision import Halves
from benchmarks.solvers.logistic import fit_logistic, logistic_path
from pretrain.distributed import Sender
from tests.gpu.conftest import AnyGpu
from tests.simulated_cuda import ClaimedEvent, simulated_cuda

DRAWS = np.random.default_rng(0)
ROWS, DIM, CLASSES = 600, 24, 5
TARGETS = DRAWS.integers(0, CLASSES, ROWS)
FEATURES = DRAWS.normal(size=(ROWS, DIM)).astype(np.float32) + np.eye(CLASSES, DIM, dtype=np.float32)[TARGETS]
BYTES = FEATURES.nbytes


@pytest.mark.parametrize(("free", "kept", "stay"), [(3 * BYTES, 0, True), (BYTES, 0, False), (BYTES, 2 * BYTES, True)])
def test_rows_of_a_regression_stay_where_torch_keeps_enough_memory(
    free: int, kept: int, stay: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second fit: the rows of the first are gone, but torch has not given their memory back to the driver."""
    made: list[logistic._Data] = []
    make = logistic._Data.__init__
    monkeypatch.setattr(logistic._Data, "__init__", lambda data, *a: made.append(data) or make(data, *a))
    with simulated_cuda():
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: kept)
        fit_logistic(FEATURES, TARGETS, CLASSES, [1.0], device="cuda")
    assert [data.resident is not None for data in made] == [stay]


def search(tile: int, rows: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "TILE_ROWS", tile)
    exact_knn(rows, rows[:50], 5, device="cuda")


def fit(chunk: int, rows: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch) -> None:
    fit_logistic(rows, TARGETS, CLASSES, [1.0], device="cuda", chunk=chunk, resident_bytes=0, max_iterations=3)


def follow_path(chunk: int, rows: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch) -> None:
    path = logistic_path(
        rows, np.arange(ROWS), TARGETS, CLASSES, [0.1], device=torch.device("cuda"), dtype=torch.float64, chunk=chunk,
        max_iterations=3, tolerance=1e-5, history=3, resident_bytes=0,
    )  # fmt: skip
    assert len(list(path)) == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("work", [search, fit, follow_path])
def test_the_host_reads_rows_while_the_gpu_works_on_those_before(
    work: Callable[..., None], dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits no more often where the rows come in ten parts than where they come in two."""
    waits: list[Counter[str]] = []
    for parts in (2, 10):
        with simulated_cuda() as gpu:
            work(ROWS // parts, FEATURES.astype(dtype), monkeypatch)
        waits.append(gpu.waits)
    assert waits[0] == waits[1]


def test_tiles_of_a_search_do_not_wait(gpu: AnyGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "TILE_ROWS", ROWS // 5)
    tiles: list[Any] = []

    def guarded(items: Sequence[Any], _: str) -> Iterator[Any]:
        for place, item in enumerate(items):
            tiles.append(item)
            with gpu.no_waits() if place else nullcontext():  # cuBLAS makes itself ready at its first product
                yield item

    found = exact_knn(FEATURES, FEATURES[:50], 5, device="cuda", track=guarded)
    assert len(tiles) == 5
    assert np.array_equal(found.indices, exact_knn(FEATURES, FEATURES[:50], 5).indices)


@pytest.mark.parametrize("dim", [DIM, DIM - 1])
def test_equal_rows_are_equally_similar_on_a_gpu(dim: int, gpu: AnyGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever they lie, in tiles and in steps of pairs of which the last are not full: ties go to the smaller row."""
    monkeypatch.setattr(knn, "TILE_ROWS", 250)
    monkeypatch.setattr(knn, "GPU_PAIR_BYTES", 8 * DIM * 37)
    unequal = np.ascontiguousarray(FEATURES[: ROWS // 4, :dim])
    rows, k = np.tile(unequal, (4, 1)), 10
    found = exact_knn(rows, unequal, k, device="cuda")
    expected = exact_knn(rows, unequal, k)
    assert np.array_equal(found.indices, expected.indices)
    np.testing.assert_allclose(found.similarities, expected.similarities, rtol=1e-14)
    fours = found.similarities[:, :8].reshape(-1, 2, 4)
    assert (fours == fours[:, :, :1]).all()


def test_candidates_are_scored_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the neighbours of each query come back: their rows, their similarities, and which queries they are of."""
    monkeypatch.setattr(knn, "_sampled_product", None)  # the CPU's
    copied: list[int] = []
    to_numpy = torch.Tensor.numpy
    monkeypatch.setattr(torch.Tensor, "numpy", lambda tensor, *a: copied.append(tensor.numel()) or to_numpy(tensor, *a))
    with simulated_cuda():
        exact_knn(FEATURES, FEATURES[:50], 5, device="cuda")
    assert max(copied) <= ROWS  # norms of the gallery


@pytest.mark.parametrize(("free", "expected"), [(80 << 30, 65536), (16 << 30, 36792), (1 << 20, 512)])
def test_queries_of_a_pass_fit_the_memory(free: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries of 2,048 numbers with 656 candidates each, in a quarter of the free memory."""
    monkeypatch.setattr(knn, "free_memory", lambda device: free)
    assert knn._block_rows(2048, 656, torch.device("cuda")) == expected
    assert knn._block_rows(2048, 656, torch.device("cpu")) == knn.QUERY_BLOCK


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e4, 1e30])
@pytest.mark.parametrize("dim", [1, 8, 37])
def test_products_of_halves_have_22_bits(dim: int, scale: float, gpu: AnyGpu) -> None:
    """Beside float64, relative to the largest product of two numbers; zeros stay zeros."""
    draws = np.random.default_rng(dim)
    rows, others, weights = (draws.normal(size=shape) for shape in ((50, dim), (9, dim), (50, 3)))
    rows[7] = 0.0
    rows *= 10.0 ** draws.uniform(-3, 0, (50, 1))  # some rows are much smaller than others

    def on_gpu(array: NDArray[np.float64], scaled: float) -> Halves:
        return Halves(torch.from_numpy(array * scaled).float().to("cuda"))

    halves, other = on_gpu(rows, scale), on_gpu(others, 1 / scale)
    for found, expected, largest in (
        (halves.products(other) * (halves.inverse * other.inverse), rows @ others.T, np.abs(others).max()),
        (halves.weighted(held := on_gpu(weights, 1.0)) * (halves.inverse / scale * held.inverse), weights.T @ rows,
         np.abs(weights).max()),
    ):  # fmt: skip
        count = 50 if found.shape[0] == 3 else dim
        bound = 2.0**-21 * count**0.5 * np.abs(rows).max() * largest
        assert np.abs(found.cpu().double().numpy() - expected).max() < bound
    assert (halves.products(other)[7] == 0).all()
    nothing = Halves(torch.zeros(4, dim, device="cuda"))
    assert (nothing.products(other) == 0).all()


@pytest.mark.parametrize("rows", [16384, 16384 + 700])
def test_long_sums_of_halves_lose_little_to_truncation(rows: int, gpu: AnyGpu) -> None:
    """One tensor core's sum of so many positive numbers would lose 1.5e-5 of it."""
    values = np.random.default_rng(0).uniform(0.5, 1.0, (rows, 3)).astype(np.float32)
    halves = Halves(torch.from_numpy(values).to("cuda"))
    found = (halves.weighted(halves) * halves.inverse * halves.inverse).cpu().double().numpy()
    expected = values.T.astype(np.float64) @ values
    assert np.abs(found / expected - 1).max() < 2e-6


@pytest.mark.parametrize("how", [{}, {"chunk": 100, "resident_bytes": 0}], ids=str)
@pytest.mark.parametrize("loss", ["multinomial", "one_vs_rest"])
def test_a_regression_in_halves_takes_the_passes_of_float32(
    loss: Any, how: dict[str, int], gpu: AnyGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And then goes on in float64, to the same solution."""
    costs = (1e-3, 1e-2, 1e-1, 1.0)
    fitted = {"dtype": torch.float64, "tolerance": 1e-6, "float32_first": True, "loss": loss}
    expected = fit_logistic(FEATURES, TARGETS, CLASSES, costs, **fitted, **how)
    made: list[int] = []
    make = Halves.__init__
    monkeypatch.setattr(Halves, "__init__", lambda halves, rows: made.append(len(rows)) or make(halves, rows))
    found = fit_logistic(FEATURES, TARGETS, CLASSES, costs, device="cuda", **fitted, **how)
    assert made
    assert found.converged.all()
    assert found.single_passes < 1.25 * expected.single_passes
    assert found.passes <= expected.passes
    np.testing.assert_allclose(found.weights.cpu(), expected.weights, atol=1e-3)


def test_rows_that_are_sent_wait_for_the_copy_before_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a host that is quicker than its GPU would hold all of them in page-locked memory."""
    waited: list[ClaimedEvent] = []
    monkeypatch.setattr(ClaimedEvent, "synchronize", lambda event: waited.append(event))
    with simulated_cuda() as gpu:
        send = Sender("cuda")
        counts = []
        for _ in range(5):
            assert send(torch.ones(3)).is_cuda
            counts.append(len(waited))
        assert not gpu.waits
    assert counts == [0, 0, 1, 2, 3]
    assert len(set(waited)) == 3
    assert Sender("cpu")(rows := torch.ones(3)) is rows


def test_votes_of_patches_wait_only_for_their_results(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, near = DRAWS.integers(0, 4, (50, 9), np.uint8), DRAWS.integers(0, 50, (30, 7))
    expected = votes(blocks, near, (1, 2, 7), "cpu")
    with simulated_cuda() as gpu:
        found = votes(blocks, near, (1, 2, 7), "cuda")
    for k, labels in expected.items():
        assert np.array_equal(labels, found[k])
    assert gpu.waits == Counter({"copied to the CPU": 3, "copied from pageable memory": 3})


def test_self_attention_of_heads_fits_the_fused_kernels_of_a_gpu(gpu: AnyGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    bank = JepaBank(16, 3, 2, attention_heads=4, blocks=1, generator=torch.Generator().manual_seed(0))
    tokens = torch.randn(5, 6, 16)
    expected = bank(tokens)
    attend = torch.nn.functional.scaled_dot_product_attention
    seen: list[int] = []
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda q, *a: seen.append(q.ndim) or attend(q, *a)
    )
    bank.to("cuda")
    found = bank(tokens.to("cuda"))
    found.sum().backward()
    assert seen == [4]
    assert torch.allclose(found.detach().cpu(), expected, rtol=1e-4, atol=1e-6)


def test_products_are_summed_in_float32_whatever_the_program_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error bound of the search counts on it."""
    flags = ("allow_fp16_reduced_precision_reduction", "allow_fp16_accumulation", "allow_tf32")
    cuda, multiply, seen = torch.backends.cuda.matmul, knn.multiply, set()

    def watched(q: torch.Tensor, g: torch.Tensor, out: torch.Tensor) -> None:
        seen.add(tuple(getattr(cuda, name) for name in flags))
        multiply(q, g, out)

    monkeypatch.setattr(knn, "multiply", watched)
    before = [getattr(cuda, name) for name in flags]
    try:
        for name in flags:
            setattr(cuda, name, True)
        with simulated_cuda():
            exact_knn(FEATURES, FEATURES[:50], 5, device="cuda")
        assert [getattr(cuda, name) for name in flags] == [True, True, True]
    finally:
        for name, value in zip(flags, before, strict=True):
            setattr(cuda, name, value)
    assert seen == {(False, False, False)}


@pytest.mark.parametrize("dim", [DIM, DIM - 1])
def test_rows_of_products_are_whole_words_of_tensor_cores(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Euclidean distance of patches adds a column, and 769 columns are no multiple of 16 bytes."""
    multiply, rows = knn.multiply, np.ascontiguousarray(FEATURES[:, :dim])
    widths: set[int] = set()

    def watched(q: torch.Tensor, g: torch.Tensor, out: torch.Tensor) -> None:
        widths.update((q.stride(0) * q.itemsize % 16, g.stride(0) * g.itemsize % 16))
        multiply(q, g, out)

    expected = exact_knn(rows, rows[:50], 5, normalise=False)
    monkeypatch.setattr(knn, "multiply", watched)
    with simulated_cuda():
        found = exact_knn(rows, rows[:50], 5, normalise=False, device="cuda")
    assert widths == {0}
    assert np.array_equal(found.indices, expected.indices)
    assert found.fallbacks["float64"] == 0
