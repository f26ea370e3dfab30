"""A trainable copy of an encoder's network with a fresh linear classifier on its embedding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.contract import NotApplicableError
from benchmarks.encoders.encoder import Encoder
from benchmarks.finetune.settings import FineTuneSettings
from benchmarks.training.memory_format import safe_memory_format

HEAD_STD = 0.01
_PROBE_IMAGES = 2

Way = Callable[[Any, Tensor], Any]


def _called(module: Any, x: Tensor) -> Any:
    found = module(x)
    return found["embed"] if isinstance(found, dict) else found


def _before_classifier(module: Any, x: Tensor) -> Any:
    return module.forward_head(module.forward_features(x), pre_logits=True)  # as timm's models are called


_WAYS: tuple[Way, ...] = (_called, _before_classifier)


class Classifier(nn.Module):
    """Images to logits; the encoder that it was copied from stays as it is.

    Args:
        crop: side of the images.
        seed: of the linear layer's initial weights.

    Raises:
        NotApplicableError: the encoder has no weights, or its embedding does not come from calling its module.
    """

    def __init__(self, encoder: Encoder, classes: int, crop: int, settings: FineTuneSettings, seed: int) -> None:
        super().__init__()
        self.backbone = deepcopy(encoder.module)
        if not any(True for _ in self.backbone.parameters()):
            raise NotApplicableError(f"{encoder.card.name} has no weights, so there is nothing to fine-tune")
        noise = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (_PROBE_IMAGES, 3, crop, crop), dtype=torch.uint8, generator=noise)
        x = encoder.normalise(images)
        expected = encoder.outputs(x, ("embed",))["embed"]
        self.memory_format = safe_memory_format(self.backbone, encoder.device)
        self.backbone.to(memory_format=self.memory_format)
        x = x.contiguous(memory_format=self.memory_format)
        self._way = self._find_way(x, expected, encoder.card.name)
        self._thaw(x)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.fc = nn.Linear(expected.shape[1], classes)
            if settings.head_init == "normal":
                nn.init.normal_(self.fc.weight, 0, HEAD_STD)
                nn.init.zeros_(self.fc.bias)
        self.fc.to(encoder.device)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised (N, 3, H, W) images to (N, classes)."""
        logits: Tensor = self.fc(self._way(self.backbone, x.contiguous(memory_format=self.memory_format)))
        return logits

    def groups(self) -> Iterator[list[nn.Parameter]]:
        """The trained parameters of the backbone, and of the linear layer."""
        yield [p for p in self.backbone.parameters() if p.requires_grad]
        yield list(self.fc.parameters())

    @torch.no_grad()
    def _find_way(self, x: Tensor, expected: Tensor, name: str) -> Way:
        self.backbone.eval()
        for way in _WAYS:
            try:
                found = way(self.backbone, x)
            except (AttributeError, KeyError, TypeError):
                continue  # not a module of this kind
            alike = isinstance(found, Tensor) and found.shape == expected.shape
            if alike and torch.allclose(found, expected, rtol=1e-3, atol=1e-5):
                return way
        raise NotApplicableError(
            f"{name} cannot be fine-tuned: calling its module does not give its embedding; give one whose forward does"
        )

    def _thaw(self, x: Tensor) -> None:
        """Train what the embedding depends on, and not, say, a classifier that the module still carries."""
        self.backbone.requires_grad_(True)
        self._way(self.backbone, x).float().sum().backward()
        for parameter in self.backbone.parameters():
            parameter.requires_grad_(parameter.grad is not None)
            parameter.grad = None
