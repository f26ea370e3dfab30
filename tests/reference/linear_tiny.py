"""An encoder of a few hundred weights and a data set of a few dozen images that it can tell apart."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.task import Labels
from results.schema import Architecture, EncoderCard


class TinyEncoder:
    """Two convolutions with batch norm: feature1 (4 channels, half size), feature2 (6, quarter) and embed (6)."""

    def __init__(self, *, channels: str = "RGB", names: Collection[str] = ("feature1", "feature2", "embed")) -> None:
        generator = torch.Generator().manual_seed(5)
        self.module = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU())
        with torch.no_grad():
            for parameter in self.module.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
            self.module[1].running_mean.copy_(torch.randn(4, generator=generator) * 0.1)
        self.module.eval().requires_grad_(False)
        self.names, self.passes = frozenset(names), 0
        self.card = EncoderCard(
            name="tiny",
            source="test",
            architecture=Architecture(name="module:tiny"),
            mean=(0.5, 0.4, 0.3),
            std=(0.2, 0.3, 0.4),
            channels=channels,
        )

    def has(self, name: str) -> bool:
        return name in self.names

    def to(self, device: str | torch.device) -> TinyEncoder:
        self.module.to(device)
        return self

    def normalise(self, images: Tensor) -> Tensor:
        x = images.float().flip(1) if self.card.channels == "BGR" else images.float()
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.card.mean, self.card.std))
        return (x / 255 - mean) / std

    @torch.no_grad()
    def outputs(self, images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        self.passes += 1
        first = self.module[1](self.module[0](images)).relu()
        second = self.module[3](self.module[2](first))
        found = {"feature1": first, "feature2": second, "embed": second.mean((2, 3))}
        return {name: found[name] for name in names}


def tiny_labels(folder: Path, split: str, per_class: int, seed: int) -> Labels:
    """Three classes of noisy 20 x 24 images, each with a colour of its own, as PNG files."""
    rng = np.random.default_rng(seed)
    classes = ("blue", "green", "red")
    ids, paths, targets = [], [], []
    for number, name in enumerate(classes):
        for item in range(per_class):
            pixels = rng.integers(0, 160, (20, 24, 3), dtype=np.uint8)
            pixels[:, :, 2 - number] += rng.integers(10, 90, dtype=np.uint8)
            path = folder / split / name / f"{item}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
            ids.append(f"{split}/{name}/{item}.png")
            paths.append(path)
            targets.append(number)
    return Labels(tuple(ids), tuple(paths), classes, np.array(targets), tuple((i,) for i in ids))
