"""The MoCo papers' tables, cell by cell, from published.csv; and measured rows below them."""

from __future__ import annotations

import csv
import tomllib
from pathlib import Path

import pytest

from results.__main__ import main
from results.formats import Row, Table, cell_text
from results.published import chosen, figures
from results.published_tables import paper_tables
from results.schema import Score
from results.store import read_records, write_record
from tests.results.factory_records import card, protocol, record

EXPECTED = Path(__file__).parents[1] / "expected"
PAPERS = tomllib.loads((EXPECTED / "moco_papers.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tables() -> dict[str, Table]:
    return paper_tables(figures())


def texts(table: Table, row: Row) -> list[str]:
    return [cell_text(cell, table.decimals) for cell in row.cells]


@pytest.mark.parametrize("name", PAPERS)
def test_a_table_is_reproduced_cell_by_cell(tables: dict[str, Table], name: str) -> None:
    assert {row.label: texts(tables[name], row) for row in tables[name].rows} == PAPERS[name]


def test_rows_that_share_a_label_are_reproduced_too(tables: dict[str, Table]) -> None:
    with (EXPECTED / "mocov2_table2_and_3.csv").open(encoding="utf-8", newline="") as file:
        expected = [(row["table"], row["row"], row["cells"]) for row in csv.DictReader(file)]
    found = [(name, row.label, " ".join(texts(table, row))) for name, table in tables.items() for row in table.rows]
    assert set(expected) - set(found) == set()
    assert len(tables["mocov2_table2"].rows) == 6
    assert len(tables["mocov2_table3"].rows) == 3


def test_the_full_lvis_tables_are_there(tables: dict[str, Table]) -> None:
    assert [
        texts(tables[f"mocov1_lvis_{x}"], row) for x in ("1x", "2x") for row in tables[f"mocov1_lvis_{x}"].rows
    ] == [
        ["24.1", "37.3", "25.4"],
        ["23.5", "36.6", "24.8"],
        ["23.2", "36.0", "24.7"],
        ["24.3", "37.4", "25.9"],
        ["24.4", "37.8", "25.8"],
        ["23.2", "36.0", "24.4"],
        ["24.1", "37.4", "25.5"],
        ["24.9", "38.2", "26.4"],
    ]


def test_every_row_carries_its_sources(tables: dict[str, Table]) -> None:
    for table in tables.values():
        assert all(row.sources for row in table.rows)
        assert {number for row in table.rows for number in row.sources} == set(range(1, len(table.sources) + 1))


def test_a_source_can_be_left_out() -> None:
    left = paper_tables(chosen(figures(), source=["arXiv:2003.04297 Tables*"]))
    assert set(left) == {"mocov2_table1", "mocov2_table2"}
    assert texts(left["mocov2_table1"], left["mocov2_table1"].rows[0]) == ["", "", "", "", "76.5", "", "53.5", ""]


def test_what_was_measured_under_the_same_protocol_stands_below(tmp_path: Path) -> None:
    def put(
        name: str, variant: str, value: float, *, embedded: bool = False, overrides: bool = False, on: str = "imagenet"
    ) -> Path:
        asked = protocol("linear_avgpool", ("AvgPool",), "AvgPool", variant=variant, dataset="imagenet")
        asked = asked.changed(epochs=3) if overrides else asked
        scores = {"AvgPool": Score(value=value, standard_error=0.2, selection="best epoch")}
        data = record(card(name), asked, embedded=embedded).dataset.model_copy(update={"id": on})
        return write_record(tmp_path, record(card(name), asked, scores=scores, dataset=data))

    put("ours", "moco", 67.64)
    put("ours", "mmselfsup", 61.0)  # the same under another name: a cell holds one of the two, never their mean
    put("elsewhere", "moco", 50.0, on="places205")
    edited = put("edited", "moco", 44.5)
    edited.write_text(edited.read_text().replace("44.5", "99.5"))
    put("other setting", "simsiam", 70.0)
    put("small", "moco", 30.0, embedded=True)
    put("short", "moco", 60.0, overrides=True)
    table = paper_tables(figures(), read_records(tmp_path)[0])["mocov2_table1"]
    assert [row.label for row in table.rows[7:]] == ["ours, measured"]
    assert texts(table, table.rows[7]) == ["linear_avgpool.mmselfsup@1", "", "", "", "61.0 ± 0.2", "", "", ""]


def test_the_command_writes_a_file_per_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper-tables", "--out", str(tmp_path), "--format", "latex"]) == 0
    assert r"67.5 & 82.4 & 57.0 & 63.6 \\" in (tmp_path / "mocov2_table1.tex").read_text()
    assert len(list(tmp_path.iterdir())) == len(paper_tables(figures()))
    capsys.readouterr()
    assert main(["paper-tables", "--source", "arXiv:2003.04297 (MoCo v2 note)"]) == 0
    assert capsys.readouterr().out.startswith("### MoCo v2, Table 3")
