"""Backbones as detectron2 reads them: a pickle of numpy arrays in the names of its `build_resnet_backbone`."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

from benchmarks.encoders.encoder import Encoder
from benchmarks.encoders.export.atomic import replacing
from benchmarks.encoders.export.resnet_facts import backbone_tensors, differs, numbers, pixels255, written_card
from pretrain.checkpoint import CARD_KEY
from results.schema import EncoderCard

AUTHOR = "encoder-bench"
_SHORTCUT = {"downsample.0": "shortcut", "downsample.1": "shortcut.norm"}


def detectron2_name(name: str) -> str:
    """As `layer1.0.bn2.weight` to `res2.0.conv2.norm.weight`, and `bn1.bias` to `stem.conv1.norm.bias`."""
    block = re.fullmatch(r"layer(\d)\.(\d+)\.(\w+(?:\.\d)?)\.(\w+)", name)
    if block is None:
        part, _, tensor = name.partition(".")
        return f"stem.{_part(part)}.{tensor}"
    stage, index, part, tensor = block.groups()
    return f"res{int(stage) + 1}.{index}.{_part(part)}.{tensor}"


def _part(part: str) -> str:
    if part in _SHORTCUT:
        return _SHORTCUT[part]
    return f"conv{part[2:]}.norm" if part.startswith("bn") else part


def write_detectron2(encoder: Encoder, path: Path) -> None:
    """Writes a .pkl for `MODEL.WEIGHTS`; the card goes along as JSON, which detectron2 passes over.

    The channels of the first convolution stay in the order that the card names: see `detectron2_facts`.

    Raises:
        InputError: the encoder is no ResNet.
    """
    model = {detectron2_name(n): t.numpy() for n, t in backbone_tensors(encoder, "detectron2").items()}
    contents = {
        "model": model,
        "__author__": AUTHOR,
        "matching_heuristics": True,
        CARD_KEY: written_card(encoder).model_dump_json(),
    }
    with replacing(path) as file:
        pickle.dump(contents, file, protocol=4)


def detectron2_facts(card: EncoderCard) -> dict[str, Any]:
    """What the card says, as keys of detectron2's config. Mean and std stand in the order of `INPUT.FORMAT`.

    Raises:
        InputError: the encoder is no ResNet.
    """
    network, width = numbers(card.architecture), card.architecture.width
    mean, std = pixels255(card)
    return {
        "INPUT.FORMAT": card.channels,
        "MODEL.PIXEL_MEAN": mean,
        "MODEL.PIXEL_STD": std,
        "MODEL.RESNETS.DEPTH": network.depth,
        "MODEL.RESNETS.NUM_GROUPS": network.groups,
        "MODEL.RESNETS.WIDTH_PER_GROUP": network.group_width,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": width,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": width * (4 if network.bottleneck else 1),
        "MODEL.RESNETS.STRIDE_IN_1X1": card.architecture.stride_in_1x1,
    }


def beyond_detectron2(card: EncoderCard) -> list[str]:
    """What detectron2's own `build_resnet_backbone` cannot be told of this network, in words; empty where it can."""
    bottleneck = numbers(card.architecture).bottleneck
    return differs(card.architecture, ("stride_in_1x1", *(("width",) if bottleneck else ())))
