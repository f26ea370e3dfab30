"""Whether a checkpoint is the network that it was made of, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.encoders.load import load_encoder
from benchmarks.task import FEATURE_MAPS
from pretrain.resnet import ResNet
from pretrain.weight_files import weights_sha256
from results.schema import EncoderCard
from tests.reference.checkpoint_tables import NARROW, network

D2 = ("channels=BGR", "mean=103.53,116.28,123.675", "std=1,1,1", "value_range=255", "stride_in_1x1=false")


def assert_same_forward(path: Path, net: ResNet, **options: Any) -> EncoderCard:
    encoder = load_encoder(path, **options)
    images = torch.randn(2, 3, 64, 64)
    outputs = encoder.outputs(images, [*FEATURE_MAPS, "embed"])
    with torch.no_grad():
        for name, expected in zip(FEATURE_MAPS, net.stages(images), strict=True):
            assert torch.equal(outputs[name], expected), name
        assert torch.equal(outputs["embed"], net(images))
    assert encoder.card.weights_sha256 == weights_sha256(net.state_dict())
    return encoder.card


def strided_in_1x1() -> ResNet:
    return network(NARROW.model_copy(update={"stride_in_1x1": True}))
