"""A gallery in a memory map is searched with a fraction of its size in memory."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

ROWS, DIM, QUERIES = 80_000, 2_048, 300
ROOM = 256 << 20  # bytes; the gallery has 0.6 GiB

# RLIMIT_DATA counts what a process may write to and not a read-only map, so that the kernel refuses what is too much.
SEARCH = """
    import json, re, resource, sys
    from pathlib import Path
    import numpy as np
    from benchmarks.solvers.exact_knn import exact_knn

    folder, room = Path(sys.argv[1]), int(sys.argv[2])
    gallery = np.load(folder / "gallery.npy", mmap_mode="r")
    queries = np.load(folder / "queries.npy")
    exact_knn(gallery[:600], queries[:3], 5, engine=sys.argv[3])  # libraries take their own share on first use
    used = 1024 * int(re.search(r"VmData:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
    resource.setrlimit(resource.RLIMIT_DATA, (used + room, used + room))
    try:
        np.ones(2 * room, np.uint8)
        sys.exit("the limit does not hold")
    except MemoryError:
        pass
    found = exact_knn(gallery, queries, 20, engine=sys.argv[3])
    print(json.dumps(found.indices[:, 0].tolist()))
"""


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
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits data apart from maps")
@pytest.mark.parametrize("engine", ["torch", pytest.param("faiss", marks=pytest.mark.nightly)])
def test_gallery_larger_than_the_memory_allowed(folder, engine):
    assert (folder / "gallery.npy").stat().st_size > 2 * ROOM
    command = [sys.executable, "-c", textwrap.dedent(SEARCH), str(folder), str(ROOM), engine]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == np.load(folder / "planted.npy").tolist()
