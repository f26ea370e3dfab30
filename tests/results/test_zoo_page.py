"""Both published MoCo v2 pages, cell by cell, from published.csv; and the page of an encoder with records."""

from __future__ import annotations

import csv
import hashlib
import io
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from results.__main__ import main
from results.errors import InputError
from results.formats import Row, Table, cell_text
from results.published import chosen, figures
from results.published_tables import published_std
from results.schema import Architecture, Protocol, Score
from results.store import read_records, write_record
from results.zoo_page import (
    DIFFERENCE_LINE,
    Page,
    file_name,
    measured_page,
    published_page,
    zoo_latex,
    zoo_markdown,
)
from tests.results.factory_records import (
    KNN,
    KNN_COLUMNS,
    accuracy_outcomes,
    card,
    moco_card,
    protocol,
    random_card,
    record,
    write_demo,
)

EXPECTED = tomllib.loads((Path(__file__).parents[1] / "expected" / "mocov2_pages.toml").read_text(encoding="utf-8"))
SOURCES = {"page_a": "MoCo v2 page A*", "page_b": "MoCo v2 page B*"}
R50 = Architecture(name="resnet50")
FEATURES = tuple(f"Feature{i}" for i in range(1, 6))
FOUR_K = ("k=10", "k=20", "k=100", "k=200")


def texts(table: Table, row: Row) -> list[str]:
    return [cell_text(cell, table.decimals) for cell in row.cells]


@pytest.mark.parametrize("page", ["page_a", "page_b"])
def test_a_published_page_is_reproduced_cell_by_cell(page: str) -> None:
    expected = dict(EXPECTED[page])
    config = expected.pop("config")
    tables = published_page(chosen(figures(), source=[SOURCES[page]])).tables
    assert [table.title for table in tables] == list(expected)
    for table in tables:
        assert table.columns == ("Self-Supervised Config", *expected[table.title]["columns"])
        assert [row.label for row in table.rows] == [config]
        assert texts(table, table.rows[0]) == expected[table.title]["cells"]


def test_the_pages_disagree_where_they_do() -> None:
    a, b = EXPECTED["page_a"], EXPECTED["page_b"]
    assert (a["ImageNet Linear Evaluation"]["cells"][-1], b["ImageNet Linear Evaluation"]["cells"][-1]) == (
        "67.56",
        "67.58",
    )
    assert set(b) - set(a) == {"Places205 Linear Evaluation", "ImageNet Nearest-Neighbor Classification"}


def test_the_command_writes_both_pages(tmp_path: Path) -> None:
    assert main(["zoo-page", "--published", "--out", str(tmp_path)]) == 0
    pages = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(pages) == {"MoCo_v2_page_A.md", "MoCo_v2_page_B.md"}
    assert "| 67.56 |" in pages["MoCo_v2_page_A.md"].replace("  ", " ").replace("  ", " ")
    assert "Places205" not in pages["MoCo_v2_page_A.md"]
    assert "https://arxiv.org/abs/2003.04297" in pages["MoCo_v2_page_B.md"]
    assert "chen2020improved" in pages["MoCo_v2_page_B.md"]


def test_the_page_of_any_other_source_can_be_had(capsys: pytest.CaptureFixture[str]) -> None:
    readme = "open-mmlab/mmselfsup@0.x(6faad81):configs/selfsup/byol/README.md"
    assert main(["zoo-page", "--published", "--source", readme]) == 0
    assert "resnet50_16xb256-coslr-200e" in capsys.readouterr().out
    assert main(["zoo-page", "--published", "--source", "nobody"]) == 2
    assert "no source nobody" in capsys.readouterr().err


def test_file_names_are_plain() -> None:
    assert file_name("MoCo v2 page A (mmselfsup v0.5 README)") == "MoCo_v2_page_A"
    assert file_name("../../x y/<b>") == "x_y_b"


# ---- an encoder with records


def full(benchmark: str, columns: tuple[str, ...], variant: str, dataset: str = "imagenet") -> Protocol:
    return protocol(benchmark, columns, columns[-1], variant=variant, dataset=dataset)


def put(root: Path, asked: Protocol, values: dict[str, float], error: float | None = 0.2, **fields: Any) -> Path:
    scores = {
        column: Score(value=value, n=50_000, selection="fixed", standard_error=error)
        for column, value in values.items()
    }
    encoder = fields.pop("encoder", None) or card(
        "ours", architecture=R50, method="MoCo v2", published_as="MoCo v2/resnet50_8xb32-coslr-200e"
    )
    return write_record(root, record(encoder, asked, scores=scores, **{"embedded": False, **fields}))


