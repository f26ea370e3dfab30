"""Checkpoints of one run as a curve over epochs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from results.pictures.score_against_epoch import draw_score_against_epoch, epoch_panels
from results.store import StoredRecord, read_records
from tests.results.factory_records import write_demo


@pytest.fixture
def records(tmp_path: Path) -> list[StoredRecord]:
    write_demo(tmp_path / "records")
    return read_records(tmp_path / "records")[0]


def checkpoint(stored: StoredRecord, epochs: float) -> StoredRecord:
    card = stored.record.encoder
    name = f"{card.name}, epoch {epochs:g}"
    later = card.model_copy(update={"name": name, "epochs": epochs, "weights_sha256": f"{int(epochs):064x}"})
    return replace(stored, record=stored.record.model_copy(update={"encoder": later}))


def test_checkpoints_of_a_run_are_one_curve_and_single_encoders_are_none(
    records: list[StoredRecord], tmp_path: Path
) -> None:
    knn = [s for s in records if s.record.protocol.resolved.benchmark == "knn"]
    moco = next(s for s in knn if s.record.encoder.name.startswith("mocov2"))
    others = [s for s in knn if not s.record.encoder.name.startswith("mocov2")]
    series = [checkpoint(moco, epochs) for epochs in (200, 100, 400)]
    (panel,) = epoch_panels([*others, *series])
    (curve,) = panel.curves
    assert curve.label == moco.record.encoder.name
    assert [point.x for point in curve.points] == [100, 200, 400]
    primary = moco.record.scores[moco.record.protocol.resolved.primary]
    assert {(p.value, p.spread) for p in curve.points} == {(primary.value, primary.standard_error)}
    draw_score_against_epoch(series, tmp_path / "epochs.png")
    assert (tmp_path / "epochs.png").stat().st_size > 5000


def test_without_several_epochs_there_is_nothing_to_draw(records: list[StoredRecord], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no record"):
        draw_score_against_epoch(records, tmp_path / "epochs.png")
