"""The published figures are loaded as they were printed."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from results.published.figures import PUBLISHED, load_published


def test_every_row_is_there_and_typed() -> None:
    rows = load_published()
    assert len(rows) == len(PUBLISHED.read_text(encoding="utf-8").splitlines()) - 1 == 1237
    assert {str(rows[c].dtype) for c in ("source", "model", "benchmark", "dataset", "metric", "value")} == {"string"}
    assert not rows[["source", "model", "benchmark", "dataset", "metric"]].isna().to_numpy().any()


def test_both_published_average_pool_figures_are_kept() -> None:
    rows = load_published()
    pages = rows[rows["source"].str.startswith("MoCo v2 page") & (rows["benchmark"] == "linear_avgpool")]
    assert pages["value"].tolist() == ["67.56", "67.58"]
    assert pages["number"].tolist() == [67.56, 67.58]
    assert pages["pretrain_epochs"].tolist() == [200.0, 200.0]


def test_a_value_that_is_no_number_stays_as_text() -> None:
    rows = load_published()
    layers = rows[rows["benchmark"] == "svm_best_layer"]
    assert "feature5" in set(layers["value"])
    assert layers["number"].isna().all()
    unknown = rows[rows["value"] == "n/a"]
    assert unknown["metric"].tolist() == ["hours_200ep"]
    assert pd.isna(unknown["number"].iloc[0])


def test_trailing_zeros_survive(tmp_path: Path) -> None:
    path = tmp_path / "published.csv"
    path.write_text("source,model,pretrain_epochs,benchmark,dataset,metric,value\na,b,,knn,c,top1,55.70\n")
    rows = load_published(path)
    assert (rows["value"][0], rows["number"][0], pd.isna(rows["pretrain_epochs"][0])) == ("55.70", 55.7, True)


def test_other_columns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "published.csv"
    path.write_text("source,value\na,1\n")
    with pytest.raises(ValueError, match="has the columns source, value"):
        load_published(path)
