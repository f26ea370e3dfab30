"""The committed page and the README's table are what the committed records give."""

from __future__ import annotations

from pathlib import Path

import pytest

from results.__main__ import main
from results.store import read_records

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "results" / "records"
REMAKE = "run `python -m results tables --records results/records --out results/MODEL_ZOO.md --readme README.md`"


@pytest.mark.slow
def test_the_model_zoo_page_is_what_the_records_give() -> None:
    page = ROOT / "results" / "MODEL_ZOO.md"
    assert main(["tables", "--records", str(RECORDS), "--out", str(page), "--check"]) == 0, REMAKE


@pytest.mark.slow
def test_the_readme_table_is_what_the_records_give() -> None:
    assert main(["tables", "--records", str(RECORDS), "--readme", str(ROOT / "README.md"), "--check"]) == 0, REMAKE


def test_every_committed_record_is_intact_successful_and_used_once() -> None:
    records, bad = read_records(RECORDS)
    assert bad == []
    assert [(stored.path.name, stored.faults) for stored in records if stored.faults] == []
    assert [stored.path.name for stored in records if stored.record.status != "ok"] == []
    rows = [(s.record.encoder.name, s.record.encoder.init, s.record.dataset.id, s.record.protocol.id) for s in records]
    assert len(rows) == len(set(rows))


@pytest.mark.slow
def test_no_side_file_is_without_its_record() -> None:
    named = {s.path.with_name(s.record.outcomes_file) for s in read_records(RECORDS)[0] if s.record.outcomes_file}
    assert set(RECORDS.rglob("*.npz")) == named
