"""Tables as values, and their formats: markdown, LaTeX and CSV. Text is escaped: users and files choose names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from results.store import StoredRecord

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
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
}


@dataclass(frozen=True)
class Cell:
    """A number with its standard error and its spread over initialisations or trials, or a text, or empty.

    Attributes:
        text: shown instead of the number, for example a published figure as it was printed.
        bold: the best of its column, or tied with it within the noise.
    """

    value: float | None = None
    error: float | None = None
    std: float | None = None
    text: str = ""
    bold: bool = False


@dataclass(frozen=True)
class Row:
    """A label and its cells; `sources` are footnotes, numbers of the table's sources from 1."""

    label: str
    cells: tuple[Cell, ...]
    sources: tuple[int, ...] = ()


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        lines: text between title and table: protocol, data, size, noise, how to read it.
        columns: titles, one more than a row has cells: the first is that of the labels.
        notes: text below the table: failures, faulty records.
        sources: where published rows were read; a row's footnotes count them from 1.
    """

    title: str
    lines: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    decimals: int = 2
    notes: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()


def cell_text(cell: Cell, decimals: int) -> str:
    """`44.1 ± 3.3 (std 1.2)`, as much of it as there is."""
    if cell.text or cell.value is None:
        return cell.text
    error = "" if cell.error is None else f" ± {cell.error:.{decimals}f}"
    return f"{cell.value:.{decimals}f}{error}" + ("" if cell.std is None else f" (std {cell.std:.{decimals}f})")


def with_interval(value: float, low: float | None, high: float | None, decimals: int) -> str:
    """As `+15.9 [+9.5, +23.3]`, or without the interval where it is not known."""
    form = f"+.{decimals}f"
    return f"{value:{form}}" + ("" if low is None or high is None else f" [{low:{form}}, {high:{form}}]")


def sourced_table(
    title: str, columns: tuple[str, ...], rows: Iterable[tuple[str, tuple[Cell, ...], Iterable[str]]], *,
    lines: tuple[str, ...] = (), decimals: int = 2,
) -> Table:  # fmt: skip
    """A table of (label, cells, sources): the sources become footnotes, numbered as they come."""
    numbers: dict[str, int] = {}
    numbered = [
        Row(label, cells, tuple(numbers.setdefault(source, len(numbers) + 1) for source in own))
        for label, cells, own in rows
    ]
    return Table(title, lines, columns, tuple(numbered), decimals, sources=tuple(numbers))


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
    """Escape text on one line: no HTML, no cell border, no emphasis, no link."""
    text = _one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*|~$]|\](?=[(\[:])|!(?=\[)|\[(?=\^))", r"\\\1", text)
    text = re.sub(r"^(#{1,6}(?= |$)|[-+](?= |$)|=+$|-+$)", r"\\\1", text)
    text = re.sub(r"^(\d+)([.)](?= |$))", r"\1\\\2", text)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # within a word an underscore is just that


def escape_latex(text: str) -> str:
    """Escape text on one line."""
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


CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # what a terminal obeys, but tab and end of line
FORMULA = re.compile(r"[=+\-@\t\r]")  # a cell that begins so is run as a formula by spreadsheets
NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)


def csv_text(rows: pd.DataFrame) -> str:
    """Rows as CSV, without control characters.

    A text that a spreadsheet would run as a formula gets an apostrophe in front, a number does not.
    """
    quoted = rows.copy()
    for name in rows.columns:
        if rows[name].dtype == "string":
            quoted[name] = rows[name].map(_unformula, na_action="ignore").astype("string")
    return without_control(quoted.to_csv(index=False, lineterminator="\n"))


def without_control(text: str) -> str:
    """The text, of any number of lines, with a blank in place of each control character."""
    return CONTROL.sub(" ", text)


def _unformula(text: str) -> str:
    return f"'{text}" if FORMULA.match(text) and not NUMBER.fullmatch(text) else text


COLUMNS = {
    "encoder": "string", "init": "string", "method": "string", "architecture": "string", "weights_sha256": "string",
    "pretrain_seconds": "Float64", "protocol": "string", "dataset": "string", "fingerprint": "string",
    "embedded": "boolean", "status": "string", "error": "string", "intact": "boolean", "column": "string",
    "primary": "boolean", "value": "Float64", "standard_error": "Float64", "std": "Float64", "n": "Int64",
    "unit": "string", "selection": "string", "created": "string", "commit": "string",
}  # fmt: skip


def frame(records: Iterable[StoredRecord]) -> pd.DataFrame:
    """Records as tidy rows at full precision. A failed record has one row without a column."""
    import pandas as pd

    from results.rows import architecture_text

    rows = []
    for stored in records:
        record, card = stored.record, stored.record.encoder
        about = {
            "encoder": card.name,
            "init": card.init,
            "method": card.method,
            "architecture": architecture_text(card.architecture),
            "weights_sha256": card.weights_sha256,
            "pretrain_seconds": card.pretrain_seconds,
            "protocol": record.protocol.id,
            "dataset": record.dataset.id,
            "fingerprint": record.dataset.fingerprint,
            "embedded": record.dataset.embedded,
            "status": record.status,
            "error": record.error,
            "intact": stored.intact,
            "created": record.created,
            "commit": record.commit,
        }
        scores = [
            {"column": column, "primary": column == record.protocol.resolved.primary, **score.model_dump()}
            for column, score in record.scores.items()
        ]
        rows += [{**about, **score} for score in scores or [{}]]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


TABLE_COLUMNS = {
    "table": "string", "row": "string", "column": "string", "text": "string", "value": "Float64",
    "standard_error": "Float64", "std": "Float64", "bold": "boolean", "sources": "string",
}  # fmt: skip


def tables_frame(tables: Iterable[Table]) -> pd.DataFrame:
    """Tables cell by cell: one row per cell that is not empty, with the text and the number at full precision."""
    import pandas as pd

    rows = [
        {
            "table": table.title,
            "row": row.label,
            "column": column,
            "text": text,
            "value": cell.value,
            "standard_error": cell.error,
            "std": cell.std,
            "bold": cell.bold,
            "sources": "; ".join(table.sources[number - 1] for number in row.sources),
        }
        for table in tables
        for row in table.rows
        for column, cell in zip(table.columns[1:], row.cells, strict=True)
        if (text := cell_text(cell, table.decimals))
    ]
    return pd.DataFrame(rows, columns=list(TABLE_COLUMNS)).astype(TABLE_COLUMNS)
