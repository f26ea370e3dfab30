"""Records on disk: whole or not at all, found again by key, and believed only where they are what was written."""

from __future__ import annotations

import errno
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from results.atomic import write_file
from results.schema import Score
from results.side_file import packed, unpacked
from results.store import read_records, write_record
from tests.results.factory_records import (
    KNN,
    KNN_COLUMNS,
    LAYERS,
    SVM,
    accuracy_outcomes,
    card,
    decision_outcomes,
    moco_card,
    record,
)
from tests.results.written_records import OUTCOMES, contents, stored, written


def test_a_record_lies_where_its_encoder_weights_data_and_protocol_say(tmp_path: Path) -> None:
    path = written(tmp_path)
    weights = moco_card(0).weights_sha256
    assert weights is not None
    assert path.parent == tmp_path / "mocov2_resnet18w32_demo" / weights[:8] / "drawings"
    assert path.name == f"knn.demo@1-{stored(path).record.key}.json"
    side = [p for p in path.parent.iterdir() if p.suffix == ".npz"]
    assert [p.name for p in side] == [stored(path).record.outcomes_file]


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    found = stored(written(tmp_path))
    given = record(moco_card(0), KNN, OUTCOMES)
    assert found.intact
    assert found.record.intact
    assert found.record.encoder == given.encoder
    assert {c: s.value for c, s in found.record.scores.items()} == {c: s.value for c, s in given.scores.items()}
    outcomes = found.outcomes()
    assert outcomes is not None
    assert set(outcomes) == set(OUTCOMES)
    np.testing.assert_array_equal(outcomes["correct/k=20"], OUTCOMES["correct/k=20"])


def test_scores_get_the_standard_error_that_their_outcomes_allow(tmp_path: Path) -> None:
    scores = dict(record(moco_card(0), KNN, OUTCOMES).scores)
    scores["k=10"] = scores["k=10"].model_copy(update={"standard_error": 9.5})
    path = write_record(tmp_path, record(moco_card(0), KNN, OUTCOMES, scores=scores), OUTCOMES)
    accuracy = OUTCOMES["correct/k=20"].mean()
    found = stored(path).record.scores
    assert found["k=20"].standard_error == pytest.approx(100 * np.sqrt(accuracy * (1 - accuracy) / 220), rel=0.1)
    assert found["k=10"].standard_error == 9.5


def test_a_figure_chosen_among_layers_has_the_error_of_the_chosen_one(tmp_path: Path) -> None:
    outcomes = decision_outcomes(LAYERS, 2.0, 0)
    scores = stored(write_record(tmp_path, record(moco_card(0), SVM, outcomes), outcomes)).record.scores
    best = max(LAYERS, key=lambda layer: scores[layer].value or 0)
    assert scores["SVM"].standard_error is not None
    assert scores["SVM"].standard_error == scores[best].standard_error


def test_the_same_record_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        written(tmp_path / name)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len(contents(tmp_path / "a")) == 2


def test_decisions_are_stored_small(tmp_path: Path) -> None:
    outcomes = decision_outcomes(LAYERS, 2.0, 0, items=800, classes=12)
    write_record(tmp_path, record(moco_card(0), SVM, outcomes), outcomes)
    assert sum(len(content) for content in contents(tmp_path).values()) < 5 * 800 * 12 * 4 / 2


def test_a_column_with_the_outcomes_of_another_takes_no_room_and_comes_back(tmp_path: Path) -> None:
    outcomes = decision_outcomes(LAYERS, 2.0, 0, items=800, classes=12)
    alone = len(packed(outcomes))
    outcomes["decision/best"] = outcomes["decision/feature4"]
    outcomes["decision/oracle"] = outcomes["decision/feature4"].copy()
    path = tmp_path / "side.npz"
    path.write_bytes(packed(outcomes))
    assert path.stat().st_size < alone + 1500
    found = unpacked(path)
    assert set(found) == set(outcomes)
    for column in ("best", "oracle"):
        np.testing.assert_array_equal(found[f"decision/{column}"], found["decision/feature4"])


