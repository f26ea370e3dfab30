"""Read pickles of untrusted sources: tensors and plain values come out, nothing is imported or called.

Zip files of torch, those of torch before 1.6 and pickles of numpy arrays go through one unpickler with a table of
names: tensors and numpy's arrays are rebuilt from their bytes, harmless metadata is replaced by inert objects, and any
other name is refused. Operations and copied bytes are bounded, so that a small file takes little memory and time.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from results.errors import InputError

# A file of torch before 1.6 starts with a pickle of this number (torch.serialization.MAGIC_NUMBER).
LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# Far above any release: ViT-g with its optimiser and a moving average takes 100,000 operations.
MAX_OPERATIONS = 1_000_000
MAX_MEMBER_LIST = 8 << 20  # bytes of a zip file's list of members
MAX_MARKS = 10_000  # open at once; Python's own pickler nests 1,000 objects at most

_CALL_COST = 8  # operations
_CALLS = "calls or changes an object"
_TOO_MUCH = "it unfolds to too much data, or is nested too deeply"
_SPARE_BYTES = 16 << 20  # that may be copied whatever the size of the file


def read_pickled(path: Path, *, verify: bool = False) -> Any:
    """What torch.save or pickle.dump wrote: tensors on the CPU, plain containers and values, and inert objects.

    Args:
        verify: compare the checksum of every member of a zip file, and read no other kind. Not all releases have right
            ones.

    Raises:
        InputError: the file is damaged, names anything but tensors and harmless metadata, or declares more data than it
            has.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(LEGACY_TORCH))
            file.seek(0)
            if start.startswith(b"PK\x03\x04"):
                return _read_zip(path, file, verify)
            if verify:
                raise UnpicklingError("it is not a zip file of torch.save")
            if start == LEGACY_TORCH:
                return _read_legacy(file, path.stat().st_size)
            return Unpickler(file, path.stat().st_size).load()
    except InputError:
        raise
    except Exception as error:  # an untrusted file can make the reader fail in any way
        raise _refused(path, error) from error


def _read_zip(path: Path, file: BinaryIO, verify: bool) -> Any:
    """A zip file of torch, which never compresses members; a zip bomb does."""
    if not zipfile.is_zipfile(path):  # the list of its members is at its end
        raise InputError(f"{path} is cut short; copy it again")
    size = path.stat().st_size
    if _bytes_of_member_list(file, size) > MAX_MEMBER_LIST:
        raise InputError(f"{path} has more members than torch.save writes; save its state dict again")
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        names = {member.filename: member for member in members}
        pickles = [name for name in names if name.endswith("/data.pkl")]
        if not pickles:
            raise InputError(f"{path} is a zip file, but torch.save did not write it; unpack it")
        if any(name.endswith("/constants.pkl") for name in names):
            raise InputError(
                f"{path} is a TorchScript archive, which holds code; if you trust it, load it with torch.jit.load "
                "and save its state dict with torch.save"
            )
        packed = [m for m in members if m.compress_type != zipfile.ZIP_STORED]
        if packed or sum(m.file_size for m in members) > size:
            raise InputError(
                f"{path} declares more data than it has ({len(packed)} of {len(members)} members are compressed), "
                "which torch.save never does; if you trust it, save its state dict again"
            )
        if len(names) < len(members) or len(pickles) > 1:
            raise InputError(f"{path} has two members of the same name, or two pickles, which torch.save never writes; "
                             "copy it again")  # fmt: skip
        if verify and (damaged := archive.testzip()):
            raise UnpicklingError(f"wrong checksum of {ascii(damaged[:40])[1:-1]}")
        root = pickles[0].removesuffix("data.pkl")
        swapped = f"{root}byteorder" in names and archive.read(f"{root}byteorder") == b"big"
        data = archive.read(pickles[0])

    def storage(key: str, count: int, dtype: torch.dtype) -> torch.UntypedStorage:
        member, nbytes = names[f"{root}data/{key}"], count * dtype.itemsize
        file.seek(member.header_offset)
        header = file.read(30)
        if header[:4] != b"PK\x03\x04" or member.file_size < nbytes:
            raise UnpicklingError(f"storage {key} has {member.file_size:,} bytes and should have {nbytes:,}")
        file.seek(sum(struct.unpack("<HH", header[26:30])), io.SEEK_CUR)
        content = torch.empty(nbytes, dtype=torch.uint8)
        _fill(content, file)
        if swapped:
            item = dtype.itemsize // (2 if dtype.is_complex else 1)
            content = content.view(-1, item).flip(1).flatten()
        return content.untyped_storage()

    return Unpickler(io.BytesIO(data), len(data), storage).load()


