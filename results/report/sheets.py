"""Pictures that lie beside records: contact sheets of detections and masks, queries with their neighbours."""

from __future__ import annotations

import base64
import glob
from collections.abc import Sequence
from dataclasses import dataclass

from results.store import StoredRecord

KINDS = {"sheet": "Contact sheet", "neighbours": "Nearest neighbours: the query first, then its neighbours by rank"}


@dataclass(frozen=True)
class Sheet:
    """One picture as a data URI."""

    title: str
    uri: str


def sheets(records: Sequence[StoredRecord]) -> list[Sheet]:
    """Every `<record>.<name>.png` beside the records, in their order."""
    found = []
    for stored in records:
        for path in sorted(stored.path.parent.glob(f"{glob.escape(stored.path.stem)}.*.png")):
            kind = path.name.removeprefix(f"{stored.path.stem}.").removesuffix(".png")
            record = stored.record
            title = f"{KINDS.get(kind, kind)}: {record.encoder.name}, {record.protocol.id} on {record.dataset.id}"
            uri = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
            found.append(Sheet(title, uri))
    return found
