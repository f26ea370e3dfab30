"""CUDA that is only claimed: tensors that say that they are on cuda:0, compute on the CPU, and obey PyTorch's rules.

    with simulated_cuda() as gpu:
        trainer = Trainer(recipe, files, torch.device("cuda"), workers=0)
        ...
    assert gpu.waits == Counter()

Inside, `torch.cuda.is_available()` is true, and every tensor made on or moved to "cuda" is a `Claimed`. An operation on
a claimed tensor and a CPU tensor that is not a scalar raises, as it would on a GPU; so do `numpy()`, an index on the
GPU into a CPU tensor, a generator of the other device, and matrix products of whole numbers, which CUDA does not have.
Backward passes run through the same rules. What would make the host wait for the GPU is counted by name: reading a
value (`item`, `tolist`, a truth value), operations whose result has a size that only the GPU knows (`nonzero`, masks as
indices, `bincount`, …), and copies in either direction that are blocking or from pageable memory.

What the host does not wait for, it does not have: the result of a non-blocking copy to the CPU is garbage until the
host waits, and page-locked memory may not be written until its copy has ended. Operations are done when they are given,
but a stream may only use what it knows to be done: a tensor made on another stream raises until an event or a wait of
the host has put this stream behind it, and `record_stream` has told the allocator.

It shows neither speed nor the numerics of GPU kernels.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from types import FrameType
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")
aten = torch.ops.aten

# Their results have a size that depends on values, so that CUDA's kernels wait for them.
SIZED_BY_VALUES = {
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten._unique2.default: "unique",
    aten.unique_dim.default: "unique",
    aten.unique_consecutive.default: "unique_consecutive",
    aten.bincount.default: "bincount",
    aten.repeat_interleave.Tensor: "repeat_interleave",
    aten._local_scalar_dense.default: "item",
    aten.equal.default: "equal",
}
# Of their operands CUDA takes no scalar of the CPU, but of those of pointwise operations and of these.
TAKE_CPU_SCALARS = {
    aten.masked_fill.Tensor, aten.masked_fill_.Tensor, aten.fill_.Tensor, aten.fill.Tensor, aten.floor_divide.default,
    aten.floor_divide_.Tensor,
}  # fmt: skip
# CUDA has no kernels of these for whole numbers, and the CPU has.
FLOATS_ONLY = {
    aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default, aten.mv.default, aten.addmv.default,
    aten.dot.default, aten.convolution.default, aten.avg_pool2d.default, aten.upsample_bilinear2d.default,
    aten.upsample_bilinear2d.vec, aten.upsample_bicubic2d.default, aten.upsample_bicubic2d.vec,
    aten._upsample_bilinear2d_aa.default, aten._upsample_bilinear2d_aa.vec, aten._upsample_bicubic2d_aa.default,
    aten._upsample_bicubic2d_aa.vec,
}  # fmt: skip
# Half-precision factors and a float32 result: CUDA alone has these.
WIDENING = {aten.mm.dtype, aten.mm.dtype_out, aten.bmm.dtype}
TENSOR_CORE_SUM = 16  # products that a tensor core adds up before it truncates the sum
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
MOVES = {Tensor.to, Tensor.cpu, Tensor.cuda, Tensor.pin_memory, Tensor.is_pinned}


class Claimed(Tensor):
    """A CPU tensor that says that it is on cuda:0."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # the mode sees every call first

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    def get_device(self) -> int:
        return 0

    # Methods, because the mode does not reach into other threads, such as those that write features.
    def cpu(self, *args: Any, **kwargs: Any) -> Tensor:
        return _move(Tensor.cpu, (self, *args), kwargs)  # type: ignore[no-any-return]

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        return _move(Tensor.to, (self, *args), kwargs)  # type: ignore[no-any-return]

    def record_stream(self, stream: Any) -> None:
        _ACTIVE[-1].streams.lend(self, stream)

    def tolist(self) -> Any:
        _ACTIVE[-1].wait("tolist")
        return _plain(self.detach()).tolist()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{_plain(self.detach())} on a simulated GPU"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else repr(self)

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copied = self.detach().clone().requires_grad_(self.requires_grad)
            copied.__dict__.update(self.__dict__)
            memo[id(self)] = copied
        return memo[id(self)]  # type: ignore[no-any-return]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _plain(self.detach()).__reduce_ex__(protocol)  # as torch.load gives it with map_location="cpu"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _ACTIVE[-1].run(func, args, kwargs or {})


