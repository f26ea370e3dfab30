"""What a fine-tuning needs to go on after it was killed, written whole or not at all after every epoch.

There is no random state in it: the order of an epoch and the draws of a view follow from the seed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)


@dataclass
class State:
    """A network after `steps` steps.

    Attributes:
        key: what is trained: a hash of protocol, encoder, data and seed. The state of anything else is not taken up.
        network, optimiser: their state dicts.
        train_loss: mean over the last epoch.
        evaluated: epochs (from 1) that were evaluated, with top-1 and loss beside them.
        last, best: (N,) ranks of the true class at the last and the best evaluation so far.
    """

    key: str
    steps: int = 0
    network: dict[str, Any] = field(default_factory=dict)
    optimiser: dict[str, Any] = field(default_factory=dict)
    train_loss: float = 0.0
    evaluated: list[int] = field(default_factory=list)
    top1: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    last: Tensor | None = None
    best: Tensor | None = None
    best_epoch: int = 0
    timing: dict[str, float] = field(default_factory=dict)


def save(state: State, path: Path) -> None:
    """Write the state beside its place, then move it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save({f.name: getattr(state, f.name) for f in fields(state)}, partial)
    partial.replace(path)


def load(path: Path, key: str) -> State:
    """The state in the file if it is of what `key` says, else a new one."""
    if path.is_file():
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if found["key"] == key:
            log.info("going on after step %d of %s", found["steps"], path)
            return State(**found)
        log.info("%s is of another run and will be replaced", path)
    return State(key)
