"""Encoders around torchvision's networks that are a sequence of `features` and a classifier."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.encoders.encoder import Encoder, fill
from benchmarks.task import FEATURE_MAPS
from pretrain.resnet import weights_sha256
from results.schema import EncoderCard

PREFIX = "torchvision:"  # of the architecture's name


def torchvision_keys(architecture: str) -> set[str]:
    """The tensor names of a network before its classifier."""
    with torch.device("meta"):
        return set(_backbone(architecture).state_dict())


def torchvision_encoder(card: EncoderCard, tensors: Mapping[str, Tensor], source: str) -> Encoder:
    """A strictly filled network. A classifier in the file is left out.

    Raises:
        InputError: a tensor is missing, left over or of another shape.
    """
    module: Any = _backbone(card.architecture.name)
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier.")}
    matched = fill(module, kept, source)
    module.eval()
    with torch.no_grad():
        stages = _stages(module["features"], torch.zeros(1, 3, 64, 64))
        width = module["features"](torch.zeros(1, 3, 64, 64)).shape[1]

    def forward(images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = {}
        x = images
        for number, layer in enumerate(module["features"]):
            x = layer(x)
            if number in stages:
                outputs[stages[number]] = x
        outputs["embed"] = x.mean((2, 3))
        return {name: outputs[name] for name in names}

    update = {
        "weights_sha256": weights_sha256(module.state_dict()),
        "keys_matched": matched,
        "keys_unused": card.keys_unused + len(tensors) - len(kept),
        "embed": f"global average of the last features ({width}-d)",
    }
    return Encoder(card.model_copy(update=update), module, forward, (*stages.values(), "embed"))


def _backbone(architecture: str) -> Any:
    import torchvision

    network: Any = torchvision.models.get_model(architecture.removeprefix(PREFIX), weights=None)
    return nn.ModuleDict({"features": network.features})


def _stages(features: nn.Sequential, images: Tensor) -> dict[int, str]:
    """Number of a layer -> name of its map: the last layer at each stride of 2 to 32."""
    last: dict[int, int] = {}
    x = images
    for number, layer in enumerate(features):
        x = layer(x)
        last[images.shape[-1] // x.shape[-1]] = number
    return {last[2**n]: name for n, name in enumerate(FEATURE_MAPS, start=1) if 2**n in last}
