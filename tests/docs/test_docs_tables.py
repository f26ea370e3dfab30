"""The tables of the site, from the code that declares what they show."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.knn import PROTOCOLS, KnnParams
from benchmarks.label_free import LabelFreeViews
from benchmarks.registry import tasks
from benchmarks.svm_common import MMSELFSUP
from results.store import read_records

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "scripts" / "docs_pages"


@pytest.fixture(scope="module")
def table_module() -> ModuleType:
    return room("docs_tables")


def room(name: str) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PAGES))
        return importlib.import_module(name)


def test_a_page_that_the_build_fills_in_says_so_to_who_reads_the_file() -> None:
    note = room("hook").NOTE
    pages = [path for path in (ROOT / "docs").rglob("*.md") if "examples" not in path.parts]
    texts = {path.as_posix(): path.read_text(encoding="utf-8") for path in pages}
    filled = {name for name, text in texts.items() if re.search(r"\{\{|\{%|^:::", text.replace(note, ""), re.MULTILINE)}
    assert len(filled) > 20
    assert filled == {name for name, text in texts.items() if note in text}


def test_cells_show_markup_as_it_is_and_keep_code(table_module: ModuleType) -> None:
    assert table_module.cell("<script>*a_b*|") == "&lt;script>\\*a\\_b\\*\\|"
    assert table_module.cell("the `a_b` of c_d") == "the `a_b` of c\\_d"


def test_values_are_short_and_exact(table_module: ModuleType) -> None:
    assert table_module.plain((0.1, 1e-5, 3.0, True, None)) == "0.1, 1e-05, 3, yes, none"
    assert table_module.plain({"kind": "fixed", "kernel": 6, "padding": 0}) == "kind fixed, kernel 6"
    assert table_module.plain(MMSELFSUP.costs) == "1, 10, 100, 0.5^4 … 0.5^19"
    assert table_module.plain((1.0, 0.5, 0.25)) == "1, 0.5, 0.25"  # two halvings are no run


def test_a_benchmark_shows_every_variant_and_every_setting() -> None:
    pages = room("docs_tables").ProtocolPages()
    text = pages.tables("knn")
    assert all(f"`{p.variant}@{p.revision}`" in text for p in PROTOCOLS)
    assert all(f"| `{name}` |" in text for name in KnnParams.model_fields)
    assert "| `temperature` | 0.07 | 0.07 | 0.07 | 0.1 |" in text
    assert "T of a neighbour's weight" in text
    every = {p.id for task in tasks() for p in task.protocols}
    assert set(pages.missing()) == every - {p.id for p in PROTOCOLS}


def test_a_field_that_two_names_share_is_explained_for_both() -> None:
    text = room("docs_tables").ProtocolPages().tables("voc-svm")
    assert "| `positive_weight` | class weights" in text
    assert "| `negative_weight` | class weights" in text


def test_the_front_page_claims_no_full_scale_run_as_long_as_no_record_holds_one() -> None:
    front = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    stored, _ = read_records(ROOT / "results" / "records")
    full = [s.path for s in stored if not s.record.dataset.embedded]
    assert stored
    assert ("Nothing here has been run at full scale" in front) == (not full)


def test_published_figures_name_protocol_and_source() -> None:
    text = room("docs_tables").published("knn.mmselfsup@1")
    assert "| `knn.mmselfsup@1` | k=20 | 55.7 | fixed k |" in text
    assert "MoCo v2 page B" in text


def test_the_cost_of_views_is_the_number_of_views_that_are_read() -> None:
    """Not of the images of the split: 100 images in 10 views, and 1,000 in 99."""
    costs = room("docs_tables")
    task = LabelFreeViews()
    found = {p.variant: costs.encoder_passes(task, p) for p in task.protocols if p.dataset == "imagenet"}
    assert found == {"spt": 100 * 10, "radio": 1000 * 99}
    (row,) = [row for row in costs.cost_rows() if row[0] == "`label-free-views`"]
    assert row[1:3] == ("`label_free_views.spt@1`", "1 k")
