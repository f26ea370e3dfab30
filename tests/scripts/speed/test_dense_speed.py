"""The speed entry of dense heads, on few scenes."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.speed.heads import dense_heads


@pytest.mark.slow
def test_the_grid_is_measured_against_heads_alone(data: Path) -> None:
    found = dense_heads(epochs=1, data=data)
    assert found["name"] == "dense"
    assert all(float(found[key]) > 0 for key in ("ours_s", "baseline_s", "limit_s", "ratio"))
    assert str(found["note"]).startswith("10 scenes at 96 pixels")
