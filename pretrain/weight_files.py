"""Weight files: tensors and plain values of a file of any format, and backbones with their cards.

A file may come from an untrusted source: nothing in it is run, and the names and numbers of its tensors are bounded.
Backbones with a card, as safetensors, are what a pretraining run and a conversion write.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shlex
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pretrain.safe_pickle import Namespace, NumpyArray, OtherTensor, read_pickled
from results.errors import InputError, first_few
from results.files import replacing
from results.schema import EncoderCard

CARD_KEY = "encoder_card"  # in the metadata of a safetensors file
SHARD_INDEX = ".index.json"  # end of the name of an index of several files, as the Hugging Face hub has it
MAX_HEADER = 8 << 20  # bytes of a safetensors header or of an index
MAX_DEPTH = 6  # of nested mappings that may hold tensors; VISSL's trunk is at 4
MAX_TENSORS = 20_000  # ViT-g with its optimiser and a moving average has 3,000
MAX_ENTRIES = 1_000_000  # of all mappings together
MAX_NAME = 1000  # characters of a tensor's name
MAX_TABLE = 64  # mappings in a list of a file's settings
_SHARING = 8  # times that tensors may share the bytes of the file, as a model under two names does


@dataclass(frozen=True)
class WeightFile:
    """The contents of a weight file.

    Attributes:
        tensors: by the path of their mapping (`state_dict`, `classy_state_dict/base_model/…`, empty for the file
            itself) and their key.
        values: strings and numbers at the top of the file, such as `arch` and `epoch`, and short lists of mappings of
            them.
        keys: all keys at the top of the file.
        card: the file's own, where this project wrote it.
    """

    path: Path
    tensors: dict[str, dict[str, Tensor]]
    values: dict[str, Any] = field(default_factory=dict)
    keys: frozenset[str] = frozenset()
    card: EncoderCard | None = None


def read_weights(path: Path) -> WeightFile:
    """Read a torch (zip or legacy), safetensors or numpy-pickle file, or the files that an index of the hub names.

    Raises:
        InputError: the file is of another kind or damaged, names anything but tensors and harmless metadata, or
            declares more data than it has.
    """
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise _cannot_open(path, error) from error
    if path.name.endswith(SHARD_INDEX):
        return _read_shards(path)
    if start[8:9] == b"{":  # after the header's length
        header = struct.unpack("<Q", start[:8])[0]
        if header > min(MAX_HEADER, path.stat().st_size):
            raise InputError(f"{path} declares a header of {header:,} bytes; it is damaged, copy it again")
        with path.open("rb") as file:
            braces = file.read(8 + header).count(b"{")  # each tensor has one
        if braces > MAX_TENSORS:
            raise _too_many_tensors(path)
        try:
            tensors, card = read_backbone(path)
        except (OSError, ValueError) as error:
            raise InputError(" ".join(str(error).split())) from error
        _check_names(path, tensors)
        return WeightFile(path, {"": tensors}, card=card)
    if start.startswith(b"PK\x03\x04") or start[:1] in (b"\x80", b"(", b"}", b"c"):
        return _weight_file(path, read_pickled(path))
    raise InputError(f"{path} is neither a torch, a safetensors nor a pickle file: {_other_kind(start)}")


def _read_shards(path: Path) -> WeightFile:
    """The tensors of all files that a `model.safetensors.index.json` names, which lie in its folder."""
    damaged = f"{path} is not an index of weight files"
    try:
        if path.stat().st_size > MAX_HEADER:
            raise InputError(f"{damaged}: it is larger than {MAX_HEADER >> 20} MB; download it again")
        places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = sorted({str(name) for name in places.values()})
    except (AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{damaged} ({type(error).__name__}: {reason}); download it again") from error
    _check_names(path, places)
    tensors: dict[str, Tensor] = {}
    for name in files:
        if Path(name).name != name or name.endswith(".json"):
            raise InputError(f"{damaged}: it names {name[:60]!a}, and files must lie next to it; download it again")
        if not (path.parent / name).is_file():
            raise InputError(f"{path} names {name}, which is not there; download the whole model")
        tensors |= {key: t for key, t in read_weights(path.parent / name).tensors.get("", {}).items() if key in places}
    missing = sorted(places.keys() - tensors.keys())
    if missing:
        raise InputError(f"{path} names {len(missing)} tensors that its files lack ({first_few(missing)}); download "
                         "the whole model again")  # fmt: skip
    return WeightFile(path, {"": tensors})


def _cannot_open(path: Path, error: OSError) -> InputError:
    if (path / "config.json").is_file():
        return InputError(f"{path} is a folder of the Hugging Face hub; write {shlex.quote(f'hf:{path}')}")
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


def _weight_file(path: Path, root: Any) -> WeightFile:
    if not isinstance(root, dict):
        raise InputError(f"{path} holds {type(root).__name__}, not a mapping of names to tensors; save a state dict")
    found: dict[str, dict[str, Any]] = {}
    entries = 0
    pending: list[tuple[str, Any, int]] = [("", root, 0)]
    while pending:
        where, mapping, depth = pending.pop()
        entries += len(mapping) + 1
        if entries > MAX_ENTRIES:
            raise InputError(f"{path} has more than {MAX_ENTRIES:,} entries; save its state dict alone")
        for key, value in mapping.items():
            if not isinstance(key, str):
                continue
            if isinstance(value, Tensor | NumpyArray | OtherTensor):
                found.setdefault(where, {})[key] = value
            elif isinstance(value, dict) and depth < MAX_DEPTH:
                if len(where) + len(key) > MAX_NAME:
                    raise InputError(f"{path} has a mapping whose name is longer than {MAX_NAME:,} characters")
                pending.append((f"{where}/{key}".lstrip("/"), value, depth + 1))
    _check_names(path, (f"{where}{key}" for where, mapping in found.items() for key in mapping))
    limit = path.stat().st_size
    left = _SHARING * limit
    tensors: dict[str, dict[str, Tensor]] = {}
    for where, mapping in found.items():
        tensors[where] = {}
        for key, value in mapping.items():
            plain = _plain(value, f"{path}: {key}", limit)
            left -= plain.nbytes
            if left < 0:
                raise InputError(f"{path} declares more than {_SHARING} times the numbers that it holds; it is damaged")
            if not isinstance(plain, Tensor):  # a copy, which may be written to
                plain = torch.from_numpy(plain.astype(plain.dtype.newbyteorder("=")))
            tensors[where][key] = plain
    values = {key: value for key, value in root.items() if isinstance(key, str)}
    keys = frozenset(values)
    args = values.get("args")
    if isinstance(args, Namespace):
        values = {**{k: v for k, v in args.attributes.items() if isinstance(k, str)}, **values}
    simple = _simple(values) | {k: [_simple(each) for each in v] for k, v in values.items() if _is_table(v)}
    return WeightFile(path, tensors, simple, keys)


def _plain(value: Tensor | NumpyArray | OtherTensor, subject: str, limit: int) -> Tensor | NDArray[Any]:
    """The tensor or array, which must be of plain numbers and have no more bytes than the file."""
    if isinstance(value, OtherTensor):
        raise InputError(f"{subject} is not a plain tensor ({value.kind}); save it dense and in floating point")
    if isinstance(value, NumpyArray):
        if value.value.dtype.kind not in "biuf":
            raise InputError(f"{subject} is text, not numbers; it is not a weight file")
        return value.value
    if value.nbytes > limit:
        raise InputError(f"{subject} declares {value.numel():,} numbers, more than the file holds; the file is damaged")
    return value


def _simple(values: Mapping[Any, Any]) -> dict[str, Any]:
    """The strings and numbers of a mapping."""
    return {
        k: v
        for k, v in values.items()
        if isinstance(k, str) and (isinstance(v, str | float) or (isinstance(v, int) and abs(v) < 2**63))
    }


def _is_table(value: object) -> bool:
    """Whether it is a short list of mappings, such as RADIO's list of teachers."""
    return (
        isinstance(value, list)
        and 0 < len(value) <= MAX_TABLE
        and all(isinstance(each, dict) and len(each) <= MAX_TABLE for each in value)
    )


