"""Records and tables as pandas DataFrames, with everything that a page leaves out."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from results.published.figures import Figure
from results.store import StoredRecord
from results.tables.cells import Table, cell_text
from results.tables.roster import architecture_text

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


TABLE_COLUMNS = {
    "table": "string", "row": "string", "column": "string", "text": "string", "value": "Float64",
    "standard_error": "Float64", "std": "Float64", "bold": "boolean", "sources": "string",
}  # fmt: skip


def tables_frame(tables: Iterable[Table]) -> pd.DataFrame:
    """Tables cell by cell: one row per cell that is not empty, the number at full precision beside what is shown."""
    rows = [
        {
            "table": table.title,
            "row": row.label,
            "column": column,
            "text": text,
            "value": cell.value,
            "standard_error": cell.error,
            "std": cell.std,
            "bold": cell.bold,
            "sources": "; ".join(table.sources[number - 1] for number in row.sources),
        }
        for table in tables
        for row in table.rows
        for column, cell in zip(table.columns[1:], row.cells, strict=True)
        if (text := cell_text(cell, table.decimals))
    ]
    return pd.DataFrame(rows, columns=list(TABLE_COLUMNS)).astype(TABLE_COLUMNS)


FIGURE_COLUMNS = {
    "source": "string", "model": "string", "pretrain_epochs": "Float64", "benchmark": "string", "dataset": "string",
    "metric": "string", "value": "string", "number": "Float64", "protocol": "string", "column": "string",
    "statistic": "string", "selection": "string", "runs": "Int64", "status": "string", "reason": "string",
}  # fmt: skip


def figures_frame(figures: Iterable[Figure]) -> pd.DataFrame:
    """Published figures with their places among the protocols, or the reason why they have none."""
    rows = []
    for figure in figures:
        place = {} if figure.place is None else {name: getattr(figure.place, name) for name in _PLACE}
        about = {"source": figure.source, "model": figure.model, "pretrain_epochs": figure.epochs}
        rows.append(
            {
                **about,
                "benchmark": figure.benchmark,
                "dataset": figure.dataset,
                "metric": figure.metric,
                "value": figure.text,
                "number": figure.number,
                "status": "unsupported",
                "reason": figure.reason,
                **place,
            }
        )
    return pd.DataFrame(rows, columns=list(FIGURE_COLUMNS)).astype(FIGURE_COLUMNS)


_PLACE = ("protocol", "column", "statistic", "selection", "runs", "status")
