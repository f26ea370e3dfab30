"""Records as a pandas DataFrame: one row per record and column, with everything that a table leaves out."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from results.roster import architecture_text
from results.store import StoredRecord

COLUMNS = {
    "encoder": "string", "init": "string", "method": "string", "architecture": "string", "weights_sha256": "string",
    "pretrain_seconds": "Float64", "protocol": "string", "dataset": "string", "fingerprint": "string",
    "embedded": "boolean", "status": "string", "error": "string", "intact": "boolean", "column": "string",
    "primary": "boolean", "value": "Float64", "standard_error": "Float64", "std": "Float64", "n": "Int64",
    "unit": "string", "selection": "string", "created": "string", "commit": "string",
}  # fmt: skip


def frame(records: Iterable[StoredRecord]) -> pd.DataFrame:
    """Tidy rows at full precision. A failed record has one row without a column."""
    rows = []
    for stored in records:
        record, card = stored.record, stored.record.encoder
        about = {
            "encoder": card.name,
            "init": card.init,
            "method": card.method,
            "architecture": architecture_text(card.architecture),
            "weights_sha256": card.weights_sha256,
            "pretrain_seconds": card.pretrain_seconds,
            "protocol": record.protocol.id,
            "dataset": record.dataset.id,
            "fingerprint": record.dataset.fingerprint,
            "embedded": record.dataset.embedded,
            "status": record.status,
            "error": record.error,
            "intact": stored.intact,
            "created": record.created,
            "commit": record.commit,
        }
        scores = [
            {"column": column, "primary": column == record.protocol.resolved.primary, **score.model_dump()}
            for column, score in record.scores.items()
        ]
        rows += [{**about, **score} for score in scores or [{}]]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)
