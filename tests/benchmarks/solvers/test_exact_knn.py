"""The search is exact, the same from every engine, and certified."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.solvers import exact_knn as solver
from benchmarks.solvers.exact_knn import (
    Proposal,
    ScaledRows,
    Tiles,
    choose_engine,
    exact_knn,
    norms,
    propose_faiss,
    propose_torch,
)
from pretrain.distributed import cores
from tests.reference.knn_plain import neighbours, neighbours_by_matrix
from tests.simulated_cuda import simulated_cuda

CPU = torch.device("cpu")
NATURAL_GAP = 1e-9


def gaussian(rows, dim, seed):
    return np.random.default_rng(seed).standard_normal((rows, dim), dtype=np.float32)


def pooled(rows, dim, seed):
    """Non-negative rows about class centres, as a ResNet's pooled features are."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((10, dim))
    return np.maximum(centres[rng.integers(0, 10, rows)] + 2 * rng.standard_normal((rows, dim)), 0).astype(np.float32)


@pytest.fixture(params=["faiss", "torch bfloat16", "torch float32"])
def engine(request, monkeypatch):
    """Every engine and precision, whatever this machine would choose."""
    name, _, dtype = request.param.partition(" ")
    if dtype:
        monkeypatch.setattr(solver, "choose_engine", lambda *_: ("torch", getattr(torch, dtype)))
    return name


