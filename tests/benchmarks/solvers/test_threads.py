from __future__ import annotations

import threading
import time

import pytest
import torch

from benchmarks.solvers.svm import map_on_cores


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

    assert list(map_on_cores(work, range(6), "cpu")) == [0, 1, 4, 9, 16, 25]
    assert len(used) == 2


def test_each_piece_has_one_thread_and_the_number_is_set_back() -> None:
    assert list(map_on_cores(lambda _: torch.get_num_threads(), range(4), "cpu")) == [1, 1, 1, 1]
    assert torch.get_num_threads() == 2


def test_an_error_comes_through_and_the_number_is_set_back() -> None:
    def work(item: int) -> int:
        if item == 2:
            raise ValueError("item 2")
        return item

    with pytest.raises(ValueError, match="item 2"):
        list(map_on_cores(work, range(50), "cpu"))
    assert torch.get_num_threads() == 2


def test_one_thread_works_in_place() -> None:
    torch.set_num_threads(1)
    assert list(map_on_cores(lambda _: threading.get_ident(), range(3), "cpu")) == [threading.get_ident()] * 3
