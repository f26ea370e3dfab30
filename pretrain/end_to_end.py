"""The end-to-end mechanism: the dictionary is the current batch, and the keys' encoder is trained too.

MoCo v1, Figure 2a and section 4.1; the cost of it is in Table 3 of the v2 note.
"""

from __future__ import annotations

import copy
import math
from typing import ClassVar

import torch
from torch.nn import functional as F

from pretrain import distributed
from pretrain.contrast import Batch, Loss, Mechanism, ProjectedEncoder, spread
from pretrain.recipe import Recipe


class EndToEnd(Mechanism):
    """Two encoders of their own weights, both back-propagated through. Negatives are the other images' keys.

    The dictionary is as long as the batch over all ranks. Keys are shuffled between norms as in `pretrain.moco`.

    Args:
        recipe: architecture, head, dim, batch_size, temperature and split_bn are used.
        generator: of the shuffles.
    """

    trained: ClassVar[tuple[str, ...]] = ("encoder_q", "encoder_k")

    def __init__(self, recipe: Recipe, generator: torch.Generator) -> None:
        super().__init__()
        self.temperature, self.keys, self.generator = recipe.temperature, recipe.batch_size, generator
        self.encoder_q = ProjectedEncoder(recipe)
        self.encoder_k = copy.deepcopy(self.encoder_q)

    def forward(self, batch: Batch) -> Loss:
        view_q, view_k = batch.views
        q = self.encoder_q(view_q)  # N x dim
        part, unshuffle = distributed.shuffle(view_k, self.generator)
        k = unshuffle(self.encoder_k(part))  # N x dim
        everyones = distributed.gather_with_gradient(k)  # batch_size x dim
        own = distributed.own_slice(len(everyones))
        positive = torch.arange(own.start, own.stop, device=q.device)
        logits = q @ everyones.T / self.temperature  # N x batch_size
        loss = F.cross_entropy(logits, positive)
        return Loss(loss, (logits.argmax(dim=1) == positive).float().mean(), spread(q.detach()))

    @property
    def chance_loss(self) -> float:
        return math.log(self.keys)
