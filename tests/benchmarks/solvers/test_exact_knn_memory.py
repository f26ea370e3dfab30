"""A gallery in a memory map is searched with a fraction of its size in memory."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from benchmarks.solvers.exact_knn import exact_knn
from scripts.speed.measurement import peak_private_bytes

ROWS, DIM, QUERIES = 80_000, 2_048, 300
ROOM = 256 << 20  # bytes; the gallery has 625 MiB


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A gallery of noise on disk, and queries close to rows that are known."""
    folder = tmp_path_factory.mktemp("gallery")
    rng = np.random.default_rng(0)
    gallery = np.lib.format.open_memmap(folder / "gallery.npy", "w+", np.float32, (ROWS, DIM))
    for start in range(0, ROWS, 4000):
        gallery[start : start + 4000] = rng.standard_normal((4000, DIM), dtype=np.float32)
    planted = rng.permutation(ROWS)[:QUERIES]
    np.save(folder / "queries.npy", gallery[planted] + rng.standard_normal((QUERIES, DIM), dtype=np.float32))
    np.save(folder / "planted.npy", planted)
    del gallery
    yield folder
    (folder / "gallery.npy").unlink()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells mapped files from other memory")
@pytest.mark.parametrize("engine", ["torch", pytest.param("faiss", marks=pytest.mark.nightly)])
def test_gallery_larger_than_the_memory_used(folder, engine):
    """The memory that is in use counts: a limit on address space also counts what BLAS reserves, and ends faiss."""
    gallery, queries = np.load(folder / "gallery.npy", mmap_mode="r"), np.load(folder / "queries.npy")
    exact_knn(gallery[:600], queries, 5, engine=engine)  # libraries take their own share on first use
    found = []
    assert peak_private_bytes(lambda: found.append(exact_knn(gallery, queries, 20, engine=engine))) < ROOM
    assert found[0].indices[:, 0].tolist() == np.load(folder / "planted.npy").tolist()
    assert peak_private_bytes(lambda: np.array(gallery)) > 2 * ROOM  # a copy of it would be seen
