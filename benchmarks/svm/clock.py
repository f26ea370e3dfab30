"""Seconds by phase."""

from __future__ import annotations

import time


class Clock:
    """Adds the seconds since the last lap to a phase of `timing`."""

    def __init__(self, timing: dict[str, float]) -> None:
        self._timing = timing
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self._timing[phase] += now - self._last
        self._last = now
