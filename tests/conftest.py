"""Fixtures for the whole suite: composed data that many files read."""

from __future__ import annotations

import os

# Before torch is imported: tests fork, and a forked process must not use its parent's threads.
os.environ["OMP_NUM_THREADS"] = "1"

from pathlib import Path

import pytest

from benchmarks.demo.compose import Counts, compose


def composed(tmp_path_factory: pytest.TempPathFactory, name: str, counts: Counts) -> Path:
    """A data root that is composed once, by the first test process that asks for it."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    compose(root, progress=False, counts=counts)  # waits for its lock, and leaves what is complete alone
    return root


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with 120 scenes and 18 drawings per class. Shared: copy it before changing a file."""
    return composed(tmp_path_factory, "data", Counts(60, 20, 40, drawings_per_class=18, corrupted_per_class=2))


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with 16 scenes and 18 drawings per class. Shared: copy it before changing a file."""
    return composed(tmp_path_factory, "small_data", Counts(8, 4, 4, drawings_per_class=18, corrupted_per_class=2))


@pytest.fixture(scope="session")
def all_drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with every drawing of the demo, and 16 scenes. Shared: copy it before changing a file."""
    return composed(tmp_path_factory, "all_drawings", Counts(8, 4, 4, drawings_per_class=61, corrupted_per_class=0))
