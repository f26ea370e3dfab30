"""The form of a measurement of `make speed`, its clock, the machine that it was made on, and the limit of products.

Where work consists of matrix products, its limit is their operations by shape, at the measured speed of each shape: a
product of a few rows with a large matrix runs at a fraction of the speed of a square one.
"""

from __future__ import annotations

import ctypes
import gc
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.evaluate import hardware
from benchmarks.task import Precision
from pretrain.distributed import has_fast_bf16, row_products

Result = TypeVar("Result")
SpeedEntry = dict[str, str | float]
Entries = dict[str, Callable[[], SpeedEntry]]  # by name
MOST_TURNS, TURNS_SECONDS = 5, 8.0

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


def peak_private_bytes(work: Callable[[], Any]) -> int:
    """How much the memory of this process grew at most during the work, without the pages of mapped files.

    A thread looks every few milliseconds. What was freed before is given back first, so that it is not used unseen.
    0 where the system does not say, as only Linux does.
    """
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    status = Path("/proc/self/status")

    def private() -> int:
        found = re.search(r"RssAnon:\s+(\d+)", status.read_text()) if status.is_file() else None
        return 1024 * int(found[1]) if found else 0

    done, before = Event(), private()
    peak = before

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, private())

    watcher = Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(peak, private()) - before


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


def alternately(works: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Median CPU seconds of each work on one core; they take turns, after a first turn that warms up."""
    found: dict[str, list[float]] = {name: [] for name in works}
    with one_thread():
        for work in works.values():
            work()
        for _ in rounds(MOST_TURNS, TURNS_SECONDS):
            for name, work in works.items():
                found[name].append(cpu_seconds_of(work))
    return {name: statistics.median(values) for name, values in found.items()}


def rates(names: Iterable[str], seconds: Mapping[str, float], count: int) -> str:
    """How many of `count` items each work does in a second."""
    return ", ".join(f"{name} {count / seconds[name]:.0f}" for name in names)


def not_installed(packages: list[str]) -> str:
    """The end of a note that lacks the measurements of some packages."""
    return f"; not measured, as not installed: pip install {' '.join(packages)}" if packages else ""


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


# ---- the limit of work that consists of matrix products

COVERED = 0.97  # share of the operations whose shapes are timed; the rest counts at the fastest speed
MOST_SHAPES = 24
REPEATS = 5
LONG_S = 0.1  # a product that takes longer is repeated twice only
_FIRST_MATRIX = {"mm": 0, "bmm": 0, "addmm": 1, "addmm_": 1, "baddbmm": 1, "baddbmm_": 1}  # argument, by operation
ROW_PRODUCTS = "_linear_pointwise"  # what `row_products` calls


class Shape(NamedTuple):
    """`batch` products of (m, k) and (k, n) matrices."""

    batch: int
    m: int
    k: int
    n: int
    dtype: torch.dtype

    @property
    def flops(self) -> int:
        return 2 * self.batch * self.m * self.k * self.n


class ProductCounter(TorchDispatchMode):
    """Counts the products and convolutions of the calling thread, by shape. A convolution counts as its product."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Shape] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._overloadpacket.__name__
        if name not in _FIRST_MATRIX and name not in ("convolution", ROW_PRODUCTS):
            with self:
                found = func.decompose(*args, **(kwargs or {}))  # into the products that it is made of
            if found is not NotImplemented:
                return found
        found = func(*args, **(kwargs or {}))
        if name in _FIRST_MATRIX:
            first, second = args[_FIRST_MATRIX[name] : _FIRST_MATRIX[name] + 2]
            batch = first.shape[0] if first.ndim == 3 else 1
            self.calls[Shape(batch, first.shape[-2], first.shape[-1], second.shape[-1], first.dtype)] += 1
        elif name == ROW_PRODUCTS:
            self.calls[Shape(1, len(args[0]), args[0].shape[1], len(args[1]), args[0].dtype)] += 1
        elif name == "convolution":
            weight, groups = args[1], args[8]
            places = found.shape[0] * found[0, 0].numel()
            self.calls[Shape(groups, places, weight[0].numel(), len(weight) // groups, weight.dtype)] += 1
        return found


def count_products(work: Callable[[], Any]) -> Counter[Shape]:
    """The products of the work, on one thread, which is what the counter sees."""
    with one_thread(), ProductCounter() as counter:
        work()
    return counter.calls


def limit_of(calls: Counter[Shape]) -> tuple[float, float]:
    """Seconds of these products and nothing else, and their operations.

    Each of the shapes that hold nearly all operations is timed alone, by its fastest run: split over all threads, or
    one on every core, whichever is quicker.
    """
    by_size = sorted(calls, key=lambda shape: calls[shape] * shape.flops, reverse=True)
    total = sum(calls[shape] * shape.flops for shape in by_size)
    seconds, covered, fastest = 0.0, 0, 0.0
    for shape in by_size[:MOST_SHAPES]:
        if covered >= COVERED * total:
            break
        rate = product_rate(shape)
        operations = calls[shape] * shape.flops
        seconds, covered, fastest = seconds + operations / rate, covered + operations, max(fastest, rate)
    return seconds + (total - covered) / fastest, float(total)


def product_rate(shape: Shape) -> float:
    """Operations per second of a product alone, at its fastest."""
    a = torch.randn(shape.batch, shape.m, shape.k).to(shape.dtype)
    b = torch.randn(shape.batch, shape.k, shape.n).to(shape.dtype)
    out = torch.empty(shape.batch, shape.m, shape.n, dtype=shape.dtype)
    if shape.batch == 1:
        a, b, out = a[0], b[0], out[0]
    ways: list[Callable[..., Any]] = [partial(torch.bmm if shape.batch > 1 else torch.mm, a, b)]
    if shape.batch == 1:
        ways.append(partial(_by_rows, a, b.T.contiguous()))
    together = shape.flops / min(_fastest(partial(way, out=out)) for way in ways)
    threads = torch.get_num_threads()
    if threads == 1:
        return together
    outs = [torch.empty_like(out) for _ in range(threads)]
    # As solvers of many small problems do: one on every core. The number of threads is global for MKL.
    with one_thread(), ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        apart = threads * shape.flops / min(_fastest(partial(_on_every_core, pool, way, outs)) for way in ways)
    return max(together, apart)


def _on_every_core(pool: ThreadPoolExecutor, way: Callable[..., Any], outs: list[Tensor]) -> None:
    for done in [pool.submit(way, out=out) for out in outs]:
        done.result()


def _by_rows(a: Tensor, b: Tensor, out: Tensor) -> None:
    row_products(a, b)  # which has its own memory


def _fastest(work: Callable[[], Any]) -> float:
    first = seconds_of(work)
    return min(first, *(seconds_of(work) for _ in range(2 if first > LONG_S else REPEATS)))
