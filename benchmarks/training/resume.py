"""The state that a killed training continues from."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import torch

from results.files import replacing

log = logging.getLogger(__name__)

SAVE_STEPS = 1000  # inside a longer epoch: minutes on a GPU


@dataclass
class TrainingState:
    """A training after `steps` steps, written after every epoch and, inside a long one, every `SAVE_STEPS` steps.

    It holds no random state: the order of an epoch and the draws of a view follow from the seed.

    Attributes:
        key: a hash of protocol, encoder, data and seed. A state with another key is not used.
        evaluated: epochs (from 1) that were evaluated.
        timing: seconds by phase.
    """

    key: str
    steps: int = 0
    evaluated: list[int] = field(default_factory=list)
    timing: dict[str, float] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path, key: str) -> Self:
        """The state in the file if it has this key, else a new one."""
        if path.is_file():
            stored: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            if stored["key"] == key:
                log.info("resuming after step %d of %s", stored["steps"], path)
                return cls(**stored)
            log.info("%s belongs to another run and will be replaced", path)
        return cls(key)

    def save(self, path: Path) -> None:
        """Write the state atomically."""
        with replacing(path) as temporary:
            torch.save({f.name: getattr(self, f.name) for f in fields(self)}, temporary)

    def add_time(self, phase: str, started: float) -> None:
        """Add the seconds since `started` (a `time.perf_counter()`) to a phase."""
        self.timing[phase] = self.timing.get(phase, 0.0) + time.perf_counter() - started
