"""Where a classifier ranks the true class, which is all that top-k accuracy needs."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def target_ranks(logits: Tensor, targets: Tensor) -> Tensor:
    """How many classes each head puts before the true one: top-k is right where this is below k.

    Ties go to the class of the lower number. A head that has diverged to NaN is wrong everywhere.

    Args:
        logits: (N, heads, classes).
        targets: (N,).

    Returns:
        (heads, N) int64.
    """
    own = logits.gather(2, targets[:, None, None].expand(-1, logits.shape[1], 1))
    equal = logits == own
    behind = torch.arange(logits.shape[2], device=logits.device) >= targets[:, None, None]
    return (~((logits < own) | (equal & behind))).sum(dim=2).T


def percent(ranks: Tensor, k: int) -> float:
    """Top-k accuracy in percent, from the ranks of every image."""
    return 100 * float((ranks < k).double().mean())
