"""Records that were edited, broken or half lost: marked or named, and the others are read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from results.schema import Record
from results.store import BadRecord, StoredRecord, read_record, read_records
from tests.results.written_records import stored, written


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
    assert "its protocol does not hash to what it says" in faults
    assert "not knn.demo@1 but knn.demo@7" in faults
    assert "not those that its file name stands for" in faults


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
    "nan": ('{"schema_version": NaN}', "NaN is not a number"),
    "empty_object": ('{"schema_version": 1}', "status: Field required"),
    "deep": ("[" * 100_000, "cannot be read"),
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


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.chmod(0)
    assert "Permission denied" in read_records(tmp_path)[1][0].reason
