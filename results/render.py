"""Tables as markdown and LaTeX. Names come from users and files, so everything is escaped."""

from __future__ import annotations

import re

from results.tables import Cell, Table

LATEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "†": r"\dag{}",
    **{character: "\\" + character for character in "&%$#_{}"},
}


def markdown(table: Table, *, level: int = 3) -> str:
    """A title, the lines about it, the table with aligned columns, the notes as a list."""
    rows = [[escape_markdown(text) for text in row] for row in _texts(table)]
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(table.columns))]
    numeric = _numeric_columns(table)
    rules = [("-" * (width - 1) + ":") if right else "-" * width for width, right in zip(widths, numeric, strict=True)]
    styles = [f"{'>' if right else '<'}{width}" for width, right in zip(widths, numeric, strict=True)]
    aligned = [[format(text, style) for text, style in zip(row, styles, strict=True)] for row in rows]
    parts = [f"{'#' * level} {escape_markdown(table.title)}"] if table.title else []
    parts += [escape_markdown(line) for line in table.lines]
    if table.rows:
        parts.append("\n".join(f"| {' | '.join(cells)} |" for cells in (aligned[0], rules, *aligned[1:])))
    if table.notes:
        parts.append("\n".join(f"- {escape_markdown(note)}" for note in table.notes))
    return "\n\n".join(parts) + "\n"


def latex(table: Table) -> str:
    """A `table` environment for the booktabs package, the lines in its caption, the notes below it."""
    rows = [" & ".join(escape_latex(text) for text in row) + r" \\" for row in _texts(table)]
    alignment = "".join("r" if right else "l" for right in _numeric_columns(table))
    caption = " ".join(escape_latex(text) for text in (f"{table.title}.", *table.lines))
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}"]
    if table.rows:
        lines += [rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", rows[0], r"\midrule", *rows[1:], r"\bottomrule"]
        lines.append(r"\end{tabular}")
    lines += [rf"\par {escape_latex(note)}" for note in table.notes]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def escape_markdown(text: str) -> str:
    """Text that shows as it is: no HTML, no cell border, no emphasis, on one line."""
    text = _one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*|~$]|\](?=[(\[:])|!(?=\[))", r"\\\1", text)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # within a word an underscore is just that


def escape_latex(text: str) -> str:
    """Text that shows as it is."""
    return "".join(LATEX_SPECIAL.get(character, character) for character in _one_line(text))


def cell_text(cell: Cell, decimals: int) -> str:
    """`44.1 ± 3.3 (std 1.2)`, as much of it as there is."""
    if cell.value is None:
        return cell.text
    error = "" if cell.error is None else f" ± {cell.error:.{decimals}f}"
    return f"{cell.value:.{decimals}f}{error}" + ("" if cell.std is None else f" (std {cell.std:.{decimals}f})")


def _texts(table: Table) -> list[list[str]]:
    body = [[row.label, *(cell_text(cell, table.decimals) for cell in row.cells)] for row in table.rows]
    return [list(table.columns), *body]


def _numeric_columns(table: Table) -> list[bool]:
    return [False, *(any(row.cells[i].value is not None for row in table.rows) for i in range(len(table.columns) - 1))]


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
