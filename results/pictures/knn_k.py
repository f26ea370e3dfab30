"""kNN accuracy against the number of neighbours."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from results.pictures.curves import draw, panels
from results.pictures.styles import Styles
from results.store import StoredRecord


def draw_knn_k(records: Sequence[StoredRecord], out: Path, styles: Styles | None = None) -> None:
    """Writes one curve per encoder for every kNN protocol with several k; top-1 only.

    Raises:
        ValueError: there is no such record.
    """
    knn = [stored for stored in records if stored.record.protocol.resolved.benchmark == "knn"]
    found = [panel for panel in panels(knn, _neighbours) if any(len(curve.points) > 1 for curve in panel.curves)]
    draw(found, out, across="neighbours k", styles=styles or Styles(records))


def _neighbours(column: str) -> float | None:
    k = re.fullmatch(r"k=(\d+)", column)
    return float(k[1]) if k else None
