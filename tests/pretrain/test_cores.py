"""Threads that work side by side share torch's own among them."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from pretrain.distributed import cores


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

    with cores(6) as threads:
        assert threads.count == 2
        assert threads.run(work, range(6)) == [0, 1, 4, 9, 16, 25]
    assert len(used) == 2


def test_each_piece_has_one_thread_and_the_number_is_set_back() -> None:
    with cores(4) as threads:
        assert threads.run(lambda _: torch.get_num_threads(), range(4)) == [1, 1, 1, 1]
    assert torch.get_num_threads() == 2


def test_an_error_comes_through_and_the_number_is_set_back() -> None:
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        time.sleep(0.01)
        if item == 2:
            raise ValueError("item 2")
        return item

    with pytest.raises(ValueError, match="item 2"), cores(50) as threads:
        threads.run(work, range(50))
    assert len(begun) < 50
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("available", "asked"), [(1, 3), (2, 1), (2, 0)])
def test_one_thread_works_in_place(available: int, asked: int) -> None:
    torch.set_num_threads(available)
    with cores(asked) as threads:
        found = threads.run(lambda _: (threading.get_ident(), torch.get_num_threads()), range(3))
    assert found == [(threading.get_ident(), available)] * 3


def test_tensors_of_inference_mode_can_be_written_to() -> None:
    with torch.inference_mode(), cores(2) as threads:
        total = torch.zeros(2)
        threads.run(lambda i: total[i].fill_(i + 1), range(2))
    assert total.tolist() == [1, 2]
