"""`python -m benchmarks demo-data`."""

from __future__ import annotations

import logging
from pathlib import Path

from benchmarks.demo.compose import compose
from benchmarks.options import DATA

log = logging.getLogger(__name__)


def command(out: Path = DATA, seed: int = 0, sheet: Path | None = None) -> int:
    """Composes the embedded data: single drawings, scenes in the Pascal VOC layout, the same scenes as COCO.

    Args:
        out: data root to write.
        seed: of the scenes.
        sheet: also draw a contact sheet of scenes with boxes and masks to this PNG.
    """
    compose(out, seed=seed)
    log.info("composed %s", out)
    if sheet:
        from benchmarks.demo.sheet import contact_sheet

        contact_sheet(out, sheet, "trainval")
        log.info("drew %s", sheet)
    return 0
