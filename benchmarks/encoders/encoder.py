"""`Encoder`: a frozen backbone with named outputs, and the card that says how its input must look."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Self

import torch
from torch import Tensor, nn

from benchmarks.contract import InputError
from results.schema import EncoderCard

FEATURES = ("feature1", "feature2", "feature3", "feature4", "feature5")
NAMES = (*FEATURES, "embed", "head")

Forward = Callable[[Tensor, Collection[str]], dict[str, Tensor]]


class Encoder:
    """A frozen backbone in eval mode.

    Args:
        card: what it is; its mean, std, range and channel order are applied by `normalise`.
        module: holds every weight; moved by `to`, never trained.
        forward: normalised (N, 3, H, W) images and output names to tensors.
        names: the outputs that exist. feature1 … feature5 are maps (N, C, H, W): the last ones at 1/2 to 1/32 of the
            image in a net of stride 32, else the stem and the four stages. embed is (N, D), head the projection.
    """

    def __init__(self, card: EncoderCard, module: nn.Module, forward: Forward, names: Collection[str]) -> None:
        self.card, self.module, self._forward, self.names = card, module, forward, frozenset(names)
        self.device = torch.device("cpu")
        module.eval().requires_grad_(False)

    def has(self, name: str) -> bool:
        """Whether `outputs` can give it."""
        return name in self.names

    def to(self, device: str | torch.device) -> Self:
        """Moves the weights, in the channels_last layout that convolutions are fastest in.

        Raises:
            InputError: there is no such device, or it has no room.
        """
        try:
            self.module.to(torch.device(device)).to(memory_format=torch.channels_last)
        except (RuntimeError, AssertionError) as error:  # torch raises the latter where it was built without CUDA
            reason = " ".join(str(error).split())[:160]
            raise InputError(f"the device {device} cannot be used ({reason}); give cpu or one that is there") from error
        self.device = torch.device(device)
        return self

    def normalise(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 RGB to what the network takes: the card's channel order, range, mean and std."""
        x = images.to(self.device, non_blocking=True).to(torch.float32, memory_format=torch.channels_last)
        if self.card.channels == "BGR":
            x = x.flip(1)
        mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (self.card.mean, self.card.std))
        return (x * (self.card.value_range / 255) - mean) / std

    @torch.no_grad()
    def outputs(self, images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        """The named outputs of normalised images (N, 3, H, W).

        Raises:
            KeyError: an output that this encoder does not have.
        """
        missing = sorted(set(names) - self.names)
        if missing:
            raise KeyError(f"{self.card.name} has no {', '.join(missing)}; it has {', '.join(sorted(self.names))}")
        self.module.eval()
        return self._forward(images, names)
