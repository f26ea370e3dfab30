"""Batch norms whose statistics are over the whole batch, on however many ranks it lies."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.contract import NotApplicableError
from pretrain.distributed import sum_with_gradient


class SyncedBatchNorm(nn.BatchNorm2d):
    """`nn.SyncBatchNorm` for CPUs, which it does not know; a rank may have no image of a last small batch."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        assert self.num_batches_tracked is not None
        wide = x.float()
        # Mean first, then squares about it: E[x^2] - E[x]^2 would lose digits.
        count = sum_with_gradient(wide.new_tensor(float(wide[:, 0].numel())))
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
    odd = sorted(kind.__name__ for kind in kinds - {nn.BatchNorm2d})
    if odd:
        raise NotApplicableError(
            f"{', '.join(odd)} cannot be synchronised over ranks: fine-tune this encoder in one process"
        )
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return converted
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncedBatchNorm
    return network
