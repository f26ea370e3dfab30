from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.solvers.svm import fit_subsets

ScoreT = TypeVar("ScoreT")


@dataclass(frozen=True)
class Numbered:
    """The same problem each time, with its number."""

    number: int
    images: NDArray[np.int64]
    positive: NDArray[np.bool_]
    compared: NDArray[np.int64]


def map_on_cores(work: Callable[[int], ScoreT], count: int) -> list[ScoreT]:
    """`work` of 0, 1, …, called where `fit_subsets` calls `score`."""
    features = np.random.default_rng(0).random((6, 3), np.float32)
    subsets = [Numbered(i, np.arange(6)[None], np.arange(6)[None, None] < 3, np.arange(0)) for i in range(count)]
    found = fit_subsets(
        features, features, subsets, [(1.0,)] * count, lambda subset, _: work(subset.number),
        class_weights=(1.0, 1.0), tolerance=1e-5, all_pairs=True,
    )  # fmt: skip
    return list(found)


@pytest.fixture(autouse=True)
def two_threads() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_order_from_several_threads() -> None:
    used = set()
    meet = threading.Barrier(2, timeout=10)

    def work(item: int) -> int:
        used.add(threading.get_ident())
        meet.wait()
        time.sleep(0.01 * (item % 2))
        return item * item

    assert map_on_cores(work, 6) == [0, 1, 4, 9, 16, 25]
    assert len(used) == 2


def test_each_piece_has_one_thread_and_the_number_is_set_back() -> None:
    assert map_on_cores(lambda _: torch.get_num_threads(), 4) == [1, 1, 1, 1]
    assert torch.get_num_threads() == 2


def test_an_error_comes_through_and_the_number_is_set_back() -> None:
    def work(item: int) -> int:
        if item == 2:
            raise ValueError("item 2")
        return item

    with pytest.raises(ValueError, match="item 2"):
        map_on_cores(work, 50)
    assert torch.get_num_threads() == 2


def test_one_thread_works_in_place() -> None:
    torch.set_num_threads(1)
    assert map_on_cores(lambda _: threading.get_ident(), 3) == [threading.get_ident()] * 3
