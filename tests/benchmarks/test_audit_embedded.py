"""On the embedded drawings, with the weights that a package ships: a right card stands, wrong ones fall."""

from __future__ import annotations

import pytest

from benchmarks.audit import AuditSample, draw_sample, examine
from benchmarks.demo.compose import Counts, compose
from benchmarks.encoders.load import load_encoder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> AuditSample:
    data = tmp_path_factory.mktemp("data")
    compose(data, progress=False, counts=Counts(train=8, val=4, test=4, drawings_per_class=61))
    return draw_sample(data, 96, 0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, None),
        ({"channels": "BGR"}, "points higher as RGB"),
        ({"mean": (0.0, 0.0, 0.0)}, "points higher on pixels of -1 to 1"),
        ({"value_range": 255.0}, "points higher on pixels of 0 to 1, mean and std as they are"),
    ],
    ids=["right", "BGR", "mean", "range"],
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
