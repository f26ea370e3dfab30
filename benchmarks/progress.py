"""A tqdm bar on a terminal, a plain logging line every 30 seconds elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

log = logging.getLogger(__name__)

Item = TypeVar("Item")
QUIET_SECONDS = 30.0


def progress(items: Iterable[Item], description: str, *, total: int | None = None, show: bool = True) -> Iterator[Item]:
    """Yields the items and says how far it is."""
    if not show or sys.stderr.isatty():
        yield from tqdm(items, desc=description, total=total, leave=False, disable=not show)
        return
    if total is None:
        total = len(items) if isinstance(items, Sized) else None
    told = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - told > QUIET_SECONDS:
            told = time.monotonic()
            log.info("%s: %d%s", description, done, f" of {total}" if total else "")
