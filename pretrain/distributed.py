"""Devices, ranks and their collectives. With one process every collective is the identity, so all run the same code.

Everything that decides how a device is used is here: which GPU a rank takes, why there is none, what "fp32" means on it
(IEEE float32, never TF32), whether it is fast in bfloat16, and how many loader processes go with it.
"""

from __future__ import annotations

import inspect
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils import data

from results.command_line import log_device
from results.errors import InputError

log = logging.getLogger(__name__)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

# The oldest driver of each CUDA that torch is built for (NVIDIA, CUDA compatibility, minor version compatibility).
OLDEST_DRIVERS = {"11": "450.80", "12": "525.60", "13": "580.65"}
DRIVER_FILE = Path("/proc/driver/nvidia/version")
CPU_WORKERS, MOST_WORKERS = 2, 16
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}  # a precision's numbers; fp32 has no autocast
# Longer than any save of a rank that the others wait for; a rank that died ends the others at once (see `_Watch`).
TIMEOUT = timedelta(hours=2)


# ---- devices ---------------------------------------------------------------------------------------------------------


def own_device(name: str) -> torch.device:
    """The device of that name; "auto" is the GPU where there is one, and of several GPUs that of torchrun's LOCAL_RANK.

    The GPU becomes the process's current one before anything is put on it.

    Raises:
        InputError: this machine has no such device; the message says why.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cpu" and _gpu_is_expected():
            log.warning("the GPU cannot be used, so this runs on the CPU: %s", why_no_gpu())
    try:
        device = torch.device(name)
    except RuntimeError as error:  # which lists a dozen kinds that this torch is not built for
        raise InputError(f"unknown device {name!r}; choose auto, cpu, cuda, cuda:1, …") from error
    try:
        if device.type == "cuda":
            device = _own_gpu(name, device)
        else:
            torch.zeros((), device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).splitlines()[0].split())[:160]
        raise InputError(f"cannot use the device {name} ({reason}); choose another, such as cpu") from error
    model = f" ({torch.cuda.get_device_name(device)}, driver {nvidia_driver()})" if device.type == "cuda" else ""
    log_device(f"{device}{model}")
    return device


def _own_gpu(name: str, device: torch.device) -> torch.device:
    if not torch.cuda.is_available():
        raise InputError(f"cannot use the device {name} ({why_no_gpu()}); choose another, such as cpu")
    if device.index is None and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise InputError(
            f"cannot use the device {device} (this process sees {count} GPU{'s' if count > 1 else ''}); choose one, "
            "and start at most as many ranks on a machine as it has GPUs"
        )
    if device.index is not None:
        torch.cuda.set_device(device)
    oldest = [int(arch[3:]) for arch in torch.cuda.get_arch_list() if arch[3:].isdigit()]
    major, minor = torch.cuda.get_device_capability(device)
    if oldest and 10 * major + minor < min(oldest):
        raise InputError(
            f"cannot use the device {device} ({torch.cuda.get_device_name(device)} has compute capability "
            f"{major}.{minor}, and this torch is built for {min(oldest) / 10:.1f} and newer); choose cpu, or install a "
            "torch that is built for an older CUDA"
        )
    return device


def why_no_gpu() -> str:
    """Why this process cannot use a GPU: a sentence without its full stop."""
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is a build for the CPU; install one that is built for CUDA"
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1", "NoDevFiles"):
        return "CUDA_VISIBLE_DEVICES hides every GPU; ask the scheduler for a GPU, or unset it"
    driver = nvidia_driver()
    if driver is None:
        return "no GPU is visible: there is no NVIDIA driver on this machine or in this container"
    oldest = OLDEST_DRIVERS.get((torch.version.cuda or "").partition(".")[0])
    if oldest and _numbers(driver) < _numbers(oldest):
        return (
            f"the NVIDIA driver {driver} is too old for torch {torch.__version__}, which is built for CUDA "
            f"{torch.version.cuda}: update it to {oldest} or newer, or install a torch that is built for an older CUDA"
        )
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0].rstrip(".")
    return "the driver reports no GPU; ask the scheduler for one"


def nvidia_driver() -> str | None:
    """Version of the NVIDIA driver that is loaded, as "580.95.05"; None without one."""
    try:
        words = DRIVER_FILE.read_text(encoding="ascii", errors="replace").split("\n")[0].split()
    except OSError:
        return None
    return next((word for word in words if word[0].isdigit() and word.replace(".", "").isdigit()), None)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _gpu_is_expected() -> bool:
    """Whether this machine seems to have a GPU, so that falling back to the CPU deserves a warning."""
    slurm = os.environ.get("SLURM_GPUS_ON_NODE") or os.environ.get("SLURM_JOB_GPUS")
    return nvidia_driver() is not None or bool(slurm)


@contextmanager
def full_float32() -> Iterator[None]:
    """Inside, float32 on a GPU is IEEE float32: no TF32, which torch uses in convolutions unless it is told otherwise.

    One rule for pretraining, features and benchmarks. Who wants tensor cores asks for bf16, which shows in the record.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    flags: list[tuple[Any, str, object]] = [(matmul, "allow_tf32", False), (cudnn, "allow_tf32", False)]
    if hasattr(cudnn, "conv"):  # since torch 2.9, False may mean: what is set for all of cuDNN, or all of torch
        flags += [(owner, "fp32_precision", "ieee") for owner in (matmul, cudnn.conv, cudnn.rnn)]
    before = [(owner, name, _flag(owner, name)) for owner, name, _ in flags]
    for owner, name, value in flags:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            if value is not None:
                setattr(owner, name, value)


