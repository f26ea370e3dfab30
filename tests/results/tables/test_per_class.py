from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from results.plots import draw_per_class
from results.schema import EncoderCard, Score
from results.store import StoredRecord, read_records, write_record
from results.tables.per_class import per_class_markdown, per_class_tables
from tests.results.factory_records import card, decision_outcomes, protocol, random_card, record, single_groups

CLASSES = ("bird", "boat", "cat", "dog")
LAYERED = protocol("voc07_svm", ("feature4", "feature5"), "feature5", metric="mAP", dataset="scenes")


def write(root: Path, encoder: EncoderCard, level: float, *, outcomes: bool = True) -> None:
    found = decision_outcomes(("feature4", "feature5"), 1.0, 0) if outcomes else None
    values = {c: dict(zip(CLASSES, level + np.arange(4.0), strict=True)) for c in ("feature4", "feature5")}
    values["feature4"]["bird"] = 1.25
    write_record(root, record(encoder, LAYERED, found, per_class=values), found)


@pytest.fixture
def records(tmp_path: Path) -> list[StoredRecord]:
    write(tmp_path, card("trained"), 30.0)
    write(tmp_path, random_card(0), 10.0)
    write(tmp_path, random_card(1), 12.0)
    return read_records(tmp_path)[0]


def test_encoders_stand_side_by_side_and_initialisations_are_averaged(records: list[StoredRecord]) -> None:
    (table,) = per_class_tables(records)
    assert [row.label for row in table.rows] == list(CLASSES)
    assert table.columns[:2] == ("Class", "Positives")
    assert table.columns[2].endswith("mean of 2")
    assert table.columns[3] == "trained"
    assert [cell.value for cell in table.rows[1].cells[1:]] == [12.0, 31.0]


def test_positives_are_counted_from_the_targets(records: list[StoredRecord]) -> None:
    (table,) = per_class_tables(records)
    targets = decision_outcomes(("feature4",), 1.0, 0)["targets"]
    assert [row.cells[0].text for row in table.rows] == [str(n) for n in (targets == 1).sum(0)]


def test_without_targets_no_column_says_how_many_positives_there_are(tmp_path: Path) -> None:
    write(tmp_path, card("trained"), 30.0, outcomes=False)
    (table,) = per_class_tables(read_records(tmp_path)[0])
    assert table.columns == ("Class", "trained")
    assert table.rows[1].cells[0].value == 31.0
    draw_per_class(read_records(tmp_path)[0], tmp_path / "classes.svg")
    assert (tmp_path / "classes.svg").is_file()


def test_segmentation_counts_the_images_whose_truth_has_the_class(tmp_path: Path) -> None:
    areas = np.random.default_rng(0).integers(0, 3, (220, 3, 4))
    areas[:, 0] = np.minimum(areas[:, 1], areas[:, 2])
    outcomes = {"iou/mIoU": areas, "targets": np.zeros((220, 0), np.int8), **single_groups(220)}
    asked = protocol("voc12aug_fcn", ("mIoU",), "mIoU", dataset="scenes")
    values = {"mIoU": dict.fromkeys(CLASSES, 20.0)}
    scores = {"mIoU": Score(value=20.0, selection="last")}
    write_record(tmp_path, record(card("net"), asked, outcomes, scores=scores, per_class=values), outcomes)
    (table,) = per_class_tables(read_records(tmp_path)[0])
    assert [row.cells[0].text for row in table.rows] == [str(n) for n in (areas[:, 2] > 0).sum(0)]


def test_another_column_can_be_shown(records: list[StoredRecord]) -> None:
    assert "1.2" in per_class_markdown(records, "feature4")
    assert "| bird" in per_class_markdown(records)
    assert per_class_markdown(records, "embed") == ""
