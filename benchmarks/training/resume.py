"""The state that a killed training continues from."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Self

import torch

from benchmarks.task import InputError
from pretrain.safe_pickle import read_pickled
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
        """The state in the file if it has this key, else a new one.

        Raises:
            InputError: the file is damaged.
        """
        if path.is_file():
            with usable(path):
                stored = read_pickled(path, verify=True)
                if stored["key"] == key:
                    log.info("resuming after step %d of %s", stored["steps"], path)
                    return cls(**stored)
            log.info("%s belongs to another run and will be replaced", path)
        return cls(key)

    def save(self, path: Path) -> None:
        """Write the state atomically.

        Raises:
            OSError: the file cannot be written, and the old one is whole.
        """
        with replacing(path) as temporary, temporary.open("wb") as file:  # given a path, torch hides the disk's error
            torch.save({f.name: getattr(self, f.name) for f in fields(self)}, file)

    def add_time(self, phase: str, started: float) -> None:
        """Add the seconds since `started` (a `time.perf_counter()`) to a phase."""
        self.timing[phase] = self.timing.get(phase, 0.0) + time.perf_counter() - started


@contextmanager
def usable(path: Path) -> Iterator[None]:
    """Turn the errors of using a state that is damaged or not this training's into one that names the remedy."""
    try:
        yield
    except (InputError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).replace(str(path), "it").split())[:200] or type(error).__name__
        raise InputError(
            f"{path} cannot be continued from ({reason}); remove it to start this training anew"
        ) from error