@pytest.mark.parametrize("k", [1, 3, 59, 60])
@pytest.mark.parametrize("normalise", [True, False])
def test_equals_the_plain_loop(engine, k, normalise):
    gallery, queries = gaussian(60, 24, 0), gaussian(9, 24, 1)
    found = exact_knn(gallery, queries, k, engine=engine, normalise=normalise)
    for i, query in enumerate(queries):
        rows, similarities, gap = neighbours(gallery, query, k, normalise=normalise)
        assert gap > NATURAL_GAP
        assert found.indices[i].tolist() == rows
        np.testing.assert_allclose(found.similarities[i], similarities, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("make", [gaussian, pooled])
@pytest.mark.parametrize("k", [1, 20, 200])
def test_equals_float64_over_many_tiles(engine, make, k, monkeypatch):
    for name, value in (("TILE_ROWS", 1100), ("CPU_TILE_ROWS", 1100), ("CPU_QUERY_ROWS", 16), ("QUERY_BLOCK", 50)):
        monkeypatch.setattr(solver, name, value)
    gallery, queries = make(6007, 256, 2), make(70, 256, 3)
    found = exact_knn(gallery, queries, k, engine=engine)
    rows, gap = neighbours_by_matrix(gallery, queries, k)
    clear = gap > NATURAL_GAP
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(np.sort(found.indices, 1)[clear], np.sort(rows, 1)[clear])
    assert found.fallbacks["float64"] == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("queries", [15, 97])  # less than a thread's share of them; several turns, and a short one
def test_threads_find_what_one_does(dtype, queries, monkeypatch):
    for name, value in (("CPU_TILE_ROWS", 1100), ("CPU_QUERY_ROWS", 16), ("_CACHE_BYTES", 64 << 10)):
        monkeypatch.setattr(solver, name, value)
    monkeypatch.setattr(solver, "choose_engine", lambda *_: ("torch", dtype))
    gallery, asked = pooled(6007, 128, 2), pooled(queries, 128, 3)
    counts = []

    @contextmanager
    def counted(most):
        with cores(most) as threads:
            counts.append(threads.count)
            yield threads

    monkeypatch.setattr(solver, "cores", counted)
    before, found = torch.get_num_threads(), {}
    try:
        for count in (1, 2, 3):
            counts.clear()
            torch.set_num_threads(count)
            with torch.inference_mode(count == 3):
                found[count] = exact_knn(gallery, asked, 20)
            assert counts == [min(count, -(-queries // 16))]
    finally:
        torch.set_num_threads(before)
    for count in (2, 3):
        np.testing.assert_array_equal(found[count].indices, found[1].indices)
        np.testing.assert_array_equal(found[count].similarities, found[1].similarities)


def test_engines_agree_bit_for_bit(monkeypatch):
    gallery, queries = pooled(3000, 128, 4), pooled(64, 128, 5)
    results = [exact_knn(gallery, queries, 50, engine="faiss")]
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        monkeypatch.setattr(solver, "choose_engine", lambda *_, d=dtype: ("torch", d))
        results.append(exact_knn(gallery, queries, 50))
    for other in results[1:]:
        np.testing.assert_array_equal(other.indices, results[0].indices)
        np.testing.assert_array_equal(other.similarities, results[0].similarities)


@pytest.mark.parametrize("copies", [2, 40, 900])
def test_ties_go_to_the_smaller_row(engine, copies, monkeypatch):
    """Equal rows, strewn over the tiles: more of them than are kept as candidates must still come in order."""
    monkeypatch.setattr(solver, "TILE_ROWS", 512)
    monkeypatch.setattr(solver, "CPU_TILE_ROWS", 512)
    rng = np.random.default_rng(6)
    distinct = gaussian(3, 32, 6)
    queries = gaussian(8, 32, 7)
    which = rng.permutation(np.repeat(np.arange(3), copies))
    found = exact_knn(distinct[which], queries, min(200, 2 * copies), engine=engine)
    for i, query in enumerate(queries):
        nearest_first = neighbours(distinct, query, 3)[0]
        expected = np.concatenate([np.flatnonzero(which == d) for d in nearest_first])[: found.indices.shape[1]]
        np.testing.assert_array_equal(found.indices[i], expected)


def test_equal_rows_tie_in_the_exhaustive_search():
    """A float64 product of this shape gives equal rows last bits that differ with their place."""
    found = exact_knn(np.repeat(gaussian(1, 333, 23), 1203, axis=0), gaussian(256, 333, 24), 300)
    assert found.fallbacks["float64"] == 256
    np.testing.assert_array_equal(found.indices, np.broadcast_to(np.arange(300), (256, 300)))


def rows_at(cosines, dim, seed):
    """A query and unit rows with these cosines to it."""
    rng = np.random.default_rng(seed)
    query = rng.standard_normal(dim)
    query /= np.linalg.norm(query)
    across = rng.standard_normal((len(cosines), dim))
    across -= (across @ query)[:, None] * query
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    rows = cosines[:, None] * query + np.sqrt(1 - cosines[:, None] ** 2) * across
    return rows.astype(np.float32), query.astype(np.float32)[None]


@pytest.mark.parametrize(
    ("gap", "fallbacks"),
    [
        (3e-3, {"float32": 0, "float64": 0}),  # beyond bfloat16's error
        (4e-6, {"float32": 1, "float64": 0}),  # hundreds of rows within it, few within float32's
    ],
)
def test_close_neighbours_fall_back_to_float32(engine, gap, fallbacks):
    cosines = np.random.default_rng(8).permutation(0.6 - gap * np.arange(500 if gap > 1e-3 else 2000))
    gallery, query = rows_at(cosines, 512, 8)
    rows, (natural,) = neighbours_by_matrix(gallery, query, 100)
    assert natural > NATURAL_GAP
    found = exact_knn(gallery, query, 100, engine=engine)
    assert set(found.indices[0]) == set(rows[0])
    assert found.fallbacks == (fallbacks if "bfloat16" in found.engine else {"float32": 0, "float64": 0})


def test_a_cliff_of_a_millionth_falls_back_to_float64(engine):
    """A hundred rows lie 3e-6 nearer than 1,900 equally near ones: no float32 bound can tell them apart."""
    near = np.random.default_rng(9).permutation(2000) < 100
    gallery, query = rows_at(np.where(near, 0.6, 0.6 - 3e-6), 2048, 9)
    rows, (natural,) = neighbours_by_matrix(gallery, query, 100)
    assert natural > NATURAL_GAP
    found = exact_knn(gallery, query, 100, engine=engine)
    assert set(found.indices[0]) == set(rows[0]) == set(np.flatnonzero(near))
    assert found.fallbacks["float64"] == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_sample_full_of_neighbours_is_noticed(dtype, monkeypatch):
    """All near rows are where the first cut samples: it is far too high, and the proposal must not be trusted."""
    monkeypatch.setattr(solver, "choose_engine", lambda *_: ("torch", dtype))
    near = (np.arange(9600) % solver._SAMPLED == 0) & (np.arange(9600) < 6400)
    cosines = np.where(near, 0.9 - 1e-4 * np.arange(9600), 0.3 - 1e-5 * np.arange(9600))
    gallery, query = rows_at(cosines, 256, 25)
    rows, (natural,) = neighbours_by_matrix(gallery, query, 60)
    assert natural > NATURAL_GAP
    assert len(set(rows[0]) & set(np.flatnonzero(near))) == 60
    found = exact_knn(gallery, np.concatenate([query, gaussian(1, 256, 26)]), 60)
    assert set(found.indices[0]) == set(rows[0])
    assert found.fallbacks["float64"] >= 1


def test_rows_that_crowd_behind_a_sparse_sample_are_found(engine):
    """The nearest rows avoid the sample, so that all of them beat the first cut; and they come last."""
    near = (np.arange(9600) % solver._SAMPLED != 0) & (np.arange(9600) > 3000)
    gallery, query = rows_at(np.where(near, 0.1 + 5e-5 * np.arange(9600), 0), 256, 27)
    rows, (natural,) = neighbours_by_matrix(gallery, query, 60)
    assert natural > NATURAL_GAP
    assert set(exact_knn(gallery, query, 60, engine=engine).indices[0]) == set(rows[0])


def test_fallbacks_count_queries(monkeypatch):
    monkeypatch.setattr(solver, "choose_engine", lambda *_: ("torch", torch.bfloat16))
    gallery, query = rows_at(np.where(np.arange(2000) < 1, 0.6, 0.6 - 3e-6), 2048, 10)
    easy = gaussian(5, 2048, 10)
    found = exact_knn(np.concatenate([gallery, 3 * easy]), np.concatenate([easy, query, easy]), 1)
    np.testing.assert_array_equal(found.indices[:, 0], [*range(2000, 2005), 0, *range(2000, 2005)])
    assert found.fallbacks == {"float32": 1, "float64": 1}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("make", [gaussian, pooled])
def test_slack_bounds_the_error_of_every_product(dtype, make):
    gallery, queries = make(700, 300, 11), make(40, 300, 12)
    rows = ScaledRows(gallery, 1 / norms(gallery))
    q = torch.from_numpy((queries / norms(queries)[:, None]).astype(np.float32))
    found = propose_torch(Tiles(rows, dtype, CPU, 512), q, 700)
    check_slack(found, rows, q)


def test_products_are_full_float32_whatever_the_user_set(monkeypatch):
    used = []
    multiply = solver.multiply
    precision = torch.backends.mkldnn.matmul
    monkeypatch.setattr(solver, "multiply", lambda *a: (used.append(precision.fp32_precision), multiply(*a)))
    before, precision.fp32_precision = precision.fp32_precision, "bf16"
    try:
        exact_knn(gaussian(20, 4, 0), gaussian(2, 4, 1), 3, engine="torch")
        assert used == ["ieee"]
        assert precision.fp32_precision == "bf16"
    finally:
        precision.fp32_precision = before


@pytest.mark.parametrize("unlisted", [False, True])
def test_errors_as_large_as_the_slack_are_noticed(unlisted, monkeypatch):
    """The worst a proposal may do: push the k-th neighbour below its cut, or down while it pushes all others up."""
    slack = 0.01

    def adversary(tiles, queries, kept, **others):
        honest = propose_torch(Tiles(tiles.gallery, torch.float32, CPU, 2048), queries, kept, **others)
        if tiles.dtype == torch.float32:
            return honest
        tenth = honest.indices == 9
        values = honest.values + torch.where(tenth, -0.99 * slack, 0 if unlisted else 0.99 * slack)
        cut = honest.cut
        if unlisted:  # with what is no nearer by its value
            cut = values[tenth]
            values[values <= cut[:, None]] = -torch.inf
        return Proposal(values, honest.indices, cut, torch.full_like(honest.slack, slack))

    monkeypatch.setattr(solver, "choose_engine", lambda *_: ("torch", torch.bfloat16))
    monkeypatch.setattr(solver, "propose_torch", adversary)
    gallery, query = rows_at(np.where(np.arange(3000) < 400, 0.6 - 1e-4 * np.arange(3000), 0), 256, 22)
    found = exact_knn(gallery, query, 10)
    assert found.indices[0].tolist() == list(range(10))
    assert found.fallbacks == {"float32": 1, "float64": 0}


def test_slack_bounds_faiss():
    gallery, queries = pooled(700, 300, 11), pooled(40, 300, 12)
    rows = ScaledRows(gallery, 1 / norms(gallery))
    q = torch.from_numpy((queries / norms(queries)[:, None]).astype(np.float32))
    check_slack(propose_faiss(Tiles(rows, torch.float32, CPU, 512), q, 700), rows, q)


def check_slack(found, rows, q):
    exact = q.double() @ torch.from_numpy(rows.features * rows.inverse[:, None] - rows.centre.numpy()).T
    listed = found.values > -torch.inf
    assert listed.sum() == exact.numel()
    error = (found.values - exact.gather(1, found.indices)).abs() - found.rounding * found.values.abs()
    assert (error <= found.slack[:, None])[listed].all()
    assert (found.slack < 0.02).all()


@pytest.mark.parametrize("tile_rows", [512, 5000])
def test_own_row_is_excluded(engine, tile_rows, monkeypatch):
    monkeypatch.setattr(solver, "TILE_ROWS", tile_rows)
    monkeypatch.setattr(solver, "CPU_TILE_ROWS", tile_rows)
    gallery = gaussian(1500, 64, 13)
    own = np.arange(1500)[::50]
    with_self = exact_knn(gallery, gallery[own], 11, engine=engine)
    np.testing.assert_array_equal(with_self.indices[:, 0], own)
    without = exact_knn(gallery, gallery[own], 10, engine=engine, excluded=own)
    np.testing.assert_array_equal(without.indices, with_self.indices[:, 1:])


def test_own_row_is_excluded_by_the_exhaustive_search(engine):
    gallery = np.repeat(gaussian(1, 16, 14), 1200, axis=0)  # all equal: nothing can be certified
    found = exact_knn(gallery, gallery[:3], 2, engine=engine, excluded=np.array([0, 1, -1]))
    assert found.indices.tolist() == [[1, 2], [0, 2], [0, 1]]
    assert found.fallbacks["float64"] == 3


def test_all_but_oneself_can_be_asked_for(engine):
    gallery = gaussian(700, 16, 15)
    found = exact_knn(gallery, gallery[:4], 699, engine=engine, excluded=np.arange(4))
    for i in range(4):
        assert set(found.indices[i]) == set(range(700)) - {i}


@pytest.mark.parametrize("k", [0, 8])
def test_refuses_more_neighbours_than_rows(k):
    with pytest.raises(ValueError, match=f"k={k} with 7"):
        exact_knn(gaussian(7, 4, 16), gaussian(2, 4, 17), k)
    with pytest.raises(ValueError, match="k=7 with 6"):
        exact_knn(gaussian(7, 4, 16), gaussian(2, 4, 17), 7, excluded=np.array([-1, 3]))


def test_reads_a_memory_map(tmp_path):
    gallery, queries = gaussian(900, 32, 18), gaussian(5, 32, 19)
    np.save(tmp_path / "g.npy", gallery)
    mapped = np.load(tmp_path / "g.npy", mmap_mode="r")
    np.testing.assert_array_equal(exact_knn(mapped, queries, 7).indices, exact_knn(gallery, queries, 7).indices)


@pytest.mark.parametrize("scale", [1e-18, 1e15])
def test_scale_of_features_does_not_matter(engine, scale):
    gallery, queries = gaussian(800, 32, 20), gaussian(6, 32, 21)
    small = exact_knn((gallery * np.float32(scale)), queries * np.float32(scale), 5, engine=engine)
    np.testing.assert_array_equal(small.indices, exact_knn(gallery, queries, 5).indices)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    queries=st.integers(1, 5),
    dim=st.integers(1, 6),
    seed=st.integers(0, 2**16),
    data=st.data(),
)
def test_small_integers_with_many_ties(rows, queries, dim, seed, data):
    """Integer rows tie often, and their dot products are exact: no gap is needed."""
    rng = np.random.default_rng(seed)
    gallery = rng.integers(1, 3, (rows, dim)).astype(np.float32)
    asked = rng.integers(1, 3, (queries, dim)).astype(np.float32)
    k = data.draw(st.integers(1, rows))
    engine = data.draw(st.sampled_from(["torch", "faiss"]))
    found = exact_knn(gallery, asked, k, engine=engine)
    for i in range(queries):
        assert found.similarities[i] == pytest.approx(neighbours(gallery, asked[i], k)[1], abs=1e-13)
        equal = np.diff(found.similarities[i]) == 0
        assert (np.diff(found.indices[i])[equal] > 0).all()
        last = [r for r in range(rows) if (gallery[r] == gallery[found.indices[i, -1]]).all()]
        taken = [r for r in last if r in found.indices[i]]
        assert taken == last[: len(taken)]


def test_choice_by_hardware(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", "avx512_bf16": True})
    assert choose_engine("auto", CPU) == ("torch", torch.bfloat16)
    assert choose_engine("faiss", CPU) == ("faiss", torch.float32)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", "amx_bf16": True})
    assert choose_engine("auto", CPU) == ("torch", torch.bfloat16)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64"})
    assert choose_engine("auto", CPU) == ("faiss", torch.float32)
    assert choose_engine("torch", CPU) == ("torch", torch.float32)
    assert choose_engine("auto", torch.device("cuda")) == ("torch", torch.float16)
    monkeypatch.setattr(solver, "find_spec", lambda _: None)
    assert choose_engine("auto", CPU) == ("torch", torch.float32)


@pytest.mark.parametrize(
    ("free", "kept", "conversions"), [(2**30, 0, 3), (6007 * 24 * 2, 0, 3 * 3), (6007 * 24 * 2, 6007 * 24 * 2, 3)]
)
def test_the_gallery_stays_on_a_gpu_that_has_room_for_it(free, kept, conversions, monkeypatch):
    """Three blocks of queries read a gallery of three tiles: converted once, or for every block."""
    for name, value in (("TILE_ROWS", 3000), ("QUERY_BLOCK", 10), ("GPU_BLOCKS", 1)):
        monkeypatch.setattr(solver, name, value)
    converted, convert = [], Tiles._convert
    monkeypatch.setattr(Tiles, "_convert", lambda *arguments: converted.append(arguments) or convert(*arguments))
    gallery, queries = gaussian(6007, 24, 8), gaussian(30, 24, 9)
    expected = exact_knn(gallery, queries, 5)
    converted.clear()
    with simulated_cuda():
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: kept)  # of tensors that are gone
        found = exact_knn(gallery, queries, 5, device="cuda", engine="torch")
    assert len(converted) == conversions
    assert found.engine == "torch float16"
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_allclose(found.similarities, expected.similarities, rtol=1e-14)
