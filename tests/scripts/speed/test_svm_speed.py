from __future__ import annotations

from typing import Any

import pytest
from joblib import parallel_config

from scripts.speed import svm as speed

FIELDS = {"name", "ours_s", "baseline_s", "baseline", "ratio", "limit_s", "limit", "note", "cpu"}


def check(result: dict[str, Any]) -> None:
    assert set(result) == FIELDS
    assert result["ratio"] == pytest.approx(result["baseline_s"] / result["ours_s"])
    assert 0 < result["limit_s"] < float("inf")


def test_names() -> None:
    assert list(speed.entries()) == ["svm-2048", "svm-8192", "low-shot-svm"]


@pytest.mark.slow
def test_a_small_full_protocol_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    (whole, *_) = speed.VOC_SVM
    monkeypatch.setattr(speed, "VOC_SVM", [whole.changed(costs=whole.params["costs"][::4])])
    with parallel_config(backend="threading"):  # a process of its own takes longer to import than these fits do
        result = speed.measure_full("small", 40, images=200)
    check(result)
    assert "the same cost is chosen for 2 of 2 classes" in result["note"]


@pytest.mark.nightly
def test_a_small_low_shot_protocol_is_measured() -> None:
    result = speed.measure_low_shot("small", 16, images=5011, sets=1)
    check(result)
    assert "3,040 fits" in result["note"]
