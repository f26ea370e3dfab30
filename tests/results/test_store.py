"""Records on disk: written atomically, found by key, read, and marked where they were edited or damaged."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from results.__main__ import main
from results.errors import InputError
from results.files import write_file
from results.schema import DECISIVE, EncoderCard, Record, Score, record_key
from results.store import (
    BadRecord,
    StoredRecord,
    find_record,
    packed,
    read_record,
    read_records,
    slug,
    unpacked,
    write_record,
)
from tests.results.factory_records import (
    KNN,
    KNN_COLUMNS,
    LAYERS,
    SVM,
    accuracy_outcomes,
    card,
    decision_outcomes,
    moco_card,
    protocol,
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


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("--force", "force"), ("-.hidden-", "hidden-"), ("../up", "up"), ("a b/c", "a_b_c"), ("...", "unnamed"),
        ("moco_v2@200,w=64+", "moco_v2@200,w=64+"),
    ],
)  # fmt: skip
def test_no_name_becomes_a_folder_that_looks_like_a_flag_or_is_hidden(name: str, folder: str) -> None:
    assert slug(name) == folder


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


def test_the_error_of_a_score_without_percent_is_no_percentage(tmp_path: Path) -> None:
    asked = protocol("nyu_depth_linear", ("RMSE",), "RMSE", unit="1")
    errors = np.linspace(0.1, 0.9, 220)
    outcomes = {**OUTCOMES, "pseudo_value/RMSE": errors}
    scores = {"RMSE": Score(value=0.5, unit="1", selection="last")}
    path = write_record(tmp_path, record(moco_card(0), asked, outcomes, scores=scores), outcomes)
    expected = errors.std() / np.sqrt(220)
    assert stored(path).record.scores["RMSE"].standard_error == pytest.approx(expected, rel=0.15)


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


@pytest.mark.slow
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
    with pytest.raises(ValueError, match="'decision/feature5' is NaN"):
        write_record(tmp_path, record(moco_card(0), SVM, scores={}), outcomes)
    with pytest.raises(ValueError, match="Python objects"):
        write_record(tmp_path, record(moco_card(0), KNN, scores={}), {"ids": np.array([{}], dtype=object)})
    assert contents(tmp_path) == {}


def _write_many(root: Path, writer: int) -> None:
    for attempt in range(8):
        outcomes = accuracy_outcomes(KNN_COLUMNS, 0.3, 100 * writer + attempt)
        write_record(root, record(moco_card(0), KNN, outcomes), outcomes)
        write_record(root, record(card(f"own {writer} {attempt}"), KNN, outcomes), outcomes)


@pytest.mark.slow
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


HISTORIC = Path(__file__).parent / "historic"


def found_again(root: Path, asked: Record) -> Record | None:
    return find_record(root, asked.encoder, asked.protocol.resolved, asked.dataset, asked.seeds)


def test_only_what_succeeded_under_the_same_key_is_skipped(tmp_path: Path) -> None:
    asked = record(moco_card(0), KNN, OUTCOMES)
    assert found_again(tmp_path, asked) is None
    write_record(tmp_path, record(moco_card(0), KNN, status="failed", error="out of memory"))
    assert found_again(tmp_path, asked) is None
    path = written(tmp_path)
    found = found_again(tmp_path, asked)
    assert found is not None
    assert found.scores["k=20"].value == asked.scores["k=20"].value

    for other in (
        record(moco_card(1), KNN, OUTCOMES),
        record(moco_card(0), KNN.changed(epochs=10), OUTCOMES),
        record(moco_card(0), KNN, OUTCOMES, embedded=False),
        record(moco_card(0), KNN, OUTCOMES, seeds=(1,)),
    ):
        assert found_again(tmp_path, other) is None

    path.write_text(path.read_text().replace('"status": "ok"', '"status" : "ok"').replace("220", "221"))
    assert found_again(tmp_path, asked) is None


def test_long_overrides_have_short_names_that_tell_them_apart(tmp_path: Path) -> None:
    values = {**KNN.params, "config": {}, "sizes": (), "other": 0}
    plain = protocol("knn", KNN_COLUMNS, "k=20", params=values)
    paths = []
    for last in (1, 2):
        config = {f"MODEL.PART_{n}.SIZE": n for n in range(40)} | {"MODEL.LAST": last}
        asked = plain.changed(config=config, sizes=tuple(range(200)), other=last)
        names = asked.id.split("+")[1:]
        assert names[0].startswith("config={'MODEL.PART_0.SIZE': 0, 'MODEL.~")
        assert names[1] == f"other={last}"
        assert names[2].startswith("sizes=0,1,2,3,4,5,6,7,8,9,10,11,12,")
        assert len(asked.id) < 160
        paths.append(write_record(tmp_path, record(moco_card(0), asked, OUTCOMES), OUTCOMES))
        assert found_again(tmp_path, record(moco_card(0), asked, OUTCOMES)) is not None
        assert asked.changed(config={}, sizes=(), other=0).params == plain.params
    ids = {stored(path).record.protocol.id for path in paths}
    assert len(ids) == 2
    assert all(stored(path).intact for path in paths)
    assert max(len(name.rpartition("/")[2]) for name in contents(tmp_path)) < 160
    assert plain.changed(config={"MODEL.LAST": 1}).id == "knn.demo@1+config={'MODEL.LAST': 1}"


def test_the_same_weights_trained_again_are_not_measured_again(tmp_path: Path) -> None:
    written(tmp_path)
    again = moco_card(0, pretrain_seconds=999.0, epochs=61, source="elsewhere", licence="MIT", keys_unused=3)
    assert found_again(tmp_path, record(again, KNN, OUTCOMES)) is not None
    path = write_record(tmp_path, record(again, KNN, OUTCOMES), OUTCOMES)
    assert [p for p in contents(tmp_path) if p.endswith(".json")] == [path.relative_to(tmp_path).as_posix()]
    changes = {
        "mean": (0.5, 0.5, 0.5), "std": (1.0, 1.0, 1.0), "channels": "BGR", "value_range": 255.0, "head": "linear",
        "embed": "class token", "architecture": again.architecture.model_copy(update={"bn_eps": 1e-3}),
        "weights_sha256": "0" * 64,
    }  # fmt: skip
    assert set(changes) == set(DECISIVE)
    for field, value in changes.items():
        assert found_again(tmp_path, record(moco_card(0, **{field: value}), KNN, OUTCOMES)) is None, field


def test_every_field_of_the_card_moves_a_number_or_only_describes() -> None:
    describes = {"name", "source", "layout", "keys_matched", "keys_unused", "method", "epochs", "pretrain_data",
                 "pretrain_seconds", "init", "licence", "published_as", "assumed", "interpolation",
                 "input_size", "patch_size", "not_shown"}  # fmt: skip
    assert set(EncoderCard.model_fields) == {*DECISIVE, *describes}, "put a new field into DECISIVE, or here"


def test_a_record_of_an_older_schema_makes_a_new_run_needless(tmp_path: Path) -> None:
    old = next(path for path in HISTORIC.rglob("*.json") if '"schema_version": 1,' in path.read_text())
    there = tmp_path / old.relative_to(HISTORIC)
    shutil.copytree(old.parent, there.parent)
    asked = stored(there).record
    assert record_key(asked.protocol.resolved, asked.encoder, asked.dataset.fingerprint, asked.seeds) not in there.name
    assert found_again(tmp_path, asked) == asked
    trained_again = asked.model_copy(
        update={"encoder": asked.encoder.model_copy(update={"pretrain_seconds": 1.0, "epochs": 7.0})}
    )
    assert found_again(tmp_path, trained_again) == asked
    there.write_text(there.read_text().replace('"pretrain_seconds": ', '"pretrain_seconds": 1'))
    assert found_again(tmp_path, asked) is None


def test_the_name_of_a_record_stands_for_what_it_holds(tmp_path: Path) -> None:
    for path in (written(tmp_path), next(HISTORIC.rglob("*.json"))):
        moved = path.with_name(f"{path.stem[:-8]}00000000.json")
        target = tmp_path / "moved" / moved.name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
        fault = "its encoder, protocol, data or seeds do not match its file name"
        assert fault in stored(target).faults
        assert stored(path).faults == ()


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "..", "a/b\\c", "x" * 500, "名前", "a\nb\0c", " . ", "Net <script>"]
)
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    root = tmp_path / "records"
    path = write_record(root, record(card(name), KNN))
    assert path.resolve().is_relative_to(root.resolve())
    assert len(path.relative_to(root).parts) == 4
    assert stored(path).record.encoder.name == name


def edited(path: Path, change: Any) -> StoredRecord:
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
    return stored(path)


def test_an_edited_score_is_marked(tmp_path: Path) -> None:
    found = edited(written(tmp_path), lambda raw: raw["scores"]["k=20"].update(value=99.9))
    assert found.faults == ("edited after it was written",)
    assert found.outcomes() is None


def test_a_sealed_edit_of_protocol_or_encoder_is_marked_too(tmp_path: Path) -> None:
    path = written(tmp_path)

    def change(raw: dict[str, Any]) -> None:
        raw["protocol"]["resolved"]["revision"] = 7
        raw["encoder"]["weights_sha256"] = "0" * 64
        raw["sha256"] = Record.model_validate(raw).sealed().sha256

    faults = " | ".join(edited(path, change).faults)
    assert "edited after" not in faults
    assert "its protocol does not match its hash" in faults
    assert "its protocol is knn.demo@7, not knn.demo@1" in faults
    assert "do not match its file name" in faults


@pytest.mark.parametrize(("damage", "fault"), [("remove", "missing"), ("change", "changed")])
def test_a_side_file_that_is_not_the_records_own_is_marked(tmp_path: Path, damage: str, fault: str) -> None:
    path = written(tmp_path)
    side = path.with_name(stored(path).record.outcomes_file or "")
    if damage == "remove":
        side.unlink()
    else:
        side.write_bytes(side.read_bytes()[:-1] + b"!")
    found = stored(path)
    assert len(found.faults) == 1
    assert fault in found.faults[0]
    assert found.outcomes() is None


BAD = {
    "truncated": ("{", "Expecting property name"),
    "binary": ("\udcff", "codec can't decode"),
    "not_a_record": ("[]", "no schema_version"),
    "newer": ('{"schema_version": 99}', "newer version (schema 99"),
    "nan": ('{"schema_version": NaN}', "NaN is not a JSON number"),
    "empty_object": ('{"schema_version": 1}', "status: Field required"),
    "deep": ("[" * 100_000, "cannot be read"),
    "nested": ('{"schema_version": 2, "a": ' + "[" * 200 + "]" * 200 + "}", "nested more than 64 deep"),
    "infinite": ('{"schema_version": 1e999}', "no schema_version"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_and_the_others_are_read(tmp_path: Path, name: str) -> None:
    written(tmp_path)
    text, reason = BAD[name]
    bad_path = tmp_path / f"{name}.json"
    bad_path.write_bytes(text.encode(errors="surrogateescape"))
    records, bad = read_records(tmp_path)
    assert len(records) == 1
    assert [b.path for b in bad] == [bad_path]
    assert reason in bad[0].reason


def test_an_unknown_field_is_named(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_text(path.read_text().replace('"created"', '"invented": 1,\n "created"'))
    found = read_record(path)
    assert isinstance(found, BadRecord)
    assert found.reason.startswith("invented: Extra inputs")


@pytest.mark.skipif(os.name != "posix", reason="file names of any bytes, and pipes")
def test_a_name_that_is_not_utf8_and_a_pipe_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "records")
    os.rename(os.fsencode(path), os.fsencode(path.parent) + b"/caf\xe9.json")  # noqa: PTH104 - bytes
    os.mkfifo(tmp_path / "records" / "pipe.json")
    records, bad = read_records(tmp_path / "records")
    assert records == []
    assert [(found.name(found.path.parent), found.reason) for found in bad] == [
        ("caf\\xe9.json", "its name is not UTF-8; rename the file or its folder"),
        ("pipe.json", "cannot be read: not a regular file"),
    ]
    assert main(["tables", "--records", str(tmp_path / "records"), "--out", str(tmp_path / "page.md")]) == 0
    assert "caf\\\\xe9.json: its name is not UTF-8" in (tmp_path / "page.md").read_text()
    assert "xe9.json: its name is not UTF-8" in capsys.readouterr().err


def test_a_failure_never_replaces_a_good_record(tmp_path: Path) -> None:
    path = written(tmp_path)
    before = contents(tmp_path)
    failed = record(moco_card(0), KNN, status="failed", error="out of memory")
    failure = write_record(tmp_path, failed)
    assert failure == path.with_suffix(".failed")
    assert "out of memory" in failure.read_text()
    assert {name: data for name, data in contents(tmp_path).items() if not name.endswith(".failed")} == before
    assert [found.record.status for found in read_records(tmp_path)[0]] == ["ok"]
    assert read_records(tmp_path)[1] == []
    written(tmp_path)
    assert contents(tmp_path) == before
    path.write_text(path.read_text().replace("220", "221"))  # an edited record is not a good one
    assert write_record(tmp_path, failed) == path


def test_a_record_of_a_newer_schema_is_never_overwritten(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_text(path.read_text().replace('"schema_version": 2', '"schema_version": 3'))
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"written by a newer version of this program \(schema 3, this one writes 2\)"):
        written(tmp_path)
    with pytest.raises(InputError, match="newer version"):
        write_record(tmp_path, record(moco_card(0), KNN, status="failed", error="out of memory"))
    assert contents(tmp_path) == before


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.chmod(0)
    assert "Permission denied" in read_records(tmp_path)[1][0].reason


def test_a_record_of_nan_is_written_and_one_with_an_endless_name_is_not_read(tmp_path: Path) -> None:
    outcomes = {"correct/a": np.full(4, np.nan), "correct/b": np.full(4, np.nan)}
    assert packed(outcomes) == packed(dict(reversed(outcomes.items())))
    path = write_record(tmp_path, record(card("a" * 501), KNN, OUTCOMES), OUTCOMES)
    read = read_record(path)
    assert isinstance(read, BadRecord)
    assert "more than 500 characters" in read.reason
