"""Read weight files from untrusted sources: tensors and plain values come out, nothing is imported or called.

The pickle of a weight file may name numpy's arrays and types, which are rebuilt from their bytes, and harmless
metadata, which is replaced by inert objects. Any other name is refused.
"""

from __future__ import annotations

import argparse
import io
import pickle
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from benchmarks.task import InputError
from pretrain.checkpoint import read_backbone
from results.schema import EncoderCard

# A file of torch before 1.6 starts with a pickle of this number (torch.serialization.MAGIC_NUMBER).
LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
LEGACY_PICKLES = 5  # magic number, protocol, system, object and keys of the storages; then the storages
MAX_DEPTH = 6  # of nested mappings that may hold tensors; VISSL's trunk is at 4


@dataclass(frozen=True)
class WeightFile:
    """The contents of a weight file.

    Attributes:
        tensors: by the path of their mapping (`state_dict`, `classy_state_dict/base_model/…`, empty for the file
            itself) and their key.
        values: strings and numbers at the top of the file, such as `arch` and `epoch`.
        keys: all keys at the top of the file.
        card: the file's own, where this project wrote it.
    """

    path: Path
    tensors: dict[str, dict[str, Tensor]]
    values: dict[str, Any] = field(default_factory=dict)
    keys: frozenset[str] = frozenset()
    card: EncoderCard | None = None


def read_weights(path: Path) -> WeightFile:
    """Read a torch (zip or legacy), safetensors or numpy-pickle file.

    Raises:
        InputError: the file is of another kind or damaged, names anything but tensors and harmless metadata, or
            declares more data than it has.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(LEGACY_TORCH))
    except OSError as error:
        raise _cannot_open(path, error) from error
    if start[8:9] == b"{":  # after the header's length
        try:
            tensors, card = read_backbone(path)
        except ValidationError as error:
            first = error.errors()[0]
            fault = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise InputError(f"{path} has a card that cannot be read ({fault}); write the file again") from error
        except (OSError, ValueError) as error:
            raise InputError(" ".join(str(error).split())) from error
        return WeightFile(path, {"": tensors}, card=card)
    if start.startswith(b"PK\x03\x04") or start == LEGACY_TORCH:
        return _weight_file(path, _read_torch(path))
    if start[:1] in (b"\x80", b"(", b"}", b"c"):
        return _weight_file(path, _read_pickle(path))
    raise InputError(f"{path} is neither a torch, a safetensors nor a pickle file: {_other_kind(start)}")


def _cannot_open(path: Path, error: OSError) -> InputError:
    if path.is_dir():
        return InputError(f"{path} is a folder; give a file in it, or several files as '{path / '*.pth'}'")
    if path.is_symlink() and not path.exists():
        return InputError(f"{path} is a link to {path.readlink()}, which does not exist; restore that file")
    return InputError(f"cannot read {path} ({error.strerror}); give a readable file")


def _other_kind(start: bytes) -> str:
    """A guess at the kind of file, and what to do."""
    if not start:
        return "it is empty; copy it again"
    if start.startswith(b"version "):
        return "it is a Git LFS pointer; get the file with git lfs pull"
    if start.lstrip().startswith(b"<"):
        return "it is a web page; download the file that the page links to"
    return f"it starts with {start[:8]!r}; unpack it, or save its state dict with torch.save"


def _read_torch(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        if zipped and not zipfile.is_zipfile(path):  # the list of a zip's members is at its end
            raise InputError(f"{path} is cut short; copy it again")
        _refuse_bytearray(*((_pickle_of_zip(path), 1) if zipped else (path.read_bytes(), LEGACY_PICKLES)))
        with torch.serialization.safe_globals(list(_torch_globals())), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols and deprecated storages
            return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # an untrusted file can make the reader fail in any way
        raise _refused(path, error) from error


def _pickle_of_zip(path: Path) -> bytes:
    """The pickle in a zip file of torch, which never compresses members; a zip bomb does."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        found = [m for m in members if m.filename.endswith("/data.pkl")]
        if not found:
            raise InputError(f"{path} is a zip file, but torch.save did not write it; unpack it")
        packed = [m for m in members if m.compress_type != zipfile.ZIP_STORED]
        if packed or sum(m.file_size for m in members) > path.stat().st_size:
            raise InputError(
                f"{path} declares more data than it has ({len(packed)} of {len(members)} members are compressed), "
                "which torch.save never does; if you trust it, save its state dict again"
            )
        return archive.read(found[0])


