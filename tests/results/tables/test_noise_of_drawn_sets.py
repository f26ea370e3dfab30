"""Low-shot figures are means over drawn label sets: both the test images and the sets are noise, and both count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from results.compare.diff import diff, side
from results.resampling.bootstrap import SPREAD, replicates
from results.schema import EncoderCard, Score
from results.store import StoredRecord, read_record, write_record
from results.tables.noise import Detectable, detectable_line, difference, runs_of, sets_of, smallest_detectable
from results.tables.replicates import ReplicateCache
from tests.results.factory_records import card, protocol, random_card, record, single_groups

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
