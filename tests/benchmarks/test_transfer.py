"""Transfer against scikit-learn and plain loops, and end to end on the embedded drawings."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import NearestCentroid
from tqdm import tqdm

from benchmarks import task
from benchmarks.__main__ import main, time_text
from benchmarks.evaluate import Attempt
from benchmarks.registry import find_protocol
from benchmarks.task import InputError, RunOptions, Split
from benchmarks.transfer import KNN, LOGISTIC, NCM, Transfer, validation
from results.bootstrap import replicates
from results.rows import EMBEDDED
from results.store import read_records
from results.tables import Section
from tests.benchmarks.datasets.test_transfer_sets import aircraft, dtd, food101, pets
from tests.builders import bare_labels, bare_split

QUIET = RunOptions(device="cpu", progress=False)
CENTRES = np.random.default_rng(0).normal(size=(4, 6))
PENALTIES = (0.1, 3.0, 100.0)


def split(targets: np.ndarray, seed: int, part: str, rows: np.ndarray | None = None) -> Split:
    rng = np.random.default_rng(seed)
    if rows is None:
        rows = CENTRES[targets] + 1.2 * rng.normal(size=(len(targets), 6))
    return bare_split(rows, targets, "abcd", part=part)


def protocol(name: str = "food101", **changes: Any) -> Any:
    given = {"penalties": PENALTIES, "tolerance": 1e-5, "k": 5, **changes}
    return find_protocol(f"transfer_{name}.kornblith@2").changed(**given)


TRAIN = split(np.random.default_rng(1).permutation(np.repeat(np.arange(4), (60, 40, 30, 20))), 2, "train")
TEST = split(np.repeat(np.arange(4), (50, 40, 30, 9)), 3, "test")


def sklearn_choice(kept: np.ndarray, held: np.ndarray, scored: Any) -> tuple[float, LogisticRegression]:
    x, y = TRAIN.features["embed"].astype(float), TRAIN.labels.targets

    def fit(penalty: float, rows: np.ndarray) -> LogisticRegression:
        return LogisticRegression(C=1 / penalty, tol=1e-9, max_iter=5000).fit(x[rows], y[rows])

    values = [scored(y[held], fit(penalty, kept).predict(x[held])) for penalty in PENALTIES]
    best = max(p for p, value in zip(PENALTIES, values, strict=True) if value == max(values))
    return best, fit(best, np.arange(len(y)))


@pytest.mark.parametrize(
    ("name", "scored"),
    [("food101", lambda truth, found: (truth == found).mean()), ("pets", balanced_accuracy_score)],
)
def test_logistic_is_scikit_learns(name: str, scored: Any) -> None:
    outcome = Transfer().run(protocol(name), TRAIN, TEST, QUIET)
    penalty, model = sklearn_choice(*validation(TRAIN.labels, 0.2), scored)
    assert outcome.runs[0]["penalty"] == penalty
    found = model.predict(TEST.features["embed"].astype(float))
    assert outcome.scores[LOGISTIC].value == pytest.approx(100 * scored(TEST.labels.targets, found))
    kind = "correct" if name == "food101" else "pseudo_value"
    items = {f"{kind}/{LOGISTIC}": outcome.items[f"{kind}/{LOGISTIC}"], "targets": TEST.labels.targets,
             "group_offsets": np.arange(len(TEST.labels) + 1), "group_members": np.array(TEST.labels.ids)}  # fmt: skip
    made = replicates(items, [LOGISTIC])[LOGISTIC]
    assert 100 * made.value == pytest.approx(outcome.scores[LOGISTIC].value, rel=1e-5)
    assert 0.01 < made.standard_error < 0.1


def test_a_fit_of_rows_that_can_be_separated_is_at_its_minimum() -> None:
    """Large weights leave hardly any gradient there, so that a loose tolerance stops far off the minimum."""
    centres = np.random.default_rng(9).normal(size=(4, 160))
    parts = []
    for seed, count, part in ((1, 160, "train"), (2, 400, "test")):
        rng = np.random.default_rng(seed)
        targets = rng.permutation(np.arange(count) % 4)
        noisy = (centres[targets] + 3 * rng.normal(size=(count, 160))) * np.arange(1, 161) ** -0.5
        parts.append(split(targets, seed, part, np.maximum(0, noisy)))
    train, test = parts
    published = find_protocol("transfer_food101.kornblith@2").changed(penalties=(1e-4,))
    outcome = Transfer().run(published, train, test, QUIET)
    model = LogisticRegression(C=1 / outcome.runs[0]["penalty"], tol=1e-9, max_iter=9000)
    x, y = (each.features["embed"].astype(float) for each in parts)
    expected = 100 * model.fit(x, train.labels.targets).score(y, test.labels.targets)
    assert outcome.scores[LOGISTIC].value == pytest.approx(expected, abs=1.5)


def test_nearest_neighbours_and_means_are_plain_ones() -> None:
    outcome = Transfer().run(protocol(), TRAIN, TEST, QUIET)
    x, y = (each.features["embed"].astype(float) for each in (TRAIN, TEST))
    x, y = (each / np.linalg.norm(each, axis=1)[:, None] for each in (x, y))
    means = np.stack([x[TRAIN.labels.targets == c].mean(0) for c in range(4)])
    unit = means / np.linalg.norm(means, axis=1)[:, None]
    centroid = NearestCentroid().fit(unit, np.arange(4)).predict(y)
    assert outcome.items[f"correct/{NCM}"].tolist() == (centroid == TEST.labels.targets).tolist()
    for row, right in zip(range(len(y)), outcome.items[f"correct/{KNN}"], strict=True):
        votes = np.zeros(4)
        for i in np.argsort(-(x @ y[row]))[:5]:
            votes[TRAIN.labels.targets[i]] += np.exp(x[i] @ y[row] / 0.07)
        assert right == (votes.argmax() == TEST.labels.targets[row])


def plain_eleven_point(scores: np.ndarray, labels: np.ndarray) -> float:
    kept = labels >= 0
    order = np.argsort(-scores[kept])
    right = labels[kept][order] == 1
    precision, recall = right.cumsum() / np.arange(1, len(right) + 1), right.cumsum() / right.sum()
    return float(np.mean([precision[recall >= t / 10 - 1e-9].max() for t in range(11)]))


def test_voc_is_one_fit_per_class_and_eleven_points() -> None:
    rng = np.random.default_rng(5)
    parts = []
    for part, count in (("train", 120), ("test", 80)):
        targets = rng.choice([-1, 0, 0, 0, 1], size=(count, 4)).astype(np.int8)
        parts.append(split(targets, 0, part, (targets == 1) @ CENTRES + rng.normal(size=(count, 6))))
    train, test = parts
    outcome = Transfer().run(protocol("voc2007"), train, test, QUIET)
    x, y = train.features["embed"].astype(float), test.features["embed"].astype(float)
    kept, held = validation(train.labels, 0.2)

    def scores(penalty: float, rows: np.ndarray, asked: np.ndarray) -> np.ndarray:
        columns = []
        for c in range(4):
            own = rows[train.labels.targets[rows, c] >= 0]
            model = LogisticRegression(C=1 / penalty, tol=1e-9, max_iter=5000)
            columns.append(model.fit(x[own], train.labels.targets[own, c]).decision_function(asked))
        return np.stack(columns, 1)

    def mean_ap(values: np.ndarray, targets: np.ndarray) -> float:
        return float(np.mean([plain_eleven_point(values[:, c], targets[:, c]) for c in range(4)]))

    chosen = [mean_ap(scores(p, kept, x[held]), train.labels.targets[held]) for p in PENALTIES]
    best = max(p for p, value in zip(PENALTIES, chosen, strict=True) if value == pytest.approx(max(chosen), abs=1e-9))
    assert outcome.runs[0]["penalty"] == best
    expected = mean_ap(scores(best, np.arange(120), y), test.labels.targets)
    assert outcome.scores[LOGISTIC].value == pytest.approx(100 * expected, abs=0.05)
    assert str(outcome.items["ap_rule"]) == "11point"


def test_a_published_validation_part_chooses() -> None:
    labels = bare_labels(np.zeros(9), "a", ids=[f"{'val' if i % 3 == 0 else 'train'}/{i}" for i in range(9)])
    assert validation(labels, 0.2)[1].tolist() == [0, 3, 6]
    kept, held = validation(TRAIN.labels, 0.2)
    assert len(held) == 30
    assert sorted([*kept, *held]) == list(range(150))


def test_refusals() -> None:
    with pytest.raises(InputError, match=r"reports mAP \(11-point\), but images of voc2007_cls have one label"):
        Transfer().check(protocol("voc2007"), TRAIN.labels, TEST.labels)
    with pytest.raises(InputError, match="needs k=500 neighbours, but train has 150"):
        Transfer().check(protocol(k=500), TRAIN.labels, TEST.labels)


@pytest.mark.slow
def test_the_suite_runs_on_the_embedded_data(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--out", str(tmp_path / "records"), "--features", str(tmp_path / "features"), "--workers", "0"]
    encoder = "random:resnet18-w8-k3-nopool:0"
    assert main(["transfer", encoder, str(small_data), *where, "--set", "penalties=1,100"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    phases = "fit", "score Logistic", "score kNN", "score NCM", "features and all else"
    parts = ", ".join(rf"{phase} [\d.]+ s" for phase in phases)
    assert re.fullmatch(rf"time: [\d.]+ s for 1 record: {parts}", last)
    assert time_text([Attempt("e", "p", "cached", "")], 5.0) == ""  # nothing was measured
    two = [Attempt("e", p, "done", "", timing={"fit": 2.0, "score NCM": 0.25, "total": 9.0}) for p in "ab"]
    assert time_text(two, 10.0) == (
        "time: 10.0 s for 2 records: fit 4.0 s, score NCM 0.5 s, features and all else 5.5 s\n"
    )
    (stored,) = read_records(tmp_path / "records")[0]
    assert stored.record.protocol.id == "transfer_drawings.demo@2+penalties=1.0,100.0"
    tables = Section([stored], EMBEDDED).tables()
    variant = "variant demo, revision 2, penalties=1.0,100.0"
    assert [t.title for t in tables[:3]] == [f"Transfer, {variant}: {c}" for c in (LOGISTIC, KNN, NCM)]
    assert main(["transfer", encoder, str(small_data), *where, "--dataset", "food101"]) == 2


def test_all_sets_run_under_one_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = []

    class Recorded(tqdm):  # type: ignore[type-arg]  # generic in stubs only
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            if not self.disable:
                drawn.append(self)

        def close(self) -> None:
            self.ended = self.n, self.total
            super().close()

    monkeypatch.setattr(task, "tqdm", Recorded)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    root = tmp_path / "data"
    for write in (aircraft, dtd, food101, pets):
        write(root)
    where = ["--out", str(tmp_path / "records"), "--features", str(tmp_path / "features"), "--workers", "0"]
    fast = ["--set", "penalties=1,100", "--set", "k=1"]
    assert main(["transfer", "random:resnet18-w8-k3-nopool:0", str(root), *where, *fast]) == 0
    assert "time: " in capsys.readouterr().out
    sets = {stored.record.dataset.id for stored in read_records(tmp_path / "records")[0]}
    assert sets == {"aircraft", "dtd", "food101", "pets"}
    (bar,) = drawn
    images = 6 + 6 + 6 + 8
    assert bar.ended == (2 * images, 2 * images)  # once for the features and once for the classifiers
