"""`python -m results lint`: the conflicts that are known of the published pages, and pages made from records."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from results.__main__ import main
from results.lint import (
    Claim,
    ColumnMeaning,
    PageCell,
    PublishedClaims,
    Verdict,
    lint,
    markdown_tables,
    verdict_text,
)
from results.published import figures, model_key, published_figure
from results.schema import Score
from results.store import read_records, write_record
from tests.results.factory_records import KNN, card, protocol, random_card, record, write_demo

HEAD = "# MoCo v2\n\n### ImageNet Linear Evaluation\n\n| Config | Feature5 | AvgPool |\n| --- | ---: | ---: |\n"


def published_page(tmp_path: Path, source: str) -> Path:
    folder = tmp_path / "pages"
    assert main(["zoo-page", "--published", "--source", source, "--out", str(folder)]) == 0
    return next(folder.iterdir())


def lint_text(tmp_path: Path, text: str) -> Verdict:
    page = tmp_path / "page.md"
    page.write_text(text)
    return lint(page, [])


@pytest.mark.parametrize(
    ("source", "printed", "others", "checked"),
    [("MoCo v2 page A*", "67.56", "67.58", 24), ("MoCo v2 page B*", "67.58", "67.56", 33)],
)
def test_the_two_published_pages_disagree_on_one_figure(
    tmp_path: Path, source: str, printed: str, others: str, checked: int
) -> None:
    page = published_page(tmp_path, source)
    verdict = lint(page, [])
    assert verdict.checked == checked
    assert verdict.unknown == []
    (conflict,) = verdict.conflicts
    assert (conflict.cell.table, conflict.cell.column, conflict.cell.printed) == (
        "ImageNet Linear Evaluation",
        "AvgPool",
        printed,
    )
    assert {claim.text for claim in conflict.against} == {others}
    assert {claim.text for claim in conflict.cell.agreeing} == {printed}
    assert "23 other figures" in conflict.note
    text = verdict_text(page, verdict)
    assert f"{page}:{conflict.cell.line}: " in text
    assert {"MoCo v2 page A (mmselfsup v0.5 README)", "MoCo v2 page B (mmselfsup 0.x documentation)"} <= {
        claim.source for claim in (*conflict.against, *conflict.cell.agreeing)
    }


@pytest.mark.parametrize(
    ("readme", "printed", "other"),
    [("relative_loc", "39.65", "38.78"), ("npid", "57.97", "58.97"), ("odc", "53.42", "53.43"),
     ("densecl", "63.34", "63.62")],
)  # fmt: skip
def test_readmes_that_the_model_zoo_of_their_project_contradicts(
    tmp_path: Path, readme: str, printed: str, other: str
) -> None:
    verdict = lint(published_page(tmp_path, f"open-mmlab/mmselfsup@*/{readme}/*"), [])
    (conflict,) = verdict.conflicts
    assert (conflict.cell.column, conflict.cell.printed) == ("AvgPool", printed)
    assert [claim.text for claim in conflict.against] == [other]
    assert "model_zoo.md" in conflict.against[0].source


def test_a_figure_of_another_column(tmp_path: Path) -> None:
    page = HEAD.replace("MoCo v2", "InterCLR") + "| interclr-moco_resnet50_8xb32-coslr-200e | 68.04 | 68.04 |\n"
    (conflict,) = lint_text(tmp_path, page).conflicts
    assert conflict.cell.column == "AvgPool"
    assert conflict.note == "the source has this figure in another column"


def test_a_misprint_and_a_coarser_figure(tmp_path: Path) -> None:
    page = HEAD + "| [resnet50_8xb32-coslr-200e](configs/a.py) | 62.46 | 67.6 |\n"
    verdict = lint_text(tmp_path, page)
    assert [(c.cell.column, c.cell.printed) for c in verdict.conflicts] == [("Feature5", "62.46")]
    assert {claim.text for claim in verdict.conflicts[0].against} == {"66.24"}
    assert verdict.conflicts[0].cell.agreeing == ()


def test_a_configuration_of_two_methods_is_that_of_the_heading(tmp_path: Path) -> None:
    row = "| resnet50_8xb32-coslr-200e | 66.24 |  |\n"
    assert lint_text(tmp_path, HEAD + row).conflicts == []
    other = lint_text(tmp_path, HEAD.replace("MoCo v2", "DenseCL") + row)
    assert [c.cell.column for c in other.conflicts] == ["Feature5"]
    unknown = lint_text(tmp_path, HEAD.replace("MoCo v2", "Our zoo") + row)
    assert unknown.checked == 0
    assert len(unknown.unknown) == 1


def test_protocols_are_not_held_against_each_other(tmp_path: Path) -> None:
    """BYOL's figure under SimSiam's probe is another than under MoCo's, and both are right."""
    source = "open-mmlab/mmselfsup@0.x*:docs/en/model_zoo.md"
    page = published_page(tmp_path, source)
    assert not any("BYOL" in conflict.cell.row for conflict in lint(page, []).conflicts)