@contextmanager
def full_precision() -> Iterator[None]:
    """`full_float32`, and no bfloat16 in its place on a CPU, and no float16 sums: for error bounds that count on it."""
    cuda, cpu = torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)  # of torch 2.9
    sums = {name: getattr(cuda, name) for name in ("allow_fp16_reduced_precision_reduction", "allow_fp16_accumulation")}
    before = getattr(cpu, "fp32_precision", None)
    for name in sums:
        setattr(cuda, name, False)
    if cpu is not None:
        cpu.fp32_precision = "ieee"
    try:
        with full_float32():
            yield
    finally:
        for name, allowed in sums.items():
            setattr(cuda, name, allowed)
        if cpu is not None:
            cpu.fp32_precision = before


def float32_kind() -> str:
    """What float32 is on a GPU at this moment: "ieee", or "tf32" where any operation may use it."""
    flags = (_flag(torch.backends.cuda.matmul, "allow_tf32"), _flag(torch.backends.cudnn, "allow_tf32"))
    return "ieee" if flags == (False, False) else "tf32"


def _flag(owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name)
    except RuntimeError:  # it was set in the other of the two ways
        return None


def has_fast_bf16(device: torch.device | str) -> bool:
    """Whether this device multiplies bfloat16 itself. One that does not takes up to 25 times as long as for float32."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    can = torch.cpu.get_capabilities()
    if can.get("architecture") == "x86_64":
        return bool(can.get("avx512_bf16") or can.get("amx_bf16"))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def has_fast_fp16(device: torch.device | str) -> bool:
    """Whether this device multiplies float16 itself. A CPU that does not takes 10 times as long as for float32."""
    device = torch.device(device)
    if device.type != "cpu":
        return device.type == "cuda"
    can = torch.cpu.get_capabilities()
    if can.get("architecture") == "x86_64":
        return bool(can.get("avx512_fp16") or can.get("amx_fp16"))
    return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())


def row_products(a: Tensor, b: Tensor) -> Tensor:
    """(n, m) inner products of the rows of (n, d) and (m, d): a @ b.T.

    Of float32 on a CPU by oneDNN: PyTorch's MKL makes no use of AVX-512 on AMD's, and takes up to twice as long. Give
    whole matrices or their transposes: of a slice of columns oneDNN is more than 100 times as slow.
    """
    some = a.numel() and b.numel()  # oneDNN refuses matrices without elements
    if some and a.dtype == torch.float32 and a.device.type == "cpu" and torch.backends.mkldnn.is_available():
        found: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
        return found
    return a @ b.T


@dataclass(frozen=True)
class Cores:
    """Threads that work side by side, each with its part of the threads that torch has for one operation.

    Attributes:
        map: as the built-in one, but all is begun at once.
    """

    count: int
    map: Callable[[Callable[[T], T_co], Iterable[T]], Iterator[T_co]]

    def run(self, work: Callable[[T], T_co], items: Iterable[T]) -> list[T_co]:
        return list(self.map(work, items))


ONE_CORE = Cores(1, map)


@contextmanager
def cores(most: int) -> Iterator[Cores]:
    """As many threads as torch has for one operation, but at most `most`.

    Operations too small to be divided well: two of them side by side use two cores better than one after the other on
    both, and do not stall when another process holds one of them.
    """
    threads, mode = torch.get_num_threads(), torch.is_inference_mode_enabled()
    count = min(threads, most)
    if count < 2:
        yield ONE_CORE
        return
    # The number is a thread's own for OpenMP and global for MKL, so every worker sets it and it is set back here.
    with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(threads // count,)) as pool:
        try:
            yield Cores(count, lambda work, items: pool.map(partial(_alike, mode, work), items))
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)


def _alike(inference: bool, work: Callable[[T], T_co], item: T) -> T_co:
    """A new thread is not in inference mode, and could not write to the tensors of one that is."""
    with torch.inference_mode(inference):
        return work(item)


def default_workers(device: torch.device | str) -> int:
    """Loader processes of this rank: its share of the machine's cores on a GPU; on a CPU two."""
    if torch.device(device).type != "cuda":
        return CPU_WORKERS
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_WORKERS, here // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1))


