"""The interface of a contrastive mechanism and what all mechanisms share: encoder with head, batch and loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain import distributed
from pretrain.recipe import Recipe
from pretrain.resnet import ResNet
from results.errors import InputError


class Batch(NamedTuple):
    """This rank's images of one step.

    Attributes:
        views: as many as the mechanism's `views`, each (N, 3, H, W).
        indices: (N,) int64, each image's number in the data set.
    """

    views: tuple[Tensor, ...]
    indices: Tensor


class PartLoss(NamedTuple):
    """What one step gives, over this rank's queries.

    Attributes:
        loss: to minimise.
        accuracy: share of queries whose positive outscores every negative.
        spread: standard deviation of the embedding's coordinates times sqrt(dim): 1 where embeddings are spread over
            the whole sphere, 0 where they have collapsed into one point.
    """

    loss: Tensor
    accuracy: Tensor
    spread: Tensor


class ProjectedEncoder(nn.Module):
    """Backbone and projection head; the output is L2-normalised, (N, dim).

    `features` are those of the last batch between the two, detached, for what watches the training.

    v1's head is one linear layer, v2's has a hidden layer as wide as the features. Neither has a batch norm; both keep
    torch's default initialisation, as the reference does.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.features = torch.empty(0)
        self.backbone = ResNet(recipe.architecture, batch_norm_parts(recipe))
        width = self.backbone.channels
        self.head: nn.Module = nn.Linear(width, recipe.dim)
        if recipe.head == "mlp":
            self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), self.head)

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone(images)
        self.features = features.detach()
        out = self.head(features)
        return F.normalize(out.to(torch.promote_types(out.dtype, torch.float32)), dim=1)


class Mechanism(nn.Module, ABC):
    """A contrastive mechanism: views of a batch in, loss out (MoCo v1, Figure 2, compares three).

    `encoder_q` is the encoder whose backbone is the result. `views` is the number of views per image, and `trained`
    names the encoders that the optimiser moves.
    """

    encoder_q: nn.Module
    views: ClassVar[int] = 2
    trained: ClassVar[tuple[str, ...]] = ("encoder_q",)

    @abstractmethod
    def losses(self, batch: Batch, parts: int = 1) -> Iterator[PartLoss]:
        """Yield the losses of one step's `parts`, whose mean is the batch's, and update the mechanism's memories.

        A part's backward pass comes before the next one is asked for, and frees its activations. Only mechanisms whose
        negatives are stored have several parts (see `Recipe.accumulate`).
        """

    def forward(self, batch: Batch) -> PartLoss:
        """One step's loss, in one part."""
        (loss,) = self.losses(batch)
        return loss

    @property
    @abstractmethod
    def chance_loss(self) -> float:
        """The loss of an encoder that maps every image to the same point."""

    def fill(self, images_seen: int) -> float:
        """Share of the stored negatives that are embeddings of images, not initial random vectors."""
        return 1.0


def batch_norm_parts(recipe: Recipe) -> int:
    """Parts into which each batch norm splits what it is given: all ranks together have the recipe's `split_bn`.

    So ShuffleBN (MoCo v1, section 3.3) is the same on any number of ranks, one included, and however many parts of
    the batch follow one another.

    Raises:
        InputError: the parts cannot be shared out equally.
    """
    ranks = distributed.world_size()
    if recipe.sync_bn:  # one part over all ranks
        return 1
    if recipe.split_bn % (ranks * recipe.accumulate):
        parts, multiple = "", "a multiple of the number of ranks"
        if recipe.accumulate > 1:
            parts, multiple = f" that accumulate {recipe.accumulate} parts", f"{multiple} times accumulate"
        raise InputError(f"split_bn {recipe.split_bn} does not divide over {ranks} ranks{parts}; choose {multiple}")
    return recipe.split_bn // (ranks * recipe.accumulate)


def batch_norm_text(recipe: Recipe) -> str:
    """How batch norms split the total batch, for a log line."""
    images = recipe.batch_size // recipe.split_bn
    if recipe.split_bn == 1:
        return f"batch norm over all {images} images" + ("" if recipe.sync_bn else ", so shuffling has no effect")
    parts, ranks = batch_norm_parts(recipe) * recipe.accumulate, distributed.world_size()
    return f"batch norm in {recipe.split_bn} groups of {images} images ({parts} on each of {ranks} ranks)"


class PartStatistics:
    """Running statistics of an encoder that sees a batch in parts: moved once, by the mean of what the parts move them.

    So they are those of an encoder that sees the batch at once.
    """

    def __init__(self, encoder: nn.Module, parts: int) -> None:
        norms = [m for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)] if parts > 1 else []
        self.now = [s for norm in norms for s in (norm.running_mean, norm.running_var) if s is not None]
        self.before = [s.clone() for s in self.now]
        self.moved = [torch.zeros_like(s) for s in self.now]
        self.parts = self.left = parts

    @torch.no_grad()
    def part_is_over(self) -> None:
        """To be called after each part's backward pass, which reads the statistics."""
        self.left -= 1
        if self.now:
            torch._foreach_add_(self.moved, torch._foreach_sub(self.now, self.before))
            torch._foreach_copy_(self.now, self.before)
            if not self.left:
                torch._foreach_add_(self.now, self.moved, alpha=1 / self.parts)


def slices(n: int, parts: int) -> list[slice]:
    """`parts` equal slices of n items; the last may be shorter."""
    size = -(-n // parts)
    return [slice(start, start + size) for start in range(0, n, size)]


@torch.no_grad()
def spread(embeddings: Tensor) -> Tensor:
    """See `PartLoss.spread`; (N, dim) to a scalar."""
    return embeddings.std(dim=0, correction=0).mean().float() * embeddings.shape[1] ** 0.5
