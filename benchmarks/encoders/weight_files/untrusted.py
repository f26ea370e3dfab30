"""Reading weight files that nobody vouches for: tensors and plain values come out, nothing is imported or called."""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from benchmarks.contract import InputError
from benchmarks.encoders.weight_files.placeholders import PICKLE, Array, Dtype, torch_globals
from pretrain.checkpoint import read_backbone
from results.schema import EncoderCard

# A file of torch before 1.6 starts with a pickle of this number (torch.serialization.MAGIC_NUMBER).
LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
DEPTH = 6  # of nested mappings that may hold tensors; VISSL's trunk is at 4


@dataclass(frozen=True)
class Contents:
    """A weight file.

    Attributes:
        kind: what wrote it.
        tensors: by the path of the mapping that holds them (`state_dict`, `classy_state_dict/base_model/…`, empty for
            the file itself) and their key.
        values: strings and numbers at the top of the file, as `arch` and `epoch`.
        keys: every key at the top of the file.
        card: the file's own, where this project wrote it.
    """

    path: Path
    kind: Literal["safetensors", "torch", "pickle"]
    tensors: dict[str, dict[str, Tensor]]
    values: dict[str, Any] = field(default_factory=dict)
    keys: frozenset[str] = frozenset()
    card: EncoderCard | None = None


def read_weights(path: Path) -> Contents:
    """The tensors of a torch (zip or legacy), safetensors or numpy-pickle file.

    Raises:
        InputError: another kind of file, a damaged one, one that names anything but tensors and harmless metadata, or
            one that declares more data than it has.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(LEGACY_TORCH))
    except OSError as error:
        raise _unopened(path, error) from error
    if start[8:9] == b"{":  # after the header's length
        try:
            tensors, card = read_backbone(path)
        except ValidationError as error:
            first = error.errors()[0]
            fault = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise InputError(f"{path} carries a card that cannot be read ({fault}); write the file again") from error
        except (OSError, ValueError) as error:
            raise InputError(" ".join(str(error).split())) from error
        return Contents(path, "safetensors", {"": tensors}, card=card)
    if start.startswith(b"PK\x03\x04") or start == LEGACY_TORCH:
        return _contents(path, "torch", _torch(path))
    if start[:1] in (b"\x80", b"(", b"}", b"c"):
        return _contents(path, "pickle", _pickle(path))
    raise InputError(f"{path} is neither a torch, a safetensors nor a pickle file: {_kind(start)}")


def _unopened(path: Path, error: OSError) -> InputError:
    if path.is_dir():
        return InputError(f"{path} is a folder; give a file in it, or several as '{path / '*.pth'}'")
    if path.is_symlink() and not path.exists():
        return InputError(f"{path} is a link to {path.readlink()}, which is not there; restore that file")
    return InputError(f"cannot read {path} ({error.strerror}); give a file that is there and may be read")


def _kind(start: bytes) -> str:
    """What a file of another kind probably is, and what to do."""
    if not start:
        return "it is empty; copy it again"
    if start.startswith(b"version "):
        return "it is the pointer that Git LFS leaves in a file's place; get the file with git lfs pull"
    if start.lstrip().startswith(b"<"):
        return "it is a web page; download the file that the page is about"
    return f"it starts with {start[:8]!r}; unpack it, or save its state dict with torch.save"


def _torch(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        if zipped and not zipfile.is_zipfile(path):  # the list of a zip's members is at its end
            raise InputError(f"{path} is cut short: only the beginning of a torch file is there; copy it again")
        _no_bytearray(_pickle_of_zip(path) if zipped else path.read_bytes())
        with torch.serialization.safe_globals(list(torch_globals())), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols and deprecated storages
            return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # an untrusted file can make the reader fail in any way
        raise _refused(path, error) from error


def _pickle_of_zip(path: Path) -> bytes:
    """The pickle in a zip that holds no more than it weighs: torch stores its members, only a bomb compresses them."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        found = [m for m in members if m.filename.endswith("/data.pkl")]
        if not found:
            raise InputError(f"{path} is a zip file, but not one that torch.save wrote; unpack it")
        packed = [m for m in members if m.compress_type != zipfile.ZIP_STORED]
        if packed or sum(m.file_size for m in members) > path.stat().st_size:
            raise InputError(
                f"{path} declares more data than it has ({len(packed)} of {len(members)} members are compressed), "
                "which torch.save never does; save its state dict anew where you trust it"
            )
        return archive.read(found[0])