def page_of(root: Path, model: str = "MoCo v2/resnet50_8xb32-coslr-200e", source: str = "MoCo v2 page B*") -> Page:
    return measured_page(read_records(root)[0], chosen(figures(), source=[source], model=[model]))


def table_of(page: Page, title: str) -> Table:
    return next(table for table in page.tables if table.title == title)


def by_label(table: Table) -> dict[str, dict[str, str]]:
    return {row.label: dict(zip(table.columns[1:], texts(table, row), strict=True)) for row in table.rows}


def test_measured_and_published_stand_side_by_side(tmp_path: Path) -> None:
    put(tmp_path, full("knn", FOUR_K, "mmselfsup"), {"k=10": 55.27, "k=20": 57.0})
    page = page_of(tmp_path)
    assert DIFFERENCE_LINE in page.lines
    table = table_of(page, "ImageNet Nearest-Neighbor Classification")
    found = by_label(table)
    assert table.columns == ("Self-Supervised Config", *FOUR_K, "Protocol", "n")
    assert list(found) == ["ours, measured", "resnet50_8xb32-coslr-200e", "difference"]
    assert found["ours, measured"] == {
        "k=10": "55.3 ± 0.2", "k=20": "57.0 ± 0.2", "k=100": "", "k=200": "", "Protocol": "knn.mmselfsup@1",
        "n": "220 items",
    }  # fmt: skip
    assert found["resnet50_8xb32-coslr-200e"]["k=10"] == "55.6"
    assert (found["difference"]["k=10"], found["difference"]["k=20"]) == (
        "≈ -0.3",
        "+1.3",
    )  # 1.7 and 6.5 standard errors
    assert [row.sources for row in table.rows] == [(), (1,), (1,)]
    assert table.sources[0].startswith(
        "MoCo v2 page B (mmselfsup 0.x documentation); selection: knn.mmselfsup@1: fixed"
    )
    assert table.notes[0].startswith("knn.mmselfsup@1 on imagenet (220 test")


def test_the_noise_of_a_mean_of_runs_counts_too(tmp_path: Path) -> None:
    columns = ("k=1", "k=2")
    asked = full("voc07_low_shot_svm", columns, "mmselfsup", "voc2007")
    scores = {  # published: 43.14 and 53.29, means of 5 sets
        "k=1": Score(value=42.0, std=0.80, standard_error=0.3, selection="oracle"),  # 1.14 away, 1.96 * 0.588
        "k=2": Score(value=52.15, std=0.77, standard_error=0.3, selection="oracle"),  # 1.14 away, 1.96 * 0.572
    }
    encoder = card("ours", architecture=R50)
    write_record(tmp_path, record(encoder, asked, scores=scores, embedded=False))
    found = by_label(table_of(page_of(tmp_path), "VOC SVM / Low-shot SVM"))["difference"]
    assert (found["k=1"], found["k=2"]) == ("≈ -1.14", "-1.14")


def test_a_published_deviation_is_shown_with_its_mean(tmp_path: Path) -> None:
    put(tmp_path, full("linear_avgpool", ("AvgPool",), "moco"), {"AvgPool": 67.64})
    page = page_of(tmp_path, "MoCo v2", "facebookresearch/moco@7397dfe:README.md")
    found = by_label(table_of(page, "ImageNet Linear Evaluation"))["MoCo v2, 200 epochs"]
    assert (found["AvgPool"], found["n"]) == ("67.5 (std 0.1)", "5 runs")
    cost = table_of(page, "Published pretraining cost")
    assert [cell.text for cell in cost.rows[0].cells] == ["8xV100", "hours", "53"]


def test_the_spread_that_a_source_prints_takes_the_place_of_ones_own(tmp_path: Path) -> None:
    scores = {"AvgPool": Score(value=68.6, std=1.0, selection="best epoch")}  # 1.1 from 67.5 with std 0.1, of 5 runs
    asked = full("linear_avgpool", ("AvgPool",), "moco")
    write_record(tmp_path, record(card("ours", architecture=R50), asked, scores=scores, embedded=False))
    page = page_of(tmp_path, "MoCo v2", "facebookresearch/moco@7397dfe:README.md")
    found = by_label(table_of(page, "ImageNet Linear Evaluation"))
    assert found["difference"]["AvgPool"] == "+1.1"  # beyond 1.96 * 0.449; twice one's own spread would be 1.96 * 0.632


