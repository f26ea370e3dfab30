"""On the embedded drawings, with the weights that a package ships: a right card stands, wrong ones fall."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.audit import AuditSample, draw_sample, examine
from benchmarks.encoders.load import load_encoder

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def drawings(all_drawings: Path) -> AuditSample:
    return draw_sample(all_drawings, 96, 0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        pytest.param({}, None, id="right"),
        pytest.param({"channels": "BGR"}, "points higher as RGB", id="BGR"),
        pytest.param({"mean": (0.0, 0.0, 0.0)}, "points higher on pixels of -1 to 1", id="mean"),
        pytest.param(
            {"value_range": 255.0},
            "points higher on pixels of 0 to 1, mean and std as they are",
            id="range",
        ),
    ],
)
def test_efficientnet_under_a_card(drawings: AuditSample, wrong: dict[str, object], said: str | None) -> None:
    encoder = load_encoder("package:efficientnet-lite0")
    encoder.card = encoder.card.model_copy(update=wrong)
    audit = examine(encoder, drawings, seconds=1e6, seed=0, show=False)
    accused = [s for s in audit.findings if s.endswith("the card is probably wrong")]
    if said is None:
        assert accused == []
    else:
        assert any(said in s for s in accused)