@pytest.mark.parametrize("call", [1, 2])
def test_a_failing_rename_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    written(tmp_path)
    before, calls, real = contents(tmp_path), [], os.replace

    def failing(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == call:
            raise OSError(errno.EIO, "the disk is gone")
        real(source, target)

    monkeypatch.setattr(os, "replace", failing)
    better = accuracy_outcomes(KNN_COLUMNS, 0.6, 1)
    with pytest.raises(OSError, match="the disk is gone"):
        write_record(tmp_path, record(moco_card(0), KNN, better), better)
    assert len(calls) == call
    assert contents(tmp_path) == before


@pytest.mark.parametrize("write", [1, 2])
def test_a_full_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: int) -> None:
    written(tmp_path)
    before, calls, real = contents(tmp_path), [], os.fsync

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == write:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    better = accuracy_outcomes(KNN_COLUMNS, 0.6, 1)
    with pytest.raises(OSError, match="No space left"):
        write_record(tmp_path, record(moco_card(0), KNN, better), better)
    assert contents(tmp_path) == before


def test_a_rewrite_leaves_one_record_and_its_own_side_file(tmp_path: Path) -> None:
    path = written(tmp_path)
    (path.parent / f".0123.{path.stem[-8:]}.partial").write_text("left by a killed writer")
    better = accuracy_outcomes(KNN_COLUMNS, 0.6, 1)
    assert write_record(tmp_path, record(moco_card(0), KNN, better), better) == path
    assert sorted(p.name for p in path.parent.iterdir()) == sorted([path.name, stored(path).record.outcomes_file or ""])
    assert stored(path).intact


def test_a_figure_that_is_no_number_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    nan = {"k=20": Score(value=float("nan"), selection="fixed")}
    with pytest.raises(ValueError, match="JSON"):
        write_record(tmp_path, record(moco_card(0), KNN, scores=nan))
    outcomes = decision_outcomes(LAYERS, 1.0, 0)
    outcomes["decision/feature5"] = np.full_like(outcomes["decision/feature5"], np.nan)
    with pytest.raises(ValueError, match="'decision/feature5' is not a number"):
        write_record(tmp_path, record(moco_card(0), SVM, scores={}), outcomes)
    with pytest.raises(ValueError, match="Python objects"):
        write_record(tmp_path, record(moco_card(0), KNN, scores={}), {"ids": np.array([{}], dtype=object)})
    assert contents(tmp_path) == {}


def _write_many(root: Path, writer: int) -> None:
    for attempt in range(8):
        outcomes = accuracy_outcomes(KNN_COLUMNS, 0.3, 100 * writer + attempt)
        write_record(root, record(moco_card(0), KNN, outcomes), outcomes)
        write_record(root, record(card(f"own {writer} {attempt}"), KNN, outcomes), outcomes)


def test_two_writers_of_the_same_key_leave_whole_records(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(tmp_path, number)) for number in range(2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert read_records(tmp_path)[1] == []
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    records, bad = read_records(tmp_path)
    assert (len(records), bad) == (17, [])
    assert all(found.intact and found.outcomes() is not None for found in records)
    assert len(contents(tmp_path)) == 34


def test_replacing_a_file_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    write_file(page, b"old")
    monkeypatch.setattr(os, "fsync", lambda file: _raise_full())
    with pytest.raises(OSError, match="No space left"):
        write_file(page, b"new")
    assert contents(tmp_path) == {"page.md": b"old"}


def _raise_full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.skipif(os.name != "posix", reason="named pipes are POSIX")
def test_what_is_no_file_is_written_to_and_stays_what_it_is(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_file(pipe, b"page")
        assert os.read(reading, 10) == b"page"
    finally:
        os.close(reading)
    assert pipe.is_fifo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pipe"]