def free_memory(device: torch.device) -> int:
    """Bytes that a GPU still has for tensors: free ones, and those that torch keeps of tensors that are gone."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on the device. A GPU copies it from page-locked memory, and the host does not wait."""
    if torch.device(device).type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Sender:
    """Sends large tensors one after another as `sent` does: a GPU works on one while the host reads the next.

    Before the third in a row the host waits until the first is copied. It would else run ahead of the GPU, and take
    page-locked memory for everything that it sends.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self._copies: deque[Any] = deque()

    def __call__(self, tensor: Tensor) -> Tensor:
        if self.device.type != "cuda":
            return tensor.to(self.device)
        if len(self._copies) == 2:
            self._copies.popleft().synchronize()
        moved = sent(tensor, self.device)
        self._copies.append(torch.cuda.current_stream(self.device).record_event())
        return moved


# ---- ranks -----------------------------------------------------------------------------------------------------------


def join(name: str) -> torch.device:
    """Join the ranks that torchrun started, if it did, and return this rank's device.

    Raises:
        InputError: see `own_device`.
    """
    device = own_device(name)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
        _JOINED.append(device)
    return device


_JOINED: list[torch.device] = []


def joined() -> bool:
    """Whether there are several ranks whose group `join` started, and not the caller's own training loop."""
    return bool(_JOINED) and world_size() > 1


@contextmanager
def process_group(name: str) -> Iterator[torch.device]:
    """`join`, and leave the ranks at the end. Float32 is `full_float32` inside.

    Raises:
        InputError: see `own_device`; or another rank stopped with an error, which the message repeats.
    """
    device = join(name)
    watch = _Watch() if world_size() > 1 else None
    try:
        with full_float32():
            yield device
    except Stopped as stopped:
        if watch:
            watch.tell(stopped)
        raise
    except Exception as error:
        other = watch.tell(error) if watch else None
        if other is not None:
            raise other from error
        raise  # the group is left as it is: to destroy it might wait for ranks that are gone
    else:
        if watch:
            watch.close()
        if dist.is_initialized():
            dist.destroy_process_group()


# What clusters send before they take a machine back. Slurm sends it to the processes of a job, or to some of them only.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class _Asked:
    """Whether a signal has come. Not an Event: one handler that interrupts another would wait for its lock for ever."""

    to_stop = False


