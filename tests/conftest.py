"""Fixtures for the whole suite: composed data that many files read."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.demo.compose import Counts, compose


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with 120 scenes and 18 drawings per class. Shared: copy it before changing a file."""
    root = tmp_path_factory.mktemp("data")
    compose(root, progress=False, counts=Counts(train=60, val=20, test=40, drawings_per_class=18))
    return root


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with 16 scenes and 18 drawings per class. Shared: copy it before changing a file."""
    root = tmp_path_factory.mktemp("small_data")
    compose(root, progress=False, counts=Counts(train=8, val=4, test=4, drawings_per_class=18))
    return root
