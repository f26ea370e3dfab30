"""The memory layout that a network can be trained in."""

from __future__ import annotations

import torch
from torch import nn

_ONEDNN_BLOCK = 16  # channels that its widest vectors, of 512 bits, hold in float32


def safe_memory_format(module: nn.Module, device: torch.device) -> torch.memory_format:
    """channels_last, which convolutions are fastest in, unless its backward pass would go wrong.

    On x86 CPUs, oneDNN's gradient of the weights of a strided 1x1 convolution on channels_last maps writes past its
    workspace where there are fewer channels than one of its blocks holds (uxlfoundation/oneDNN issue 6035; torch 2.14
    has it). The outcome is a crash, or wrong gradients without one. ResNets have such convolutions in their shortcuts;
    those of the published widths have 64 channels there and more.
    """
    narrow = any(
        isinstance(m, nn.Conv2d)
        and max(m.kernel_size) == 1
        and max(m.stride) > 1
        and m.in_channels // m.groups < _ONEDNN_BLOCK
        for m in module.modules()
    )
    return torch.contiguous_format if device.type == "cpu" and narrow else torch.channels_last
