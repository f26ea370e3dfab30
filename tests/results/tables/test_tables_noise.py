"""What tables say of the noise: gains over random, the smallest detectable difference, and bold."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from results.resampling.bootstrap import paired_gain
from results.schema import Architecture
from results.store import read_records, write_record
from results.tables.cells import Table
from results.tables.gains import gain_over_random
from tests.results.factory_records import (
    KNN,
    KNN_COLUMNS,
    LAYERS,
    SVM,
    accuracy_outcomes,
    card,
    decision_outcomes,
    moco_card,
    random_card,
    record,
)
from tests.results.table_readings import cell, section, table, titled, write


def test_the_gain_over_random_is_paired_with_the_mean_of_the_initialisations(demo_tables: list[Table]) -> None:
    found = titled(demo_tables, "Gain over random")
    assert [row.label for row in found.rows] == [f"mocov2_resnet18w32_demo (seed {seed})" for seed in range(3)]
    assert "kNN (k=20): 220 items from 220 sources" in found.lines[1]
    assert "VOC07 SVM (SVM): 160 items from 60 sources" in found.lines[1]
    outcomes = [accuracy_outcomes(KNN_COLUMNS, 0.25, number) for number in range(5)]
    expected = paired_gain(accuracy_outcomes(KNN_COLUMNS, 0.45, 6), outcomes, "k=20")
    assert expected.excludes_zero
    text = f"{100 * expected.value:+.1f} [{100 * expected.low:+.1f}, {100 * expected.high:+.1f}]"
    assert cell(found, "mocov2_resnet18w32_demo (seed 1)", "kNN (k=20)").text == text


def test_a_gain_in_a_best_layer_compares_each_encoders_own(demo: Path, demo_tables: list[Table]) -> None:
    best = {
        s.record.encoder.name + str(s.record.encoder.init): s.record.scores["SVM"].value or 0.0
        for s in read_records(demo)[0]
        if s.record.protocol.id == SVM.id
    }
    random = np.mean([value for name, value in best.items() if name.startswith("random")])
    gain = best["mocov2_resnet18w32_demoseed 0"] - random
    text = cell(titled(demo_tables, "Gain over random"), "mocov2_resnet18w32_demo (seed 0)", "VOC07 SVM (SVM)").text
    assert text.startswith(f"{gain:+.1f} [")


def test_no_gain_without_a_control_of_the_same_architecture_or_without_outcomes(tmp_path: Path) -> None:
    outcomes = accuracy_outcomes(KNN_COLUMNS, 0.4, 0)
    for encoder in (random_card(0), moco_card(0, architecture=Architecture(name="resnet50"))):
        write_record(tmp_path, record(encoder, KNN, outcomes), outcomes)
    assert gain_over_random(section(tmp_path)) is None
    write(tmp_path, moco_card(1), 50.0)
    assert gain_over_random(section(tmp_path)) is None


def test_the_header_prints_the_smallest_detectable_difference(demo_tables: list[Table]) -> None:
    found = titled(demo_tables, "Nearest")
    (line,) = [line for line in found.lines if line.startswith("Smallest detectable difference between two rows (95%)")]
    numbers = dict(re.findall(r"(k=\d+) (\d+\.\d)", line))
    assert set(numbers) == set(found.columns[1:])
    assert all(2 < float(number) < 20 for number in numbers.values())  # 220 items, no better


def test_the_best_is_bold_only_where_it_is_better_than_each_by_more_than_the_noise(tmp_path: Path) -> None:
    for name, skill, seed in (("low", 0.2, 0), ("high", 0.6, 1), ("higher", 0.605, 3)):
        outcomes = accuracy_outcomes(KNN_COLUMNS, skill, seed)
        write_record(tmp_path, record(card(name), KNN, outcomes), outcomes)
    assert not any(c.bold for row in table(tmp_path, "Nearest").rows for c in row.cells)
    outcomes = accuracy_outcomes(KNN_COLUMNS, 0.95, 4)
    write_record(tmp_path, record(card("highest"), KNN, outcomes), outcomes)
    bold = [row.label for row in table(tmp_path, "Nearest").rows if all(c.bold for c in row.cells)]
    assert bold == ["highest"]


def test_nothing_is_bold_where_the_noise_is_not_known(tmp_path: Path) -> None:
    write(tmp_path, card("low"), 1.0)
    write(tmp_path, card("high"), 99.0)
    found = table(tmp_path, "Nearest")
    assert not any(c.bold for row in found.rows for c in row.cells)
    assert any("(95%): not known, since the records hold no outcomes" in line for line in found.lines)


def test_svm_outcomes_of_the_factory_have_scenes_that_share_drawings() -> None:
    outcomes = decision_outcomes(LAYERS, 1.0, 0)
    assert len(np.unique(outcomes["group_members"])) < len(outcomes["group_members"]) / 3
