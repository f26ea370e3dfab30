"""Solvers on a GPU: what stays there, how rows get there, and that the host does not wait where it need not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.solvers import logistic
from benchmarks.solvers.logistic import fit_logistic
from tests.simulated_cuda import simulated_cuda

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
