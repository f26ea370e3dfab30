"""Backbones with their cards, as safetensors files: what a pretraining run and a conversion leave."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pretrain.resnet import weights_sha256
from results.errors import InputError
from results.files import replacing
from results.schema import EncoderCard

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
