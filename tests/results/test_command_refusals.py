"""What `python -m results` cannot do is one sentence, exit code 2, and nothing written or removed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from results.__main__ import main
from results.store import write_record
from tests.results.factory_records import KNN, KNN_COLUMNS, LINEAR, accuracy_outcomes, card, record

Said = Callable[..., str]


@pytest.fixture
def records(tmp_path: Path) -> Path:
    root = tmp_path / "work" / "records"
    for asked, columns in ((KNN, KNN_COLUMNS), (LINEAR, ("AvgPool",))):
        outcomes = accuracy_outcomes(columns, 0.4, 0)
        write_record(root, record(card("a net"), asked, outcomes), outcomes)
    return root


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Said:
    """Runs a command that must be refused, and gives its sentence."""

    def run(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("results: ")
        first, *forms = said.err.splitlines()
        assert all(line.startswith("  ") for line in forms)
        return "\n".join([first, *forms])

    return run


def files(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_patterns_that_choose_nothing_are_named_with_what_there_is(records: Path, refusal: Said) -> None:
    holds = "; the records hold a net"
    for command in (["tables"], ["pictures", "--out", records.parent / "p"], ["zoo-page"], ["paper-tables"],
                    ["publish-records", "--out", records.parent / "published"]):  # fmt: skip
        said = refusal(*command, "--records", records, "--encoder", "nobody")
        assert said == f"results: no record matches --encoder nobody{holds}"
    said = refusal("tables", "--records", records, "--benchmark", "svm*")
    assert said.endswith("no record matches --benchmark svm*; the records hold knn.demo@1, linear_avgpool.demo@1")
    assert refusal("tables", "--records", records, "--rows", "full").endswith(f"matches --rows full{holds}")
    assert refusal("tables", "--records", records, "--source", "x", "--dry-run").endswith(
        "--source x; the records hold synthetic"
    )
    assert "name their folder with --records" in refusal("paper-tables", "--encoder", "nobody")


def test_an_empty_folder_is_said_to_be_one(tmp_path: Path, refusal: Said) -> None:
    """`tables` writes a page without rows, so that a project has one before it has records."""
    for command in (["zoo-page", "--encoder", "*"], ["pictures", "--out", tmp_path / "p"],
                    ["publish-records", "--out", tmp_path.parent / "q"], ["paper-tables"]):  # fmt: skip
        assert f"no records in {tmp_path}; run a benchmark first" in refusal(*command, "--records", tmp_path)


def test_sources_and_flags_that_mean_nothing_together_are_refused(records: Path, refusal: Said) -> None:
    asked = ("zoo-page", "--records", records, "--encoder", "a net")
    assert refusal(*asked, "--source", "nowhere").endswith("published.csv has no source nowhere")
    assert refusal(*asked, "--published").endswith("alone: leave --encoder out")


@pytest.mark.parametrize("command", ["tables", "zoo-page", "published", "diff"])
def test_a_place_that_cannot_be_written_is_named(records: Path, tmp_path: Path, refusal: Said, command: str) -> None:
    asked: list[object] = {"zoo-page": ["--encoder", "a net"], "diff": ["a net", "a net"]}.get(command, [])
    asked = [command, *asked, *([] if command == "published" else ["--records", records])]
    (tmp_path / "file").write_text("kept")
    before = files(tmp_path)
    said = refusal(*asked, "--out", tmp_path / "file" / "page.md")
    assert said == f"results: {tmp_path / 'file' / 'page.md'}: Not a directory"
    assert refusal(*asked, "--out", tmp_path).endswith(f"{tmp_path}: Is a directory")
    assert files(tmp_path) == before


def test_a_full_disk_is_named_by_the_file_that_was_asked_for(
    records: Path, tmp_path: Path, refusal: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    before = files(tmp_path)
    said = refusal("tables", "--records", records, "--out", tmp_path / "t.md")
    assert said == f"results: {tmp_path / 't.md'}: No space left on device"
    assert "knn.demo" in (said := refusal("publish-records", "--records", records, "--out", tmp_path / "q"))
    assert said.endswith(".json: No space left on device")
    assert files(tmp_path) == before


def test_a_page_that_is_missing_or_no_text_is_named(records: Path, tmp_path: Path, refusal: Said) -> None:
    page = tmp_path / "page.md"
    said = refusal("tables", "--records", records, "--readme", page)
    assert said.startswith("results: page not found: ")
    assert said.endswith("page.md; name a markdown file")
    page.write_bytes(b"\xff\xfe\x00")
    assert refusal("tables", "--records", records, "--readme", page).endswith("page.md is not UTF-8 text; name a "
                                                                              "markdown file")  # fmt: skip
    assert main(["tables", "--records", str(records), "--out", str(page)]) == 0
    assert page.read_text(encoding="utf-8").startswith("# ")


def test_a_picture_of_no_format_is_refused_before_anything_is_printed(records: Path, refusal: Said) -> None:
    for command in (["correlations"], ["explain", "knn.demo@1", "knn.demo@1"]):
        said = refusal(*command, "--records", records, "--picture", "x.docx")
        assert "x.docx: not a picture format" in said
        assert "svg" in said


def test_records_are_not_published_over_themselves(records: Path, refusal: Said) -> None:
    before = files(records.parent)
    for out in (records, records.parent, records / "published", records / ".." / "records"):
        assert "one contains the other; publish to a separate folder" in refusal(
            "publish-records", "--records", records, "--out", out
        )
    assert files(records.parent) == before
