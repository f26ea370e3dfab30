"""A network of a few hundred weights with every output that a benchmark reads, and a hook into a training's batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.encoders.encoder import Encoder
from benchmarks.encoders.load import load_encoder
from pretrain.distributed import DataLoader


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.second = nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.Conv2d(16, 24, 3, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        one = self.norm(self.first(x)).relu()
        two = self.second(one).relu()
        deeper = {f"feature{n}": nn.functional.avg_pool2d(two, 2 ** (n - 2), ceil_mode=True) for n in (3, 4, 5)}
        tokens = deeper["feature3"]
        mean = two.mean((2, 3))
        vectors = {"embed": mean, "cls": mean, "cls_last4": torch.cat([mean] * 4, 1), "patch_mean": tokens.mean((2, 3))}
        return {"feature1": one, "feature2": two, **deeper, "patches": tokens, **vectors}


def network() -> Encoder:
    """The network as an encoder."""
    return load_encoder(Network())


def hook_batches(monkeypatch: pytest.MonkeyPatch, hook: Callable[[Iterable[Any]], Iterator[Any]]) -> None:
    """The first loader that is iterated, that of the training, yields its batches through the hook."""
    original = DataLoader.__iter__

    def hooked(self: DataLoader[Any]) -> Iterator[Any]:
        monkeypatch.setattr(DataLoader, "__iter__", original)
        return hook(original(self))

    monkeypatch.setattr(DataLoader, "__iter__", hooked)
