"""What stands in a weight file's pickle for anything but tensors: numpy rebuilt from bytes, the rest inert.

Nothing here imports or calls what a file names. A global that is not in these tables is refused by its name.
"""

from __future__ import annotations

import argparse
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pickle import UnpicklingError
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Inert:
    """An object of a class that is not loaded. Takes whatever it is built from, keeps none of it, cannot be called."""

    def __new__(cls, *_args: object, **_kwargs: object) -> Inert:
        return object.__new__(cls)

    def __init__(self, *_args: object, **_kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


class Dtype:
    """A numpy dtype of numbers or text. Objects and structures are refused: neither is a weight."""

    def __init__(self, text: str | bytes, *_: object) -> None:
        self.text, self.order = _text(text), "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = _text(state[1])

    def numpy(self) -> np.dtype[Any]:
        if not re.fullmatch(r"[?bhilqefdBHILQ]|[<>=|]?(b1|[biuf][1248]|[SU]\d{1,6})", self.text):
            raise UnpicklingError(f"numpy data of type {self.text!r}")
        dtype = np.dtype(self.text)
        return dtype.newbyteorder(">") if self.order == ">" else dtype


class Array:
    """A numpy array, made from the bytes that its state holds: it never takes more memory than the file has."""

    def __init__(self, *_: object) -> None:
        self.value: NDArray[Any] = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, "F" if fortran else "C")


def _array(data: Any, dtype: Any, shape: Any, order: str = "C") -> NDArray[Any]:
    if not isinstance(dtype, Dtype):
        raise UnpicklingError(f"numpy data of type {type(dtype).__name__}")
    raw = data.encode("latin1") if isinstance(data, str) else data  # Python 2 wrote bytes as text
    array: NDArray[Any] = np.frombuffer(raw, dtype.numpy()).reshape(shape, order=order)  # type: ignore[call-overload]
    return array


def _from_buffer(data: Any, dtype: Any, shape: Any, order: str) -> Array:
    array = Array()
    array.value = _array(data, dtype, shape, order)
    return array


def _scalar(dtype: Any, data: Any) -> Any:
    return _array(data, dtype, ()).item()


def encoded(text: str, encoding: str = "latin1") -> bytes:
    """`_codecs.encode`, which is how protocol 2 writes bytes, and only that."""
    if encoding != "latin1":
        raise UnpicklingError(f"text encoded as {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""  # which protocol 2 writes as a call of `bytes`


def _no_items(*_: object) -> dict[Any, Any]:
    return {}


def _text(value: str | bytes) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else str(value)


NUMPY: dict[str, Callable[..., Any]] = {
    "numpy.dtype": Dtype,
    "numpy.ndarray": Array,
    "builtins.bytes": _no_bytes,
    **{f"numpy.{core}.multiarray._reconstruct": Array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _from_buffer for core in ("core", "_core")},
}

PICKLE: dict[str, Callable[..., Any]] = {
    **NUMPY, "_codecs.encode": encoded, "__builtin__.bytes": _no_bytes, "collections.OrderedDict": OrderedDict
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


def torch_globals() -> Iterable[Any]:
    """What `torch.serialization.safe_globals` takes: each harmless name and what stands for it."""
    stand_ins: dict[str, Callable[..., Any]] = {
        **NUMPY,
        "collections.defaultdict": _no_items,
        "pytorch_lightning.utilities.parsing.AttributeDict": dict,
        "lightning_fabric.utilities.data.AttributeDict": dict,
        **{f"{module}.{name}": Inert for module, names in _INERT.items() for name in names},
    }
    return [argparse.Namespace, *((stand_in, name) for name, stand_in in stand_ins.items())]
