"""Banks of heads on a fixed set of images: where each head ranks each image's true class, and its loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.linear.frozen import FrozenFeatures
from benchmarks.linear.heads import HeadBank, bank_loss
from benchmarks.training.loader import FixedBatches, Views, batches
from benchmarks.training.ranking import target_ranks
from pretrain import distributed


@dataclass(frozen=True)
class Evaluation:
    """Of one bank.

    Attributes:
        ranks: (heads, N) int16: how many classes a head puts before the true one.
        loss: (heads,) mean cross-entropy.
    """

    ranks: Tensor
    loss: Tensor

    def accuracy(self, k: int = 1) -> Tensor:
        """(heads,) float64 fraction of images whose true class is among the first k."""
        return (self.ranks < k).double().mean(dim=1)


class FixedSet:
    """Images under the deterministic view.

    Encoder and view are fixed, so the features are computed once and kept where they fit in `limit` bytes per rank;
    else they are computed anew, with the same result, at every evaluation.
    """

    def __init__(
        self,
        views: Views,
        items: NDArray[np.int64],
        frozen: FrozenFeatures,
        *,
        batch_size: int,
        workers: int,
        limit: int,
    ) -> None:
        self.views, self.items, self.frozen, self.batch_size, self.workers = views, items, frozen, batch_size, workers
        own = distributed.own_slice(len(items))
        self._keep = 4 * sum(frozen.dims.values()) * (own.stop - own.start) <= limit
        self._kept: list[tuple[dict[str, Tensor], Tensor]] | None = None

    @torch.no_grad()
    def evaluate(self, banks: Mapping[str, HeadBank]) -> dict[str, Evaluation]:
        """Every bank, on the images of all ranks."""
        n, device = len(self.items), self.frozen.device
        ranks = {o: torch.zeros(b.weight.shape[0], n, dtype=torch.int32, device=device) for o, b in banks.items()}
        losses = {o: torch.zeros(b.weight.shape[0], device=device) for o, b in banks.items()}
        start = distributed.own_slice(n).start
        for features, targets in self._features():
            for output, bank in banks.items():
                logits = bank.eval()(features[output])
                ranks[output][:, start : start + len(targets)] = target_ranks(logits, targets).int()
                losses[output] += bank_loss(logits, targets, n)
            start += len(targets)
        return {
            o: Evaluation(distributed.sum_(ranks[o]).short().cpu(), distributed.sum_(losses[o]).cpu()) for o in banks
        }

    def _features(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        if self._kept is not None:
            yield from self._kept
            return
        kept = []
        which = FixedBatches(self.items, self.batch_size)
        for images, _, targets in batches(self.views, which, self.workers, self.frozen.device):
            found = self.frozen(images), targets.to(self.frozen.device, non_blocking=True)
            if self._keep:
                kept.append(found)
            yield found
        self._kept = kept if self._keep else None
