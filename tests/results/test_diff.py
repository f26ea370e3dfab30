"""Two encoders, or one under two commits: what differs, and what of it is noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from results.__main__ import main
from results.compare import diff, side, verdict
from results.errors import InputError
from results.noise import Difference
from results.schema import EncoderCard, Score
from results.store import StoredRecord, read_records, write_record
from tests.results.factory_records import (
    KNN,
    KNN_COLUMNS,
    LINEAR,
    SVM,
    accuracy_outcomes,
    card,
    moco_card,
    protocol,
    record,
    write_demo,
)


def put(root: Path, encoder: EncoderCard, skill: float, seed: int = 0, **fields: Any) -> None:
    outcomes = accuracy_outcomes(KNN_COLUMNS, skill, seed)
    write_record(root, record(encoder, KNN, outcomes, **fields), outcomes)


def rows(records: list[StoredRecord], a: str, b: str, *benchmarks: str) -> dict[tuple[str, str], dict[str, str]]:
    found = {}
    for _, table in diff(side(records, a), side(records, b), benchmarks or ("*",)):
        for row in table.rows:
            cells = dict(zip(table.columns[1:], (cell.text for cell in row.cells), strict=True))
            found[row.label, cells["Column"]] = cells
    return found


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> list[StoredRecord]:
    root = tmp_path_factory.mktemp("records")
    write_demo(root)
    return read_records(root)[0]


@pytest.mark.slow
def test_every_protocol_and_column_in_common_has_a_row_with_interval_and_verdict(demo: list[StoredRecord]) -> None:
    found = rows(demo, "EfficientNet*", "mocov2_resnet18w32_demo (seed 0)")
    assert {protocol for protocol, _ in found} == {KNN.id, LINEAR.id, SVM.id}
    knn = found[KNN.id, "k=20"]
    assert knn["Verdict"] == "A is better"
    assert float(knn["A"]) - float(knn["B"]) == pytest.approx(float(knn["A - B"].split(" ")[0]), abs=0.11)
    assert (knn["Items"], knn["Sources"]) == ("220", "220")
    back = rows(demo, "mocov2_resnet18w32_demo (seed 0)", "EfficientNet*")[KNN.id, "k=20"]
    assert back["Verdict"] == "B is better"


def test_what_is_within_the_noise_is_called_so(demo: list[StoredRecord]) -> None:
    found = rows(demo, "mocov2_resnet18w32_demo (seed 0)", "mocov2_resnet18w32_demo (seed 1)")
    assert found[KNN.id, "k=20"]["Verdict"] == "within the noise"


@pytest.mark.slow
def test_a_pattern_of_several_counts_with_their_mean_and_their_spread(demo: list[StoredRecord]) -> None:
    several = rows(demo, "mocov2*", "random*")[KNN.id, "k=20"]
    values = [s.record.scores["k=20"].value or 0 for s in demo if s.record.encoder.name.startswith("mocov2")
              and s.record.protocol.id == KNN.id]  # fmt: skip
    assert several["A"] == f"{sum(values) / 3:.1f}"
    assert several["Verdict"] == "A is better"


def test_benchmarks_are_filtered_and_what_one_side_lacks_is_noted(demo: list[StoredRecord]) -> None:
    assert {protocol for protocol, _ in rows(demo, "Eff*", "moco*", "knn*")} == {KNN.id}
    ((_, table),) = diff(side(demo, "Eff*"), side(demo, "raw pixels"))
    assert table.notes == (f"Only Eff*: {SVM.id} on scenes",)


def test_one_encoder_under_two_commits(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    put(before, moco_card(0), 0.3, commit="a" * 40)
    put(after, moco_card(0), 0.7, seed=1, commit="b" * 40, created="2025-02-01T00:00:00+00:00")
    records = [stored for root in (before, after) for stored in read_records(root)[0]]
    put(tmp_path / "later", moco_card(0), 0.1, seed=2, commit="bbbbcc" + "0" * 34, created="2025-03-01T00:00:00+00:00")
    records += read_records(tmp_path / "later")[0]
    found = rows(records, "moco*@bbbbbb", "moco*@aaaaaa")
    assert found[KNN.id, "k=20"]["Verdict"] == "A is better"
    with pytest.raises(InputError, match="no encoder matches 'moco\\*@cccccc'"):
        side(records, "moco*@cccccc")
    with pytest.raises(InputError, match="no encoder matches 'nobody' at commit aaaa"):
        side(records, "nobody@aaaa")


def test_a_name_may_have_an_at_in_it(tmp_path: Path) -> None:
    put(tmp_path, card("net@beef"), 0.3, commit="a" * 40)
    assert len(side(read_records(tmp_path)[0], "net@beef").records) == 1


def test_other_definitions_and_versions_of_the_data_are_never_set_against_each_other(tmp_path: Path) -> None:
    put(tmp_path, card("a"), 0.3)
    put(tmp_path, card("b"), 0.3, dataset=record(card("b"), KNN).dataset.model_copy(update={"fingerprint": "f" * 64}))
    other = protocol("knn", KNN_COLUMNS, "k=20", params={"epochs": 31})
    assert other.id == KNN.id
    outcomes = accuracy_outcomes(KNN_COLUMNS, 0.3, 0)
    write_record(tmp_path, record(card("c"), other, outcomes), outcomes)
    records = read_records(tmp_path)[0]
    assert diff(side(records, "a"), side(records, "b")) == []
    assert diff(side(records, "a"), side(records, "c")) == []


def test_an_edited_record_is_marked_and_given_no_verdict(tmp_path: Path) -> None:
    put(tmp_path, card("a"), 0.3)
    scores = {"k=20": Score(value=44.5, selection="fixed")}
    path = write_record(tmp_path, record(card("b"), KNN, scores=scores))
    path.write_text(path.read_text().replace("44.5", "99.5"))
    ((_, table),) = diff(side(read_records(tmp_path)[0], "a"), side(read_records(tmp_path)[0], "b"))
    (row,) = table.rows
    assert row.label == f"{KNN.id} †"
    assert row.cells[5].text == "unknown: edited or damaged records are not compared"
    assert table.notes == (f"† b: {KNN.id}: edited after it was written",)


@pytest.mark.parametrize(
    ("column", "words"), [("RankMe", "A is better"), ("Uniformity", "B is better"), ("alpha-ReQ", "A is higher")]
)
def test_the_better_side_is_that_of_the_column(tmp_path: Path, column: str, words: str) -> None:
    asked = protocol("label_free", ("RankMe", "Uniformity", "alpha-ReQ"), "RankMe")
    for name, value in (("a", 3.0), ("b", 2.0)):
        runs = tuple({"trial": i, column: value + 0.01 * i} for i in range(3))
        scores = {column: Score(value=value + 0.01, selection="mean")}
        write_record(tmp_path, record(card(name), asked, scores=scores, runs=runs))
    assert rows(read_records(tmp_path)[0], "a", "b")[asked.id, column]["Verdict"] == words


def test_a_verdict_is_of_the_interval_not_of_its_length() -> None:
    assert verdict(Difference(1.0, 0.1, 2.5), higher_is_better=True) == "A is better"
    assert verdict(Difference(1.0, -0.1, 1.5), higher_is_better=True) == "within the noise"


def test_records_without_outcomes_have_a_difference_and_no_verdict(tmp_path: Path) -> None:
    for name, skill in (("a", 0.3), ("b", 0.6)):
        outcomes = accuracy_outcomes(KNN_COLUMNS, skill, 0)
        write_record(tmp_path, record(card(name), KNN, outcomes))
    found = rows(read_records(tmp_path)[0], "a", "b")[KNN.id, "k=20"]
    assert found["Verdict"].startswith("unknown")
    assert found["A - B"].startswith("-")
    ((_, table),) = diff(side(read_records(tmp_path)[0], "a"), side(read_records(tmp_path)[0], "b"))
    for row in table.rows:  # the numbers that the CSV has
        a, b, gap = (cell.value for cell in row.cells[2:5])
        assert a is not None
        assert b is not None
        assert gap == pytest.approx(a - b)


def test_the_command_prints_writes_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "records"
    put(root, card("a"), 0.3)
    put(root, card("b"), 0.6)
    command = ["diff", "b", "a", "--records", str(root)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "## Embedded data" in said
    assert "| A is better |" in said
    for form, part in (("latex", r"\toprule"), ("csv", "A is better")):
        assert main([*command, "--format", form, "--out", str(tmp_path / form)]) == 0
        assert part in (tmp_path / form).read_text()
    assert main(["diff", "b", "nobody", "--records", str(root)]) == 2
    assert "no encoder matches 'nobody'; the records hold a, b" in capsys.readouterr().err
    assert main([*command, "--benchmark", "linear*"]) == 2
    assert "no protocol and data in common" in capsys.readouterr().err
