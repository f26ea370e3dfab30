"""The ResNets that are pretrained and benchmarked, built from torchvision's blocks with torchvision's parameter names.

torchvision fixes 64 channels and a 7x7 stem; wide encoders (R50w2x, R50w4x of MoCo v1, section 4.1) and small-image
encoders (3x3 stem, no max-pool, as in the authors' CIFAR notebook) need both to vary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, conv1x1

from results.schema import Architecture

STAGES: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int], int, int]] = {
    # name: block, blocks per stage, groups, width per group
    "resnet18": (BasicBlock, (2, 2, 2, 2), 1, 64),
    "resnet34": (BasicBlock, (3, 4, 6, 3), 1, 64),
    "resnet50": (Bottleneck, (3, 4, 6, 3), 1, 64),
    "resnet101": (Bottleneck, (3, 4, 23, 3), 1, 64),
    "resnet152": (Bottleneck, (3, 8, 36, 3), 1, 64),
    "resnext50_32x4d": (Bottleneck, (3, 4, 6, 3), 32, 4),
    "resnext50_32x8d": (Bottleneck, (3, 4, 6, 3), 32, 8),
    "resnext101_32x8d": (Bottleneck, (3, 4, 23, 3), 32, 8),
    "resnext101_64x4d": (Bottleneck, (3, 4, 23, 3), 64, 4),
    "wide_resnet50_2": (Bottleneck, (3, 4, 6, 3), 1, 128),
    "wide_resnet101_2": (Bottleneck, (3, 4, 23, 3), 1, 128),
}


class ResNet(nn.Module):
    """A ResNet without its classifier (He et al. 2016, Table 1).

    Args:
        architecture: name (a key of `STAGES`), `width` (channels of the first stage, 64 in the paper), the stem, and
            whether a bottleneck strides in its first 1x1 convolution, as in the paper, or in its 3x3 (torchvision).
        split_bn: number of virtual devices into which every batch norm splits its batch while training; 1 is the
            ordinary batch norm. See `SplitBatchNorm`.
    """

    def __init__(self, architecture: Architecture, split_bn: int = 1) -> None:
        super().__init__()
        if architecture.name not in STAGES:
            raise ValueError(f"unknown architecture {architecture.name!r}; known are {', '.join(STAGES)}")
        block, depths, groups, width_per_group = STAGES[architecture.name]
        norm: Callable[[int], nn.Module] = partial(nn.BatchNorm2d, eps=architecture.bn_eps)
        if split_bn > 1:
            norm = partial(SplitBatchNorm, splits=split_bn, eps=architecture.bn_eps)
        width, kernel = architecture.width, architecture.stem_kernel
        padding = kernel // 2 if architecture.stem_padding is None else architecture.stem_padding
        self.conv1 = nn.Conv2d(3, width, kernel, architecture.stem_stride, padding, bias=False)
        self.bn1 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if architecture.max_pool else nn.Identity()
        channels = width
        for number, depth in enumerate(depths, start=1):
            planes, stride = width * 2 ** (number - 1), 1 if number == 1 else 2
            blocks: list[nn.Module] = []
            for _ in range(depth):
                out = planes * block.expansion
                shortcut = None
                if stride != 1 or channels != out:
                    shortcut = nn.Sequential(conv1x1(channels, out, stride), norm(out))
                # base_width is relative to 64 planes, so it is the same number at every width of the network
                blocks.append(block(channels, planes, stride, shortcut, groups, width_per_group, 1, norm))
                channels, stride = out, 1
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.channels = channels
        for module in self.modules():
            if isinstance(module, Bottleneck) and architecture.stride_in_1x1:
                module.conv1.stride, module.conv2.stride = module.conv2.stride, module.conv1.stride
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages(self, images: Tensor) -> list[Tensor]:
        """The stem after its ReLU (before any max-pool) and the four stages, each (N, C, H, W)."""
        x = self.relu(self.bn1(self.conv1(images)))
        maps = [x]
        x = self.maxpool(x)
        for number in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{number}")(x)
            maps.append(x)
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) to the global average of the last stage, (N, channels)."""
        return self.stages(images)[-1].mean(dim=(2, 3))


class SplitBatchNorm(nn.BatchNorm2d):
    """Batch norm over `splits` equal parts of the batch, as if each part lay on a device of its own.

    On one device every key would share its batch statistics with its query, and the network could solve the pretext
    task by reading them (MoCo v1, section 3.3). Splitting the batch and shuffling the keys' order (`pretrain.moco`)
    emulates ShuffleBN; the authors' CIFAR notebook does the same with 8 parts. The running statistics are the
    mean over the parts. Evaluation is that of an ordinary batch norm, and so are the parameter names.
    """

    def __init__(self, num_features: int, splits: int, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps)
        self.splits = splits

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        if len(input) % self.splits:
            raise ValueError(f"a batch of {len(input)} does not split into {self.splits} equal parts")
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        means, variances = self.running_mean.repeat(self.splits, 1), self.running_var.repeat(self.splits, 1)
        parts = [
            nn.functional.batch_norm(part, mean, var, self.weight, self.bias, True, self.momentum, self.eps)
            for part, mean, var in zip(input.chunk(self.splits), means, variances, strict=True)
        ]
        self.running_mean.copy_(means.mean(0))
        self.running_var.copy_(variances.mean(0))
        self.num_batches_tracked += 1
        return torch.cat(parts)
