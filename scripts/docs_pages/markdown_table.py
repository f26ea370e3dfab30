"""Markdown tables of plain values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; what could be markup in a cell is shown as it is. Texts in backticks stay code."""
    lines = [_line(columns), _line(["---"] * len(columns)), *(_line([cell(v) for v in row]) for row in rows)]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def cell(value: Any) -> str:
    """One line; numbers as short as they are exact, lists by commas."""
    text = plain(value).replace("\n", " ").replace("|", "\\|")
    parts = text.split("`")  # what stands between two backticks is code, and code needs no escape
    code = len(parts) % 2 == 1
    return "`".join(part if code and i % 2 else _escaped(part) for i, part in enumerate(parts))


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_").replace("[", "\\[")


def plain(value: Any) -> str:
    """A value as a reader writes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {plain(part)}" for name, part in value.items() if part not in (None, 0))
    if isinstance(value, list | tuple):
        return ", ".join(f"({plain(v)})" if isinstance(v, list | tuple) else v for v in _shortened(value))
    return str(value)


def _shortened(values: Sequence[Any]) -> Iterator[Any]:
    """Halvings from one number to the next, three or more, as `0.5^4 … 0.5^19`; the other values as texts."""
    rest = list(values)
    while rest:
        run = 1
        while run < len(rest) and isinstance(rest[run], float) and rest[run] * 2 == rest[run - 1] < 1:
            run += 1
        if run > 2 and math.log2(rest[0]).is_integer():
            yield f"0.5^{-math.log2(rest[0]):.0f} … 0.5^{-math.log2(rest[run - 1]):.0f}"
        else:
            run = 1
            yield rest[0] if isinstance(rest[0], list | tuple) else plain(rest[0])
        del rest[:run]
