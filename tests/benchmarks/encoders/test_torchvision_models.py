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


def test_a_named_network_is_found_under_a_prefix_and_of_several_the_user_picks_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, other = torchvision.models.mobilenet_v3_small().eval(), torchvision.models.mobilenet_v3_small().eval()
    one = {f"model.backbone.{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save({"state_dict": one, "epoch": 3}, tmp_path / "one.ckpt")
    images, facts = torch.randn(2, 3, 64, 64), "architecture=torchvision:mobilenet_v3_small"
    expected = torch.flatten(net.avgpool(net.features(images)), 1)
    encoder = load_encoder(tmp_path / "one.ckpt", facts=[facts])
    assert torch.allclose(encoder.outputs(images, ["embed"])["embed"], expected, atol=1e-6)
    two = one | {f"model.momentum.{name}": tensor for name, tensor in other.state_dict().items()}
    torch.save({"state_dict": two}, tmp_path / "two.ckpt")
    with pytest.raises(InputError, match=r"several networks; .*: \S+model\.backbone, \S+model\.momentum"):
        load_encoder(tmp_path / "two.ckpt", facts=[facts])
    encoder = load_encoder(tmp_path / "two.ckpt", facts=[facts, "pick=state_dict/model.backbone"])
    assert torch.allclose(encoder.outputs(images, ["embed"])["embed"], expected, atol=1e-6)
