"""Tables as markdown and LaTeX. Names come from users and files, so everything is escaped."""

from __future__ import annotations

import re
from collections.abc import Callable

from results.tables.cells import Table, cell_text

LATEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "`": r"\textasciigrave{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "−": r"$-$",  # noqa: RUF001 - the minus sign
    "≈": r"$\approx$",
    "†": r"\dag{}",
    "…": r"\ldots{}",
    **{character: "\\" + character for character in "&%$#_{}"},
}


def markdown(table: Table, *, level: int = 3) -> str:
    """A title, the lines about it, the table with aligned columns, then notes and sources as a list."""
    rows = _texts(table, escape_markdown, lambda text: f"**{text}**", lambda numbers: f"<sup>{numbers}</sup>")
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(table.columns))]
    numeric = numeric_columns(table)
    rules = [("-" * (width - 1) + ":") if right else "-" * width for width, right in zip(widths, numeric, strict=True)]
    styles = [f"{'>' if right else '<'}{width}" for width, right in zip(widths, numeric, strict=True)]
    aligned = [[format(text, style) for text, style in zip(row, styles, strict=True)] for row in rows]
    parts = [f"{'#' * level} {escape_markdown(table.title)}"] if table.title else []
    parts += [escape_markdown(line) for line in table.lines]
    if table.rows:
        parts.append("\n".join(f"| {' | '.join(cells)} |" for cells in (aligned[0], rules, *aligned[1:])))
    below = [escape_markdown(note) for note in table.notes]
    below += [f"<sup>{i}</sup> {escape_markdown(source)}" for i, source in enumerate(table.sources, start=1)]
    if below:
        parts.append("\n".join(f"- {line}" for line in below))
    return "\n\n".join(parts) + "\n"


def latex(table: Table) -> str:
    """A `table` environment for the booktabs package, the lines in its caption, notes and sources below it."""
    texts = _texts(
        table, escape_latex, lambda text: rf"\textbf{{{text}}}", lambda numbers: rf"\textsuperscript{{{numbers}}}"
    )
    # a row that begins with [ would be read as the length that \\ takes
    rows = [" & ".join("{}" + text if text.startswith("[") else text for text in row) + r" \\" for row in texts]
    alignment = "".join("r" if right else "l" for right in numeric_columns(table))
    title = f"{table.title}." if table.title else ""
    caption = " ".join(escape_latex(text) for text in (title, *table.lines) if text)
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}"]
    if table.rows:
        lines += [rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", rows[0], r"\midrule", *rows[1:], r"\bottomrule"]
        lines.append(r"\end{tabular}")
    lines += [rf"\par {escape_latex(note)}" for note in table.notes]
    lines += [
        rf"\par \textsuperscript{{{i}}} {escape_latex(source)}" for i, source in enumerate(table.sources, start=1)
    ]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def escape_markdown(text: str) -> str:
    """Text that shows as it is: no HTML, no cell border, no emphasis, no link, on one line."""
    text = _one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*|~$]|\](?=[(\[:])|!(?=\[)|\[(?=\^))", r"\\\1", text)
    text = re.sub(r"^(#{1,6}(?= |$)|[-+](?= |$)|=+$|-+$)", r"\\\1", text)
    text = re.sub(r"^(\d+)([.)](?= |$))", r"\1\\\2", text)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # within a word an underscore is just that


def escape_latex(text: str) -> str:
    """Text that shows as it is."""
    escaped = "".join(LATEX_SPECIAL.get(character, character) for character in _one_line(text))
    return re.sub(r"(?<=-)(?=-)|(?<=')(?=')|(?<=[?!])(?=\\textasciigrave)", "{}", escaped)  # no ligatures


def _texts(
    table: Table, escape: Callable[[str], str], bold: Callable[[str], str], footnote: Callable[[str], str]
) -> list[list[str]]:
    body = []
    for row in table.rows:
        cells = [(escape(cell_text(cell, table.decimals)), cell.bold) for cell in row.cells]
        label = escape(row.label) + (footnote(",".join(map(str, row.sources))) if row.sources else "")
        body.append([label, *(bold(text) if strong and text else text for text, strong in cells)])
    return [[escape(column) for column in table.columns], *body]


def numeric_columns(table: Table) -> list[bool]:
    return [False, *(any(row.cells[i].value is not None for row in table.rows) for i in range(len(table.columns) - 1))]


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