def _bytes_of_member_list(file: BinaryIO, size: int) -> int:
    file.seek(max(0, size - 65_600))  # the longest end of a zip file
    end = file.read()
    at = end.rfind(b"PK\x05\x06")
    file.seek(0)
    if end[at - 20 : at - 16] == b"PK\x06\x07" and at >= 20:
        file.seek(struct.unpack("<Q", end[at - 12 : at - 4])[0])
        record = file.read(56)
        file.seek(0)
        return int(struct.unpack("<Q", record[40:48])[0])
    return int(struct.unpack("<I", end[at + 12 : at + 16])[0])


def _read_legacy(file: BinaryIO, size: int) -> Any:
    """A file of torch before 1.6: magic number, protocol, system, object, keys of the storages; then the storages."""
    declared: dict[str, tuple[Tensor, int]] = {}  # key -> bytes to fill, number of elements
    left = size

    def storage(key: str, count: int, dtype: torch.dtype) -> torch.UntypedStorage:
        nonlocal left
        left -= count * dtype.itemsize
        if left < 0:
            raise UnpicklingError(f"its storages have more bytes than the file, which has {size:,}")
        declared[key] = torch.empty(count * dtype.itemsize, dtype=torch.uint8), count
        return declared[key][0].untyped_storage()

    for _ in ("magic number", "protocol", "system"):
        Unpickler(file, size).load()
    root = Unpickler(file, size, storage).load()
    keys = Unpickler(file, size).load()
    if not isinstance(keys, list) or sorted(keys) != sorted(declared):
        raise UnpicklingError("its storages are not those that its tensors name")
    for key in keys:
        content, count = declared[key]
        if struct.unpack("<q", file.read(8))[0] != count:
            raise UnpicklingError(f"storage {key} has another length than its tensors say")
        _fill(content, file)
    return root


def _fill(content: Tensor, file: BinaryIO) -> None:
    if file.readinto(content.numpy()) != len(content):  # type: ignore[attr-defined]
        raise EOFError("the file is cut short")


def _refused(path: Path, error: Exception) -> InputError:
    first = " ".join(str(error).split())[:200] or type(error).__name__
    if isinstance(error, NotAllowedError):
        return InputError(
            f"{path} {first}, which is neither a tensor nor harmless metadata; it was not loaded and nothing in it was "
            "run. If you trust it, save its state dict alone with torch.save or safetensors"
        )
    if isinstance(error, MemoryError):
        first = "it does not fit into memory"
    return InputError(
        f"{path} cannot be read ({first}); it is damaged, or neither torch.save nor pickle wrote it; copy it again"
    )


class NotAllowedError(UnpicklingError):
    """The pickle names or calls what is not in the table; the text continues a sentence that begins with the file."""


@dataclass(frozen=True)
class Storage:
    """The elements of a tensor's storage: `count` from element `first` on."""

    content: torch.UntypedStorage
    dtype: torch.dtype
    first: int
    count: int


# Python's unpickler: the memo of the one in C can be blown up by a few bytes of file. The stubs only know the one in C.
_PythonUnpickler: Any = pickle._Unpickler


