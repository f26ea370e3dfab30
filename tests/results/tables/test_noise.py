"""What counts as noise: the test sample, the runs, and both together."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from results.resampling.bootstrap import paired_gain
from results.schema import EncoderCard, Score
from results.store import StoredRecord, read_record, write_record
from results.tables.cells import Cell
from results.tables.noise import (
    Detectable,
    Difference,
    detectable_line,
    difference,
    mark_best,
    runs_of,
    smallest_detectable,
)
from results.tables.replicates import ReplicateCache
from tests.results.factory_records import KNN, KNN_COLUMNS, accuracy_outcomes, card, protocol, random_card, record


def stored(path: Path) -> StoredRecord:
    found = read_record(path)
    assert isinstance(found, StoredRecord)
    return found


def measured(root: Path, encoder: EncoderCard, skill: float, seed: int) -> StoredRecord:
    outcomes = accuracy_outcomes(KNN_COLUMNS, skill, seed)
    return stored(write_record(root, record(encoder, KNN, outcomes), outcomes))


def trials(root: Path, name: str, values: list[float]) -> StoredRecord:
    runs = tuple({"trial": i, "k=20": value} for i, value in enumerate(values))
    scores = {"k=20": Score(value=float(np.mean(values)), std=float(np.std(values)), selection="mean of trials")}
    return stored(write_record(root, record(card(name), KNN, scores=scores, runs=runs)))


def test_one_run_each_rests_on_the_paired_bootstrap(tmp_path: Path) -> None:
    a, b = measured(tmp_path, card("a"), 0.6, 1), measured(tmp_path, card("b"), 0.3, 2)
    found = difference(ReplicateCache(), [a], [b], "k=20")
    expected = paired_gain(accuracy_outcomes(KNN_COLUMNS, 0.6, 1), accuracy_outcomes(KNN_COLUMNS, 0.3, 2), "k=20")
    assert found is not None
    assert found == Difference(
        pytest.approx(100 * expected.value), pytest.approx(100 * expected.low), pytest.approx(100 * expected.high),
        items=220, sources=220, runs=None,
    )  # fmt: skip
    back = difference(ReplicateCache(), [b], [a], "k=20")
    assert back is not None
    assert (back.low, back.high) == (pytest.approx(-found.high), pytest.approx(-found.low))


def test_trials_without_outcomes_rest_on_welch(tmp_path: Path) -> None:
    ours, theirs = [57.0, 57.3, 56.8, 57.1, 56.9], [55.9, 56.2, 55.7]
    found = difference(ReplicateCache(), [trials(tmp_path, "a", ours)], [trials(tmp_path, "b", theirs)], "k=20")
    interval = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert found.runs == (5, 3)
    assert found.items == 0


def test_runs_widen_the_interval_of_the_test_sample(tmp_path: Path) -> None:
    ours = [measured(tmp_path, random_card(seed), skill, seed) for seed, skill in enumerate((0.5, 0.6, 0.7))]
    theirs = [measured(tmp_path, random_card(seed), 0.3, seed) for seed in (5, 6, 7)]
    cache = ReplicateCache()
    both = difference(cache, ours, theirs, "k=20")
    gain = cache.gain(ours, theirs, "k=20")
    assert both is not None
    assert gain is not None
    values = runs_of(ours, "k=20"), runs_of(theirs, "k=20")
    runs: NDArray[np.float64] = np.array(stats.ttest_ind(*values, equal_var=False).confidence_interval(0.95))
    half = (runs[1] - runs[0]) / 2
    assert both.value == pytest.approx(100 * gain.value) == pytest.approx(runs.mean())
    assert both.low == pytest.approx(both.value - np.hypot(100 * (gain.value - gain.low), half))
    assert both.runs == (3, 3)


def test_nothing_is_known_without_outcomes_or_runs_on_both_sides(tmp_path: Path) -> None:
    several, once = trials(tmp_path, "a", [1.0, 2.0]), trials(tmp_path, "b", [5.0])
    assert difference(ReplicateCache(), [several], [once], "k=20") is None
    outcomes = measured(tmp_path, card("c"), 0.5, 0)
    assert difference(ReplicateCache(), [outcomes], [once], "k=20") is None


def test_an_edited_record_tells_nothing(tmp_path: Path) -> None:
    one, other = trials(tmp_path, "a", [1.0, 2.0]), trials(tmp_path, "b", [50.0, 51.0])
    one.path.write_text(one.path.read_text().replace('"n": null', '"n": 5'))
    assert difference(ReplicateCache(), [stored(one.path)], [other], "k=20") is None


def test_arrays_that_do_not_fit_tell_nothing_and_stop_nothing(tmp_path: Path) -> None:
    outcomes = accuracy_outcomes(KNN_COLUMNS, 0.5, 0)
    scores = {"k=20": Score(value=50.0, standard_error=1.0, selection="fixed")}
    broken = {**outcomes, "correct/k=20": outcomes["correct/k=20"][:-5]}
    one = stored(write_record(tmp_path, record(card("a"), KNN, scores=scores), broken))
    other = measured(tmp_path, card("b"), 0.5, 0)
    assert one.intact
    assert difference(ReplicateCache(), [one], [other], "k=20") is None
    assert difference(ReplicateCache(), [one], [other], "k=10") is not None


def test_a_side_file_that_is_no_archive_stops_nothing(tmp_path: Path) -> None:
    one = measured(tmp_path, card("a"), 0.5, 0)
    junk = b"no archive"
    name = f"{one.path.stem}.{hashlib.sha256(junk).hexdigest()[:16]}.npz"
    one.path.with_name(name).write_bytes(junk)
    changed = one.record.model_copy(update={"outcomes_file": name}).sealed()
    one.path.write_text(changed.model_dump_json())
    again = stored(one.path)
    assert again.intact
    assert again.outcomes() is None
    assert difference(ReplicateCache(), [again], [measured(tmp_path, card("b"), 0.5, 1)], "k=20") is None


def test_the_best_is_where_less_is_better(tmp_path: Path) -> None:
    rows = [[measured(tmp_path, card("a"), 0.2, 1)], [measured(tmp_path, card("b"), 0.9, 2)]]
    cells = [Cell(one[0].record.scores["k=20"].value) for one in rows]
    for higher, expected in ((True, [False, True]), (False, [True, False])):
        marked = mark_best(ReplicateCache(), rows, cells, "k=20", higher_is_better=higher)
        assert [cell.bold for cell in marked] == expected
    assert mark_best(ReplicateCache(), rows[:1], cells[:1], "k=20", higher_is_better=True) == cells[:1]


def test_the_smallest_detectable_difference_is_the_median_half_interval(tmp_path: Path) -> None:
    rows = [[measured(tmp_path, card(f"net {i}"), skill, i)] for i, skill in enumerate((0.3, 0.5, 0.8))]
    cache = ReplicateCache()
    halves = [difference(cache, rows[i], rows[j], "k=20") for i, j in ((0, 1), (0, 2), (1, 2))]
    widths = [(found.high - found.low) / 2 for found in halves if found is not None]
    assert smallest_detectable(cache, rows, "k=20") == Detectable(pytest.approx(sorted(widths)[1]), of_sample=True)
    alone = smallest_detectable(cache, rows[:1], "k=20")
    error = rows[0][0].record.scores["k=20"].standard_error
    assert error is not None
    assert alone == Detectable(pytest.approx(1.96 * np.sqrt(2) * error, rel=0.01), of_sample=True)
    assert smallest_detectable(cache, [[trials(tmp_path, "x", [5.0])]], "k=20") is None


def test_the_line_says_what_is_known_what_is_of_runs_alone_and_what_is_not_known_and_why(tmp_path: Path) -> None:
    cache = ReplicateCache()

    def line(*rows: StoredRecord, columns: tuple[str, ...] = ("k=20",)) -> str:
        return detectable_line(cache, {column: ([[row] for row in rows], column) for column in columns}, 1)

    a, b = measured(tmp_path, card("a"), 0.6, 1), measured(tmp_path, card("b"), 0.3, 2)
    known = line(a, b, columns=("k=10", "k=20", "k=7"))
    found = [smallest_detectable(cache, [[a], [b]], column) for column in ("k=10", "k=20")]
    texts = [f"{one.value:.1f}" for one in found if one is not None]
    assert known == (
        f"Smallest detectable difference between two rows (95%): k=10 {texts[0]}, k=20 {texts[1]}."
    )  # k=7 has no figure

    several = trials(tmp_path, "c", [57.0, 57.3, 56.8]), trials(tmp_path, "d", [55.0, 55.4])
    assert line(*several).endswith("by the spread of runs alone, which leaves the test sample out.")

    def unknown(benchmark: str, outcomes: dict[str, NDArray[Any]] | None = None) -> StoredRecord:
        asked = protocol(benchmark, KNN_COLUMNS, "k=20")
        scores = {column: Score(value=value, selection="fixed") for column, value in (("k=10", 40.0), ("k=20", 50.0))}
        return stored(write_record(tmp_path, record(card("e"), asked, scores=scores), outcomes))

    assert line(unknown("knn")).endswith(": not known, since the records hold no outcomes per item; measured again "
                                         "with --force they do.")  # fmt: skip
    assert "this benchmark keeps no outcomes per item" in line(unknown("voc0712_det"))
    partly = {k: v for k, v in accuracy_outcomes(KNN_COLUMNS, 0.5, 0).items() if k != "correct/k=10"}
    some = line(unknown("linear_avgpool", partly), columns=("k=10", "k=20"))
    assert some.endswith("; not known for k=10, since no outcomes per item are kept for it.")
    assert ": k=20 " in some
    edited = unknown("finetune_x")
    edited.path.write_text(edited.path.read_text().replace("50.0", "51.0"))
    assert "cannot be believed" in line(stored(edited.path))
