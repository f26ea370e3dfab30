"""The form of a measurement of `make speed`, and its clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")
Entry = dict[str, str | float]
Entries = dict[str, Callable[[], Entry]]  # by name


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds, and what the work returned."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def seconds_of(work: Callable[[], Any]) -> float:
    return timed(work)[0]


def entry(name: str, *, ours: float, baseline: float, described: str, limit_s: float, limit: str, note: str) -> Entry:
    """What is written to work/speed.json.

    Args:
        ours, baseline: seconds.
        described: what the baseline is.
        limit_s: seconds of the work that no implementation avoids, or the bound that `limit` names.
    """
    return {
        "name": name,
        "ours_s": ours,
        "baseline_s": baseline,
        "baseline": described,
        "ratio": baseline / ours,
        "limit_s": limit_s,
        "limit": limit,
        "note": f"{note}; {torch.get_num_threads()} threads",
    }
