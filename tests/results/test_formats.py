"""Markdown and LaTeX show names as they are, and numbers as a model-zoo page does."""

from __future__ import annotations

import io

import pandas as pd
import pytest

from results.formats import (
    Cell,
    Row,
    Table,
    cell_text,
    csv_text,
    escape_latex,
    escape_markdown,
    latex,
    markdown,
    tables_frame,
)

TABLE = Table(
    title="kNN: a_b",
    lines=("On 100 % of <data>.",),
    columns=("Encoder", "k=10", "k=20"),
    rows=(
        Row("net | one", (Cell(44.06, 3.349, 1.25, bold=True), Cell()), sources=(1, 2)),
        Row("two", (Cell(5.0), Cell(text="feature5"))),
    ),
    decimals=1,
    notes=("† two: edited",),
    sources=("a_b [1]", "100 %"),
)


def test_markdown_table() -> None:
    assert markdown(TABLE) == (
        "### kNN: a_b\n"
        "\n"
        "On 100 % of &lt;data&gt;.\n"
        "\n"
        "| Encoder                  |                     k=10 | k=20     |\n"
        "| ------------------------ | -----------------------: | -------- |\n"
        "| net \\| one<sup>1,2</sup> | **44.1 ± 3.3 (std 1.2)** |          |\n"
        "| two                      |                      5.0 | feature5 |\n"
        "\n"
        "- † two: edited\n"
        "- <sup>1</sup> a_b [1]\n"
        "- <sup>2</sup> 100 %\n"
    )


def test_latex_table() -> None:
    assert latex(TABLE) == (
        "\\begin{table}\n"
        "\\centering\n"
        "\\caption{kNN: a\\_b. On 100 \\% of \\textless{}data\\textgreater{}.}\n"
        "\\begin{tabular}{lrl}\n"
        "\\toprule\n"
        "Encoder & k=10 & k=20 \\\\\n"
        "\\midrule\n"
        "net \\textbar{} one\\textsuperscript{1,2} & \\textbf{44.1 $\\pm$ 3.3 (std 1.2)} &  \\\\\n"
        "two & 5.0 & feature5 \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}\n"
        "\\par \\dag{} two: edited\n"
        "\\par \\textsuperscript{1} a\\_b [1]\n"
        "\\par \\textsuperscript{2} 100 \\%\n"
        "\\end{table}\n"
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("a|b", r"a\|b"),
        ("*bold* `code` ~gone~ $x$", r"\*bold\* \`code\` \~gone\~ \$x\$"),
        ("[a](javascript:x)", r"[a\](javascript:x)"),
        ("![a](b)", r"\![a\](b)"),
        ("snake_case_name", "snake_case_name"),
        ("_emphasis_", r"\_emphasis\_"),
        ("[^1] and [x]: y", r"\[^1] and [x\]: y"),
        ("# no title", r"\# no title"),
        ("- no list", r"\- no list"),
        ("1. no list", r"1\. no list"),
        ("a\\|b", r"a\\\|b"),
        ("two\nlines\r\n\tand\0more", "two lines and more"),
        ("Tom & Jerry &amp;", "Tom &amp; Jerry &amp;amp;"),
    ],
)
def test_markdown_shows_text_as_it_is(text: str, shown: str) -> None:
    assert escape_markdown(text) == shown


def test_latex_shows_text_as_it_is() -> None:
    assert escape_latex("50% of a_b & {c} #1 $ \\x ~^") == (
        r"50\% of a\_b \& \{c\} \#1 \$ \textbackslash{}x \textasciitilde{}\textasciicircum{}"
    )


@pytest.mark.parametrize(
    ("cell", "decimals", "text"),
    [
        (Cell(), 2, ""),
        (Cell(67.564), 2, "67.56"),
        (Cell(67.564, 0.123), 1, "67.6 ± 0.1"),
        (Cell(67.564, std=0.5), 1, "67.6 (std 0.5)"),
        (Cell(0.0), 1, "0.0"),
        (Cell(text="feature5"), 1, "feature5"),
        (Cell(67.5, text="67.50"), 1, "67.50"),
    ],
)
def test_cells(cell: Cell, decimals: int, text: str) -> None:
    assert cell_text(cell, decimals) == text


def test_a_csv_runs_nothing_in_a_spreadsheet_and_keeps_its_numbers() -> None:
    texts = ("=1+2", "+A1", "-cmd|x", "@SUM(A1)", "\tx", "net", "-0.5", "+3", "1e-3", "")
    rows = tables_frame([Table("=t", (), ("a", "b"), tuple(Row("r", (Cell(text=text),)) for text in texts))])
    found = pd.read_csv(io.StringIO(csv_text(rows)), dtype=str, keep_default_na=False)
    assert found["text"].tolist() == ["'=1+2", "'+A1", "'-cmd|x", "'@SUM(A1)", "'\tx", "net", "-0.5", "+3", "1e-3"]
    assert set(found["table"]) == {"'=t"}
    coloured = tables_frame([Table("t", (), ("a", "b"), (Row("r", (Cell(text="\x1b[31mred\x9b"),)),))])
    assert pd.read_csv(io.StringIO(csv_text(coloured)))["text"].tolist() == [" [31mred "]
    assert tables_frame([TABLE])["sources"].tolist() == ["a_b [1]; 100 %", "", ""]
    last = Table("t", (), ("a", "b"), (Row("r", (Cell(1.0),), (2,)),), sources=("first", "second"))
    assert tables_frame([last])["sources"].tolist() == ["second"]
    numbers = tables_frame([Table("t", (), ("a", "b"), (Row("r", (Cell(-1.5, 0.25),)),))])
    assert pd.read_csv(io.StringIO(csv_text(numbers)))["value"].tolist() == [-1.5]
