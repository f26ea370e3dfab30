"""Tables of suites, and the drop from one test set to another with its interval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from results.bootstrap import RESAMPLES, SPREAD, drop
from results.export import every_eval_ever
from results.families import FAMILIES
from results.options import Export
from results.rows import EMBEDDED, FULL, suite_groups
from results.schema import Score
from results.store import read_records, write_record
from results.tables import Section
from tests.results.factory_records import card, protocol, record


def outcomes(right: NDArray[np.bool_], names: list[str]) -> dict[str, NDArray[Any]]:
    count = len(right)
    return {
        "correct/Top-1": right, "targets": np.zeros(count, np.int64), "ids": np.array(names),
        "group_offsets": np.arange(count + 1), "group_members": np.array(names),
    }  # fmt: skip


RNG = np.random.default_rng(0)
VAL = RNG.random(400) < 0.8


def test_the_drop_is_the_difference_of_the_accuracies() -> None:
    other = RNG.random(300) < 0.5
    gain = drop(outcomes(VAL, [f"val/a/{i}.JPEG" for i in range(400)]), outcomes(other, [f"x{i}" for i in range(300)]),
                "Top-1")  # fmt: skip
    assert gain is not None
    assert gain.value == pytest.approx(other.mean() - VAL.mean())
    error = (VAL.var() / 400 + other.var() / 300) ** 0.5  # of independent samples
    assert gain.high - gain.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_the_same_images_are_paired_whatever_their_folder() -> None:
    names = [f"val/a/img_{i:04d}.JPEG" for i in range(400)]
    other = VAL.copy()
    other[:40] = ~other[:40]
    gain = drop(outcomes(VAL, names), outcomes(other, [f"fog/3/a/img_{i:04d}.JPEG" for i in range(400)]), "Top-1")
    assert gain is not None
    differences = other.astype(float) - VAL
    assert gain.value == pytest.approx(differences.mean())
    assert gain.high - gain.low == pytest.approx(2 * 1.96 * differences.std() / 20, rel=0.1)
    whole = drop(outcomes(VAL, names), outcomes(VAL, names), "Top-1")
    assert whole is not None
    assert (whole.value, whole.low, whole.high) == (0, 0, 0)


def test_several_corruptions_of_an_image_count_as_one_source() -> None:
    names = [f"img_{i}" for i in range(400)]
    five = np.repeat(VAL, 5)
    once, often = (drop(outcomes(~VAL, [f"other_{i}" for i in range(400)]), outcomes(right, of), "Top-1")
                   for right, of in ((VAL, names), (five, list(np.repeat(names, 5)))))  # fmt: skip
    assert once is not None
    assert often is not None
    assert often.high - often.low == pytest.approx(once.high - once.low, rel=1e-6)
    assert SPREAD < 1 < RESAMPLES


def test_no_outcomes_no_interval() -> None:
    assert drop({}, outcomes(VAL, [str(i) for i in range(400)]), "Top-1") is None


NAMES = [str(i) for i in range(400)]
TOP = "correct/Top-1"


@pytest.mark.parametrize(
    "change",
    [
        {TOP: np.array(["a"] * 400)}, {TOP: np.full(400, 1j)}, {TOP: np.full(400, np.nan)}, {TOP: np.full(400, 7)},
        {TOP: np.full(400, 1e308)}, {TOP: np.ones((400, 2), bool)}, {TOP: np.ones((), bool)}, {TOP: VAL[:399]},
        {TOP: np.zeros(400, "M8[s]")}, {TOP: np.zeros(400, [("a", "i4")])},
        {TOP: VAL[:0], "group_offsets": np.zeros(1, int), "group_members": np.array([], "U1")},
        {"group_offsets": np.array([0, 2, *range(3, 401)])},  # 399 items, and as many sources as there were
        {"group_offsets": None}, {"group_members": None},
    ],
)  # fmt: skip
def test_outcomes_that_are_not_right_or_wrong_have_no_interval(change: dict[str, Any]) -> None:
    """Of either side; another's file may hold anything that its hash covers."""
    whole = outcomes(VAL, NAMES)
    broken = {name: array for name, array in {**whole, **change}.items() if array is not None}
    assert drop(whole, broken, "Top-1") is None
    assert drop(broken, whole, "Top-1") is None


