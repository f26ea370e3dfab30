"""The frozen side of a probe: the encoder's pooled outputs, and the proof that training left the encoder as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from benchmarks.features.pool import pool
from benchmarks.linear.settings import ProbeSettings
from benchmarks.training.network_input import network_input
from results.schema import EncoderCard


class Encoder(Protocol):
    """What a probe needs of an encoder: frozen, in eval mode, without gradients inside."""

    @property
    def card(self) -> EncoderCard: ...

    @property
    def module(self) -> nn.Module: ...

    def normalise(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8, RGB, to the float input that the card describes."""
        ...

    def outputs(self, images: Tensor, names: Collection[str]) -> Mapping[str, Tensor]:
        """Maps (N, C, H, W) for feature1 … feature5, vectors (N, D) for embed."""
        ...

    def has(self, name: str) -> bool: ...

    def to(self, device: str | torch.device) -> Any: ...


def module_sha256(module: nn.Module) -> str:
    """Over name, dtype, shape and bytes of every parameter and buffer (BN statistics among them)."""
    digest = hashlib.sha256()
    for name, tensor in sorted([*module.named_parameters(), *module.named_buffers()]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(raw.view(torch.uint8).numpy().tobytes() if raw.numel() else b"")
    return digest.hexdigest()


class FrozenFeatures:
    """From uint8 images to the pooled outputs that the heads read; one pass of the backbone for all of them.

    Attributes:
        outputs: those of the protocol's outputs that this encoder has.
        channels: of each output, what its batch norm runs over.
        dims: of each output after pooling, `channels` times the number of pooled positions.
    """

    def __init__(self, encoder: Encoder, settings: ProbeSettings, crop: int, device: torch.device) -> None:
        self.encoder, self.settings, self.device = encoder, settings, device
        self.outputs = tuple(name for name in settings.outputs if encoder.has(name))
        encoder.to(device)
        self.channels: dict[str, int] = {}
        self.dims: dict[str, int] = {}
        with torch.inference_mode():
            blank = torch.zeros(1, 3, crop, crop, dtype=torch.uint8, device=device)
            maps = encoder.outputs(encoder.normalise(blank), self.outputs)
            for name in self.outputs:
                self.channels[name] = maps[name].shape[1]
                self.dims[name] = self._pooled(name, maps[name]).shape[1]

    @torch.no_grad()
    def __call__(self, images: Tensor, lighting: Tensor | None = None) -> dict[str, Tensor]:
        """Args:
            images: (N, 3, H, W) uint8 on any device.
            lighting: see `network_input`.

        Returns:
            Output name to (N, D) float32. No rows for no images: a rank may have none of a last small batch.
        """
        if not len(images):
            return {name: torch.zeros(0, self.dims[name], device=self.device) for name in self.outputs}
        x = network_input(self.encoder, images.to(self.device, non_blocking=True), lighting)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            maps = self.encoder.outputs(x, self.outputs)
        return {name: self._pooled(name, maps[name].float()) for name in self.outputs}

    def _pooled(self, name: str, output: Tensor) -> Tensor:
        pooling = self.settings.pooling
        return pool(output, pooling[name]) if name in pooling else output
