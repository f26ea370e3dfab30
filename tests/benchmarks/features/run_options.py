"""Options of a feature store in tests: one process, no progress bar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.task import RunOptions


def options(root: Path, **changes: Any) -> RunOptions:
    return RunOptions(**{"features": root, "workers": 0, "progress": False, **changes})
