"""The field's published figures, as they were printed."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

PUBLISHED = Path(__file__).with_name("published.csv")
COLUMNS = ("source", "model", "pretrain_epochs", "benchmark", "dataset", "metric", "value")


def load_published(path: Path = PUBLISHED) -> pd.DataFrame:
    """One row per published figure.

    Returns:
        text columns `source`, `model`, `benchmark`, `dataset` and `metric`; `pretrain_epochs` (nullable); `value` as
        it was printed, so that 55.70 stays apart from 55.7; `number`, the value as a float, missing where it is none
        ("feature5", "n/a").

    Raises:
        ValueError: the columns are not the expected ones, or an epoch count is no number.
    """
    rows = pd.read_csv(path, dtype="string", keep_default_na=False, na_values={"pretrain_epochs": [""]})
    if tuple(rows.columns) != COLUMNS:
        raise ValueError(f"{path.name} has the columns {', '.join(rows.columns)}, not {', '.join(COLUMNS)}")
    rows["pretrain_epochs"] = pd.to_numeric(rows["pretrain_epochs"]).astype("Float64")
    rows["number"] = pd.to_numeric(rows["value"], errors="coerce").astype("Float64")
    return rows
