"""Tables as values: plain text and numbers. `results.tables.render` escapes them for its format."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """A number with its standard error and its spread over initialisations or trials, or a text, or nothing.

    Attributes:
        text: shown instead of the number, as a published figure is shown as it was printed.
        bold: better than every other row by more than the noise.
    """

    value: float | None = None
    error: float | None = None
    std: float | None = None
    text: str = ""
    bold: bool = False


@dataclass(frozen=True)
class Row:
    """A label and what stands beside it; `sources` are numbers of the table's sources, from 1."""

    label: str
    cells: tuple[Cell, ...]
    sources: tuple[int, ...] = ()


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        lines: what stands between title and table: protocol, data, size, noise, how to read it.
        columns: one more than a row has cells: the first names the row.
        notes: what stands below: failures, records that cannot be believed.
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
