"""What a probe needs to go on after it was killed, written whole or not at all after every epoch.

There is no random state in it: the order of an epoch and the draws of a view follow from the seed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

FILE = "resume.pt"


@dataclass
class ProbeState:
    """A probe after `steps` steps.

    Attributes:
        key: what is trained: a hash of protocol, encoder, data and seed. The state of anything else is not taken up.
        banks: output -> state dict of its bank.
        momenta: output -> the optimiser's buffers.
        train_loss: output -> (heads,) mean loss over the last epoch.
        evaluated: epochs (from 1) that were evaluated.
        test_top1: output -> per evaluation, (heads,).
        heldout: output -> per evaluation, (2, heads) of accuracy and loss.
        last: output -> (heads, N) ranks of the true class at the last evaluation.
        best: output -> the same at each head's best evaluation so far.
        best_epoch: output -> (heads,) int64.
        best_tensors: output -> parameter -> (heads, ...) of that evaluation, where the protocol reports the best epoch.
        timing: seconds by phase.
    """

    key: str
    steps: int = 0
    banks: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    momenta: dict[str, list[Tensor]] = field(default_factory=dict)
    train_loss: dict[str, Tensor] = field(default_factory=dict)
    evaluated: list[int] = field(default_factory=list)
    test_top1: dict[str, list[Tensor]] = field(default_factory=dict)
    heldout: dict[str, list[Tensor]] = field(default_factory=dict)
    last: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: dict[str, Tensor] = field(default_factory=dict)
    best_tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    timing: dict[str, float] = field(default_factory=dict)


def save(state: ProbeState, folder: Path) -> None:
    """Write the state beside its place, then move it there."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{FILE}.partial"
    torch.save({name: getattr(state, name) for name in state.__dataclass_fields__}, partial)
    partial.replace(folder / FILE)


def load(folder: Path, key: str) -> ProbeState:
    """The state in `folder` if it is of what `key` says, else a new one."""
    path = folder / FILE
    if path.is_file():
        fields: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if fields["key"] == key:
            log.info("going on after step %d of %s", fields["steps"], path)
            return ProbeState(**fields)
        log.info("%s is of another run and will be replaced", path)
    return ProbeState(key)