class Stopped(SystemExit):
    """A training was told to stop and has saved its state. The exit code is that of a program that SIGTERM ended."""

    def __init__(self, where: Path | None = None) -> None:
        super().__init__(128 + signal.SIGTERM)
        self.where = where

    def __str__(self) -> str:
        if self.where is None:
            return "told to stop; rank 0 has saved the state"
        return f"told to stop; the state is in {self.where}, and the same command continues from it"


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Inside, `STOP_SIGNALS` do not end the process; the function that this yields says whether one has come.

    Rank 0 saves after its current step and ends, and that ends the other ranks (see `_Watch`). Until then they go on,
    because rank 0 cannot finish a step without them; a rank that alone gets the signal tells rank 0. Handlers that the
    program has already, and other threads, are left alone.
    """

    def handle(number: int, frame: object) -> None:
        if not _Asked.to_stop:
            log.warning("%s: saving the state after this step", signal.Signals(number).name)
        _Asked.to_stop = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    caught = [s for s in STOP_SIGNALS if signal.getsignal(s) is signal.SIG_DFL]
    if caught:
        _Asked.to_stop = False
    for number in caught:
        signal.signal(number, handle)
    try:
        yield lambda: _Asked.to_stop
    finally:
        for number in caught:
            signal.signal(number, signal.SIG_DFL)


class DataLoader(data.DataLoader[T_co]):
    """torch's, whose worker processes `STOP_SIGNALS` do not end.

    A step that has begun needs the batches of every rank: with workers that end at the signal, a rank without a batch
    would leave the others waiting in a collective.

    Args:
        worker_init_fn: as in torch.
    """

    def __init__(self, *args: Any, worker_init_fn: Callable[[int], None] | None = None, **settings: Any) -> None:
        settings["worker_init_fn"] = partial(_start_worker, worker_init_fn)
        super().__init__(*args, **settings)

    def __iter__(self) -> Any:
        if not (self.num_workers and _CAN_WAIT):
            return super().__iter__()
        # Blocked while the workers start, which inherit that; this process gets the signal right after.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            iterator = super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for worker in getattr(iterator, "_workers", ()):
            process = worker._popen  # whose method torch calls, and multiprocessing at the end of a program
            process.terminate = partial(_end_worker, process)
        return iterator


_CAN_WAIT = hasattr(signal, "sigtimedwait")  # not on macOS, where no cluster sends signals


def _start_worker(init: Callable[[int], None] | None, number: int) -> None:
    if _CAN_WAIT:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        threading.Thread(target=_take_signals, name="signals", daemon=True).start()
    if init is not None:
        init(number)


def _end_worker(process: Any) -> None:
    """Terminate a worker, or kill it: its SIGTERM merges with one from elsewhere that is pending, and is then lost."""
    type(process).terminate(process)
    if process.wait(2) is None:
        process.kill()


def _take_signals() -> None:
    """Take the blocked signals of a loader worker: only one from the process that started it ends it, or its death."""
    owner, parent = multiprocessing.parent_process(), os.getppid()
    while os.getppid() == parent:
        taken = signal.sigtimedwait(STOP_SIGNALS, 1.0)
        if taken is not None and owner is not None and taken.si_pid == owner.pid:
            break
    os._exit(0)


class _Watch(threading.Thread):
    """Ends this rank with a sentence when another one ends early, instead of waiting for it until somebody kills both.

    A rank that fails, or that has saved because it was told to stop, writes why into the store of the process group,
    and waits until the others have read it. The thread of every other rank looks every second: the main thread may hang
    in a collective, where no signal reaches it. Through the store rank 0 also learns of a signal that only another rank
    got.
    """

    ENDED, SEEN, ASKED, SECONDS = "encoder-bench/ended", "encoder-bench/seen", "encoder-bench/asked-to-stop", 1.0

    def __init__(self) -> None:
        super().__init__(daemon=True, name="watch")
        self.store = dist.distributed_c10d._get_default_store()
        self.lock, self.closed = threading.Lock(), threading.Event()
        self.start()

    def run(self) -> None:
        while not self.closed.wait(self.SECONDS):
            other = self._other()
            if other is not None and not self.closed.is_set():
                log.log(logging.WARNING if isinstance(other, Stopped) else logging.ERROR, "%s", other)
                logging.shutdown()
                os._exit(128 + signal.SIGTERM if isinstance(other, Stopped) else 2)
            self._spread_signal()

    def tell(self, error: BaseException) -> InputError | Stopped | None:
        """Tell the other ranks why this one ends; if another one ended first, what it told."""
        self.close()
        other = self._other()
        if other is None:
            with suppress(Exception):
                why = f"rank {rank()} stopped: {str(error) or type(error).__name__}"
                self.store.set(self.ENDED, "" if isinstance(error, Stopped) else why)
                until = time.monotonic() + 5 * self.SECONDS
                while self.store.add(self.SEEN, 0) < world_size() - 1 and time.monotonic() < until:
                    time.sleep(self.SECONDS / 10)
        return other

    def close(self) -> None:
        self.closed.set()

    def _other(self) -> InputError | Stopped | None:
        with self.lock:
            try:
                if not self.store.check([self.ENDED]):
                    return None
                text = self.store.get(self.ENDED).decode()
                self.store.add(self.SEEN, 1)
            except Exception:  # the store is gone, and with it the rank that could have told
                return None
        return InputError(f"this rank {rank()} ends, because {text}") if text else Stopped()

    def _spread_signal(self) -> None:
        with self.lock, suppress(Exception):
            if rank() != 0 and _Asked.to_stop:
                self.store.set(self.ASKED, "")
            elif rank() == 0 and self.store.check([self.ASKED]):
                _Asked.to_stop = True


def wrapped(module: nn.Module, **settings: Any) -> DistributedDataParallel:
    """The module for training over all ranks, without broadcasts of its buffers before a forward pass.

    `forward_sync_buffers` is of torch 2.13. Before, only `broadcast_buffers` says so; it leaves out the broadcast at
    the beginning too, which the ranks do not need, as they build their modules from one seed.
    """
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    settings["forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"] = False
    return DistributedDataParallel(module, gradient_as_bucket_view=True, **settings)


def world_size() -> int:
    """Number of ranks; 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 without torchrun."""
    return dist.get_rank() if dist.is_initialized() else 0


def barrier() -> None:
    """Wait for every rank."""
    if world_size() > 1:
        dist.barrier()


def own_slice(n: int) -> slice:
    """This rank's part of n items. Parts are equal, or one longer on the first ranks."""
    return _slice_of(rank(), n)