def claim(tensor: Tensor) -> Tensor:
    """The tensor, on the simulated GPU."""
    if isinstance(tensor, Claimed):
        return tensor
    claimed: Tensor = Tensor._make_subclass(Claimed, tensor, tensor.requires_grad)
    if _ACTIVE:
        _ACTIVE[-1].streams.written(claimed, new=True)
    return claimed


def _plain(tensor: Tensor) -> Tensor:
    """The tensor's values, as a plain CPU tensor over the same memory."""
    with torch._C._DisableTorchDispatch():
        bare = torch.empty(0, dtype=tensor.dtype)
        return bare.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())  # type: ignore[call-overload,no-any-return]


class ClaimedGenerator(torch.Generator):
    """A generator of the CPU that says that it is on the device that it was made for."""

    def __new__(cls, device: str | torch.device = "cpu") -> ClaimedGenerator:
        made: ClaimedGenerator = super().__new__(cls, "cpu")
        made.claimed = torch.device(device)
        return made

    claimed: torch.device

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA if self.claimed.type == "cuda" else CPU


@dataclass
class Gpu:
    """What happened on the simulated GPU.

    Attributes:
        waits: times that the host would have waited, by reason.
        where: of each wait, the innermost line of the project.
        owners: of each wait, the package whose code asked for it, and the reason.
    """

    draws_as_the_cpu = True
    waits: Counter[str] = field(default_factory=Counter)
    where: Counter[str] = field(default_factory=Counter)
    owners: Counter[tuple[str, str]] = field(default_factory=Counter)
    streams: Streams = field(default_factory=lambda: Streams())

    @contextmanager
    def no_waits(self) -> Iterator[None]:
        """Inside, the host may not wait for the GPU."""
        before = Counter(self.where)
        yield
        assert self.where == before, f"the host waited: {self.where - before}"

    def wait(self, reason: str) -> None:
        self.waits[reason] += 1
        self.where[f"{reason} {_project_line()}"] += 1
        self.owners[_package(), reason] += 1
        self.streams.current().synchronize()

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """An operation in which at least one tensor is claimed."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        copy = func in COPIES
        if func in INDEXED:
            self._check_index(func, args)
        elif not copy:
            self._check_devices(func, tensors)
        if func in FLOATS_ONLY and not (tensors[0].is_floating_point() or tensors[0].is_complex()):
            raise RuntimeError(f"{func} is not implemented on CUDA for {tensors[0].dtype}")
        self.streams.check(tensors)
        if func in SIZED_BY_VALUES and isinstance(tensors[0], Claimed):
            self.wait(SIZED_BY_VALUES[func])
        if func is aten.copy_.default:
            self._count_copy(args[1], isinstance(args[0], Claimed), bool(args[2]) if len(args) > 2 else False)
        with torch._C._DisableTorchDispatch():
            found = _mm_in_float32(*args, **kwargs) if func in WIDENING else func(*args, **kwargs)
        if func is aten.copy_.default and not isinstance(args[0], Claimed) and len(args) > 2 and args[2]:
            self.streams.arrives_later(args[0])
        if func._schema.is_mutable and isinstance(args[0], Claimed):
            self.streams.written(args[0])
        if func is aten._local_scalar_dense.default or func is aten.copy_.default:
            return args[0] if func is aten.copy_.default else found
        written = {id(t) for t in tensors}
        return tree_map(lambda t: t if not isinstance(t, Tensor) or id(t) in written else claim(t), found)

    def _check_devices(self, func: Any, tensors: list[Tensor]) -> None:
        scalars = torch.Tag.pointwise in func.tags or func in TAKE_CPU_SCALARS or func._opname.startswith("_foreach")
        for tensor in tensors:
            written = func._schema.is_mutable and tensor is tensors[0]
            allowed = isinstance(tensor, Claimed) or (scalars and tensor.dim() == 0 and not written)
            if not allowed and not _filled_in(tensor):
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                    f"({func}, shape {tuple(tensor.shape)})"
                )

    def _check_index(self, func: Any, args: Any) -> None:
        target, indices = args[0], [index for index in args[1] if index is not None]
        if not isinstance(target, Claimed):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        for index in indices:
            if index.dtype in (torch.bool, torch.uint8):
                self.wait("mask as index")
            if not isinstance(index, Claimed):
                self.wait("index copied from the CPU")
        if len(args) > 2 and args[2].dim():
            self._check_devices(func, [args[2]])

    def _count_copy(self, source: Tensor, to_gpu: bool, non_blocking: bool) -> None:
        from_gpu = isinstance(source, Claimed)
        if from_gpu and not to_gpu and not non_blocking:
            self.wait("copied to the CPU")
        elif to_gpu and not from_gpu and source.dim() >= 0 and not (non_blocking and hasattr(source, "_pinned")):
            self.wait("copied from pageable memory")

    def moved(self, tensor: Tensor, device: torch.device | None, non_blocking: bool, **changes: Any) -> Tensor:
        """`tensor.to(device, …)`."""
        target = tensor.device if device is None else device
        claimed = isinstance(tensor, Claimed)
        if (target.type == "cuda") == claimed:
            return tensor.to(**changes) if changes else tensor
        self._count_copy(tensor, target.type == "cuda", non_blocking)
        if claimed:
            self.streams.check([tensor])
            moved = _ToCpu.apply(tensor)
        else:
            # The copy is made, so that writing to one does not change the other.
            moved = _ToGpu.apply(tensor) if tensor.requires_grad else claim(tensor.detach().clone())
        moved = moved.to(**changes) if changes else moved
        if claimed and non_blocking:
            self.streams.arrives_later(moved)
        elif non_blocking and hasattr(tensor, "_pinned"):
            self.streams.leaves_later(tensor)
        return moved


def _mm_in_float32(one: Tensor, two: Tensor, out_dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """A tensor core adds some products at a time to a float32 sum, and truncates it each time."""
    a, b = _plain(one).double(), _plain(two).double()
    total = a.new_zeros(*a.shape[:-1], b.shape[-1])
    for first in range(0, a.shape[-1], TENSOR_CORE_SUM):
        part = slice(first, first + TENSOR_CORE_SUM)
        total += a[..., part] @ b[..., part, :]
        rounded = total.float()
        too_large = rounded.double().abs() > total.abs()
        total = torch.where(too_large, rounded.nextafter(torch.zeros_like(rounded)), rounded).double()
    product = total.to(out_dtype)
    if out is None:
        return product
    _plain(out).copy_(product)
    return out


class _ToGpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return claim(tensor.detach().clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return _plain(gradient.detach()).clone()


class _ToCpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return _plain(tensor.detach()).clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return claim(gradient.detach().clone())


_ACTIVE: list[Gpu] = []


class _Calls(TorchFunctionMode):
    """Rewrites what names a device: factories, moves, generators; and what Python reads past the dispatcher."""

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        if func in MOVES:
            return _move(func, args, kwargs)
        name = getattr(func, "__name__", "")
        if name == "__get__" and func is Tensor.data.__get__ and isinstance(first, Claimed):
            return first.detach()
        if "device" in kwargs and name not in ("__get__", "__set__"):
            device = kwargs.pop("device")
            on_gpu = device is not None and torch.device(device).type == "cuda"
            if device is None:
                on_gpu = isinstance(first, Claimed)
            _check_generator(kwargs.get("generator"), on_gpu)
            if func is torch.as_tensor and isinstance(first, Tensor):
                return self.gpu.moved(first, torch.device(device) if device else None, False, **kwargs)
            if on_gpu and func in (torch.tensor, torch.as_tensor, torch.from_numpy, Tensor.new_tensor):
                self.gpu.wait("copied from pageable memory")
            if isinstance(first, Claimed) and not on_gpu:
                raise RuntimeError(f"simulated CUDA has no {func} from the GPU to the CPU")
            made = func(*args, **kwargs)
            return claim(made) if on_gpu and isinstance(made, Tensor) else made
        _check_generator(kwargs.get("generator"), isinstance(first, Claimed))
        if func is Tensor.new_tensor and isinstance(first, Claimed):
            self.gpu.wait("copied from pageable memory")
            return claim(torch.tensor(*args[1:], **{"dtype": first.dtype, **kwargs}))
        return func(*args, **kwargs)


def _check_generator(generator: torch.Generator | None, on_gpu: bool) -> None:
    if generator is not None and generator.device.type != ("cuda" if on_gpu else "cpu"):
        raise RuntimeError(f"Expected a '{'cuda' if on_gpu else 'cpu'}' device type for generator")


def _filled_in(tensor: Tensor) -> bool:
    """Whether autograd made this of itself: zeros for a gradient that nothing gave. It looks past the claim."""
    return torch._C._current_autograd_node() is not None and not tensor.any()


def _project_line() -> str:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if "/tests/simulated_cuda" not in file and (
            "/pretrain/" in file or "/benchmarks/" in file or "/tests/" in file
        ):
            return f"{'/'.join(file.split('/')[-2:])}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def _package() -> str:
    """The package of the innermost code that is neither torch's nor the simulation's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package != "torch" and frame.f_globals.get("__name__") != __name__:
            return package
        frame = frame.f_back
    return "elsewhere"


