"""Outputs of commands on the site: what is printed, run in the project's folder, and refused where it is not so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.test_docs_tables import room

MODEL = "python -m results published --encoder nobody"


def test_a_command_stands_above_what_it_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    output = room("outputs").output
    line = "python -m results explain knn.demo@1 no.such@1 --records docs/examples/explain"
    shown = output(line, code=2)
    assert shown.startswith(f"```bash\n{line}\n```\n\n```text\nresults: no encoder has records of both knn.demo@1 and ")
    assert shown.endswith("```\n\nIt ends with exit code 2.\n")
    assert Path.cwd() == tmp_path


def test_the_first_lines_or_none() -> None:
    output = room("outputs").output
    line = "python -m results explain no.such@1 knn.demo@1 --records docs/examples/explain"
    assert output(line, code=2, first=0) == f"```bash\n{line}\n```\n\nIt ends with exit code 2.\n"
    page = output("python -m results published --source 'MoCo v2 page A*' --format markdown", first=3)
    assert page.count("\n") == 10
    assert page.endswith("\n…\n```\n")


def test_another_exit_code_or_command_stops_the_build() -> None:
    output = room("outputs").output
    with pytest.raises(ValueError, match=f"{MODEL} ended with 2, not 0: results: no published figure matches"):
        output(MODEL)
    with pytest.raises(ValueError, match="rm -r x is not a command of python -m results"):
        output("rm -r x")


def test_a_table_that_a_command_prints_becomes_a_table_of_the_page() -> None:
    rendered = room("outputs").rendered
    line = "python -m results published --source 'MoCo v2 page A*' --format markdown"
    shown = rendered(line, rows=2)
    assert shown.startswith(f"```bash\n{line}\n```\n")
    assert [each[0] for each in shown.splitlines() if each.startswith("|")] == ["|"] * 4
    assert "The first 2 of " in shown
    assert "\n#" not in shown
    with pytest.raises(ValueError, match="prints no table"):
        rendered("python -m results published --source 'MoCo v2 page A*' --format csv")


def test_a_figure_is_drawn_for_light_and_for_dark_pages() -> None:
    pictures = room("hook").DocsFigures()
    text = pictures.on_page("benchmarks/knn.md")("knn_k", "Accuracy.")
    assert "(../pictures/knn_k-light.svg#only-light)" in text
    assert "(../pictures/knn_k-dark.svg#only-dark)" in text
    assert text.rstrip().endswith("*Accuracy.*")
    light, dark = (pictures.drawn[f"pictures/knn_k-{theme}.svg"] for theme in ("light", "dark"))
    assert b"#e6edf3" in dark
    assert b"#e6edf3" not in light
    assert "(pictures/pretraining-dark.svg#only-dark)" in pictures.on_page("pretraining.md")("pretraining", "Curves.")
    with pytest.raises(ValueError, match="0 figures whose name begins with gone"):
        pictures.on_page("index.md")("gone", "")