def test_an_interval_stands_only_beside_the_change_that_its_outcomes_give(tmp_path: Path) -> None:
    """A record whose scores are others than its outcomes', which `verify` refuses, has the change of its scores."""
    for name, value in (("val", 100 * VAL.mean()), ("v2", 12.5)):
        made = protocol(f"robustness_{name}", ("Top-1",), "Top-1")
        scores = {"Top-1": Score(value=value, n=400, selection="fixed")}
        own = outcomes(VAL, NAMES)
        write_record(tmp_path, record(card("one"), made, own, scores=scores), own)
    (change,) = (
        t for t in Section(read_records(tmp_path)[0], EMBEDDED).tables() if "change of Top-1 from val" in t.title
    )
    assert change.rows[0].cells[0].text == f"{12.5 - 100 * VAL.mean():+.1f}"


def test_a_suite_is_one_row_per_encoder(tmp_path: Path) -> None:
    names = [f"img_{i}" for i in range(400)]
    for encoder, sets in (("one", ("val", "c")), ("two", ("val",))):
        for name in sets:
            made = protocol(f"robustness_{name}", ("Top-1", "Top-5"), "Top-1")
            own = outcomes(VAL if name == "val" else ~VAL, names)
            write_record(tmp_path, record(card(encoder), made, own), own)
    section = Section(read_records(tmp_path)[0], EMBEDDED)
    (suite,) = suite_groups(section.groups)
    assert list(suite.groups) == ["val", "c"]
    tables = section.tables()
    assert tables[0].title == "Robustness, variant demo: Top-1"
    scores = tables[0]
    assert scores.columns == ("Encoder", "val", "C")
    by_label = {row.label: row.cells for row in scores.rows}
    assert by_label["one"][1].value == pytest.approx(100 * float((~VAL).mean()))
    assert by_label["two"][1].value is None
    change = next(table for table in tables if "change of Top-1 from val" in table.title)
    assert [row.label for row in change.rows] == ["one"]
    assert change.rows[0].cells[0].value == pytest.approx(100 * float((~VAL).mean() - VAL.mean()))
    assert "[" in change.rows[0].cells[0].text


def test_the_mean_of_transfer_is_over_all_twelve_sets_or_absent(tmp_path: Path) -> None:
    twelve = ("food101", "cifar10", "cifar100", "birdsnap", "sun397", "cars", "aircraft", "voc2007", "dtd", "pets",
              "caltech101", "flowers102")  # fmt: skip
    values = dict(zip((*twelve, "svhn"), range(10, 23), strict=True))
    for encoder, missing in (("all", ""), ("lacks one", "pets")):
        for name, value in values.items():
            if name != missing:
                made = protocol(f"transfer_{name}", ("Logistic",), "Logistic")
                scores = {"Logistic": Score(value=float(value), n=100, selection="fixed")}
                write_record(tmp_path, record(card(encoder), made, scores=scores))
    records = read_records(tmp_path)[0]
    found = Section(records, EMBEDDED).tables()[0]
    rows = {row.label: dict(zip(found.columns[1:], row.cells, strict=True)) for row in found.rows}
    assert rows["all"]["Mean"].value == pytest.approx(15.5)  # svhn is none of them
    assert rows["lacks one"]["Mean"].value is None
    few = [stored for stored in records if "pets" not in stored.record.protocol.id]
    assert "Mean" not in Section(few, EMBEDDED).tables()[0].columns


def test_a_low_corruption_error_is_the_better_one(tmp_path: Path) -> None:
    asked = protocol("robustness_c", ("Top-1", "mCE"), "Top-1")
    for name, right in (("strong", VAL), ("weak", VAL & (np.arange(400) % 2 == 0))):
        errors = 1.2 * (1 - right)
        own = {**outcomes(right, NAMES), "pseudo_value/mCE": errors.astype(np.float32)}
        scores = {
            column: Score(value=100 * float(values.mean()), standard_error=2.0, n=400, selection="fixed")
            for column, values in (("Top-1", right), ("mCE", errors))
        }
        write_record(tmp_path, record(card(name), asked, own, scores=scores, embedded=False), own)
    stored = read_records(tmp_path)[0]
    tables = {table.title.rpartition(": ")[2]: table for table in Section(stored, FULL).tables()}
    for column in ("Top-1", "mCE"):
        bold = {row.label for row in tables[column].rows if row.cells[0].bold}
        assert bold == {"strong"}, column
    assert "higher is better, in mCE lower" in tables["mCE"].lines[0]
    results = every_eval_ever(stored[0], Export((), developer="us"))["evaluation_results"]
    found = {each["evaluation_name"].partition(": ")[2]: each["metric_config"] for each in results}
    assert [found[column]["lower_is_better"] for column in ("Top-1", "mCE")] == [False, True]
    assert (found["Top-1"]["max_score"], found["mCE"]["max_score"]) == (100.0, "Infinity")
    assert "mCE" not in FAMILIES["robustness"].direction(("Top-1",), higher_is_better=True)
