"""Verification: committed records hold, and each way of changing one is refused and named."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import main as bench_main
from results.__main__ import main
from results.publish import verify
from results.schema import Score
from results.store import StoredRecord, read_record, read_records, record_files, write_record
from tests.faults.test_hostile_records import replace_outcomes
from tests.results.factory_records import (
    KNN,
    SVM,
    accuracy_outcomes,
    card,
    decision_outcomes,
    protocol,
    record,
    scores_of,
)
from tests.results.written_records import stored

COMMITTED = Path(__file__).parents[2] / "results" / "records"
MOCO = COMMITTED / "mocov2_resnet18w32_demo"
COLUMNS = ("k=10", "k=20")
OUTCOMES = accuracy_outcomes(COLUMNS, 0.5, 0)
SCORES = scores_of(OUTCOMES, KNN)


def refusal(path: Path, declared: dict[str, str] | None = None) -> str:
    return "; ".join(verify(stored(path), declared).faults)


@pytest.mark.slow
def test_committed_records_hold_under_the_declared_protocols(capsys: pytest.CaptureFixture[str]) -> None:
    fine_tuned = next(MOCO.glob("*/voc2007_det")).parent
    frozen = next(MOCO.glob("*/voc2007")).parent
    files = len({*fine_tuned.rglob("*.json"), *frozen.rglob("*.json")})
    assert bench_main(["verify", *sorted({str(fine_tuned), str(frozen)})]) == 0
    said = capsys.readouterr().out
    assert f"{files} of {files} records hold" in said
    assert said.count("hashes hold; this benchmark keeps no outcomes") == 3  # two detectors, label-free
    assert "2 without outcomes (mAcc, aAcc)" in said


def test_a_score_that_the_outcomes_do_not_give(tmp_path: Path) -> None:
    right = SCORES["k=20"]
    assert right.value is not None
    for changed, said in (
        ({"value": right.value + 0.01}, "but its outcomes give"),
        ({"n": 219}, "states n = 219, but its outcomes are of 220 items"),
        ({"standard_error": 0.1}, "the standard error of k=20 is 0.1000"),
    ):
        scores = {**SCORES, "k=20": right.model_copy(update=changed)}
        path = write_record(tmp_path / str(changed.keys()), record(card("net"), KNN, scores=scores), OUTCOMES)
        assert said in refusal(path)
    assert refusal(write_record(tmp_path / "right", record(card("net"), KNN, OUTCOMES), OUTCOMES)) == ""


def test_trials_whose_areas_lie_in_one_sum(tmp_path: Path) -> None:
    seg = protocol("voc12aug_fcn", ("mIoU",), "mIoU")
    areas = np.random.default_rng(0).integers(1, 50, (20, 3, 4))
    areas[:, 1:] += areas[:, :1]
    outcomes = {**decision_outcomes(("x",), 1.0, 0, items=20), "iou/mIoU": areas}
    del outcomes["decision/x"]
    pooled = float(np.mean(areas.sum(0)[0] / (areas.sum(0)[1] + areas.sum(0)[2] - areas.sum(0)[0]))) * 100
    trials = (pooled - 0.5, pooled + 0.7)
    runs = tuple({"trial": i, "mIoU": value} for i, value in enumerate(trials))

    def written(value: float, name: str) -> Path:
        scores = {"mIoU": Score(value=value, selection="last")}
        return write_record(tmp_path / name, record(card("net"), seg, scores=scores, runs=runs), outcomes)

    assert refusal(written(sum(trials) / 2, "right")) == ""
    assert "its trials have the mean" in refusal(written(pooled, "wrong"))
    runs = tuple({"trial": i, "mIoU": pooled + 5 + i / 10} for i in range(2))  # their mean, but not of these areas
    assert "but its outcomes give" in refusal(written(pooled + 5.05, "far"))


def test_changed_files_protocols_and_missing_outcomes(tmp_path: Path) -> None:
    path = write_record(tmp_path / "a", record(card("net"), KNN, OUTCOMES), OUTCOMES)
    assert refusal(path, {KNN.id: KNN.content_sha256()}) == ""
    assert refusal(path, {}) == "this program has no protocol knn.demo@1"
    assert "is not the knn.demo@1 that this program declares" in refusal(path, {KNN.id: "0" * 64})
    longer = KNN.changed(epochs=10)
    own = write_record(tmp_path / "b", record(card("net"), longer, OUTCOMES), OUTCOMES)
    assert refusal(own, {}) == ""  # the id says that its user changed it
    path.write_text(path.read_text().replace('"cores": 2', '"cores": 64'))
    assert "edited after it was written" in refusal(path)
    next(tmp_path.glob("b/**/*.npz")).unlink()
    assert "its outcomes file is missing" in refusal(own)
    bare = write_record(tmp_path / "c", record(card("net"), KNN, scores=SCORES))
    assert "it has no outcomes file" in refusal(bare)
    failed = write_record(tmp_path / "d", record(card("net"), KNN, status="failed", error="no memory"))
    assert "the run failed: no memory" in refusal(failed)


def test_a_record_in_the_folder_of_another_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, other = (write_record(tmp_path, record(card(name), KNN, OUTCOMES), OUTCOMES) for name in ("net", "other"))
    copied = Path(shutil.copytree(path.parent, other.parents[1] / "elsewhere")) / path.name
    here, place = copied.parent.relative_to(tmp_path), path.parent.relative_to(tmp_path)
    said = f"it lies in {here}, but its encoder, weights and data belong in {place}; move it there"
    assert refusal(copied) == said
    monkeypatch.chdir(copied.parent)
    assert refusal(Path(copied.name)) == said
    monkeypatch.chdir(path.parent)
    assert refusal(Path(path.name)) == refusal(path) == refusal(other) == ""


def test_outcomes_that_belong_to_no_score_or_do_not_fit(tmp_path: Path) -> None:
    other = write_record(tmp_path / "a", record(card("net"), KNN, scores={"k=100": SCORES["k=20"].model_copy(
        update={"value": 1.0})}), OUTCOMES)  # fmt: skip
    assert "belong to none of its scores" in refusal(other)
    decided = decision_outcomes(("feature5",), 1.0, 0)
    scores = {c: score.model_copy(update={"standard_error": 1.0}) for c, score in scores_of(decided, SVM).items()}
    without = {**decided, "targets": decided["targets"] * 0}
    path = write_record(tmp_path / "b", record(card("net"), SVM, scores=scores), without)
    assert "its outcomes cannot be scored: average precision needs a class" in refusal(path)


def test_outcomes_that_are_no_archive(tmp_path: Path) -> None:
    path = write_record(tmp_path, record(card("net"), KNN, OUTCOMES), OUTCOMES)
    replace_outcomes(path, b"no archive")
    assert refusal(path) == "its outcomes file cannot be read"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_record(tmp_path / "records", record(card("net"), KNN, OUTCOMES), OUTCOMES)
    assert main(["verify", str(path), *map(str, path.parent.glob("*.npz"))]) == 0
    assert "1 of 1 records hold" in capsys.readouterr().out
    (tmp_path / "records" / "broken.json").write_text("{")
    assert main(["verify", str(tmp_path / "records")]) == 1
    said = capsys.readouterr().out
    assert "1 of 2 records hold" in said
    assert "refused" in said
    assert main(["verify", str(tmp_path / "none")]) == 2
    (tmp_path / "records" / "broken.json").unlink()
    path.with_name("other-1.0123456789abcdef.npz").write_bytes(b"")
    assert main(["verify", str(tmp_path / "records")]) == 1
    assert "abcdef.npz: the record of these outcomes is missing" in capsys.readouterr().out
    assert len(record_files([tmp_path])) == 1
    assert isinstance(read_record(path), StoredRecord)
    assert read_records(tmp_path / "records")[0][0].intact


def test_a_deleted_record_is_refused_and_a_replaced_one_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def git(*arguments: str) -> None:
        who = ("-c", "user.name=me", "-c", "user.email=me@here.org")
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    folder = tmp_path / "records"
    mine, theirs = (write_record(folder, record(card(name), KNN, OUTCOMES), OUTCOMES) for name in ("mine", "theirs"))
    git("init", "-b", "main")
    git("add", "records")
    git("commit", "-m", "records")
    git("switch", "-c", "contribution")
    assert main(["verify", str(folder), "--base", "main"]) == 0
    newer = record(card("mine", weights_sha256="b" * 64), KNN, OUTCOMES, created="2030-01-01T00:00:00+00:00")
    write_record(folder, newer, OUTCOMES)
    shutil.rmtree(mine.parent)
    shutil.rmtree(theirs.parent)
    assert main(["verify", str(folder)]) == 0  # without a base nobody knows what was there
    capsys.readouterr()
    for _ in range(2):
        assert main(["verify", str(folder), "--base", "main"]) == 1
        refused = [line for line in capsys.readouterr().out.splitlines() if line.startswith("refused")]
        assert refused == [
            f"refused  {theirs}: main has this record and it was deleted; restore it and its outcomes file with "
            "`git checkout main -- FILE`"
        ]
        git("commit", "--allow-empty", "-am", "delete")  # committed or not
    assert main(["verify", str(folder), "--base", "none"]) == 2
    assert f"cannot compare {folder} with the git revision none: fatal: Not a valid object" in capsys.readouterr().err
    git("checkout", "main", "--", str(theirs.parent))
    assert main(["verify", str(folder), "--base", "main"]) == 0
    next(theirs.parent.glob("*.npz")).unlink()
    assert main(["verify", str(folder), "--base", "main"]) == 1
    assert f"refused  {theirs}: its outcomes file is missing" in capsys.readouterr().out
    assert main(["verify", str(theirs), "--base", "main"]) == 2
    assert "name the folder of the records" in capsys.readouterr().err