@pytest.mark.parametrize(
    ("value", "std", "trials", "difference"),
    [
        (68.6, 1.0, 5, "+1.1"),  # from 67.5 with std 0.1, of 5 runs: beyond 1.96 * 0.449
        (68.6, 1.0, 2, "≈ +1.1"),  # within 1.96 * 0.709, as the mean of 2 trials is that much less certain
        (67.58, None, 0, "≈ +0.1"),  # one run: within 1.96 * 0.045, which the published runs have
        (67.62, None, 0, "+0.1"),
    ],
)
def test_measured_and_published_runs_count_by_their_own_numbers(
    value: float, std: float | None, trials: int, difference: str, tmp_path: Path
) -> None:
    scores = {"AvgPool": Score(value=value, std=std, selection="best epoch")}
    runs = tuple({"trial": trial, "AvgPool": value} for trial in range(trials))
    asked = full("linear_avgpool", ("AvgPool",), "moco")
    own = record(card("ours", architecture=R50), asked, scores=scores, embedded=False, runs=runs)
    write_record(tmp_path, own)
    page = page_of(tmp_path, "MoCo v2", "facebookresearch/moco@7397dfe:README.md")
    assert by_label(table_of(page, "ImageNet Linear Evaluation"))["difference"]["AvgPool"] == difference


def test_a_published_deviation_is_that_of_its_own_model_source_and_column() -> None:
    readme = chosen(figures(), source=["facebookresearch/moco@7397dfe:README.md"], model=["MoCo v2"])
    (mean,) = [f for f in readme if f.place and f.place.statistic == "mean"]
    (right,) = [f for f in readme if f.place and f.place.statistic == "std"]
    assert right.place is not None
    elsewhere = replace(right.place, column="Feature5")
    wrong = [replace(right, epochs=800.0), replace(right, source="a page"), replace(right, place=elsewhere)]
    assert published_std(mean, [*readme[::-1], *wrong]) == right
    assert published_std(mean, [f for f in (*wrong, *readme) if f != right]) is None


def test_the_version_of_the_data_that_was_measured_last_is_shown(tmp_path: Path) -> None:
    asked = full("knn", FOUR_K, "mmselfsup")
    for year, value in (("2026", 57.0), ("2025", 44.0)):
        data = record(card("ours"), asked, embedded=False).dataset.model_copy(update={"fingerprint": year * 16})
        put(tmp_path, asked, {"k=20": value}, dataset=data, created=f"{year}-01-01T00:00:00+00:00")
    found = by_label(table_of(page_of(tmp_path), "ImageNet Nearest-Neighbor Classification"))
    assert found["ours, measured"]["k=20"] == "57.0 ± 0.2"


def test_another_protocol_is_shown_and_not_compared(tmp_path: Path) -> None:
    put(tmp_path, full("voc0712_det", ("AP50", "AP", "AP75"), "moco", "voc0712"), {"AP50": 82.4})
    found = by_label(table_of(page_of(tmp_path), "Pascal VOC 2007 + 2012"))
    assert list(found) == ["ours, measured", "resnet50_8xb32-coslr-200e, not comparable"]
    assert found["resnet50_8xb32-coslr-200e, not comparable"]["Protocol"] == "voc0712_det.mmselfsup@1"


def test_a_row_that_is_comparable_in_part_says_so_in_its_cells(tmp_path: Path) -> None:
    put(tmp_path, full("linear_multihead", FEATURES, "mmselfsup"), {"Feature5": 66.3})
    put(tmp_path, full("linear_avgpool", ("AvgPool",), "simsiam"), {"AvgPool": 67.6})
    found = by_label(table_of(page_of(tmp_path), "ImageNet Linear Evaluation"))
    assert (found["difference"]["Feature5"], found["difference"]["AvgPool"]) == ("≈ +0.06", "not comparable")


def test_the_same_protocol_under_another_name_is_compared(tmp_path: Path) -> None:
    put(tmp_path, full("linear_multihead", FEATURES, "mmselfsup"), {"Feature5": 66.3})
    put(tmp_path, full("linear_avgpool", ("AvgPool",), "moco"), {"AvgPool": 67.7})
    found = by_label(table_of(page_of(tmp_path), "ImageNet Linear Evaluation"))
    assert found["ours, measured"]["Protocol"] == "linear_multihead.mmselfsup@1, linear_avgpool.moco@1"
    assert found["difference"]["AvgPool"] == "≈ +0.12"