def _slice_of(number: int, n: int) -> slice:
    share, rest = divmod(n, world_size())
    start = number * share + min(number, rest)
    return slice(start, start + share + (number < rest))


def sum_(tensor: Tensor) -> Tensor:
    """The sum over ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def mean(values: Tensor) -> Tensor:
    """The mean over ranks."""
    return sum_(values.clone()) / world_size()


def everyones_rows(own: Tensor, n: int) -> Tensor:
    """(n, ...) of all ranks, from each rank's rows `own_slice(n)`; exact, as every row is added to zeros."""
    if world_size() == 1:
        return own
    rows = own.new_zeros(n, *own.shape[1:])
    rows[own_slice(n)] = own
    return sum_(rows)


def every_part(own: Tensor, n: int) -> Iterator[tuple[int, Tensor]]:
    """Each rank's rows of n in turn, with the number of the first; a rank holds its own part and one other at a time.

    Args:
        own: this rank's rows, `own_slice(n)`.
    """
    for source in range(world_size()):
        rows = _slice_of(source, n)
        part = own.contiguous() if source == rank() else own.new_empty(rows.stop - rows.start, *own.shape[1:])
        if world_size() > 1:
            dist.broadcast(part, src=source)
        yield rows.start, part


def value_of_first(value: T) -> T:
    """Rank 0's value, on every rank."""
    if world_size() == 1:
        return value
    sent_value = [value]
    dist.broadcast_object_list(sent_value, src=0)
    return sent_value[0]


def union(own: set[int]) -> set[int]:
    """The numbers that any rank has."""
    if world_size() == 1:
        return own
    everyones: list[set[int]] = [set() for _ in range(world_size())]
    dist.all_gather_object(everyones, own)
    return set().union(*everyones)


def sum_with_gradient(part: Tensor) -> Tensor:
    """The sum over ranks; a rank's part gets the sum of the gradients that all ranks have for it."""
    if world_size() == 1:
        return part
    total: Tensor = _Sum.apply(part)
    return total


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        return sum_(part.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return sum_(gradients[0].contiguous().clone())


@torch.no_grad()
def gather(part: Tensor) -> Tensor:
    """Every rank's (N, ...) joined along dim 0 in the order of ranks. No gradient flows through."""
    if world_size() == 1:
        return part
    parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts)


def gather_with_gradient(part: Tensor) -> Tensor:
    """As `gather`; a rank's part gets the sum of the gradients that all ranks have for it."""
    if world_size() == 1:
        return part
    joined: Tensor = _Gather.apply(part)
    return joined


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        return gather(part)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = sum_(gradients[0].contiguous())
        return gradient[own_slice(len(gradient))]


def shuffle(part: Tensor, generator: torch.Generator) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """ShuffleBN (MoCo v1, section 3.3): one random order over all ranks' images, rank 0's on every rank.

    Returns:
        This rank's slice of the shuffled images, and a function that brings the outputs of that slice back into this
        rank's own order; gradients flow through it.
    """
    if world_size() > 1 and torch.is_autocast_enabled(part.device.type):
        part = part.to(torch.get_autocast_dtype(part.device.type))  # as the first convolution does: half the bytes
    everyones = gather(part)
    order = torch.randperm(len(everyones), generator=generator, device=generator.device)
    if world_size() > 1:
        dist.broadcast(order, src=0)
    own = own_slice(len(everyones))

    def unshuffle(outputs: Tensor) -> Tensor:
        return gather_with_gradient(outputs)[order.argsort()][own]

    return everyones[order][own], unshuffle
