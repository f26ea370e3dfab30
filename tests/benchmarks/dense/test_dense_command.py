"""The command `dense` on the embedded scenes: one extraction, two records, a picture, and intervals in the tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.__main__ import main
from results.store import StoredRecord, read_record


@pytest.mark.slow
def test_dense_on_the_embedded_scenes(data: Path, tmp_path: Path) -> None:
    flags = ["--data", str(data), "--out", str(tmp_path / "records"), "--features", str(tmp_path / "features")]
    flags += ["--device", "cpu", "--workers", "0"]
    assert main(["dense", "--encoder", "pixels", *flags]) == 0
    records = {}
    for path in (tmp_path / "records").rglob("*.json"):
        stored = read_record(path)
        assert isinstance(stored, StoredRecord)
        records[stored.record.protocol.id] = stored
    assert set(records) == {"ade20k_seg_linear_cached.demo@1", "ade20k_seg_incontext.demo@1"}
    for stored in records.values():
        score = stored.record.scores["mIoU"]
        assert score.value is not None
        assert score.value > 3
        assert score.standard_error is not None
        assert score.standard_error > 0
        assert stored.path.with_suffix(".masks.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "features").iterdir())) == 2  # an address for each split


def test_dense_takes_no_protocol(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dense", "--encoder", "pixels", "--protocol", "ade20k_seg_knn.demo@1"]) == 2
    assert "dense takes no --protocol" in capsys.readouterr().err
