"""From a batch of views to what an encoder's network takes."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from results.schema import EncoderCard


class Normalises(Protocol):
    """What is needed of an encoder here."""

    @property
    def card(self) -> EncoderCard: ...

    def normalise(self, images: Tensor) -> Tensor: ...


def network_input(encoder: Normalises, images: Tensor, lighting: Tensor | None = None) -> Tensor:
    """(N, 3, H, W) uint8 views, normalised by the encoder's card, in the layout that convolutions are fastest in.

    Args:
        lighting: (N, 3) RGB offsets to pixels in [0, 1]. They are added after normalisation, which being affine gives
            what adding them before would.
    """
    x = encoder.normalise(images)
    if lighting is not None:
        offset = lighting.to(x.device, non_blocking=True)
        offset = offset.flip(1) if encoder.card.channels == "BGR" else offset
        scale = encoder.card.value_range / torch.tensor(encoder.card.std, device=x.device)
        x = x + (offset * scale)[:, :, None, None]
    return x.contiguous(memory_format=torch.channels_last)
