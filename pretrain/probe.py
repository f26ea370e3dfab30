"""A linear classifier that learns during pretraining, on the features of the training batches.

No gradient of it reaches the encoder and nothing is drawn from any generator, so that a run with it and a run without
it have the same weights bit by bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain import distributed

LEARNING_RATE = 1e-3  # of Adam, the same from the first step to the last; this project's own choice
UNKNOWN = -1  # class of an image that is of none


class OnlineProbe:
    """Softmax regression on the standardised features of each batch, one step of Adam for each step of the encoder.

    The features of a batch are those of its augmented views, standardised by the batch while learning and by running
    statistics on held-out images. All ranks' features are gathered, and every rank takes the same step.

    Args:
        classes: (N,) the class of every training image, or `UNKNOWN`.
        count: number of classes.
        device: of the training.
    """

    def __init__(self, classes: NDArray[np.int64], count: int, device: torch.device) -> None:
        self.classes, self.count, self.device = torch.from_numpy(classes).to(device), count, device

    def start(self, width: int) -> None:
        """A new classifier of features of this width. It starts from zeros, so that it draws nothing."""
        self.norm = nn.BatchNorm1d(width, affine=False).to(self.device)
        self.weight = nn.Parameter(torch.zeros(self.count, width, device=self.device))
        self.bias = nn.Parameter(torch.zeros(self.count, device=self.device))
        self.optimizer = torch.optim.Adam([self.weight, self.bias], lr=LEARNING_RATE)
        self.sums = torch.zeros(2, device=self.device)  # of this epoch: views classified right, and views of a class

    @torch.enable_grad()
    def update(self, features: Tensor, indices: Tensor) -> None:
        """Learn from a batch, after counting how many of its views are classified right. Does not wait for the device.

        Args:
            features: (V N, D) of this rank's images, one view after the other; may be one view's only. They must be
                detached from the encoder.
            indices: (N,) numbers of the images.
        """
        classes = distributed.gather(self.classes[indices].repeat(len(features) // len(indices)))
        rows = distributed.gather(features.detach().float())
        known = (classes != UNKNOWN).sum()
        logits = self._logits(rows, learn=True)
        loss = F.cross_entropy(logits, classes, ignore_index=UNKNOWN, reduction="sum") / known.clamp(min=1)
        self.sums += torch.stack([(logits.detach().argmax(dim=1) == classes).sum(), known])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def _logits(self, rows: Tensor, *, learn: bool) -> Tensor:
        self.norm.train(learn)
        return F.linear(self.norm(rows), self.weight, self.bias)

    def accuracy(self) -> float | None:
        """Percent of this epoch's views that were classified right before they were learnt from; starts a new epoch."""
        right, known = self.sums.tolist()
        self.sums.zero_()
        return 100 * right / known if known else None

    @torch.no_grad()
    def right(self, features: NDArray[np.float32], targets: NDArray[np.int64]) -> int:
        """How many held-out images are classified right; (N, D) features and (N,) classes."""
        if not len(features):
            return 0
        found = self._logits(torch.from_numpy(features).to(self.device), learn=False).argmax(dim=1)
        return int((found.cpu() == torch.from_numpy(targets)).sum())

    def state(self) -> dict[str, Any]:
        """Tensors and plain values, from which `load` goes on bit by bit."""
        return {
            "weight": self.weight.detach(),
            "bias": self.bias.detach(),
            "norm": self.norm.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sums": self.sums,
        }

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> bool:
        """Go on from a `state`. False, and nothing is changed, where it is of other classes or another width."""
        if state["weight"].shape != self.weight.shape:
            return False
        self.weight.copy_(state["weight"])
        self.bias.copy_(state["bias"])
        self.norm.load_state_dict(state["norm"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.sums.copy_(state["sums"])
        return True
