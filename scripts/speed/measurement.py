"""The form of a measurement of `make speed`, its clock, and the machine that it was made on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from benchmarks.evaluate import hardware
from benchmarks.task import Precision
from pretrain.distributed import has_fast_bf16

Result = TypeVar("Result")
SpeedEntry = dict[str, str | float]
Entries = dict[str, Callable[[], SpeedEntry]]  # by name

# What multiplies matrices on a CPU, the best first: torch's name and the usual one.
_MATRIX_UNITS = (
    ("amx_bf16", "AMX"),
    ("avx512_bf16", "AVX512-BF16"),
    ("avx512_f", "AVX512"),
    ("avx2", "AVX2"),
    ("sve_bf16", "SVE-BF16"),
    ("sve", "SVE"),
    ("bf16", "NEON-BF16"),
)


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds, and what the work returned."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def seconds_of(work: Callable[[], Any]) -> float:
    return timed(work)[0]


def cpu_seconds_of(work: Callable[[], Any]) -> float:
    """Seconds of this process on the CPU: for work on one core, which others on the machine do not make slower."""
    began = time.process_time()
    work()
    return time.process_time() - began


def rounds(most: int, seconds: float) -> Iterator[int]:
    """0 up to `most` - 1, but no round that would end after `seconds`; the first one in any case."""
    began = time.perf_counter()
    for number in range(most):
        yield number
        if (time.perf_counter() - began) * (number + 2) / (number + 1) > seconds:
            return


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one core within the context."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def fast_precision() -> Precision:
    """bf16 where this CPU multiplies it itself; one that does not takes up to 25 times as long as for fp32."""
    return "bf16" if has_fast_bf16("cpu") else "fp32"


def cpu() -> str:
    """The CPU, its cores for this process and what multiplies matrices on it: `AMD EPYC, 2 cores, AVX2`."""
    machine = hardware("cpu")
    can = torch.cpu.get_capabilities()
    units = [label for capability, label in _MATRIX_UNITS if can.get(capability)]
    return f"{machine.cpu}, {machine.cores} cores, {' and '.join(units) or 'no matrix unit that torch names'}"


def entry(
    name: str, *, ours: float, baseline: float, described: str, limit_s: float, limit: str, note: str
) -> SpeedEntry:
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
        "cpu": cpu(),
    }
