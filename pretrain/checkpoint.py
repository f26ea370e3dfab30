"""Files of a pretraining run: the resume file, its numbered copies, and the backbone with its encoder card."""

from __future__ import annotations

import errno
import pickle
import pickletools
import re
import shutil
import zipfile
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pretrain.resnet import weights_sha256
from results.errors import InputError
from results.files import replacing
from results.schema import EncoderCard

RESUME = "resume.pt"
# What torch.save writes of containers, numbers, texts and tensors, and the names in it.
_OPCODES = {
    "PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BINPERSID", "BUILD", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET",
    "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "EMPTY_DICT",
    "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS",
}  # fmt: skip
_MAX_OPERATIONS = 1_000_000
_TENSOR_NAMES = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v[23]|parameter)|torch (\w+Storage|b?float\d+|u?int\d+)"
)
CARD_KEY = "encoder_card"  # in the metadata of a safetensors file


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
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
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


def save_resume(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, containers of them) atomically: a kill leaves the old file whole.

    Raises:
        OSError: the file cannot be written; the error names it.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(state, file)


def load_resume(path: Path) -> dict[str, Any] | None:
    """Read what `save_resume` wrote, on the CPU; None where there is no file. Only tensors and plain values are read.

    The checksum of every part of the archive is verified, which `torch.load` does not do, and its pickle may name
    tensors and their types alone: torch also allows what takes any amount of memory, such as `bytearray`.

    Raises:
        InputError: damaged, or not a resume file.
    """
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
            if packed or sum(member.file_size for member in members) > path.stat().st_size:
                raise zipfile.BadZipFile("it declares more data than it has")
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
            for member in members:
                if member.filename.endswith(".pkl"):
                    _check_names(archive.read(member))
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # zipfile, pickle and runtime errors, depending on how the file is damaged
        raise unusable_resume(path, error) from error


def _check_names(data: bytes) -> None:
    """Raises UnpicklingError where a pickle of torch names anything but tensors and their types."""
    for number, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if number > _MAX_OPERATIONS:
            raise pickle.UnpicklingError("it has more operations than any run")
        if opcode.name not in _OPCODES:
            raise pickle.UnpicklingError(f"it has the operation {opcode.name}")
        if opcode.name == "GLOBAL" and not _TENSOR_NAMES.fullmatch(str(argument)):
            raise pickle.UnpicklingError(f"it names {argument!a:.100}")


def unusable_resume(path: Path, error: Exception) -> InputError:
    """The refusal of a resume file that cannot be used."""
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    return InputError(
        f"{path} is damaged or not a resume file of this project ({reason}); remove it to start anew, or replace it by "
        "one of the epoch_*.pt files next to it"
    )


def numbered(out: Path, epoch: int) -> Path:
    """The checkpoint after `epoch` whole epochs."""
    return out / f"epoch_{epoch:04d}.pt"


def keep(out: Path, epoch: int, last: int, marked: Container[int]) -> None:
    """Keep the resume file, just written, as that of `epoch`, and delete all but the `last` of the unmarked ones.

    A hard link costs no space until the resume file moves on; where the file system has none it is a copy.
    """
    path = numbered(out, epoch)
    with replacing(path) as temporary:
        try:
            temporary.hardlink_to(out / RESUME)
        except OSError:
            shutil.copyfile(out / RESUME, temporary)
    there = sorted((int(p.stem.removeprefix("epoch_")), p) for p in out.glob("epoch_*.pt"))
    unmarked = [p for number, p in there if number not in marked]
    for old in unmarked[: max(0, len(unmarked) - last)]:
        old.unlink()
