"""Records that earlier versions of the schema wrote still load, and still are believed."""

from __future__ import annotations

import json
from pathlib import Path

from results.rows import EMBEDDED
from results.schema import SCHEMA_VERSION
from results.store import read_records
from results.tables import Section
from tests.results.paired import standard_error

HISTORIC = Path(__file__).parent / "historic"


def test_every_version_so_far_is_among_the_historic_records() -> None:
    versions = {json.loads(path.read_text())["schema_version"] for path in HISTORIC.rglob("*.json")}
    assert versions == set(range(1, SCHEMA_VERSION + 1))


def test_historic_records_load_unmarked_with_their_outcomes_and_make_tables() -> None:
    records, bad = read_records(HISTORIC)
    assert bad == []
    assert [stored.faults for stored in records] == [()] * len(records)
    for stored in records:
        outcomes, score = stored.outcomes(), stored.record.scores["k=20"]
        assert outcomes is not None
        assert score.standard_error is not None
        assert abs(100 * standard_error(outcomes, "k=20") - score.standard_error) < 0.1
    tables = Section(records, EMBEDDED).tables()
    shown = {row.label for table in tables if table.title.startswith("Nearest") for row in table.rows}
    assert shown == {s.record.encoder.name for s in records}
