"""What distinguishes two modules with equal weights: their structure, settings and code, as one short hash.

A module's weights do not say what it computes: a scale kept as a plain attribute, another pooling, a hook or an edited
`forward` give other features. So the hash covers the attributes of every submodule and the code of every class and
function that is not of an installed library, with the global values that this code names. Where something cannot be
compared for sure, such as an object of an unknown class, the module gets an identity that nothing else has, and
neither features nor records are shared with it.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import functools
import logging
import sys
import sysconfig
import types
from collections import OrderedDict, deque
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path, PurePath
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

_PLAIN = (
    type(None), bool, int, float, complex, str, bytes, range, slice, type(...), torch.dtype, torch.device,
    torch.memory_format, torch.layout, np.dtype,
)  # fmt: skip
_NAMESPACES = (argparse.Namespace, types.SimpleNamespace)
_NOT_OF_A_CLASS = ("__doc__", "__dict__", "__weakref__", "__module__", "__annotations__", "__abstractmethods__",
                   "_abc_impl", "__slots__")  # fmt: skip


def module_identity(module: nn.Module) -> str:
    """Eight hex digits: equal for modules of equal structure, settings and code, whatever their weights.

    Where this cannot be told, the digits are random.
    """
    digest = _Digest()
    try:
        digest.add(module)
    except (_UnknownError, RecursionError) as reason:
        log.info(
            "%s: features and records are not shared with other runs, because %s cannot be compared",
            type(module).__name__, reason if isinstance(reason, _UnknownError) else "its structure",
        )  # fmt: skip
        return uuid4().hex[:8]
    return digest.hash.hexdigest()[:8]


class _UnknownError(Exception):
    """Names the kind of object that cannot be compared."""


class _Digest:
    """A hash over objects: what they are, not where they are in memory."""

    def __init__(self) -> None:
        self.hash = sha256()
        self._seen: dict[int, int] = {}
        self._kept: list[object] = []  # an object that is freed would give its id to another one

    def add(self, value: Any) -> None:
        """Hash an object and everything in it.

        Raises:
            _UnknownError: it, or something in it, cannot be compared.
        """
        kind = type(value)
        if kind in _PLAIN or isinstance(value, np.dtype | np.generic | PurePath):
            return self._text(kind.__qualname__, repr(value))
        if isinstance(value, enum.Enum):
            return self._text(kind.__module__, kind.__qualname__, value.name)
        if isinstance(value, logging.Logger):
            return self._text("logger")
        if isinstance(value, types.ModuleType):
            return self._named(value.__name__, value.__name__)
        if kind is not tuple:  # equal tuples may be one object or two
            if id(value) in self._seen:
                return self._text("again", str(self._seen[id(value)]))
            self._seen[id(value)] = len(self._seen)
            self._kept.append(value)
        if isinstance(value, nn.Module):
            return self._module(value)
        self._text(kind.__qualname__)
        for part in self._parts(value):
            self.add(part)
        return None

    def _text(self, *texts: str) -> None:
        for text in texts:
            encoded = text.encode("utf-8", "surrogatepass")
            self.hash.update(len(encoded).to_bytes(8, "little") + encoded)

    def _named(self, module: str | None, name: str) -> None:
        """Something of an installed library: its name and the library's version say what it is."""
        version = _library_version(module or "builtins")
        if version is None:
            raise _UnknownError(f"{module}, a module of your own")
        self._text(str(module), name, version)

    def _module(self, module: nn.Module) -> None:
        self._class(type(module))
        attributes = module.__dict__
        for name in sorted(attributes):
            value = attributes[name]
            if name in ("training", "_parameters", "_buffers"):
                continue  # the other two are part of the hash of the weights
            self._text(name)
            # Hooks are numbered in the order in which anything in the process registered one.
            self.add(list(value.values()) if name.endswith("_hooks") and isinstance(value, dict) else value)
        for name in sorted(module._non_persistent_buffers_set):
            self.add(module._buffers.get(name))

    def _class(self, kind: type) -> None:
        if _library_version(kind.__module__) is not None:
            return self._named(kind.__module__, kind.__qualname__)
        self._text(kind.__qualname__)
        for base in kind.__mro__[1:]:
            self.add(base)
        for name, value in sorted(vars(kind).items()):
            if name not in _NOT_OF_A_CLASS and not isinstance(value, types.GetSetDescriptorType):
                self._text(name)
                self.add(value)
        return None

    def _parts(self, value: Any) -> Iterator[Any]:
        """The objects that an object is made of."""
        kind = type(value)
        if isinstance(value, Tensor) and kind in (Tensor, nn.Parameter) and value.layout == torch.strided:
            yield from (str(value.dtype), tuple(value.shape))
            self.hash.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif kind is np.ndarray and not value.dtype.hasobject:
            yield from (value.dtype.str, value.shape, value.tobytes())
        elif isinstance(value, list | tuple | deque):
            yield len(value)
            yield from value
        elif kind in (set, frozenset) and all(type(item) in _PLAIN for item in value):
            yield sorted(map(repr, value))
        elif kind in (dict, OrderedDict, types.MappingProxyType):
            yield len(value)
            for key, item in value.items():
                yield from (key, item)
        elif kind is functools.partial:
            yield from (value.func, value.args, value.keywords)
        elif isinstance(value, types.FunctionType):
            yield from self._function(value)
        elif isinstance(value, types.BuiltinFunctionType):
            owner = value.__self__
            yield from (value.__qualname__, None if isinstance(owner, types.ModuleType) else owner)
        elif isinstance(value, types.MethodType):
            yield from (value.__func__, value.__self__)
        elif isinstance(value, staticmethod | classmethod):
            yield value.__func__
        elif isinstance(value, property):
            yield from (value.fget, value.fset, value.fdel)
        elif isinstance(value, types.CodeType):
            yield from (value.co_code, value.co_names, value.co_freevars, value.co_consts)
        elif isinstance(value, type):
            self._class(value)
        elif kind in _NAMESPACES or (dataclasses.is_dataclass(value) and hasattr(value, "__dict__")):
            yield from (kind, vars(value))
        else:
            raise _UnknownError(f"an object of {kind.__module__}.{kind.__qualname__}")

    def _function(self, function: types.FunctionType) -> Iterator[Any]:
        yield from (function.__defaults__, function.__kwdefaults__)
        for cell in function.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:
                yield "an empty cell"
        if _library_version(function.__module__) is not None:
            self._named(function.__module__, function.__qualname__)
            return
        yield function.__code__
        for name in sorted(set(_names(function.__code__))):
            if name in function.__globals__:
                yield from (name, function.__globals__[name])


def _names(code: types.CodeType) -> Iterator[str]:
    """The names that a function's code, with the functions inside it, may look up among its globals."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


@cache
def _library_version(module: str) -> str | None:
    """The version of the installed library that a module belongs to; None for code of the user's own."""
    root = module.partition(".")[0]
    if root != "__main__" and (root in sys.stdlib_module_names or root in sys.builtin_module_names):
        return sys.version
    file = getattr(sys.modules.get(module), "__file__", None) or getattr(sys.modules.get(root), "__file__", None)
    folders = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}
    if file is None or not any(Path(file).resolve().is_relative_to(folder) for folder in folders):
        return None
    return str(getattr(sys.modules.get(root), "__version__", "without a version"))
