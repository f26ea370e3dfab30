"""The ResNets against torchvision's, and the split batch norm against a loop over devices."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from pretrain.resnet import STAGES, ResNet, SplitBatchNorm
from results.schema import Architecture


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(STAGES))
def test_same_names_shapes_and_outputs_as_torchvision(name: str) -> None:
    torch.manual_seed(0)
    block, depths, groups, width = STAGES[name]  # torchvision has no function for the ResNeXt of MoCo v1
    named = getattr(torchvision.models, name, None)
    theirs = (
        named(weights=None)
        if named
        else torchvision.models.ResNet(block, list(depths), groups=groups, width_per_group=width)
    )
    ours = ResNet(Architecture(name=name))
    tensors = {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    ours.load_state_dict(tensors, strict=True)
    theirs.fc = nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(ours.eval()(images), theirs.eval()(images), atol=1e-5)
        # before the max-pool, after the ReLU
        assert torch.allclose(ours.stages(images)[0], theirs.relu(theirs.bn1(theirs.conv1(images))), atol=1e-6)


def test_wide_resnet_has_the_published_number_of_parameters() -> None:
    # MoCo v1, Table of widths: R50w2x 94M, R50w4x 375M, with the classifier's or head's weights aside
    for width, millions in ((128, 94), (256, 375)):
        with torch.device("meta"):
            count = sum(p.numel() for p in ResNet(Architecture(name="resnet50", width=width)).parameters())
        assert abs(count / 1e6 - millions) < 6


def test_small_stem_and_no_pool_keep_the_resolution() -> None:
    net = ResNet(Architecture(name="resnet18", width=16, stem_kernel=3, stem_stride=2, max_pool=False))
    assert [tuple(m.shape[1:]) for m in net.stages(torch.zeros(2, 3, 32, 32))] == [
        (16, 16, 16), (16, 16, 16), (32, 8, 8), (64, 4, 4), (128, 2, 2),
    ]  # fmt: skip


def test_unknown_architecture_is_named() -> None:
    with pytest.raises(ValueError, match="vgg16"):
        ResNet(Architecture(name="vgg16"))


def test_split_batch_norm_equals_one_norm_per_device() -> None:
    torch.manual_seed(0)
    split = SplitBatchNorm(5, splits=4).double()
    x = torch.randn(12, 5, 3, 3, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    devices = [nn.BatchNorm2d(5).double() for _ in range(4)]
    expected = torch.cat([norm(part) for norm, part in zip(devices, x.chunk(4), strict=True)])
    assert torch.allclose(split(x), expected, atol=1e-12)
    assert split.running_mean is not None
    means = torch.stack([norm.running_mean for norm in devices if norm.running_mean is not None])
    assert torch.allclose(split.running_mean, means.mean(0))
    split.eval()
    plain = nn.BatchNorm2d(5).double().eval()
    plain.load_state_dict(split.state_dict())
    assert torch.equal(split(x), plain(x))


def test_split_batch_norm_refuses_an_uneven_batch() -> None:
    with pytest.raises(ValueError, match="does not split into 4"):
        SplitBatchNorm(3, splits=4)(torch.zeros(6, 3, 2, 2))
