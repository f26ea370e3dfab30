"""`python -m results`: what it prints, writes, compares and refuses."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from results.__main__ import main
from results.formats import frame, tables_frame
from results.rows import EMBEDDED
from results.schema import Score
from results.store import read_records, write_record
from results.tables import BEGIN, END, Section
from tests.results.factory_records import (
    KNN,
    KNN_COLUMNS,
    LINEAR,
    accuracy_outcomes,
    card,
    moco_card,
    random_card,
    record,
)


@pytest.fixture
def records(tmp_path: Path) -> Path:
    root = tmp_path / "records"
    for encoder, skill in ((random_card(0), 0.2), (random_card(1), 0.2), (moco_card(0), 0.6)):
        outcomes = accuracy_outcomes(KNN_COLUMNS, skill, 0)
        write_record(root, record(encoder, KNN, outcomes), outcomes)
    return root


def add_full(root: Path) -> None:
    scores = {"k=20": Score(value=55.6, n=50_000, selection="fixed")}
    write_record(root, record(card("big <b>"), KNN, scores=scores, embedded=False))


def test_tables_are_printed(records: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tables", "--records", str(records)]) == 0
    page = capsys.readouterr().out
    assert page.startswith("# Model zoo\n")
    assert "random init (resnet18-w32-k3-nopool), mean of 2 initialisations" in page
    assert "### Gain over random initialisation" in page
    assert "## Full data sets\n\nNo records yet.\n" in page


def test_dry_run_says_what_would_be_read_and_writes_nothing(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    assert main(["tables", "--records", str(records), "--out", str(page), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert f"would read {len(list(records.rglob('*.json')))} records" in printed
    assert str(page) in printed
    assert not page.exists()


def test_the_same_records_give_the_same_page_wherever_they_lie(records: Path, tmp_path: Path) -> None:
    pages = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        moved = tmp_path / name / "elsewhere"
        records.rename(moved)
        assert main(["tables", "--records", str(moved), "--out", str(tmp_path / f"{name}.md")]) == 0
        pages.append((tmp_path / f"{name}.md").read_bytes())
        moved.rename(records)
    assert pages[0] == pages[1]
    assert str(tmp_path) not in pages[0].decode()


def test_the_sections_of_a_page_are_apart_and_names_escaped(records: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_full(records)
    (records / "bad|file.json").write_text("{")
    assert main(["tables", "--records", str(records)]) == 0
    said = capsys.readouterr()
    embedded, full = said.out.split("## Full data sets")
    assert "big" not in embedded
    assert "big &lt;b&gt;" in full
    assert "mocov2" not in full
    assert r"- bad\|file.json: cannot be read" in full
    assert "bad|file.json" in said.err


def test_a_csv_holds_full_precision_and_never_both_kinds(records: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_full(records)
    assert main(["tables", "--records", str(records), "--format", "csv"]) == 2
    assert "--rows embedded or --rows full" in capsys.readouterr().err
    for rows, count in (("embedded", 3 * len(KNN_COLUMNS)), ("full", 1)):
        assert main(["tables", "--records", str(records), "--format", "csv", "--rows", rows]) == 0
        found = pd.read_csv(io.StringIO(capsys.readouterr().out))
        assert len(found) == count
        assert set(found["embedded"]) == {rows == "embedded"}
        expected = {s.record.scores["k=20"].value for s in read_records(records)[0] if s.record.dataset.embedded}
        if rows == "embedded":
            assert set(found[found["primary"]]["value"]) == expected


def test_a_frame_has_a_row_for_a_failed_record_and_none_for_nothing(tmp_path: Path) -> None:
    write_record(tmp_path, record(card("net"), KNN, status="failed", error="broke"))
    rows = frame(read_records(tmp_path)[0])
    assert rows[["encoder", "status", "error"]].to_numpy().tolist() == [["net", "failed", "broke"]]
    assert rows["value"].isna().all()
    assert len(frame([])) == 0


def test_latex_is_a_page_of_tables(records: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tables", "--records", str(records), "--format", "latex"]) == 0
    page = capsys.readouterr().out
    assert page.count(r"\begin{table}") == page.count(r"\end{table}") == 3


def test_the_readme_keeps_all_but_what_is_between_its_markers(records: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nThe rest.\n")
    command = ["tables", "--records", str(records), "--readme", str(readme)]
    assert main([*command, "--check"]) == 1
    assert "old" in readme.read_text()
    assert main(command) == 0
    text = readme.read_text()
    assert text.startswith(f"# Title\n\n{BEGIN}\n")
    assert text.endswith(f"{END}\n\nThe rest.\n")
    assert " kNN (k=20) |" in text
    assert "\nold\n" not in text
    assert main([*command, "--check"]) == 0
    before = readme.stat().st_mtime_ns
    assert main(command) == 0
    assert readme.stat().st_mtime_ns == before


def test_check_exits_with_1_where_the_page_is_another_or_missing(records: Path, tmp_path: Path) -> None:
    page = tmp_path / "MODEL_ZOO.md"
    command = ["tables", "--records", str(records), "--out", str(page)]
    assert main([*command, "--check"]) == 1
    assert not page.exists()
    assert main(command) == 0
    assert main([*command, "--check"]) == 0
    page.write_text(page.read_text().replace("mean of 2", "mean of 5"))
    assert main([*command, "--check"]) == 1


@pytest.mark.parametrize("text", ["no markers", f"{END} {BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_a_readme_without_its_markers_is_refused(
    records: Path, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text)
    assert main(["tables", "--records", str(records), "--readme", str(readme)]) == 2
    assert "README.md must contain one line <!-- table:begin -->" in capsys.readouterr().err
    assert readme.read_text() == text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["tables", "--records", "nowhere"], "records folder not found: nowhere"),
        (["tables", "--records", ".", "--check"], "--check compares a file"),
        (["tables", "--records", ".", "--readme", "none.md"], "none.md"),
        (["publish-records", "--records", "nowhere"], "records folder not found: nowhere"),
        (
            ["diff", "", ""],
            "name two encoders to compare, as in: python -m results diff 'my enc",
        ),
        (["diff", "a", "b", "--records", "."], "no encoder matches 'a'; the records hold none"),
        (["paper-tables", "--source", "nobody"], "no table of the papers has a figure from nobody"),
        (["published", "--source", "nobody"], "no published figure matches"),
    ],
)
def test_what_cannot_work_is_one_sentence_and_2(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_an_unknown_flag_or_command_exits_with_2_and_names_what_is_close(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, close in (
        (["tables", "--ouput", "x"], "did you mean --out?"),
        (["tabels"], "did you mean 'tables'?"),
    ):
        assert main(arguments) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("results: no ")
        assert close in said.err.splitlines()[0]
    assert main(["diff"]) == 2
    assert capsys.readouterr().err.startswith("results: missing: A encoder name")


def test_an_empty_folder_gives_a_page_and_a_readme_block(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    readme, page = tmp_path / "README.md", tmp_path / "page.md"
    readme.write_text(BEGIN + END)
    arguments = ["--records", str(tmp_path / "records"), "--out", str(page), "--readme", str(readme)]
    assert main(["tables", *arguments]) == 0
    assert page.read_text().count("No records yet.") == 2
    assert readme.read_text() == f"{BEGIN}\n\nNo records yet.\n\n{END}"


def test_records_are_published_and_what_was_left_out_is_said(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(records, record(card("net"), KNN, status="failed", error="broke"))
    command = ["publish-records", "--records", str(records), "--out", str(tmp_path / "published")]
    assert main([*command, "--dry-run"]) == 0
    assert "(nothing was written)" in capsys.readouterr().out
    assert not (tmp_path / "published").exists()
    assert main([*command, "--encoder", "mocov2*", "net"]) == 0
    said = capsys.readouterr().out
    assert "it failed: broke" in said
    assert "1 published, 0 there already, 0 removed, 1 left out" in said
    assert len(read_records(tmp_path / "published")[0]) == 1


def test_tables_are_filtered_by_encoder_benchmark_and_source(records: Path, capsys: pytest.CaptureFixture[str]) -> None:
    linear = accuracy_outcomes(("AvgPool",), 0.5, 0)
    write_record(records, record(card("elsewhere", source="somewhere else"), LINEAR, linear), linear)
    for flags, shown, hidden in (
        (["--encoder", "moco*", "else*"], ("mocov2", "elsewhere"), "random init"),
        (["--benchmark", "linear_*"], ("elsewhere",), "mocov2"),
        (["--benchmark", "knn.demo@1"], ("mocov2",), "elsewhere"),
        (["--source", "some*"], ("elsewhere",), "mocov2"),
    ):
        assert main(["tables", "--records", str(records), *flags]) == 0
        page = capsys.readouterr().out
        assert all(name in page for name in shown)
        assert hidden not in page


def test_published_figures_come_with_their_places(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--source", "MoCo v2 page *", "--benchmark", "linear_avgpool"]
    assert main(["published", *flags]) == 0
    found = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert found["value"].tolist() == [67.56, 67.58]
    assert set(found["protocol"]) == {"linear_avgpool.mmselfsup@1"}
    assert main(["published", *flags, "--format", "latex"]) == 0
    assert r"linear\_avgpool.mmselfsup@1" in capsys.readouterr().out
    assert main(["published", "--benchmark", "hyperparameter", "--format", "markdown"]) == 0
    assert "none: a setting, not a result" in capsys.readouterr().out


def test_tables_as_a_frame_have_a_row_per_cell(records: Path) -> None:
    tables = Section(read_records(records)[0], EMBEDDED).tables()
    rows = tables_frame(tables)
    assert len(rows[rows["table"].str.startswith("Nearest")]) == 2 * 4
    mean = rows[rows["row"].str.startswith("random") & (rows["column"] == "k=20")].iloc[0]
    assert mean["text"] == f"{mean['value']:.1f} ± {mean['standard_error']:.1f} (std {mean['std']:.1f})"


def test_help_comes_without_the_heavy_libraries() -> None:
    code = (
        "import sys\n"
        "from results.__main__ import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print('LOADED', sorted({'numpy', 'pandas', 'torch', 'pydantic'} & set(sys.modules)))\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert "LOADED []" in done.stdout


@pytest.mark.slow
def test_the_store_comes_without_torch_and_pandas() -> None:
    heavy = "sorted({'pandas', 'torch', 'tyro'} & set(sys.modules))"
    code = f"import sys, results.store, results.tables; print({heavy})"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
