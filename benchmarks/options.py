"""The old place of these names, until every command has moved."""

from __future__ import annotations

from pathlib import Path

from benchmarks.task import Precision as Precision

DATA = Path("work/data")
