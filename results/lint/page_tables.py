"""The tables of a markdown page, with their headings and lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from markdown_it import MarkdownIt
from markdown_it.token import Token


@dataclass(frozen=True)
class PageRow:
    """One row: its line in the file, from 1, and the plain text of its cells."""

    line: int
    cells: tuple[str, ...]


@dataclass(frozen=True)
class PageTable:
    """One table.

    Attributes:
        headings: above it, the page's title first, the nearest last.
        context: the paragraphs between the nearest heading and the table.
    """

    headings: tuple[str, ...]
    context: str
    columns: tuple[str, ...]
    rows: tuple[PageRow, ...]

    @property
    def title(self) -> str:
        return self.headings[-1] if self.headings else ""


def page_tables(text: str) -> list[PageTable]:
    """In their order. A paragraph that is bold throughout counts as the lowest heading, as zoo pages use it."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    headings: dict[int, str] = {}
    paragraphs: list[str] = []
    found: list[PageTable] = []
    for i, token in enumerate(tokens):
        if token.type == "heading_open":
            level = int(token.tag[1:])
            headings = {depth: title for depth, title in headings.items() if depth < level}
            headings[level], paragraphs = _text(tokens[i + 1]), []
        elif token.type == "paragraph_open" and tokens[i + 1].type == "inline":
            words = _text(tokens[i + 1])
            if _is_bold(tokens[i + 1]):
                headings[7], paragraphs = words, []
            else:
                paragraphs.append(words)
        elif token.type == "table_open":
            inside = list(takewhile(lambda t: t.type != "table_close", tokens[i:]))
            header, *rows = _rows(inside)
            found.append(
                PageTable(
                    tuple(title for _, title in sorted(headings.items())), "\n".join(paragraphs), header.cells,
                    tuple(rows),
                )
            )  # fmt: skip
    return found


def _rows(tokens: Sequence[Token]) -> Iterator[PageRow]:
    starts = [i for i, token in enumerate(tokens) if token.type == "tr_open"]
    for start in starts:
        row = takewhile(lambda t: t.type != "tr_close", tokens[start:])
        line = tokens[start].map
        yield PageRow(line[0] + 1 if line else 0, tuple(_text(token) for token in row if token.type == "inline"))


def _text(inline: Token) -> str:
    """Without links, emphasis and footnote marks; a `<sup>` and what is in it is dropped."""
    words, raised = [], False
    for child in inline.children or ():
        if child.type == "html_inline" and child.content.startswith(("<sup", "</sup")):
            raised = child.content.startswith("<sup")
        elif not raised and child.type in ("text", "code_inline", "text_special"):
            words.append(child.content)
        elif child.type in ("softbreak", "hardbreak"):
            words.append(" ")
    return " ".join("".join(words).split())


def _is_bold(inline: Token) -> bool:
    kinds = [child.type for child in inline.children or () if child.content.strip() or child.type != "text"]
    return len(kinds) > 2 and kinds[0] == "strong_open" and kinds[-1] == "strong_close" and kinds.count(kinds[0]) == 1
