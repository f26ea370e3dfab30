"""What a network needs before it is trained: a safe memory layout, and batch norms synchronised over ranks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.task import NotApplicableError
from pretrain.distributed import sum_with_gradient

_ONEDNN_BLOCK = 16  # float32 channels in oneDNN's widest vector of 512 bits


def safe_memory_format(module: nn.Module, device: torch.device) -> torch.memory_format:
    """channels_last, in which convolutions are fastest, unless its backward pass would go wrong.

    On x86 CPUs, oneDNN's weight gradient of a strided 1x1 convolution on channels_last maps writes past its workspace
    where there are fewer channels than one of its blocks holds (uxlfoundation/oneDNN issue 6035; torch 2.14 has it).
    The result is a crash, or wrong gradients without one. ResNets have such convolutions in their shortcuts; those of
    the published widths have 64 channels there and more.
    """
    narrow = any(
        isinstance(m, nn.Conv2d)
        and max(m.kernel_size) == 1
        and max(m.stride) > 1
        and m.in_channels // m.groups < _ONEDNN_BLOCK
        for m in module.modules()
    )
    return torch.contiguous_format if device.type == "cpu" and narrow else torch.channels_last


def has_batch_norm(module: nn.Module) -> bool:
    """Whether the outputs of the module in training depend on the batch that an image is in."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())


class SyncedBatchNorm(nn.BatchNorm2d):
    """`nn.SyncBatchNorm` for CPUs, which torch's does not support; a rank may have no image of a last small batch."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        assert self.num_batches_tracked is not None
        wide = x.float()
        # Mean first, then squares about it: E[x^2] - E[x]^2 would lose digits.
        count = sum_with_gradient(wide.new_full((), float(wide[:, 0].numel())))
        mean = sum_with_gradient(wide.sum(dim=(0, 2, 3))) / count
        var = sum_with_gradient((wide - mean[:, None, None]).square().sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
        normalised = (wide - mean[:, None, None]) * (var + self.eps).rsqrt()[:, None, None]
        return (normalised * self.weight[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def synchronise(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with synchronised batch norms, of the same names, parameters and buffers.

    Raises:
        NotApplicableError: it has batch norms of another kind, which do more than normalise.
    """
    kinds = {type(m) for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    other = sorted(kind.__name__ for kind in kinds - {nn.BatchNorm2d})
    if other:
        raise NotApplicableError(
            f"{', '.join(other)} cannot be synchronised over ranks: train this encoder in one process"
        )
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return converted
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncedBatchNorm
    return network
