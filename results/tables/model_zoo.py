"""The pages: every table of a folder of records, and the summary that the README carries between its markers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from results.errors import InputError
from results.store import BadRecord, StoredRecord
from results.tables.cells import Table
from results.tables.gains import gain_over_random
from results.tables.noise import NOISE_LINE
from results.tables.render import escape_markdown, latex, markdown
from results.tables.sections import SPREAD_LINE, Section

BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"
HEADINGS = {
    True: (
        "Embedded data",
        "Small pictures that this project composes from its own drawings. No figure here can be set beside one of a "
        "full data set.",
    ),
    False: ("Full data sets", ""),
}
NO_RECORDS = "No records yet."


def sections(records: Sequence[StoredRecord]) -> list[Section]:
    """The embedded data's, then the full data sets'."""
    return [Section(records, embedded=embedded) for embedded in HEADINGS]


def section_tables(section: Section) -> list[Table]:
    """The tables of one section in the order of the page."""
    tables, gains = section.tables(), gain_over_random(section)
    return tables if gains is None else [*tables[:-1], gains, tables[-1]]


def markdown_page(records: Sequence[StoredRecord], bad: Sequence[BadRecord], root: Path) -> str:
    """Every table, what failed, and what could not be read. The same records give the same bytes."""
    parts = [
        "# Model zoo\n",
        "Written by `python -m results tables` from records; an edit here is lost. A table holds one protocol on one "
        "version of one data set, and a cell without a measurement is empty.\n",
        f"{SPREAD_LINE} {NOISE_LINE}\n",
    ]
    for section in sections(records):
        title, line = HEADINGS[section.embedded]
        parts += [f"## {title}\n"] + ([line + "\n"] if line else [])
        parts += [markdown(table) for table in section_tables(section)] or [NO_RECORDS + "\n"]
    if bad:
        lines = [f"- {escape_markdown(f'{b.path.relative_to(root).as_posix()}: {b.reason}')}\n" for b in bad]
        parts += ["## Files that are not records\n", "".join(lines)]
    return "\n".join(parts)


def latex_page(records: Sequence[StoredRecord]) -> str:
    """Every table for LaTeX with booktabs, the two sections under a comment each."""
    parts = []
    for section in sections(records):
        parts += [f"% {HEADINGS[section.embedded][0]}\n", *(latex(table) for table in section_tables(section))]
    return "\n".join(parts)


def readme_block(records: Sequence[StoredRecord]) -> str:
    """The summaries, one per section that has records, with the markers around them."""
    parts = []
    for section in sections(records):
        summary = section.summary()
        if summary is not None:
            title, line = HEADINGS[section.embedded]
            parts += [f"**{title}.** {line}".strip() + "\n", _table_first(summary)]
    return "\n".join([BEGIN, "", *(parts or [NO_RECORDS + "\n"]), END])


def with_block(text: str, block: str, name: str) -> str:
    """A text with everything between the markers replaced.

    Raises:
        InputError: there is not exactly one pair of markers, in order.
    """
    begin, end = text.find(BEGIN), text.find(END)
    if text.count(BEGIN) != 1 or text.count(END) != 1 or end < begin:
        raise InputError(f"{name} needs one line {BEGIN} and after it one line {END}: the table goes between them")
    return text[:begin] + block + text[end + len(END) :]


def _table_first(table: Table) -> str:
    """A reader of the README wants the figures; what they are comes below."""
    bare = Table("", (), table.columns, table.rows, table.decimals)
    return markdown(bare) + "\n" + markdown(Table("", (), table.columns, (), notes=(*table.lines, *table.notes)))
