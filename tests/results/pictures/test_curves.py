"""Pictures of curves from records: which points they hold, and that a file comes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from results.pictures.curves import panels
from results.pictures.knn_k import _neighbours, draw_knn_k
from results.pictures.per_layer import _layer, draw_per_layer
from results.pictures.styles import Styles
from results.store import StoredRecord, read_records
from tests.results.factory_records import LAYERS, write_demo


@pytest.fixture
def records(tmp_path: Path) -> list[StoredRecord]:
    write_demo(tmp_path / "records")
    return read_records(tmp_path / "records")[0]


def own(records: list[StoredRecord], name: str, benchmark: str) -> list[StoredRecord]:
    return [
        s
        for s in records
        if s.record.encoder.name.startswith(name) and s.record.protocol.resolved.benchmark == benchmark
    ]


def test_a_curve_is_the_mean_over_repetitions_with_their_spread(records: list[StoredRecord]) -> None:
    (panel,) = panels(records, _layer)
    curves = {curve.label: curve for curve in panel.curves}
    assert [curve.runs for curve in panel.curves] == [
        5,
        1,
        3,
    ]  # random, EfficientNet, MoCo; pixels have none
    moco = [s.record.scores for s in own(records, "mocov2", "voc07_svm")]
    for point, layer in zip(curves["mocov2_resnet18w32_demo"].points, LAYERS, strict=True):
        values = [scores[layer].value for scores in moco]
        assert point.value == pytest.approx(np.mean(values))
        assert point.spread == pytest.approx(np.std(values, ddof=1))
    (lite,) = own(records, "EfficientNet", "voc07_svm")
    assert [p.spread for p in curves["EfficientNet-Lite0"].points] == [
        lite.record.scores[layer].standard_error for layer in LAYERS
    ]


def test_only_top_1_is_drawn_against_k(records: list[StoredRecord]) -> None:
    (panel,) = panels(records, _neighbours)
    assert [[point.x for point in curve.points] for curve in panel.curves] == [[10, 20, 100, 200]] * 4


@pytest.mark.parametrize(("draw", "position"), [(draw_per_layer, _layer), (draw_knn_k, _neighbours)])
def test_a_picture_is_drawn_with_every_curve_in_its_encoders_colour(
    records: list[StoredRecord], tmp_path: Path, draw: object, position: Callable[[str], float | None]
) -> None:
    out = tmp_path / "made" / "picture.png"
    draw(records, out)  # type: ignore[operator]
    with Image.open(out) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    (panel,) = panels(records, position)
    looks = {Styles(records).of(curve.label).colour for curve in panel.curves}
    assert len(looks) == len(panel.curves)
    for look in looks:
        colour = tuple(bytes.fromhex(look[1:]))
        assert (np.abs(pixels.astype(int) - colour).max(axis=1) < 8).sum() > 50
    assert [path.name for path in out.parent.iterdir()] == ["picture.png"]
    with pytest.raises(ValueError, match="no record"):
        draw([], out)  # type: ignore[operator]
