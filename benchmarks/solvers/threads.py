"""Run independent pieces of work on the cores of a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Found = TypeVar("Found")


def map_on_cores(work: Callable[[Item], Found], items: Sequence[Item], device: str | torch.device) -> Iterator[Found]:
    """Yields `work(item)` in order, on as many threads as torch would use for one operation.

    The products here are too small to be split well: two operations side by side use two cores better than one
    operation on both, and do not stall when another process holds one of them. A GPU gets one piece at a time.
    """
    threads = torch.get_num_threads()
    workers = min(threads, len(items))
    if workers < 2 or torch.device(device).type != "cpu":
        yield from map(work, items)
        return
    # The number is a thread's own for OpenMP and global for MKL, so every worker sets it and it is set back here.
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,)) as pool:
        try:
            yield from pool.map(work, items)
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)
