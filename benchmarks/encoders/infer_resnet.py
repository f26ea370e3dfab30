"""The architecture of a ResNet from the shapes of its tensors: depth, width, groups, stem."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor
from torchvision.models.resnet import BasicBlock, Bottleneck

from benchmarks.contract import InputError
from pretrain.resnet import STAGES
from results.schema import Architecture


def is_resnet(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of a torchvision ResNet."""
    return "conv1.weight" in tensors and any(name.startswith("layer1.0.conv") for name in tensors)


def infer_resnet(tensors: Mapping[str, Tensor], source: str) -> Architecture:
    """Name, width and stem kernel. What shapes do not show (stride, max-pool, …) keeps its default.

    Raises:
        InputError: no ResNet that is known has these shapes.
    """
    stem, first, grouped = (tensors.get(n) for n in ("conv1.weight", "layer1.0.conv1.weight", "layer1.0.conv2.weight"))
    if stem is None or first is None or grouped is None or {stem.ndim, first.ndim, grouped.ndim} != {4}:
        raise InputError(f"{source} lacks the stem or the first block of a ResNet; it is cut short or of another kind")
    depths = tuple(_depth(tensors, stage) for stage in (1, 2, 3, 4))
    width, kernel = stem.shape[0], stem.shape[2]
    block = Bottleneck if any(name.startswith("layer1.0.conv3.") for name in tensors) else BasicBlock
    inner = first.shape[0]
    groups = max(inner // max(grouped.shape[1], 1), 1)
    per_group = inner * 64 // (groups * width) if block is Bottleneck else 64
    for name, known in STAGES.items():
        if known == (block, depths, groups, per_group):
            return Architecture(name=name, width=width, stem_kernel=kernel)
    raise InputError(
        f"{source} is a ResNet of {'-'.join(map(str, depths))} {block.__name__} blocks with {groups} groups of width "
        f"{per_group}, which is none of {', '.join(STAGES)}; give --facts architecture=timm:NAME, or wrap it as "
        "my_package.my_module:build"
    )


def _depth(tensors: Mapping[str, Tensor], stage: int) -> int:
    found = (re.match(rf"layer{stage}\.(\d+)\.", name) for name in tensors)
    return max((int(match[1]) + 1 for match in found if match), default=0)