def _grouped(tensors: Any, with_indices: bool = False) -> Any:
    """As torch's grouping, which looks past the claim: groups of claimed tensors are on the GPU."""
    found = torch.utils._foreach_utils._group_tensors_by_device_and_dtype(tensors, with_indices)
    return {
        (CUDA if any(isinstance(t, Claimed) for t in value[0][0]) else key[0], key[1]): value
        for key, value in found.items()
    }


# ---- streams ---------------------------------------------------------------------------------------------------------

Known = dict[int, int]  # number of a stream -> how many of its operations are done


class ClaimedStream:
    """A stream whose operations are done when they are given; it remembers what it may take for done."""

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        _require_cuda(device)
        streams = _ACTIVE[-1].streams
        streams.several, self.number, self.given = True, next(streams.numbers), 0
        self.known: Known = {}
        streams.all.append(self)

    def record_event(self, event: ClaimedEvent | None = None) -> ClaimedEvent:
        event = event or ClaimedEvent()
        event.record(self)
        return event

    def wait_event(self, event: ClaimedEvent) -> None:
        _learn(self.known, event.known)

    def wait_stream(self, stream: ClaimedStream) -> None:
        self.wait_event(stream.record_event())

    def synchronize(self) -> None:
        self.record_event().synchronize()


class ClaimedEvent:
    """An event of a stream that takes no time."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.timed, self.known = enable_timing, Known()

    def record(self, stream: ClaimedStream | None = None) -> None:
        stream = stream or _ACTIVE[-1].streams.current()
        self.known = {**stream.known, stream.number: stream.given}

    def synchronize(self) -> None:
        streams = _ACTIVE[-1].streams
        _learn(streams.host, self.known)
        streams.arrive()

    def elapsed_time(self, end: ClaimedEvent) -> float:
        assert self.timed
        assert end.timed
        return 0.0


def _learn(known: Known, other: Known) -> None:
    for number, given in other.items():
        known[number] = max(known.get(number, 0), given)


def _require_cuda(device: Any) -> None:
    if device is not None and not isinstance(device, int) and torch.device(device).type != "cuda":
        raise ValueError(f"Expected a cuda device, but got: {device}")


class Streams:
    """What each stream may use. A storage carries who wrote it last, who allocated it, and to whom that was told.

    Attributes:
        several: whether there is another stream than the default one. Before, nothing is noted.
        host: what the host has waited for.
        copies: to the CPU, that the host has not waited for, with their values.
        sources: of such copies to the GPU, as long as somebody holds them, with the values that they had.
    """

    def __init__(self) -> None:
        self.several, self.numbers = False, count(1)
        self.host: Known = {}
        self.copies: list[tuple[Tensor, Tensor]] = []
        self.sources: list[tuple[weakref.ref[Tensor], Tensor]] = []
        self.default = ClaimedStream.__new__(ClaimedStream)
        self.default.number, self.default.given, self.default.known = 0, 0, {}
        self.all, self.local = [self.default], threading.local()

    def current(self, device: Any = None) -> ClaimedStream:
        _require_cuda(device)
        stream: ClaimedStream = getattr(self.local, "stream", self.default)
        return stream

    @contextmanager
    def on(self, stream: ClaimedStream) -> Iterator[None]:
        before, self.local.stream = self.current(), stream
        try:
            yield
        finally:
            self.local.stream = before

    def synchronize(self, device: Any = None) -> None:
        _require_cuda(device)
        for stream in self.all:
            stream.synchronize()

    def written(self, tensor: Tensor, *, new: bool = False) -> None:
        """The current stream has written the tensor, or made it if nothing is known of its memory."""
        storage: Any = tensor.untyped_storage()
        if self.several and not (new and hasattr(storage, "written_by")):
            stream = self.current()
            stream.given += 1
            storage.written_by = stream.number, stream.given
            if new:
                storage.users = {stream.number}

    def lend(self, tensor: Tensor, stream: ClaimedStream) -> None:
        storage: Any = tensor.untyped_storage()
        storage.users = {*getattr(storage, "users", ()), stream.number}

    def check(self, tensors: list[Tensor]) -> None:
        """Raises RuntimeError where the current stream may meet memory that another one has not written yet."""
        if not self.several:
            return
        here = self.current()
        for storage in (tensor.untyped_storage() for tensor in tensors if isinstance(tensor, Claimed)):
            number, given = getattr(storage, "written_by", (here.number, 0))
            if number != here.number and max(here.known.get(number, 0), self.host.get(number, 0)) < given:
                raise RuntimeError("a tensor of another stream, which this one does not wait for")
            if here.number not in getattr(storage, "users", {here.number}):
                raise RuntimeError("a tensor of another stream without record_stream")

    def arrives_later(self, copied: Tensor) -> None:
        """A copy to the CPU has begun: until the host waits, its memory holds anything."""
        self.copies.append((copied.detach(), copied.detach().clone()))
        copied.detach().fill_(float("nan") if copied.is_floating_point() else 77)

    def leaves_later(self, pinned: Tensor) -> None:
        """A copy from page-locked memory has begun: until the host waits, that memory must stay as it is."""
        self.sources.append((weakref.ref(pinned), pinned.clone()))

    def arrive(self) -> None:
        """The host has waited, and all copies have ended."""
        copies, sources, self.copies, self.sources = self.copies, self.sources, [], []
        for target, values in copies:
            target.copy_(values)
        for source, values in sources:
            if (now := source()) is not None and not torch.equal(now, values):
                raise RuntimeError("page-locked memory was written before its copy to the GPU had ended")


def _move(func: Any, args: Any, kwargs: Any) -> Any:
    gpu, kwargs = _ACTIVE[-1], dict(kwargs)
    tensor, rest = args[0], list(args[1:])
    if func is Tensor.pin_memory:
        if isinstance(tensor, Claimed):
            raise RuntimeError("cannot pin a tensor of cuda:0: only dense CPU tensors can be pinned")
        if hasattr(tensor, "_pinned"):
            return tensor
        pinned = tensor.clone()
        pinned._pinned = True
        return pinned
    if func is Tensor.is_pinned:
        return hasattr(tensor, "_pinned")
    non_blocking, changes, device = bool(kwargs.pop("non_blocking", False)), {}, kwargs.pop("device", None)
    if func is Tensor.cpu:
        device = CPU
    elif func is Tensor.cuda:
        device = CUDA
    for value in rest:
        if isinstance(value, torch.dtype):
            changes["dtype"] = value
        elif isinstance(value, Tensor):
            device, changes["dtype"] = value.device, value.dtype
        elif isinstance(value, bool):
            non_blocking = value
        elif value is not None:
            device = value
    changes |= {key: value for key, value in kwargs.items() if value is not None}
    if isinstance(device, int):
        device = torch.device("cuda", device)
    target = None if device is None else torch.device(device)
    if target is not None and target.type == "cuda" and target.index not in (None, 0):
        raise RuntimeError(f"CUDA error: invalid device ordinal ({target})")
    if target is None or (target.type == "cuda") == isinstance(tensor, Claimed):
        return Tensor.to(tensor, **changes) if changes else tensor
    return gpu.moved(tensor, target, non_blocking, **changes)


@contextmanager
def simulated_cuda() -> Iterator[Gpu]:
    """See the module's first lines."""
    gpu = Gpu()
    autocast = torch.autocast.__init__

    def autocast_on_cpu(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        autocast(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    replaced: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "is_initialized": lambda: False,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "Event": ClaimedEvent,
        "Stream": ClaimedStream,
        "stream": gpu.streams.on,
        "current_stream": gpu.streams.current,
        "synchronize": gpu.streams.synchronize,
        "get_device_name": lambda device=None: "Simulated",
        "get_device_capability": lambda device=None: (8, 0),
        "mem_get_info": lambda device=None: (2**34, 2**34),
        "max_memory_allocated": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
        "memory_reserved": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        # Of a generator on the GPU, whose state the host holds; the simulation draws from the CPU's.
        "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda state, device=None: None,
        "is_bf16_supported": lambda including_emulation=True: True,
    }
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    with ExitStack() as stack:
        for name, replacement in replaced.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, replacement))
        stack.enter_context(mock.patch.object(torch.autocast, "__init__", autocast_on_cpu))
        stack.enter_context(mock.patch.object(torch, "Generator", ClaimedGenerator))
        stack.enter_context(mock.patch.object(torch.accelerator, "is_available", return_value=True))
        stack.enter_context(mock.patch.object(torch.accelerator, "current_accelerator", return_value=CUDA))
        stack.enter_context(mock.patch.object(torch.optim.Optimizer, "_group_tensors_by_device_and_dtype", _grouped))
        # Asks the driver whether a CUDA graph is being recorded; none is.
        check = "_accelerator_graph_capture_health_check"
        stack.enter_context(mock.patch.object(torch.optim.Optimizer, check, return_value=None, create=True))
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, before)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        _ACTIVE.append(gpu)
        stack.callback(_ACTIVE.remove, gpu)
        stack.enter_context(_Calls(gpu))
        yield gpu
