"""One random generator per item, from what the item is, so that neither order nor the number of processes matters."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, *what: str | int) -> np.random.Generator:
    """A generator that depends on the seed and on the item's name only."""
    digest = hashlib.sha256("\0".join(map(str, (seed, *what))).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))
