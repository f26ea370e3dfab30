"""The backbone alone, as a safetensors file that carries its encoder card: what pretraining gives to the benchmarks."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, uint8

from results.schema import EncoderCard

CARD_KEY = "encoder_card"


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
        digest.update(tensor.flatten().view(uint8).numpy().data)
    return digest.hexdigest()


def write_backbone(path: Path, tensors: Mapping[str, Tensor], card: EncoderCard) -> EncoderCard:
    """Writes the backbone atomically and returns the card with `weights_sha256` filled in.

    Raises:
        OSError: no space, or whatever else the disk says.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    card = card.model_copy(update={"weights_sha256": weights_sha256(tensors)})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file(tensors, partial, metadata={CARD_KEY: card.model_dump_json()})
        partial.chmod(0o644)  # safetensors creates it readable by its owner alone
        partial.replace(path)
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(path)) from error
    finally:
        partial.unlink(missing_ok=True)
    return card


def read_backbone(path: Path) -> tuple[dict[str, Tensor], EncoderCard | None]:
    """The tensors of a safetensors file, and its card where it has one.

    Raises:
        ValueError: not a safetensors file, or a card that does not fit the schema or the weights.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            text = (file.metadata() or {}).get(CARD_KEY)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); write or copy it again") from error
    if text is None:
        return tensors, None
    card = EncoderCard.model_validate_json(text)
    if card.weights_sha256 != weights_sha256(tensors):
        raise ValueError(f"{path}: the weights are not those that its card describes; write or copy the file again")
    return tensors, card
