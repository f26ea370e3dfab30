"""The mechanisms by the name that recipes give them."""

from __future__ import annotations

import torch

from pretrain.contrast import Mechanism
from pretrain.end_to_end import EndToEnd
from pretrain.memory_bank import MemoryBank
from pretrain.moco import MoCo
from pretrain.recipe import Recipe
from pretrain.simclr import SimCLR

METHOD = {"end-to-end": "end-to-end contrast", "memory-bank": "memory bank", "simclr": "SimCLR"}  # as cards name them


def build(recipe: Recipe, generator: torch.Generator, images: int) -> Mechanism:
    """The recipe's mechanism, freshly initialised from torch's default generator.

    Args:
        generator: of everything that the mechanism draws later.
        images: number of images in the data set.
    """
    if recipe.mechanism == "memory-bank":
        return MemoryBank(recipe, generator, images)
    if recipe.mechanism == "end-to-end":
        return EndToEnd(recipe, generator)
    return SimCLR(recipe) if recipe.mechanism == "simclr" else MoCo(recipe, generator)


def views(recipe: Recipe) -> int:
    """Views per image that the recipe's mechanism takes."""
    return MemoryBank.views if recipe.mechanism == "memory-bank" else Mechanism.views


def method(recipe: Recipe) -> str:
    """What the card of an encoder calls its method."""
    return METHOD.get(recipe.mechanism, "MoCo v2" if recipe.head == "mlp" else "MoCo v1")