class Unpickler(_PythonUnpickler):
    """Unpickles one pickle by the table of names.

    Args:
        file: at the start of the pickle; it is left behind its end.
        size: bytes of the file.
        storage: key, number of elements and type -> a storage with at least so many bytes.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(_PythonUnpickler.dispatch)

    def __init__(
        self, file: BinaryIO, size: int, storage: Callable[[str, int, torch.dtype], torch.UntypedStorage] | None = None
    ) -> None:
        super().__init__(file, encoding="latin1")  # as Python 2 wrote bytes
        self.file, self.size, self.storage = file, size, storage
        self.operations, self.bytes_to_copy = MAX_OPERATIONS, 2 * size + _SPARE_BYTES
        self.contents: dict[str, tuple[torch.UntypedStorage, int]] = {}  # key -> storage, number of bytes

    def load(self) -> Any:
        self.read, self.readline = self._read, self._readline
        self.metastack: list[Any] = []
        self.stack: list[Any] = []
        self.append, self.proto = self.stack.append, 0
        read, dispatch = self.file.read, self.dispatch
        while True:
            self.operations -= 1
            if self.operations < 0 or len(self.metastack) > MAX_MARKS:
                raise UnpicklingError(_TOO_MUCH)
            code = read(1)
            if code == pickle.STOP:
                return self.stack.pop()
            if not code or code[0] not in dispatch:
                raise EOFError("the pickle is cut short or damaged")
            dispatch[code[0]](self)

    def _read(self, count: int) -> bytes:
        if count > 4096 and count > self.size - self.file.tell():  # before the memory is taken
            raise EOFError(f"{count:,} bytes are declared, more than there are")
        content = self.file.read(count)
        if len(content) < count:
            raise EOFError("the pickle is cut short")
        return content

    def _readline(self) -> bytes:
        line = self.file.readline(1 << 20)
        if not line.endswith(b"\n"):
            raise EOFError("a line has no end")
        return line

    def _spend(self, operations: int, copied: int = 0) -> None:
        self.operations -= operations
        self.bytes_to_copy -= copied
        if self.operations < 0 or self.bytes_to_copy < 0:
            raise UnpicklingError(_TOO_MUCH)

    def find_class(self, module: str, name: str) -> Any:
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))  # from Python 2
        full = f"{module}.{name}"
        if full not in _NAMES:
            raise NotAllowedError(f"names {ascii(full[:100])[1:-1]}")
        return _NAMES[full]

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or not isinstance(dtype, StorageType) or not isinstance(key, str) or not self.storage:
            raise NotAllowedError("refers to an object outside")
        self._spend(_CALL_COST)
        _require_sizes(count)
        nbytes = count * dtype.dtype.itemsize
        if key not in self.contents:
            self.contents[key] = self.storage(key, count, dtype.dtype), nbytes
        content, there = self.contents[key]
        if nbytes > there:
            raise UnpicklingError(f"storage {key[:40]!a} has two sizes")
        if view and view[0] is not None:
            _, first, length = view[0]
            _require_sizes(first, length)
            if first + length > count:
                raise UnpicklingError("a view is larger than its storage")
            return Storage(content, dtype.dtype, first, length)
        return Storage(content, dtype.dtype, 0, count)

    def _call(self, function: Any, arguments: Any) -> Any:
        if not (isinstance(arguments, tuple) and any(function is each for each in _CALLED)):
            raise NotAllowedError(_CALLS)
        lengths = [len(each) for each in arguments if isinstance(each, str | bytes | list | tuple | dict)]
        self._spend(_CALL_COST + (sum(lengths) if function is _ordered_dict else 0), sum(lengths))
        return function(*arguments)

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], arguments)

    def load_newobj_ex(self) -> None:
        named = self.stack.pop()
        if named:
            raise NotAllowedError(_CALLS)
        self.load_reduce()

    def load_build(self) -> None:
        """Set the state of arrays, types and namespaces, and drop that of mappings, tensors and inert objects."""
        state, target = self.stack.pop(), self.stack[-1]
        kind = type(target)
        if kind in (NumpyArray, NumpyDtype, Namespace):
            self._spend(_CALL_COST, sum(len(each) for each in state if isinstance(each, str | bytes)))
            target.__setstate__(state)
        elif kind not in (dict, OrderedDict, Inert, Tensor, OtherTensor):
            raise NotAllowedError(_CALLS)

    def load_append(self) -> None:
        self._extend([self.stack.pop()])

    def load_appends(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif type(target) is not Inert:
            raise NotAllowedError(_CALLS)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def load_setitems(self) -> None:
        self._update(self.pop_mark())

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._update(items)

    def _update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) not in (dict, OrderedDict, Inert):
            raise NotAllowedError(_CALLS)
        for key, value in zip(items[::2], items[1::2], strict=True):
            _require_plain_key(key)
            if type(target) is not Inert:
                target[key] = value

    def load_empty_set(self) -> None:
        self.append(_SOME_SET)

    def load_frozenset(self) -> None:
        self.pop_mark()
        self.append(_SOME_SET)

    def load_frame(self) -> None:
        self._read(8)  # a hint for readers

    def load_bytearray8(self) -> None:
        self.append(self._read(struct.unpack("<Q", self._read(8))[0]))

    def load_refused(self) -> None:
        raise UnpicklingError("it has an operation that neither arrays nor plain values need")

    dispatch |= {
        pickle.REDUCE[0]: load_reduce, pickle.NEWOBJ[0]: load_reduce, pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.BUILD[0]: load_build, pickle.APPEND[0]: load_append, pickle.APPENDS[0]: load_appends,
        pickle.SETITEM[0]: load_setitem, pickle.SETITEMS[0]: load_setitems, pickle.DICT[0]: load_dict,
        pickle.EMPTY_SET[0]: load_empty_set, pickle.ADDITEMS[0]: load_appends, pickle.FROZENSET[0]: load_frozenset,
        pickle.FRAME[0]: load_frame, pickle.BYTEARRAY8[0]: load_bytearray8,
    }  # fmt: skip
    for code in (
        pickle.INST, pickle.OBJ, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER
    ):  # fmt: skip
        dispatch[code[0]] = load_refused


def _require_plain_key(key: Any) -> None:
    """Refuse other keys: hashing nested tuples can take endless time, for a few bytes of file."""
    parts = key if type(key) is tuple and len(key) <= _CALL_COST else (key,)
    for part in parts:
        number = isinstance(part, int) and abs(part) < 2**64
        if not (number or part is None or part is Inert or isinstance(part, str | bytes | float | Inert)):
            raise UnpicklingError(f"a mapping has a {type(part).__name__} as a key")


def _require_sizes(*numbers: Any) -> None:
    for number in numbers:
        if type(number) is not int or not 0 <= number < 2**62:
            raise UnpicklingError("a tensor has a size that is not a whole number")


class Inert:
    """Stands for an object of a class that is not loaded: accepts any arguments, keeps none, and cannot be called."""

    def __init__(self, *_args: object) -> None: ...


_SOME_SET = Inert()  # one for all: it takes no memory of its own and keeps nothing


class Namespace:
    """Stands for an `argparse.Namespace`."""

    def __init__(self) -> None:
        self.attributes: dict[Any, Any] = {}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        self.attributes = {**state} if isinstance(state, dict) else {}


@dataclass(frozen=True)
class StorageType:
    """Stands for a class such as `torch.FloatStorage`."""

    dtype: torch.dtype


@dataclass
class OtherTensor:
    """Stands for a tensor that is sparse, quantised, nested, without numbers or of a class of its own."""

    kind: str


class NumpyDtype:
    """Stands for a numpy dtype of numbers or text. Objects and structures are refused."""

    def __init__(self, text: str | bytes, *_: object) -> None:
        self.text, self.order = _text(text), "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = _text(state[1])

    def numpy(self) -> np.dtype[Any]:
        if not re.fullmatch(r"[?bhilqefdBHILQ]|[<>=|]?(b1|[biuf][1248]|[SU]\d{1,6})", self.text):
            raise UnpicklingError(f"numpy data of type {self.text!r}")
        dtype = np.dtype(self.text)
        return dtype.newbyteorder(">") if self.order == ">" else dtype


class NumpyArray:
    """Stands for a numpy array, made from the bytes in its state: it never takes more memory than the file has."""

    def __init__(self, *_: object) -> None:
        self.value: NDArray[Any] = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, "F" if fortran else "C")


def _array(data: Any, dtype: Any, shape: Any, order: str = "C") -> NDArray[Any]:
    if not isinstance(dtype, NumpyDtype):
        raise UnpicklingError(f"numpy data of type {type(dtype).__name__}")
    raw = data.encode("latin1") if isinstance(data, str) else data  # Python 2 wrote bytes as text
    array: NDArray[Any] = np.frombuffer(raw, dtype.numpy()).reshape(shape, order=order)  # type: ignore[call-overload]
    return array


def _from_buffer(data: Any, dtype: Any, shape: Any, order: str) -> NumpyArray:
    array = NumpyArray()
    array.value = _array(data, dtype, shape, order)
    return array


def _scalar(dtype: Any, data: Any) -> Any:
    return _array(data, dtype, ()).item()


def _dense(storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of the elements of a storage, which it shares with other tensors."""
    if not isinstance(storage, Storage):
        raise UnpicklingError("a tensor has no storage")
    _require_sizes(offset, *size, *stride)
    dtype = dtype or storage.dtype
    available = storage.count * storage.dtype.itemsize // dtype.itemsize
    elements = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if elements else 0
    if elements >= 2**62 or last >= max(available, 1) or (elements and not available):
        raise UnpicklingError("a tensor is larger than its storage")
    first = storage.first * storage.dtype.itemsize // dtype.itemsize
    return torch.empty(0, dtype=dtype).set_(storage.content, first + (offset if elements else 0), size, stride)


