"""Noise of the test sample, of the runs, and of the drawn label sets of low-shot figures."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from results.bootstrap import SPREAD, gain_of, replicates
from results.compare import diff, side
from results.formats import Cell
from results.noise import (
    Difference,
    Ranking,
    ReplicateCache,
    difference,
    rank_rows,
    ranking_line,
    runs_of,
    sets_of,
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


@pytest.mark.parametrize("fault", ["", "ids", "targets", "group_members"])
def test_only_what_was_measured_on_the_same_items_is_paired(tmp_path: Path, fault: str) -> None:
    a = measured(tmp_path, card("a"), 0.6, 1)
    outcomes = accuracy_outcomes(KNN_COLUMNS, 0.3, 2)
    if fault:
        outcomes[fault] = np.roll(outcomes[fault], 1)
    else:  # in another order of the items, with ids of another length at most
        outcomes = {k: v if k == "group_offsets" else v[::-1] for k, v in outcomes.items()}
        outcomes["ids"] = outcomes["ids"].astype("U40")
    b = stored(write_record(tmp_path, record(card("b"), KNN, outcomes), outcomes))
    gain = ReplicateCache().gain([a], [b], "k=20")
    if fault:
        assert gain is None
    else:
        plain = [accuracy_outcomes(KNN_COLUMNS, skill, seed) for skill, seed in ((0.6, 1), (0.3, 2))]
        expected = paired_gain(*plain, "k=20")
        assert gain is not None
        assert (gain.value, gain.low, gain.high) == pytest.approx((expected.value, expected.low, expected.high))


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


def ranked(rows: list[StoredRecord], *columns: str, higher: bool = True) -> dict[str, Ranking]:
    cells = {column: [Cell(row.record.scores[column].value) for row in rows] for column in columns or ("k=20",)}
    return rank_rows(ReplicateCache(), [[row] for row in rows], cells, higher_is_better=higher)


def bold(ranking: Ranking) -> list[bool]:
    return [cell.bold for cell in ranking.cells]


def test_the_best_is_bold_and_lowest_where_lower_is_better(tmp_path: Path) -> None:
    rows = [measured(tmp_path, card("a"), 0.2, 1), measured(tmp_path, card("b"), 0.9, 2)]
    for higher, expected in ((True, [False, True]), (False, [True, False])):
        assert bold(ranked(rows, higher=higher)["k=20"]) == expected
    assert bold(ranked(rows[:1])["k=20"]) == [False]


@pytest.mark.slow
def test_bold_are_the_rows_whose_own_interval_with_the_best_contains_zero(tmp_path: Path) -> None:
    skills = (0.3, 0.64, 0.65, 0.6, 0.65)
    rows = [measured(tmp_path, card(f"net {i}"), skill, i) for i, skill in enumerate(skills)]
    for column, ranking in ranked(rows, "k=10", "k=20", "k=100").items():
        values = [row.record.scores[column].value or 0.0 for row in rows]
        best = values.index(max(values))
        expected = []
        for i in range(len(rows)):
            found = difference(ReplicateCache(), [rows[best]], [rows[i]], column) if i != best else None
            expected.append(found is None or not found.beyond_noise)
        assert bold(ranking) == expected
        assert 1 < sum(expected) < len(rows)


@pytest.mark.slow
@pytest.mark.parametrize("higher", [True, False])
def test_the_screen_by_few_resamples_changes_no_ranking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, higher: bool
) -> None:
    rows = [measured(tmp_path, card(f"net {i}"), 0.2 + 0.05 * i, i) for i in range(12)]
    columns = ("k=10", "k=20", "k=100", "k=200")
    screened = ranked(rows, *columns, higher=higher)
    monkeypatch.setattr("results.noise.FAR", float("inf"))
    monkeypatch.setattr("results.noise.NEAR", 0.0)
    assert ranked(rows, *columns, higher=higher) == screened


def test_scores_far_apart_are_ranked_without_their_outcomes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skills = [0.1, 0.2, 0.88, 0.9]
    rows = [measured(tmp_path, card(f"net {i}"), skill, i) for i, skill in enumerate(skills)]
    expected = bold(ranked(rows, "k=20")["k=20"])
    assert expected[:2] == [False, False]
    opened: list[str] = []
    outcomes = StoredRecord.outcomes

    def counted(self: StoredRecord) -> Any:
        opened.append(self.record.encoder.name)
        return outcomes(self)

    monkeypatch.setattr(StoredRecord, "outcomes", counted)
    assert bold(ranked(rows, "k=20")["k=20"]) == expected
    assert set(opened) == {"net 2", "net 3"}


def test_a_column_is_ranked_with_one_comparison_per_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [measured(tmp_path, card(f"net {i}"), 0.3 + 0.02 * i, i) for i in range(12)]
    calls = []

    def counted(*sides: Any) -> Any:
        calls.append(sides)
        return gain_of(*sides)

    monkeypatch.setattr("results.noise.gain_of", counted)
    found = ranked(rows, "k=10", "k=20")
    assert any(bold(found["k=20"]))
    assert len(calls) <= 2 * (len(rows) - 1)


def test_the_table_says_what_is_not_compared_and_what_rests_on_runs_alone(tmp_path: Path) -> None:
    a, b = measured(tmp_path, card("a"), 0.6, 1), measured(tmp_path, card("b"), 0.3, 2)
    assert ranking_line(ranked([a, b])) == ""

    several = trials(tmp_path, "c", [57.0, 57.3, 56.8]), trials(tmp_path, "d", [55.0, 55.4])
    assert ranking_line(ranked([*several])) == (
        "All columns: compared by the spread over runs alone, which leaves out the noise of the test sample."
    )

    def unknown(benchmark: str, outcomes: dict[str, NDArray[Any]] | None = None) -> list[StoredRecord]:
        asked = protocol(benchmark, KNN_COLUMNS, "k=20")
        scores = {column: Score(value=value, selection="fixed") for column, value in (("k=10", 40.0), ("k=20", 50.0))}
        made = [record(card(name), asked, scores=scores) for name in "ef"]
        return [stored(write_record(tmp_path, each, outcomes)) for each in made]

    bare = ranked(unknown("knn"))
    assert bold(bare["k=20"]) == [False, False]
    assert ranking_line(bare) == (
        "Nothing is bold, because not every record holds outcomes per item; measure again with --force to get them."
    )
    assert "this benchmark keeps no outcomes per item" in ranking_line(ranked(unknown("voc0712_det")))
    partly = {k: v for k, v in accuracy_outcomes(KNN_COLUMNS, 0.5, 0).items() if k != "correct/k=10"}
    some = ranking_line(ranked(unknown("linear_avgpool", partly), "k=10", "k=20"))
    assert some == "Nothing is bold in k=10, because not every record holds outcomes per item for it."
    edited = unknown("finetune_x")
    edited[0].path.write_text(edited[0].path.read_text().replace("50.0", "51.0"))
    assert "edited or damaged records are not compared" in ranking_line(ranked([stored(e.path) for e in edited]))


@pytest.mark.slow
def test_memory_is_bounded_and_nothing_is_lost_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [measured(tmp_path, card(f"net {i}"), 0.3 + 0.02 * i, i) for i in range(8)]
    expected = ranked(rows, "k=10", "k=20")
    monkeypatch.setattr("results.noise.KEPT_REPLICATES", 3)
    monkeypatch.setattr("results.bootstrap.KEPT_VALUES", 0)
    assert ranked(rows, "k=10", "k=20") == expected


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


@pytest.mark.slow
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


@pytest.mark.slow
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
    widths = [found.high - found.low for found in halves if found is not None]
    assert widths[0] == pytest.approx(widths[1], rel=1e-3)


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


def test_diff_knows_the_noise(tmp_path: Path, drawn: NDArray[Any]) -> None:
    rows = [low_shot(tmp_path, card(n), values(s, k, drawn)) for s, n, k in ((1, "a", 0.6), (2, "b", 0.3))]
    pair = difference(ReplicateCache(), [rows[0]], [rows[1]], "k=1")
    assert pair is not None
    ((_, table),) = diff(side(rows, "a"), side(rows, "b"))
    cells = dict(zip(table.columns[1:], (cell.text for cell in table.rows[0].cells), strict=True))
    assert cells["Verdict"] == "A is better"
    assert cells["Items"] == str(ITEMS)
    assert cells["A - B"] == f"{pair.value:+.1f} [{pair.low:+.1f}, {pair.high:+.1f}]"


def test_a_column_of_the_opposite_direction_is_ranked_by_its_own(tmp_path: Path) -> None:
    rows = [[measured(tmp_path, card("a"), 0.8, 1)], [measured(tmp_path, card("b"), 0.2, 2)]]
    values = [[Cell(row[0].record.scores[column].value) for row in rows] for column in KNN_COLUMNS[:2]]
    cells = dict(zip(KNN_COLUMNS[:2], values, strict=True))
    found = rank_rows(ReplicateCache(), rows, cells, higher_is_better=False, opposite=KNN_COLUMNS[:1])
    assert [[cell.bold for cell in found[column].cells] for column in KNN_COLUMNS[:2]] == [[True, False], [False, True]]
