"""Markdown pages as other projects write them."""

from __future__ import annotations

from results.lint.page_tables import page_tables

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
    first, second = page_tables(PAGE)
    assert first.headings == ("MoCo v2", "Classification", "VOC SVM / Low-shot SVM")
    assert first.context == "The best layer, k images."
    assert first.columns == ("Self-Supervised Config", "SVM", "a | b")
    assert first.rows[0].cells[:2] == ("resnet50_8xb32", "84.04")
    assert PAGE.splitlines()[first.rows[0].line - 1].startswith("| [resnet50")
    assert second.headings == ("MoCo v2", "Classification", "ImageNet")
    assert second.title == "ImageNet"
    assert second.context == ""


def test_a_sentence_with_a_bold_word_is_no_heading() -> None:
    table = page_tables("# A\n\n**Bold** words, and **more**\n\n| x | y |\n| - | - |\n| 1 | 2 |\n")[0]
    assert table.headings == ("A",)


def test_a_page_without_tables() -> None:
    assert page_tables("# A\n\n`| no | table |`\n") == []