def _tensor_v2(storage: Any, offset: Any, size: Any, stride: Any, *more: Any) -> Tensor | OtherTensor:
    return OtherTensor("conjugated") if len(more) > 2 and more[2] else _dense(storage, offset, size, stride)


def _tensor_v3(storage: Any, offset: Any, size: Any, stride: Any, _: Any, __: Any, dtype: Any, *more: Any) -> Any:
    return OtherTensor("conjugated") if more and more[0] else _dense(storage, offset, size, stride, dtype)


def _typed(function: Any, _: Any, arguments: Any, *__: Any) -> Any:
    """`torch._tensor._rebuild_from_type_v2`: a tensor of a class of its own, or with attributes."""
    if not any(function is each for each in _REBUILT.values()):
        raise NotAllowedError(_CALLS)
    return function(*arguments)


def _latin1_bytes(text: str, encoding: str = "latin1") -> bytes:
    """`_codecs.encode` as pickle protocol 2 uses it for bytes."""
    if encoding != "latin1":
        raise UnpicklingError(f"text encoded as {encoding!r}")
    return text.encode("latin1")


def _ordered_dict(items: Iterable[Any] = ()) -> OrderedDict[Any, Any]:
    found: OrderedDict[Any, Any] = OrderedDict()
    for key, value in items:  # as Python 2 wrote it
        _require_plain_key(key)
        found[key] = value
    return found