def test_only_a_claim_under_the_protocol_of_the_agreeing_ones_contradicts() -> None:
    one, other = frozenset({"knn.a@1"}), frozenset({"knn.b@1"})
    claims = Claim("agrees", "66.24", one, 2), Claim("other", "70.1", other, 1), Claim("same", "67.0", one, 1)
    assert [c.source for c in PageCell(1, "t", "r", "c", "66.2", claims).contradicting] == ["same"]
    assert PageCell(1, "t", "r", "c", "1.0", claims).contradicting == claims


def test_a_figure_of_its_column_may_stand_in_another_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = published_figure("MoCo v2/resnet50_8xb32-coslr-200e", "linear_avgpool", source="MoCo v2 page B*")
    assert own.place is not None
    twin = replace(own, place=replace(own.place, protocol="linear_multihead.mmselfsup@1", column="Feature5"))
    monkeypatch.setattr("results.lint.figures", lambda: (own, twin))
    verdict = lint_text(tmp_path, HEAD + "| resnet50_8xb32-coslr-200e | 67.58 | 67.58 |\n")
    assert (verdict.checked, verdict.conflicts) == (2, [])


def test_a_coarse_figure_in_another_column_is_no_sign_of_a_slip() -> None:
    model, published = model_key("MoCo v2/resnet50_8xb32-coslr-200e"), PublishedClaims(figures())
    assert published.elsewhere(model, ColumnMeaning("linear_avgpool", "AvgPool"), "66.24")
    assert published.elsewhere(model, ColumnMeaning("knn", "k=1"), "55.7") == []  # that of k=20


def test_one_other_figure_in_common_does_not_tell_two_checkpoints(tmp_path: Path) -> None:
    (conflict,) = lint_text(tmp_path, HEAD + "| resnet50_8xb32-coslr-200e | 66.24 | 67.58 |\n").conflicts
    assert conflict.note == ""


def test_a_table_is_held_against_the_records_of_its_protocol_and_data(tmp_path: Path) -> None:
    def put(variant: str, data: str, value: float, number: int = 0, **fields: Any) -> Path:
        asked = protocol("knn", ("k=20",), "k=20", variant=variant)
        encoder = card("net") if variant != "random" else random_card(number)
        dataset = record(encoder, asked).dataset.model_copy(update={"id": data})
        scores = {"k=20": Score(value=value, selection="fixed")}
        return write_record(tmp_path / "r", record(encoder, asked, scores=scores, dataset=dataset, **fields))

    put("demo", "drawings", 40.0)
    put("demo", "scenes", 50.0)
    put("other", "drawings", 60.0)
    edited = put("edited", "drawings", 70.5)
    edited.write_text(edited.read_text().replace("70.5", "80.5"))
    put("random", "drawings", 20.0)
    without = record(random_card(1), protocol("knn", ("k=20",), "k=20", variant="random"))
    write_record(tmp_path / "r", without.model_copy(update={"scores": {"k=10": Score(value=1.0, selection="fixed")}}))

    def found(variant: str, printed: str, label: str = "net") -> list[list[str]]:
        page = tmp_path / "page.md"
        above = f"### Nearest-neighbour classification: drawings\n\nknn.{variant}@1 on drawings."
        page.write_text(f"{above}\n\n| Encoder | k=20 |\n| - | - |\n| {label} | {printed} |\n")
        verdict = lint(page, read_records(tmp_path / "r")[0])
        assert verdict.unknown == []
        return [[claim.text for claim in conflict.against] for conflict in verdict.conflicts]

    assert found("demo", "40.0") == []
    assert found("demo", "60.0") == [["40.0000"]]
    assert found("other", "40.0") == [["60.0000"]]
    assert found("edited", "80.4") == []  # nothing is known of it
    assert found("random", "21.0", "random init (resnet18-w32-k3-nopool)") == []  # one of the two has no such score


