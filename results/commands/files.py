"""What every command of `python -m results` does with files: read records, format tables, write the answer."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from results.atomic import write_file
from results.commands.options import Format
from results.errors import InputError
from results.formats import Table
from results.rows import matching
from results.store import BadRecord, StoredRecord, read_records

SUFFIX: dict[Format, str] = {"markdown": ".md", "csv": ".csv", "latex": ".tex"}


def formatted(tables: Sequence[Table], form: Format) -> str:
    from results.formats import latex, markdown

    if form == "csv":
        from results.formats import tables_frame

        return tables_frame(tables).to_csv(index=False, lineterminator="\n")
    return "\n".join((markdown if form == "markdown" else latex)(table) for table in tables)


def put(out: Path | None, text: str) -> None:
    if out is None:
        sys.stdout.write(text)
    else:
        write(out, text)


def write(path: Path, text: str) -> None:
    """Whole or not at all; a file that is as it should be keeps its time."""
    stale = differs(path, text)
    if stale:
        write_file(path, text.encode())
    sys.stderr.write(f"results: {'wrote' if stale else 'unchanged:'} {path}\n")


def differs(path: Path, text: str) -> bool:
    """Whether a file does not hold this text, or is none."""
    return not path.is_file() or path.read_bytes() != text.encode()


def read_text(path: Path) -> str:
    """A page that the user names.

    Raises:
        InputError: it is no text.
        OSError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text in UTF-8: name a markdown file") from error


def chosen_records(
    found: Sequence[StoredRecord], root: Path, *, rows: str = "all", **patterns: Sequence[str]
) -> list[StoredRecord]:
    """Those that all patterns (of `encoder`, `benchmark`, `source`) choose, of embedded or full data.

    Raises:
        InputError: there are none.
    """
    if not found:
        raise InputError(f"no record below {root}: run a benchmark first, or name another folder with --records")
    records = matching(found, **patterns)
    if rows != "all":
        records = [stored for stored in records if stored.record.dataset.embedded == (rows == "embedded")]
    if not records:
        names = {
            "encoder": {stored.record.encoder.name for stored in found},
            "benchmark": {stored.record.protocol.id for stored in found},
            "source": {stored.record.encoder.source for stored in found},
        }
        given = {name: " ".join(texts) for name, texts in patterns.items() if tuple(texts) != ("*",)}
        known = sorted(set().union(*(names[name] for name in given or ("encoder",))))
        given |= {"rows": rows} if rows != "all" else {}
        asked = " ".join(f"--{name} {text}" for name, text in given.items())
        raise InputError(f"no record matches {asked}; the records hold {', '.join(known)}")
    return records


def picture_file(path: Path) -> None:
    """Looks at a picture's ending before anything is computed or printed.

    Raises:
        InputError: there is no such format.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix and path.suffix.removeprefix(".") not in known:
        raise InputError(f"{path} ends in no format of pictures; end it in one of {', '.join(sorted(known))}")


def name_bad(bad: Iterable[BadRecord]) -> None:
    for found in bad:
        sys.stderr.write(f"results: left out {found.path}: {found.reason}\n")


def read(root: Path) -> tuple[list[StoredRecord], list[BadRecord]]:
    if not root.is_dir():
        raise InputError(f"no folder of records at {root}: run a benchmark first, or name another with --records")
    return read_records(root)