def _text(value: str | bytes) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else str(value)


def _first(data: Any, *_: Any) -> Any:
    return data


def _other(kind: str) -> Callable[..., OtherTensor]:
    return lambda *_: OtherTensor(kind)


_REBUILT: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor_v2,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_qtensor": _other("quantised"),
    "torch._utils._rebuild_sparse_tensor": _other("sparse"),
    "torch._utils._rebuild_nested_tensor": _other("nested"),
    "torch._utils._rebuild_meta_tensor_no_storage": _other("without numbers"),
    "torch._utils._rebuild_wrapper_subclass": _other("of a class of its own"),
    "torch._utils._rebuild_device_tensor_from_numpy": _other("of another device"),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first,
}

_CALLED_NAMES: dict[str, Callable[..., Any]] = {
    **_REBUILT,
    "torch._tensor._rebuild_from_type_v2": _typed,
    "torch.Size": lambda items=(): tuple(items),
    "numpy.dtype": NumpyDtype,
    "numpy.ndarray": NumpyArray,
    **{f"numpy.{core}.multiarray._reconstruct": NumpyArray for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _from_buffer for core in ("core", "_core")},
    "_codecs.encode": _latin1_bytes,
    "builtins.bytes": lambda: b"",  # pickle protocol 2 writes it as a call
    "collections.OrderedDict": _ordered_dict,
    **dict.fromkeys(
        (
            "collections.defaultdict",
            "collections.Counter",
            "pytorch_lightning.utilities.parsing.AttributeDict",
            "lightning_fabric.utilities.data.AttributeDict",
        ),
        lambda *_: {},
    ),
    "argparse.Namespace": Namespace,
}