def test_overrides_other_data_and_edits_are_in_no_parity_column(tmp_path: Path) -> None:
    knn = full("knn", FOUR_K, "mmselfsup")
    put(tmp_path, knn.changed(epochs=3), {"k=20": 99.0})
    put(tmp_path, knn.model_copy(update={"dataset": "flowers"}), {"k=20": 98.0})
    page = page_of(tmp_path)
    assert [table.title for table in page.tables][1:3] == [
        "Nearest-neighbour classification: flowers", "Nearest-neighbour classification: imagenet",
    ]  # fmt: skip
    assert [part.title for part in page.parts] == ["Encoder", "Other protocols"]

    edited = put(tmp_path, knn, {"k=20": 44.5})
    edited.write_text(edited.read_text().replace("44.5", "55.5"))
    table = table_of(page_of(tmp_path), "ImageNet Nearest-Neighbor Classification")
    found = by_label(table)
    assert list(found) == ["ours, measured †", "resnet50_8xb32-coslr-200e, not comparable"]
    assert table.notes[-1] == "† ours: knn.mmselfsup@1: edited after it was written"


def test_embedded_and_own_data_have_parts_of_their_own_without_published_figures(tmp_path: Path) -> None:
    outcomes = accuracy_outcomes(KNN_COLUMNS, 0.4, 0)
    write_record(tmp_path, record(card("ours"), KNN, outcomes), outcomes)
    put(tmp_path, full("knn", FOUR_K, "mmselfsup"), {"k=20": 57.0})
    changed = {"id": "imagenet", "fingerprint": "abcdef" * 10, "official": False, "folder": "my-imagenet"}
    own = record(card("ours"), KNN).dataset.model_copy(update={**changed, "embedded": False})
    put(tmp_path, full("knn", FOUR_K, "mmselfsup"), {"k=20": 91.0}, dataset=own)
    page = page_of(tmp_path)
    assert [part.title for part in page.parts] == [
        "Encoder",
        "Classification",
        "Classification: embedded data",
        "Classification: your data: my-imagenet in the layout of imagenet (abcdefab)",
    ]
    (embedded,) = page.parts[2].tables
    (mine,) = page.parts[3].tables
    assert mine.title == "Nearest-Neighbor Classification: my-imagenet in the layout of imagenet (abcdefab)"
    assert [row.label for row in mine.rows] == ["ours, measured"]
    assert "91.0" not in zoo_markdown(Page("x", (), page.parts[:3], ()))
    assert embedded.title == "Nearest-Neighbor Classification: drawings"
    assert embedded.decimals == 1
    assert [row.label for row in embedded.rows] == ["ours, measured"]
    assert embedded.sources == ()
    assert "ImageNet" not in zoo_markdown(Page("x", (), (page.parts[2],), ()))


@pytest.mark.slow
def test_several_encoders_are_compared_and_the_best_is_bold_with_all_tied(tmp_path: Path) -> None:
    write_demo(tmp_path)
    page = measured_page(read_records(tmp_path)[0], [])
    table = table_of(page, "Nearest-Neighbor Classification: drawings")
    bold = {row.label for row in table.rows if any(cell.bold for cell in row.cells)}
    assert bold == {"EfficientNet-Lite0, measured"}
    assert table.rows[1].label == "random init (resnet18-w32-k3-nopool), measured"
    assert texts(table, table.rows[1])[-1] == "220 items, 5 initialisations"
    records = [s for s in read_records(tmp_path)[0] if "moco" in s.record.encoder.name]
    seeds = table_of(measured_page(records, []), "Nearest-Neighbor Classification: drawings")
    assert all(cell.bold for row in seeds.rows for cell in row.cells if cell.value is not None)  # tied


def test_figures_of_two_protocols_in_one_column_are_never_ranked(tmp_path: Path) -> None:
    for variant, skill in (("demo", 0.2), ("other", 0.9)):
        outcomes = accuracy_outcomes(KNN_COLUMNS, skill, 0)
        asked = protocol("knn", KNN_COLUMNS, "k=20", variant=variant)
        write_record(tmp_path, record(card("ours"), asked, outcomes), outcomes)
    table = table_of(measured_page(read_records(tmp_path)[0], []), "Nearest-Neighbor Classification: drawings")
    assert len(table.rows) == 2
    assert not any(cell.bold for row in table.rows for cell in row.cells)


