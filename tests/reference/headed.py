"""An encoder with a projection head, as MoCo's files have one."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Headed(nn.Module):
    """embed (12) and its normalised projection, head (6)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 12, 5, 2), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        embed = self.conv(x).relu().mean((2, 3))
        return {"embed": embed, "head": nn.functional.normalize(self.fc(embed), dim=1)}


def build() -> nn.Module:
    """The same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Headed()