def _no_bytearray(data: bytes) -> None:
    """Torch allows `bytearray(n)`, which takes and touches n bytes of memory for a few bytes of file."""
    stream = io.BytesIO(data)
    while True:
        recent: list[object] = []
        for opcode, argument, _ in pickletools.genops(stream):
            recent = [*recent[-1:], argument] if isinstance(argument, str) else recent
            name = argument if opcode.name == "GLOBAL" else " ".join(map(str, recent))
            if opcode.name in ("GLOBAL", "STACK_GLOBAL") and str(name).endswith(" bytearray"):
                raise pickle.UnpicklingError("Unsupported global: GLOBAL builtins.bytearray was not allowed")
        # A legacy file is five pickles (magic number, protocol, system, object, storages' keys) before the data.
        if stream.read(1) != b"\x80":
            return
        stream.seek(-1, io.SEEK_CUR)


# Python's, as C's has a memo that a few bytes of file can blow up. The stubs know it under C's name alone.
_Unpickler: Any = pickle._Unpickler


class _NumpyUnpickler(_Unpickler):
    """Knows numpy's arrays and nothing else."""

    dispatch: ClassVar[dict[int, Any]] = dict(_Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in PICKLE:
            raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {full} was not allowed")
        return PICKLE[full]

    def load_build(self) -> None:
        """Sets a state, of arrays and their types only: the original would set attributes on anything."""
        state = self.stack.pop()
        if type(self.stack[-1]) not in (Array, Dtype):
            raise pickle.UnpicklingError(f"a state for {type(self.stack[-1]).__name__}")
        self.stack[-1].__setstate__(state)

    dispatch[pickle.BUILD[0]] = load_build


def _pickle(path: Path) -> Any:
    try:
        return _NumpyUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except Exception as error:
        raise _refused(path, error) from error


def _refused(path: Path, error: Exception) -> InputError:
    text = str(error)
    found = re.search(r"GLOBAL (\S+)", text)
    if found or "unrecognized function" in text or text.startswith("Can only"):
        what = f"names {found[1]}" if found else "calls or changes an object"
        return InputError(
            f"{path} {what}, which is neither a tensor nor harmless metadata, so it was not read and nothing in it was "
            "run; where you trust it, save its state dict alone with torch.save or safetensors"
        )
    first = " ".join(text.split())[:200] or type(error).__name__
    return InputError(f"{path} cannot be read as weights ({first}); it is damaged, or not a weight file: copy it again")


def _contents(path: Path, kind: Literal["torch", "pickle"], root: Any) -> Contents:
    if not isinstance(root, dict):
        raise InputError(f"{path} holds {type(root).__name__}, not a mapping of names to tensors; save a state dict")
    tensors: dict[str, dict[str, Tensor]] = {}
    limit = path.stat().st_size
    pending: list[tuple[str, Any, int]] = [("", root, 0)]
    while pending:
        where, mapping, depth = pending.pop()
        for key, value in dict.items(mapping):  # `mapping.items` may be anything: the file can set attributes
            if not isinstance(key, str):
                continue
            if isinstance(value, Tensor | Array):
                tensors.setdefault(where, {})[key] = _tensor(value, f"{path}: {key}", limit)
            elif isinstance(value, dict) and depth < DEPTH:
                pending.append((f"{where}/{key}".lstrip("/"), value, depth + 1))
    keys = [key for key in dict.keys(root) if isinstance(key, str)]
    values = {key: dict.__getitem__(root, key) for key in keys}
    args = values.get("args")
    if type(args).__name__ == "Namespace":
        values = {**{k: v for k, v in vars(args).items() if isinstance(k, str)}, **values}
    simple = {k: v for k, v in values.items() if isinstance(v, str | int | float)}
    return Contents(path, kind, tensors, simple, frozenset(keys))


def _tensor(value: Tensor | Array, what: str, limit: int) -> Tensor:
    if isinstance(value, Array):
        if value.value.dtype.kind not in "biuf":
            raise InputError(f"{what} is text, not numbers; it is not a weight file")
        array = value.value
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))  # a copy that may be written to
    plain = value.detach()
    if plain.layout != torch.strided or plain.is_quantized or plain.device.type != "cpu":
        raise InputError(f"{what} is not a plain tensor ({plain.layout}); save it dense and in floating point")
    if plain.numel() * plain.element_size() > limit:
        raise InputError(f"{what} declares {plain.numel():,} numbers, more than the file holds; the file is damaged")
    return plain