def _refuse_bytearray(data: bytes, pickles: int) -> None:
    """Torch allows `bytearray(n)`, by which a few bytes of file allocate n bytes of memory.

    Args:
        pickles: how many stand at the start of `data`. What follows them are numbers, which may look like a pickle.
    """
    stream = io.BytesIO(data)
    for _ in range(pickles):
        recent: list[object] = []
        for opcode, argument, _ in pickletools.genops(stream):
            recent = [*recent[-1:], argument] if isinstance(argument, str) else recent
            name = argument if opcode.name == "GLOBAL" else " ".join(map(str, recent))
            if opcode.name in ("GLOBAL", "STACK_GLOBAL") and str(name).endswith(" bytearray"):
                raise UnpicklingError("Unsupported global: GLOBAL builtins.bytearray was not allowed")


# Python's unpickler: the memo of the one in C can be blown up by a few bytes of file. The stubs only know the one in C.
_Unpickler: Any = pickle._Unpickler


class _NumpyUnpickler(_Unpickler):
    """Knows numpy's arrays and plain values only."""

    dispatch: ClassVar[dict[int, Any]] = dict(_Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in _PLAIN_PICKLE:
            raise UnpicklingError(f"Unsupported global: GLOBAL {full} was not allowed")
        return _PLAIN_PICKLE[full]

    def load_build(self) -> None:
        """Set the state of arrays and their types only; the original sets attributes on any object."""
        state = self.stack.pop()
        if type(self.stack[-1]) not in (NumpyArray, NumpyDtype):
            raise UnpicklingError(f"a state for {type(self.stack[-1]).__name__}")
        self.stack[-1].__setstate__(state)

    dispatch[pickle.BUILD[0]] = load_build


def _read_pickle(path: Path) -> Any:
    try:
        return _NumpyUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except Exception as error:
        raise _refused(path, error) from error


def _refused(path: Path, error: Exception) -> InputError:
    text = str(error)
    found = re.search(r"GLOBAL (\S+)", text)
    if found or "unrecognized function" in text or text.startswith("Can only"):
        fault = f"names {found[1]}" if found else "calls or changes an object"
        return InputError(
            f"{path} {fault}, which is neither a tensor nor harmless metadata; it was not loaded and nothing in it was "
            "run. If you trust it, save its state dict alone with torch.save or safetensors"
        )
    first = " ".join(text.split())[:200] or type(error).__name__
    return InputError(f"{path} cannot be read as weights ({first}); it is damaged or not a weight file; copy it again")


def _weight_file(path: Path, root: Any) -> WeightFile:
    if not isinstance(root, dict):
        raise InputError(f"{path} holds {type(root).__name__}, not a mapping of names to tensors; save a state dict")
    tensors: dict[str, dict[str, Tensor]] = {}
    limit = path.stat().st_size
    pending: list[tuple[str, Any, int]] = [("", root, 0)]
    while pending:
        where, mapping, depth = pending.pop()
        for key, value in dict.items(mapping):  # not `mapping.items`: the file can overwrite attributes
            if not isinstance(key, str):
                continue
            if isinstance(value, Tensor | NumpyArray):
                tensors.setdefault(where, {})[key] = _tensor(value, f"{path}: {key}", limit)
            elif isinstance(value, dict) and depth < MAX_DEPTH:
                pending.append((f"{where}/{key}".lstrip("/"), value, depth + 1))
    keys = [key for key in dict.keys(root) if isinstance(key, str)]
    values = {key: dict.__getitem__(root, key) for key in keys}
    args = values.get("args")
    if type(args).__name__ == "Namespace":
        values = {**{k: v for k, v in vars(args).items() if isinstance(k, str)}, **values}
    simple = {k: v for k, v in values.items() if isinstance(v, str | int | float)}
    return WeightFile(path, tensors, simple, frozenset(keys))


def _tensor(value: Tensor | NumpyArray, subject: str, limit: int) -> Tensor:
    if isinstance(value, NumpyArray):
        if value.value.dtype.kind not in "biuf":
            raise InputError(f"{subject} is text, not numbers; it is not a weight file")
        array = value.value
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))  # a copy that may be written to
    plain = value.detach()
    if plain.layout != torch.strided or plain.is_quantized or plain.device.type != "cpu":
        raise InputError(f"{subject} is not a plain tensor ({plain.layout}); save it dense and in floating point")
    if plain.numel() * plain.element_size() > limit:
        raise InputError(f"{subject} declares {plain.numel():,} numbers, more than the file holds; the file is damaged")
    return plain


