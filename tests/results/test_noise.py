"""Noise of the test sample, of the runs, and of the drawn label sets of low-shot figures."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from results.bootstrap import SPREAD, replicates
from results.compare.diff import diff, side
from results.formats import Cell
from results.noise import (
    Detectable,
    Difference,
    ReplicateCache,
    detectable_line,
    difference,
    mark_best,
    runs_of,
    sets_of,
    smallest_detectable,
)
from results.schema import EncoderCard, Score
from results.store import StoredRecord, read_record, write_record
from tests.results.factory_records import (
    KNN,
    KNN_COLUMNS,
    accuracy_outcomes,
    card,
    protocol,
    random_card,
    record,
    single_groups,
)
from tests.results.paired import paired_gain


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
    assert "edited or damaged records" in line(stored(edited.path))


LOW_SHOT = protocol("voc07_low_shot_svm", ("k=1", "k=1 fixed"), "k=1")
ITEMS, SETS = 150, 5


def values(seed: int, skill: float, drawn: NDArray[Any], items: int = ITEMS) -> NDArray[Any]:
    """(sets, items) contributions to a metric in [0, 1]: of the encoder, the image, the set, and of both together."""
    image = np.random.default_rng(100).normal(0, 0.3, items)
    rng = np.random.default_rng([seed, 1])
    return np.asarray(
        skill + image + drawn[:, None] + rng.normal(0, 0.1, items) + rng.normal(0, 0.2, (len(drawn), 1)) * 0.1
    )


def outcomes_of(found: NDArray[Any]) -> dict[str, NDArray[Any]]:
    kept = found.mean(0).astype(np.float32)
    return {"pseudo_value/k=1": kept, "targets": np.zeros(found.shape[1], np.int8), **single_groups(found.shape[1])}


def low_shot(
    root: Path, encoder: EncoderCard, found: NDArray[Any], names: tuple[str, ...] | None = None
) -> StoredRecord:
    names = names or tuple(f"set{index}" for index in range(len(found)))
    of_sets = 100 * found.mean(1)
    runs = tuple({"trial": i, "drawn": name, "k=1": float(of_sets[i])} for i, name in enumerate(names))
    scores = {"k=1": Score(value=float(of_sets.mean()), std=float(of_sets.std()), selection="mean over the sets")}
    outcomes = outcomes_of(found)
    path = write_record(root, record(encoder, LOW_SHOT, scores=scores, runs=runs), outcomes)
    stored = read_record(path)
    assert isinstance(stored, StoredRecord)
    return stored


@pytest.fixture
def drawn() -> NDArray[Any]:
    return np.random.default_rng(0).normal(0, 0.05, SETS)


def test_both_parts_are_those_of_plain_loops(tmp_path: Path, drawn: NDArray[Any]) -> None:
    ours, theirs = values(1, 0.5, drawn), values(2, 0.45, drawn)
    a, b = low_shot(tmp_path, card("a"), ours), low_shot(tmp_path, card("b"), theirs)
    found = difference(ReplicateCache(), [a], [b], "k=1")
    assert found is not None

    # Of the images: every set's metric anew under drawn weights of the images, and its mean over the sets.
    resampled = []
    for draws in np.random.default_rng(0).standard_exponential((1000, ITEMS)):
        gap = 0.0
        for of_ours, of_theirs in zip(ours, theirs, strict=True):
            top = bottom = 0.0
            for one, other, draw in zip(of_ours, of_theirs, draws[order()], strict=True):
                weight = 1 + SPREAD * (draw - 1)
                top, bottom = top + weight * (one - other), bottom + weight
            gap += top / bottom / SETS
        resampled.append(100 * gap)
    value = 100 * float((ours - theirs).mean())
    low, high = np.quantile(value + (np.array(resampled) - value) / SPREAD, [0.025, 0.975])
    # Of the sets: Student's t of the paired differences.
    of_sets = stats.ttest_rel(100 * ours.mean(1), 100 * theirs.mean(1)).confidence_interval(0.95)
    half = (of_sets.high - of_sets.low) / 2
    assert found.value == pytest.approx(value, abs=1e-4)
    assert found.low == pytest.approx(value - np.hypot(value - low, half), abs=1e-3)
    assert found.high == pytest.approx(value + np.hypot(high - value, half), abs=1e-3)
    assert (found.sets, found.items, found.runs) == (SETS, ITEMS, None)


def order() -> NDArray[Any]:
    """Weights are drawn by source in the order of their names, d0, d1, d10 …"""
    names = [f"d{i}" for i in range(ITEMS)]
    return np.array([sorted(names).index(name) for name in names])


def test_the_interval_covers_the_truth_and_either_part_alone_does_not() -> None:
    """Encoders without a difference, on images and sets drawn anew each time: 95 % of the intervals hold zero."""
    covered = {"both": 0, "images": 0, "sets": 0}
    times, items = 300, 60
    for time in range(times):
        rng = np.random.default_rng(time)
        own = [
            rng.normal(0, 0.15, items) + rng.normal(0, 0.035, SETS)[:, None] + rng.normal(0, 0.05, (SETS, items))
            for _ in range(2)
        ]
        gap = own[0] - own[1]
        names = single_groups(items)
        (image,) = replicates({"pseudo_value/x": gap.mean(0), **names}, ["x"], resamples=300, seed=time).values()
        of_images = 1.96 * image.standard_error
        interval = stats.ttest_1samp(gap.mean(1), 0).confidence_interval(0.95)
        of_sets = (interval.high - interval.low) / 2
        widths = {"images": of_images, "sets": of_sets, "both": float(np.hypot(of_images, of_sets))}
        for part, width in widths.items():
            covered[part] += abs(gap.mean()) < width
    assert covered["both"] / times > 0.93
    assert covered["images"] / times < 0.9
    assert covered["sets"] / times < 0.9


def test_a_hard_set_is_hard_for_both_and_widens_nothing(tmp_path: Path) -> None:
    spread = np.array([-0.2, -0.1, 0.0, 0.1, 0.2])
    far = [low_shot(tmp_path / "far", card(n), values(s, 0.5, spread)) for s, n in ((1, "a"), (2, "b"))]
    near = [low_shot(tmp_path / "near", card(n), values(s, 0.5, 0 * spread)) for s, n in ((1, "a"), (2, "b"))]
    halves = [difference(ReplicateCache(), [pair[0]], [pair[1]], "k=1") for pair in (far, near)]
    assert halves[0] is not None
    assert halves[1] is not None
    assert halves[0].half_width == pytest.approx(halves[1].half_width, rel=1e-3)


def test_sets_are_no_runs_and_initialisations_are(tmp_path: Path, drawn: NDArray[Any]) -> None:
    ours = [low_shot(tmp_path, random_card(seed), values(seed, 0.3, drawn)) for seed in range(3)]
    theirs = [low_shot(tmp_path, card("a"), values(9, 0.5, drawn))]
    assert runs_of(theirs, "k=1") == []
    assert len(runs_of(ours, "k=1")) == 3
    assert sets_of(ours, "k=1")["set2"] == pytest.approx(
        np.mean([100 * values(seed, 0.3, drawn).mean(1)[2] for seed in range(3)])
    )
    found = difference(ReplicateCache(), ours, theirs, "k=1")
    assert found is not None
    assert (found.runs, found.sets) == (None, SETS)
    assert found.beyond_noise


def test_other_sets_are_not_paired(tmp_path: Path, drawn: NDArray[Any]) -> None:
    a = low_shot(tmp_path, card("a"), values(1, 0.5, drawn))
    b = low_shot(tmp_path, card("b"), values(2, 0.4, drawn), tuple("vwxyz"))
    assert sets_of([a, b], "k=1") == {}
    found, gain = difference(ReplicateCache(), [a], [b], "k=1"), ReplicateCache().gain([a], [b], "k=1")
    assert found is not None
    assert gain is not None
    sides = [100 * values(1, 0.5, drawn).mean(1), 100 * values(2, 0.4, drawn).mean(1)]
    welch = stats.ttest_ind(*sides, equal_var=False).confidence_interval(0.95)
    half = (welch.high - welch.low) / 2
    assert found.low == pytest.approx(found.value - np.hypot(100 * (gain.value - gain.low), half), abs=1e-3)


def test_tables_and_diff_know_the_noise(tmp_path: Path, drawn: NDArray[Any]) -> None:
    rows = [low_shot(tmp_path, card(n), values(s, k, drawn)) for s, n, k in ((1, "a", 0.6), (2, "b", 0.3))]
    cache = ReplicateCache()
    found = smallest_detectable(cache, [[row] for row in rows], "k=1")
    pair = difference(cache, [rows[0]], [rows[1]], "k=1")
    assert pair is not None
    assert found == Detectable(pytest.approx(pair.half_width), of_sample=True)
    line = detectable_line(cache, {"k=1": ([[row] for row in rows], "k=1")}, 1)
    assert line.endswith(f": k=1 {pair.half_width:.1f}.")
    ((_, table),) = diff(side(rows, "a"), side(rows, "b"))
    cells = dict(zip(table.columns[1:], (cell.text for cell in table.rows[0].cells), strict=True))
    assert cells["Verdict"] == "A is better"
    assert cells["Items"] == str(ITEMS)

    alone = smallest_detectable(cache, [[rows[0]]], "k=1")
    error, of_sets = rows[0].record.scores["k=1"].standard_error, 100 * values(1, 0.6, drawn).mean(1)
    assert error is not None
    assert alone is not None
    half = stats.t.ppf(0.975, SETS - 1) * of_sets.std(ddof=1) / np.sqrt(SETS)
    assert alone.value == pytest.approx(np.sqrt(2) * np.hypot(1.96 * error, half), rel=0.01)
