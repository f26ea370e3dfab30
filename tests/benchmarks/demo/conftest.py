from pathlib import Path

import pytest

from benchmarks.demo.compose import Counts, compose

COUNTS = Counts(train=24, val=8, test=16, drawings_per_class=2)


@pytest.fixture(scope="session")
def counts() -> Counts:
    return COUNTS


@pytest.fixture(scope="session")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small composition of seed 0; read it, do not change it."""
    root = tmp_path_factory.mktemp("composed")
    compose(root, seed=0, progress=False, counts=COUNTS)
    return root
