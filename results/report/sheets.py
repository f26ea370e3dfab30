"""Pictures that lie beside records: contact sheets of detections and masks, queries with their neighbours."""

from __future__ import annotations

import base64
import glob
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from results.store import StoredRecord

KINDS = {
    "sheet": ("Contact sheet", "Test images with the truth, and beside it what the model found."),
    "neighbours": ("Nearest neighbours", "A row per query: the query first, then its neighbours by rank."),
}


@dataclass(frozen=True)
class Sheet:
    """One picture as a data URI, its size in pixels, and a sentence on what it shows."""

    id: str
    title: str
    says: str
    uri: str
    width: int
    height: int


def sheets(records: Sequence[StoredRecord]) -> list[Sheet]:
    """Every `<record>.<name>.png` beside the records, in their order."""
    found: list[Sheet] = []
    for stored in records:
        for path in sorted(stored.path.parent.glob(f"{glob.escape(stored.path.stem)}.*.png")):
            kind = path.name.removeprefix(f"{stored.path.stem}.").removesuffix(".png")
            name, says = KINDS.get(kind, (kind, "Saved beside the record."))
            record = stored.record
            title = f"{name}: {record.encoder.name}, {record.protocol.id} on {record.dataset.id}"
            place = f"sheet-{record.sha256[:12]}-{len(found)}"
            with Image.open(path) as image:
                found.append(Sheet(place, title, says, _data_uri(image), *image.size))
    return found


def _data_uri(image: Image.Image) -> str:
    """As JPEG: a sheet is photographs, and a report holds many."""
    content = io.BytesIO()
    image.convert("RGB").save(content, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