def test_the_page_says_what_the_encoder_is_and_what_it_cost(tmp_path: Path) -> None:
    outcomes = accuracy_outcomes(KNN_COLUMNS, 0.4, 0)
    write_record(tmp_path, record(moco_card(0), KNN, outcomes), outcomes)
    weights = tmp_path / "backbone.safetensors"
    weights.write_bytes(b"abc" * 2**20)
    (part,) = [p for p in measured_page(read_records(tmp_path)[0], [], weights).parts if p.title.startswith("Encoder")]
    found = {row.label: row.cells[0].text for row in part.tables[0].rows}
    assert found["Recipe"] == "synthetic"
    assert found["Input"] == "RGB, white 1, mean (0.485, 0.456, 0.406), std (0.229, 0.224, 0.225)"
    assert found["Pretraining epochs"] == "60"
    assert found["Pretraining time"] == "0.08 h"
    assert found["Backbone tensors (sha256)"] == moco_card(0).weights_sha256
    digest = hashlib.sha256(b"abc" * 2**20).hexdigest()
    assert found["Weights file"] == f"backbone.safetensors, 3.0 MiB, sha256 {digest}"


def test_failures_are_named(tmp_path: Path) -> None:
    put(tmp_path, full("knn", FOUR_K, "mmselfsup"), {"k=20": 57.0})
    failed = {"status": "failed", "error": "RuntimeError: out of memory"}
    write_record(tmp_path, record(card("ours"), full("linear_avgpool", ("AvgPool",), "moco"), embedded=False, **failed))
    assert "- ours: linear_avgpool.moco@1 on imagenet: RuntimeError: out of memory" in zoo_markdown(page_of(tmp_path))
    with pytest.raises(InputError, match="none of the chosen records succeeded"):
        measured_page([s for s in read_records(tmp_path)[0] if s.record.status == "failed"], [])


NASTY = "a|b `c` <script>alert(1)</script> $x$ 100% & \\evil {y} #1 [^1]"


def test_names_with_markup_are_shown_as_text_in_every_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = accuracy_outcomes(KNN_COLUMNS, 0.4, 0)
    write_record(tmp_path, record(card(NASTY, source=NASTY, method=NASTY), KNN, outcomes), outcomes)
    page = measured_page(read_records(tmp_path)[0], [])
    text = zoo_markdown(page)
    assert "<script" not in text
    assert r"a\|b \`c\` &lt;script&gt;" in text
    assert r"\[^1]" in text
    assert all(line.count("|") - line.count(r"\|") in (3, 8) for line in text.splitlines() if line[:1] == "|")
    tex = zoo_latex(page)
    assert r"a\textbar{}b \textasciigrave{}c\textasciigrave{} \textless{}script" in tex
    assert r"100\% \& \textbackslash{}evil \{y\} \#1" in tex
    assert main(["zoo-page", "--encoder", "a|b*", "--records", str(tmp_path), "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    title = "Classification: embedded data: Nearest-Neighbor Classification: drawings"
    knn = [row for row in rows if row["table"] == title]
    assert {row["row"] for row in knn} == {f"{NASTY}, measured"}


def test_an_encoder_is_chosen_by_pattern_and_an_unknown_one_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for encoder in (random_card(0), moco_card(0)):
        outcomes = accuracy_outcomes(KNN_COLUMNS, 0.4, 0)
        write_record(tmp_path, record(encoder, KNN, outcomes), outcomes)
    assert main(["zoo-page", "--encoder", "moco*", "--records", str(tmp_path), "--out", str(tmp_path / "p.md")]) == 0
    assert "random" not in (tmp_path / "p.md").read_text()
    capsys.readouterr()
    for arguments, sentence in (
        (["--encoder", "nobody"], "no record matches --encoder nobody; the records hold mocov2_resnet18w32_demo"),
        (["--encoder", ""], "published pages\n  encoders in"),
        ([], "name the encoder with --encoder, or give --published"),
        (["--encoder", "moco*", "--against", "nobody"], "published.csv has no model nobody"),
    ):
        assert main(["zoo-page", *arguments, "--records", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert sentence in error
        assert len([line for line in error.splitlines() if not line.startswith("  ")]) == 1
