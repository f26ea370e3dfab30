"""A page's verdict as text for a terminal and for a CI log."""

from __future__ import annotations

from pathlib import Path

from results.errors import InputError
from results.lint.claims import Claim, PublishedClaims, RecordClaims
from results.lint.conflicts import Conflict, Verdict, check
from results.lint.page_tables import page_tables
from results.published.figures import figures
from results.store import StoredRecord
from results.tables.sections import Section


def lint(page: Path, records: list[StoredRecord]) -> Verdict:
    """What published.csv and the records say against a markdown page.

    Raises:
        InputError: the file is no markdown text with a table.
    """
    try:
        tables = page_tables(page.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{page} is not UTF-8 text: name the markdown file of a page") from error
    if not tables:
        raise InputError(f"{page} has no markdown table: name the markdown source of a page, not its HTML")
    sections = [Section(records, embedded=embedded) for embedded in (True, False)]
    return check(tables, PublishedClaims(figures()), RecordClaims(sections))


def verdict_text(page: Path, verdict: Verdict) -> str:
    """Each conflict with both sources, then what could not be checked, then the tally."""
    lines = [line for conflict in verdict.conflicts for line in _conflict_lines(page, conflict)]
    lines += [f"{page}: not checked: {unknown}" for unknown in verdict.unknown]
    silent = f", {verdict.unsupported} of which no source speaks" if verdict.unsupported else ""
    lines.append(f"{page}: {verdict.checked} figures checked, {len(verdict.conflicts)} in conflict{silent}")
    return "\n".join(lines) + "\n"


def _conflict_lines(page: Path, conflict: Conflict) -> list[str]:
    where = f"{page}:{conflict.line}: {conflict.table}, {conflict.row}, {conflict.column}"
    lines = [f"{where}: {conflict.printed}", *(_line("but", claim) for claim in conflict.against)]
    lines += [_line("as", claim) for claim in conflict.agreeing]
    return lines + ([f"    {conflict.note}"] if conflict.note else [])


def _line(word: str, claim: Claim) -> str:
    protocols = ", ".join(sorted(claim.protocols))
    return f"    {word:<3} {claim.text} in {claim.source}" + (f" ({protocols})" if protocols else "")
