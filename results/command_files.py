"""What every command of `python -m results` does with files: read records, format tables, write the answer."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from results.cells import Table
from results.options import Format
from results.store import BadRecord, RecordsError, StoredRecord, read_records, replace_file

SUFFIX: dict[Format, str] = {"markdown": ".md", "csv": ".csv", "latex": ".tex"}


def formatted(tables: Sequence[Table], form: Format) -> str:
    from results.render import latex, markdown

    if form == "csv":
        from results.frame import tables_frame

        return tables_frame(tables).to_csv(index=False, lineterminator="\n")
    return "\n".join((markdown if form == "markdown" else latex)(table) for table in tables)


def put(out: Path | None, text: str) -> None:
    if out is None:
        sys.stdout.write(text)
    else:
        write(out, text)


def write(path: Path, text: str) -> None:
    """Whole or not at all; a file that is as it should be keeps its time."""
    stale = not path.is_file() or path.read_text(encoding="utf-8") != text
    if stale:
        replace_file(path, text.encode())
    sys.stderr.write(f"results: {'wrote' if stale else 'unchanged:'} {path}\n")


def name_bad(bad: Iterable[BadRecord]) -> None:
    for found in bad:
        sys.stderr.write(f"results: left out {found.path}: {found.reason}\n")


def read(root: Path) -> tuple[list[StoredRecord], list[BadRecord]]:
    if not root.is_dir():
        raise RecordsError(f"no folder of records at {root}: run a benchmark first, or name another with --records")
    return read_records(root)