def _check_names(path: Path, names: Iterable[str]) -> None:
    """Names that are too many, too long, or would break a line of the terminal."""
    for number, name in enumerate(names):
        if number == MAX_TENSORS:
            raise _too_many_tensors(path)
        if len(name) > MAX_NAME or not name.isprintable():
            raise InputError(
                f"{path} has a tensor with the invalid name {name[:40]!a}; the file is damaged or not a weight file"
            )


def _too_many_tensors(path: Path) -> InputError:
    return InputError(f"{path} has more than {MAX_TENSORS:,} tensors; save its state dict alone")


def write_backbone(path: Path, tensors: Mapping[str, Tensor], card: EncoderCard) -> EncoderCard:
    """Write the backbone atomically and return the card with `weights_sha256` filled in.

    Raises:
        OSError: the file cannot be written; the error names it.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    card = card.model_copy(update={"weights_sha256": weights_sha256(tensors)})
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={CARD_KEY: card.model_dump_json()})
        except SafetensorError as error:
            raise OSError(errno.EIO, str(error), str(path)) from error
        temporary.chmod(0o644)  # safetensors creates it readable by its owner alone
    return card


def read_backbone(path: Path) -> tuple[dict[str, Tensor], EncoderCard | None]:
    """The tensors of a safetensors file, and its card where it has one.

    Raises:
        InputError: not a safetensors file, or a card that does not fit the schema or the weights.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            text = (file.metadata() or {}).get(CARD_KEY)
    except SafetensorError as error:
        raise InputError(f"{path} is not a whole safetensors file ({error}); write or copy it again") from error
    if text is None:
        return tensors, None
    try:
        card = EncoderCard.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        fault = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise InputError(f"{path} carries a card that cannot be read ({fault}); write the file again") from error
    if card.weights_sha256 != weights_sha256(tensors):
        raise InputError(f"{path}: the weights are not those that its card describes; write or copy the file again")
    return tensors, card


def weights_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over sorted name, dtype, shape and bytes: the same for the same weights in every file layout.

    `num_batches_tracked` is left out: old files lack it and no output depends on it.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        if name.endswith("num_batches_tracked"):
            continue
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