# ---- stand-ins for the names in a pickle -----------------------------------------------------------------------------


class Inert:
    """Stands for an object of a class that is not loaded: accepts any arguments, keeps none, and cannot be called."""

    def __new__(cls, *_args: object, **_kwargs: object) -> Inert:
        return object.__new__(cls)

    def __init__(self, *_args: object, **_kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


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


def _latin1_bytes(text: str, encoding: str = "latin1") -> bytes:
    """`_codecs.encode` as pickle protocol 2 uses it for bytes."""
    if encoding != "latin1":
        raise UnpicklingError(f"text encoded as {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""  # pickle protocol 2 writes it as a call of `bytes`


def _no_items(*_: object) -> dict[Any, Any]:
    return {}


def _text(value: str | bytes) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else str(value)


_NUMPY: dict[str, Callable[..., Any]] = {
    "numpy.dtype": NumpyDtype,
    "numpy.ndarray": NumpyArray,
    "builtins.bytes": _no_bytes,
    **{f"numpy.{core}.multiarray._reconstruct": NumpyArray for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _from_buffer for core in ("core", "_core")},
}

_PLAIN_PICKLE: dict[str, Callable[..., Any]] = {
    **_NUMPY, "_codecs.encode": _latin1_bytes, "__builtin__.bytes": _no_bytes, "collections.OrderedDict": OrderedDict
}  # fmt: skip

_INERT = {
    # OmegaConf 2.x, in Lightning's hyper-parameters
    "omegaconf.base": ("ContainerMetadata", "Metadata"),
    "omegaconf.dictconfig": ("DictConfig",),
    "omegaconf.listconfig": ("ListConfig",),
    "omegaconf.nodes": (
        "AnyNode", "BooleanNode", "BytesNode", "EnumNode", "FloatNode", "IntegerNode", "InterpolationResultNode",
        "PathNode", "StringNode",
    ),
    "typing": ("Any",),
    "builtins": ("bool", "dict", "float", "int", "list", "str", "tuple", "getattr"),
    "pathlib": ("Path", "PosixPath", "PurePosixPath", "WindowsPath"),
    # mmengine's message hub; its buffers name their own methods through `getattr`
    "mmengine.logging.history_buffer": ("HistoryBuffer",),
    # Lightning before 1.5 keys its callbacks' states by their classes
    "pytorch_lightning.callbacks.model_checkpoint": ("ModelCheckpoint",),
    "pytorch_lightning.callbacks.early_stopping": ("EarlyStopping",),
    "pytorch_lightning.callbacks.lr_monitor": ("LearningRateMonitor",),
}  # fmt: skip


def _torch_globals() -> Iterable[Any]:
    """The argument of `torch.serialization.safe_globals`: each harmless name and its stand-in."""
    stand_ins: dict[str, Callable[..., Any]] = {
        **_NUMPY,
        "collections.defaultdict": _no_items,
        "pytorch_lightning.utilities.parsing.AttributeDict": dict,
        "lightning_fabric.utilities.data.AttributeDict": dict,
        **{f"{module}.{name}": Inert for module, names in _INERT.items() for name in names},
    }
    return [argparse.Namespace, *((stand_in, name) for name, stand_in in stand_ins.items())]
