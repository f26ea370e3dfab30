"""The form of an entry of `make speed`, and its clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


def seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def entry(name: str, ours: float, baseline: float, what: str, limit_s: float, limit: str, note: str) -> dict[str, Any]:
    return {
        "name": name,
        "ours_s": ours,
        "baseline_s": baseline,
        "baseline": what,
        "ratio": baseline / ours,
        "limit_s": limit_s,
        "limit": limit,
        "note": f"{note}; {torch.get_num_threads()} threads",
    }
