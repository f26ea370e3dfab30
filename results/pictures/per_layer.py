"""How much each layer's features tell: the score of a linear classifier on them, from the stem to the last stage."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from results.pictures.curves import draw, panels
from results.pictures.styles import Styles
from results.store import StoredRecord

LAYERS = {1.0: "stem", 2.0: "stage 1", 3.0: "stage 2", 4.0: "stage 3", 5.0: "stage 4"}


def draw_per_layer(records: Sequence[StoredRecord], out: Path, styles: Styles | None = None) -> None:
    """Writes one curve per encoder for every protocol with a column per layer (multi-head linear, VOC SVM).

    Raises:
        ValueError: no record has such columns.
    """
    found = [panel for panel in panels(records, _layer) if any(len(curve.points) > 1 for curve in panel.curves)]
    draw(found, out, across="features of", ticks=LAYERS, styles=styles or Styles(records))


def _layer(column: str) -> float | None:
    layer = re.fullmatch(r"feature([1-5])", column, flags=re.IGNORECASE)
    return float(layer[1]) if layer else None