@pytest.mark.slow
def test_tables_made_from_records_agree_until_they_are_edited(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records, page = tmp_path / "records", tmp_path / "zoo.md"
    write_demo(records)
    assert main(["tables", "--records", str(records), "--out", str(page)]) == 0
    assert main(["lint", str(page), "--records", str(records)]) == 0
    capsys.readouterr()
    lines = page.read_text().splitlines()
    row = next(i for i, line in enumerate(lines) if line.startswith("| raw pixels") and "±" in line)
    figure = next(cell for cell in lines[row].split("|")[2:] if "±" in cell)
    lines[row] = lines[row].replace(figure, " 99.9 ± 0.1 ", 1)
    page.write_text("\n".join(lines))
    assert main(["lint", str(page), "--records", str(records)]) == 1
    printed = capsys.readouterr().out
    assert f"{page}:{row + 1}: " in printed
    assert "demo@1-" in printed
    assert "1 in conflict" in printed


def test_a_record_of_a_published_model_is_a_source(tmp_path: Path) -> None:
    linear = protocol("linear_avgpool", ("AvgPool",), "AvgPool", variant="moco", dataset="imagenet")
    ours = card("ours", published_as="MoCo v2/resnet50_8xb32-coslr-200e")
    scores = {"AvgPool": Score(value=60.0, selection="best epoch")}
    write_record(tmp_path / "records", record(ours, linear, scores=scores, embedded=False))
    page = tmp_path / "page.md"
    page.write_text(HEAD + "| resnet50_8xb32-coslr-200e | 66.24 | 67.58 |\n")
    (conflict,) = lint(page, read_records(tmp_path / "records")[0]).conflicts
    assert any("linear_avgpool.moco@1 on imagenet" in claim.source for claim in conflict.against)


def test_what_cannot_be_checked_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_record(tmp_path / "records", record(card("a"), KNN, scores={"k=20": Score(value=1.0, selection="fixed")}))
    page, records = tmp_path / "page.md", ["--records", str(tmp_path / "records")]
    page.write_text("# A\n\n| x | speed |\n| - | - |\n| a | 12.5 |\n")
    assert main(["lint", str(page), *records]) == 3
    said = capsys.readouterr().out
    assert "line 5: the table 'A' has none of the columns that are known" in said
    assert "FAILED: no figure of the page belongs to a known table" in said
    page.write_text("no table")
    assert main(["lint", str(page), *records]) == 2
    assert "has no table\n  tables are read from" in capsys.readouterr().err
    assert main(["lint", str(tmp_path / "missing.md")]) == 2
    said = capsys.readouterr().err
    assert f"page not found: {tmp_path / 'missing.md'}; name a file with tables in markdown, HTML or plain text" in said
    page.write_bytes(b"\xff\xfe")
    assert main(["lint", str(page), *records]) == 2
    assert main(["lint", str(tmp_path / "none.md"), *records]) == 2


def test_agreement_goes_as_far_as_the_coarser_figure() -> None:
    exact = Claim("s", "66.2449", frozenset(), 4)
    assert exact.agrees("66.24")
    assert exact.agrees("**66.2 ± 0.1** (std 0.2)")
    assert not exact.agrees("66.25")
    assert Claim("s", "feature5", frozenset(), 0).agrees("Feature5")
    assert not Claim("s", "feature5", frozenset(), 0).agrees("feature4")


def test_names_of_one_model() -> None:
    assert model_key("Relative Location/relative-loc_resnet50_8xb64-steplr-70e_in1k") == model_key(
        "Relative Location/resnet50_8xb64-steplr-70e"
    )
    assert model_key("MoCo v2/resnet50_8xb32-coslr-200e") != model_key("DenseCL/resnet50_8xb32-coslr-200e")
    assert model_key("MoCo v2 IN-1M").config == ""


ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_projects_own_pages_agree_with_its_records_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["lint", str(ROOT / "README.md"), str(ROOT / "results" / "MODEL_ZOO.md")]) == 0
    totals = [line for line in capsys.readouterr().out.splitlines() if "figures checked" in line]
    assert [int(line.split(": ")[1].split(" ")[0]) > 15 for line in totals] == [True, True]


# ---- one page in every form

