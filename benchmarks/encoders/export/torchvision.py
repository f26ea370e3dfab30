"""Backbones as `torchvision.models` reads them: a plain state dict without the classifier."""

from __future__ import annotations

import io
from pathlib import Path

import torch

from benchmarks.contract import InputError
from benchmarks.encoders.encoder import Encoder
from benchmarks.encoders.export.atomic import replacing
from benchmarks.encoders.export.resnet_facts import backbone_tensors, differs


def write_torchvision(encoder: Encoder, path: Path) -> None:
    """Writes a .pth that the torchvision model of the same name takes with only `fc` missing.

    A state dict has no place for a card, so mean, std, range and channel order must be told by other means.

    Raises:
        InputError: the encoder is no ResNet, one that torchvision would load and then run differently, or the
            file cannot be written.
    """
    tensors = backbone_tensors(encoder, "torchvision")
    beyond = differs(encoder.card.architecture)
    if beyond:
        raise InputError(
            f"torchvision's {encoder.card.architecture.name} cannot be {encoder.card.name}, which has "
            f"{', '.join(beyond)}; write safetensors instead"
        )
    whole = io.BytesIO()  # torch's own writer hides what the system says of a full disk
    torch.save(tensors, whole)
    with replacing(path) as file:
        file.write(whole.getbuffer())
