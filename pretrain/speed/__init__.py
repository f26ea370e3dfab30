"""Pairs of `make speed`: the whole step, MoCo's own work in it, the augmentation, and the end-to-end mechanism."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pretrain.speed.augmentation import measure_augmentation
from pretrain.speed.end_to_end import measure_end_to_end
from pretrain.speed.overhead import measure_overhead
from pretrain.speed.step import measure_step


def pairs() -> dict[str, Callable[[], dict[str, Any]]]:
    """What can be measured, by name."""
    return {
        "pretrain-step": measure_step,
        "moco-overhead": measure_overhead,
        "augment": measure_augmentation,
        "end-to-end": measure_end_to_end,
    }
