"""Backbones as mmsegmentation, mmdetection and mmpretrain read them: torchvision's names under `state_dict`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from benchmarks.encoders.encoder import Encoder
from benchmarks.encoders.export.atomic import replacing
from benchmarks.encoders.export.resnet_facts import backbone_tensors, differs, numbers, pixels255, written_card
from pretrain.checkpoint import CARD_KEY
from results.schema import EncoderCard


def write_openmmlab(encoder: Encoder, path: Path) -> None:
    """Writes a .pth for `init_cfg=dict(type="Pretrained", checkpoint=…)` of a backbone; the card goes along as JSON.

    The channels of the first convolution stay in the order that the card names: see `openmmlab_facts`.

    Raises:
        InputError: the encoder is no ResNet, or the file cannot be written.
    """
    contents = {
        "meta": {},
        "state_dict": backbone_tensors(encoder, "OpenMMLab"),
        CARD_KEY: written_card(encoder).model_dump_json(),
    }
    whole = io.BytesIO()  # torch's own writer hides what the system says of a full disk
    torch.save(contents, whole)
    with replacing(path) as file:
        file.write(whole.getbuffer())


def openmmlab_facts(card: EncoderCard) -> dict[str, dict[str, Any]]:
    """What the card says, as arguments of the backbone, of its norms and of the data preprocessor.

    OpenMMLab's loaders give BGR, so RGB encoders need `bgr_to_rgb`; mean and std then stand in RGB order.

    Raises:
        InputError: the encoder is no ResNet.
    """
    network, architecture = numbers(card.architecture), card.architecture
    mean, std = pixels255(card)
    backbone: dict[str, Any] = {
        "type": "ResNet",
        "depth": network.depth,
        "stem_channels": architecture.width,
        "base_channels": architecture.width,
        "style": "caffe" if architecture.stride_in_1x1 else "pytorch",
    }
    if network.groups > 1:
        backbone |= {"type": "ResNeXt", "groups": network.groups, "base_width": network.group_width}
    return {
        "backbone": backbone,
        "norm_cfg": {"eps": architecture.bn_eps},
        "data_preprocessor": {"mean": mean, "std": std, "bgr_to_rgb": card.channels == "RGB"},
    }


def beyond_openmmlab(card: EncoderCard) -> list[str]:
    """What OpenMMLab's own ResNet cannot be told of this network, in words; empty where it can."""
    network = numbers(card.architecture)
    # Its ResNeXt passes over `base_width` where there is one group.
    wide = ["wide 3x3 convolutions"] if network.groups == 1 and network.group_width != card.architecture.width else []
    return [*wide, *differs(card.architecture, ("width", "stride_in_1x1", "bn_eps"))]