CELLS = (("Self-Supervised Config", "Feature1", "Feature5", "AvgPool"),
         ("resnet50_8xb32-coslr-200e", "15.96", "66.24", "67.57"))  # fmt: skip
TITLES = "MoCo v2", "ImageNet Linear Evaluation"


def aligned(gap: int) -> str:
    widths = [max(map(len, column)) + gap for column in zip(*CELLS, strict=True)]
    return "\n".join("".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in CELLS)


def as_html(row: tuple[str, ...], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}><p>{cell}<sup>1</sup></{tag}>" for cell in row) + "</tr>\n"


HTML_TABLE = f"<table><thead>{as_html(CELLS[0], 'th')}</thead>{as_html(CELLS[1], 'td')}</table>"
FORMS = {
    "html": f"<!DOCTYPE html><html><style>td {{}}</style><h1>{TITLES[0]}</h1><h3>{TITLES[1]}</h3>{HTML_TABLE}",
    "caption": f"<html><h1>{TITLES[0]}</h1><table><caption>{TITLES[1]}</caption>{HTML_TABLE[7:]}",
    "html in markdown": f"# {TITLES[0]}\n\n### {TITLES[1]}\n\n{HTML_TABLE}\n",
    "tabs": "\n\n".join((*TITLES, "\n".join("\t".join(row) for row in CELLS))),
    "blanks": "\n\n".join((*TITLES, aligned(3))),
    "an empty cell among blanks": "\n\n".join((*TITLES, f"{aligned(3)}\n{CELLS[1][0]:<28}{'':<11}66.24")),
    "paragraph between": "\n".join((*TITLES, "The maps are pooled to fixed sizes.", "", aligned(2), "", "The end.")),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_page_is_read_in_every_form(tmp_path: Path, form: str) -> None:
    verdict = lint_text(tmp_path, FORMS[form])
    assert (verdict.checked, verdict.unsupported, verdict.unknown) == (4 if "empty" in form else 3, 0, [])
    (conflict,) = verdict.conflicts
    assert (conflict.cell.column, conflict.cell.printed) == ("AvgPool", "67.57")
    (line,) = [n for n, text in enumerate(FORMS[form].splitlines(), start=1) if "67.57" in text]
    assert conflict.cell.line == line


def test_the_pages_of_a_published_source_are_the_same_as_text(tmp_path: Path) -> None:
    page = published_page(tmp_path, "MoCo v2 page B*")
    (expected,) = lint(page, []).conflicts
    lines = []
    for line in page.read_text().splitlines():
        words = re.sub(r"\*\*|^#+ ", "", line)
        if not words.startswith("| -"):
            lines.append("\t".join(map(str.strip, words.strip("| ").split("|"))) if words[:1] == "|" else words)
    text = "\n".join(lines)
    verdict = lint_text(tmp_path, text)
    assert verdict.checked == 33
    assert [c.cell.printed for c in verdict.conflicts] == [expected.cell.printed]


# ---- markdown tables as other projects write them

PAGE = r"""# MoCo v2

## Classification

**VOC SVM / Low-shot SVM**

The best layer, `k` images.

| Self-Supervised Config | SVM | a \| b |
| ---------------------- | --: | ------ |
| [resnet50_8xb32](configs/x_y.py)<sup>1</sup> | **84.04** | <script> |

#### Another

No table.

### ImageNet

|x|y|
|-|-|
|1|2|
"""


def test_cells_are_plain_text_with_their_lines() -> None:
    first, second = markdown_tables(PAGE)
    assert first.headings == ("MoCo v2", "Classification", "VOC SVM / Low-shot SVM")
    assert first.context == "The best layer, k images."
    assert first.columns == ("Self-Supervised Config", "SVM", "a | b")
    assert first.rows[0].cells[:2] == ("resnet50_8xb32", "84.04")
    assert PAGE.splitlines()[first.rows[0].line - 1].startswith("| [resnet50")
    assert second.headings == ("MoCo v2", "Classification", "ImageNet")
    assert second.title == "ImageNet"
    assert second.context == ""


def test_a_sentence_with_a_bold_word_is_no_heading() -> None:
    table = markdown_tables("# A\n\n**Bold** words, and **more**\n\n| x | y |\n| - | - |\n| 1 | 2 |\n")[0]
    assert table.headings == ("A",)


def test_a_page_without_tables() -> None:
    assert markdown_tables("# A\n\n`| no | table |`\n") == []
