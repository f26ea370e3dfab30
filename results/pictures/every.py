"""All pictures and the per-class tables that a folder of records gives, as files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from results.atomic import write_file
from results.pictures.knn_k import draw_knn_k
from results.pictures.low_shot import draw_low_shot
from results.pictures.per_layer import draw_per_layer
from results.pictures.score_against_epoch import draw_score_against_epoch
from results.pictures.styles import Styles
from results.store import StoredRecord, slug
from results.tables.per_class import per_class_markdown

Drawing = Callable[[Path], None]


def write_pictures(records: Sequence[StoredRecord], out: Path) -> tuple[list[Path], dict[Path, str]]:
    """Writes below `out`, in a folder for the embedded and one for full data sets, which never share a table.

    `per_layer.png`, `knn_k.png`, `score_against_epoch.png`, a `low_shot_<protocol>_<data>.png` for every low-shot
    protocol and data set, and `per_class.md`.

    Returns:
        The files written, and what was left out with the reason.
    """
    written: list[Path] = []
    left_out: dict[Path, str] = {}
    for embedded in (True, False):
        own = [stored for stored in records if stored.record.dataset.embedded == embedded]
        if not own:
            continue
        folder = out / ("embedded" if embedded else "full")
        for name, draw in _drawings(own).items():
            try:
                draw(folder / name)
            except ValueError as reason:
                left_out[folder / name] = str(reason)
            else:
                written.append(folder / name)
        tables = per_class_markdown(own)
        if tables:
            write_file(folder / "per_class.md", tables.encode())
            written.append(folder / "per_class.md")
        else:
            left_out[folder / "per_class.md"] = "no record has values per class"
    return written, left_out


def _drawings(records: Sequence[StoredRecord]) -> dict[str, Drawing]:
    low_shot: dict[str, list[StoredRecord]] = {}
    for stored in records:
        record = stored.record
        if record.protocol.resolved.benchmark.endswith("low_shot_svm"):
            # Protocols of one id may differ in what they resolve to, as after a new revision of a source.
            asked = f"{slug(record.protocol.id)}_{record.protocol.sha256[:8]}_{record.dataset.fingerprint[:8]}"
            low_shot.setdefault(asked, []).append(stored)
    styles = Styles(records)
    return {
        "per_layer.png": partial(draw_per_layer, records, styles=styles),
        "knn_k.png": partial(draw_knn_k, records, styles=styles),
        "score_against_epoch.png": partial(draw_score_against_epoch, records),
        **{
            f"low_shot_{asked}.png": partial(draw_low_shot, own, styles=styles)
            for asked, own in sorted(low_shot.items())
        },
    }
