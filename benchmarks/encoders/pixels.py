"""Raw pixels as an encoder: the baseline that no network should lose to."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.encoders.encoder import Encoder
from pretrain.checkpoint import weights_sha256
from results.schema import Architecture, EncoderCard

SIDE = 32


def raw_pixels() -> Encoder:
    """embed is the image, reduced to 32x32 by area averaging where it is larger, and flattened: (N, 3072)."""

    def forward(images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        small = F.adaptive_avg_pool2d(images, SIDE) if images.shape[-1] > SIDE else images
        return {"embed": small.flatten(1)}

    card = EncoderCard(
        name="raw pixels",
        source="the image itself",
        architecture=Architecture(name="pixels"),
        weights_sha256=weights_sha256({}),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        embed=f"the image at {SIDE}x{SIDE} pixels",
    )
    return Encoder(card, nn.Identity(), forward, ("embed",))
