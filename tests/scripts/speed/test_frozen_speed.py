"""The speed entry of the frozen suite runs every benchmark once together and once alone."""

from __future__ import annotations

import pytest

from scripts.speed import features as speed


@pytest.mark.nightly
def test_the_suite_is_measured_against_its_parts() -> None:
    found = speed.measure_suite("random:resnet18-w8-k3-nopool:0", classes=2)
    assert "4 benchmarks" in str(found["note"])
    assert float(found["baseline_s"]) > float(found["ours_s"]) > 0
    assert 0 < float(found["limit_s"]) < float(found["baseline_s"])