_INERT = {
    # of tensors: their class, layout and device
    "torch": ("Tensor", "device", *(f"{kind}Tensor" for kind in (
        "Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool"))),
    "torch.nn.parameter": ("Parameter", "Buffer"),
    "torch.serialization": ("_get_layout",),
    # OmegaConf 2.x, in Lightning's hyper-parameters
    "omegaconf.base": ("ContainerMetadata", "Metadata"),
    "omegaconf.dictconfig": ("DictConfig",),
    "omegaconf.listconfig": ("ListConfig",),
    "omegaconf.nodes": (
        "AnyNode", "BooleanNode", "BytesNode", "EnumNode", "FloatNode", "IntegerNode", "InterpolationResultNode",
        "PathNode", "StringNode",
    ),
    "collections": ("deque",),
    "typing": ("Any",),
    "builtins": ("bool", "complex", "dict", "float", "int", "list", "set", "str", "tuple", "getattr"),
    "pathlib": ("Path", "PosixPath", "PurePosixPath", "WindowsPath"),
    # mmengine's message hub; its buffers name their own methods through `getattr`
    "mmengine.logging.history_buffer": ("HistoryBuffer",),
    # Lightning before 1.5 keys its callbacks' states by their classes
    "pytorch_lightning.callbacks.model_checkpoint": ("ModelCheckpoint",),
    "pytorch_lightning.callbacks.early_stopping": ("EarlyStopping",),
    "pytorch_lightning.callbacks.lr_monitor": ("LearningRateMonitor",),
}  # fmt: skip

_STORAGES = {
    "Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128, "QInt8": torch.qint8,
    "QInt32": torch.qint32, "QUInt8": torch.quint8, "QUInt4x2": torch.quint4x2, "QUInt2x4": torch.quint2x4,
    "Untyped": torch.uint8,
}  # fmt: skip

_NAMES: dict[str, Any] = {
    **_CALLED_NAMES,
    **{f"{module}.{name}": Inert for module, names in _INERT.items() for name in names},
    **{f"{module}.{kind}Storage": StorageType(dtype) for kind, dtype in _STORAGES.items()
       for module in ("torch", "torch.cuda", "torch.storage")},
    **{str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype | torch.qscheme)},
}  # fmt: skip

# By identity: a pickle may hold any object where a function belongs.
_CALLED: tuple[Any, ...] = (*dict.fromkeys(_CALLED_NAMES.values()), Inert)
