"""torchvision's networks of `features` and a classifier, against their own forward pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from benchmarks.encoders.load import load_encoder
from benchmarks.task import FEATURE_MAPS, InputError
from pretrain.weight_files import write_backbone


def test_a_mobilenet_from_a_file_is_torchvisions_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = torchvision.models.mobilenet_v2().eval()
    torch.save({"state_dict": net.state_dict()}, tmp_path / "net.pth")
    encoder = load_encoder(f"torchvision:mobilenet_v2:{tmp_path / 'net.pth'}")
    images = torch.randn(2, 3, 64, 64)
    outputs = encoder.outputs(images, [*FEATURE_MAPS, "embed"])
    assert [64 // outputs[name].shape[-1] for name in FEATURE_MAPS] == [2, 4, 8, 16, 32]
    net.classifier = nn.Identity()
    with torch.no_grad():
        assert torch.allclose(outputs["embed"], net(images), atol=1e-6)
    card = encoder.card
    assert (card.architecture.name, card.keys_unused) == ("torchvision:mobilenet_v2", 2)
    assert card.assumed == ("mean", "std", "value_range", "channels")
    write_backbone(tmp_path / "own.safetensors", encoder.module.state_dict(), card)
    again = load_encoder(tmp_path / "own.safetensors")
    assert torch.equal(again.outputs(images, ["embed"])["embed"], outputs["embed"])
    with pytest.raises(InputError, match="it is a checkpoint of another architecture"):
        load_encoder(f"torchvision:mobilenet_v3_small:{tmp_path / 'net.pth'}")
    with pytest.raises(InputError, match="give torchvision:mobilenet_v2:FILE"):
        load_encoder("torchvision:mobilenet_v2")
