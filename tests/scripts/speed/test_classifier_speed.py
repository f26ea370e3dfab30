"""Both sides of the logistic entries solve the same problems, to the gradient that is asked, and dense heads run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scripts.speed import classifiers as speed


@pytest.mark.slow
def test_both_sides_reach_the_gradient_and_the_rest_is_extrapolated() -> None:
    found = speed.measure_sweep((120, 8, 3), (240, 8, 3), every=20)
    assert found["ratio"] == pytest.approx(float(found["baseline_s"]) / float(found["ours_s"]))
    ours, theirs, asked = map(float, re.findall(r"\d\.?\d*e-\d+|1e-06", str(found["note"]))[:3])
    assert asked == 1e-6
    assert ours <= asked
    assert theirs <= 3 * asked
    assert "1,281,167 x 2,048 x 1,000" in str(found["note"])


@pytest.mark.slow
def test_few_shot_is_as_accurate_as_the_loop() -> None:
    found = speed.measure_few_shot(rows=120, tested=200, dim=12, classes=3)
    own, theirs = map(float, re.findall(r"([\d.]+) % against ([\d.]+) %", str(found["note"]))[0])
    assert own == pytest.approx(theirs, abs=1.0)
    assert own > 30


@pytest.mark.slow
def test_the_grid_is_measured_against_heads_alone(data: Path) -> None:
    found = speed.dense_heads(epochs=1, data=data)
    assert found["name"] == "dense"
    assert all(float(found[key]) > 0 for key in ("ours_s", "baseline_s", "limit_s", "ratio"))
    assert str(found["note"]).startswith("10 scenes at 96 pixels")
