"""mmsegmentation's ResNets with the stem that an encoder's card names, and the encoder's weights in them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.encoders.encoder import Encoder
from benchmarks.encoders.export.resnet_facts import backbone_tensors


def register() -> None:
    """Makes `CardResNet` and `CardResNeXt` known to mmsegmentation; its own know one stem only."""
    from mmseg.models import ResNet, ResNeXt
    from mmseg.registry import MODELS

    class CardResNet(ResNet):
        def __init__(
            self, stem_kernel: int, stem_stride: int, stem_padding: int | None, max_pool: bool, **kwargs: Any
        ) -> None:
            super().__init__(**kwargs)
            _replace_stem(self, stem_kernel, stem_stride, stem_padding, max_pool)

    class CardResNeXt(ResNeXt):
        def __init__(
            self, stem_kernel: int, stem_stride: int, stem_padding: int | None, max_pool: bool, **kwargs: Any
        ) -> None:
            super().__init__(**kwargs)
            _replace_stem(self, stem_kernel, stem_stride, stem_padding, max_pool)

    for kind in (CardResNet, CardResNeXt):
        MODELS.register_module(module=kind)


def transfer(encoder: Encoder, backbone: nn.Module) -> None:
    """Copies the encoder's weights into a segmentation model's backbone, every tensor of either."""
    backbone.load_state_dict(backbone_tensors(encoder, "mmsegmentation"), strict=True)


def check(encoder: Encoder, backbone: nn.Module) -> None:
    """Compares every tensor of the backbone with the encoder's.

    Raises:
        RuntimeError: one differs, named. That is a fault of this project or of mmsegmentation.
    """
    weights, loaded = backbone_tensors(encoder, "mmsegmentation"), backbone.state_dict()
    differing = sorted(set(loaded) ^ set(weights)) or [
        name for name, value in weights.items() if not torch.equal(loaded[name].cpu(), value.cpu())
    ]
    if differing:
        names = ", ".join(differing[:3])
        raise RuntimeError(
            f"{encoder.card.name}: {len(differing)} tensors of the backbone ({names}) are not the checkpoint's"
        )


def _replace_stem(net: Any, kernel: int, stride: int, padding: int | None, max_pool: bool) -> None:
    padding = kernel // 2 if padding is None else padding
    net.conv1 = nn.Conv2d(3, net.stem_channels, kernel, stride, padding, bias=False)
    if not max_pool:
        net.maxpool = nn.Identity()
