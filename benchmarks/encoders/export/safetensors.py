"""Encoders as this project's own file: safetensors, with the card in its metadata."""

from __future__ import annotations

from pathlib import Path

from benchmarks.encoders.encoder import Encoder
from benchmarks.encoders.export.atomic import writable
from benchmarks.encoders.export.resnet_facts import backbone_tensors, written_card
from pretrain.checkpoint import write_backbone


def write_safetensors(encoder: Encoder, path: Path) -> None:
    """Writes the backbone and its card.

    Raises:
        InputError: the encoder is no ResNet, or the file cannot be written.
    """
    tensors = backbone_tensors(encoder, "this project's file")
    with writable(path):
        write_backbone(path, tensors, written_card(encoder))
