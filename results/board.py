"""Write the board: `encoder-bench board OUT`. Every page is one file that needs no network.

`index.html` ranks encoders by the mean of the columns that a reader chooses. The intervals of the differences are
computed in the browser from the paired bootstrap of every column, which the page holds as whole numbers, so that a
choice of columns needs no server. Each kind of data is ranked by itself, and published figures are never ranked with
measured ones.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from results.errors import InputError
from results.formats import Cell, Table, sourced_table
from results.html_parts import TableMaker, rendered
from results.noise import NOISE_LINE
from results.plots import EncoderStyles
from results.published import Figure
from results.rows import DataKind, Entry, Group, architecture_text, data_kinds, records_by_row
from results.store import BadRecord, StoredRecord, slug
from results.tables import SPREAD_LINE, Section, headline, score_cell
from results.zoo_page import measured_page

RESAMPLES_SHOWN = 400  # of the bootstrap's 1000, to keep a page small
STEP = 0.01  # points of a score in one unit of the whole numbers
NOT_RECORDED = "not recorded"
SIZES = (
    (10e6, "under 10 million"),
    (50e6, "10 to 50 million"),
    (200e6, "50 to 200 million"),
    (2e9, "over 200 million"),
)
ABOUT = (
    "Encoders are ordered by the mean of the chosen columns. Those of one group cannot be told from the first of it: "
    "the 95% interval of their difference contains zero. The intervals come from a paired bootstrap over the test "
    "items and do not include the spread over training runs. A ± is the standard error of the test sample. Edited or "
    "damaged records are not ranked."
)


@dataclass(frozen=True)
class BoardColumn:
    """A column that encoders can be ranked by: one of a protocol on one version of one data set."""

    id: str
    title: str
    about: str
    headline: bool
    page: str


def site(records: Sequence[StoredRecord], bad: Sequence[BadRecord], figures: Sequence[Figure]) -> dict[Path, str]:
    """The pages of the site by file name.

    Raises:
        InputError: no record can be shown.
    """
    sections = [section for kind in data_kinds(records) if (section := Section(records, kind)).entries]
    if not sections:
        raise InputError("none of these records can be shown on a board; run a benchmark first")
    sections.sort(key=lambda section: section.kind.kind != "full")
    styles = EncoderStyles(records)
    pages: dict[Path, str] = {}
    shown = []
    for section in sections:
        shown.append(_board(section, styles))
        for group in section.groups:
            pages[Path(_benchmark_page(section.kind, group))] = _of_benchmark(section, group, figures)
    entries = {_encoder_page(entry): entry for section in sections for entry in section.entries}
    for page, entry in entries.items():
        pages[Path(page)] = _of_encoder(entry, records, figures)
    left_out = [f"{found.name(found.path.parent)}: {found.reason}" for found in bad]
    # "</script" would end the element, and "<!--<script" would hide its end; a JSON text may write "<" as an escape
    data = json.dumps(shown, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    pages[Path("index.html")] = _page(
        "board.html", title="Encoder board", about=ABOUT, boards=shown, data=data, left_out=left_out
    )
    return pages


# ---- the page with the ranking


def _board(section: Section, styles: EncoderStyles) -> dict[str, Any]:
    """What the script of the page needs for one kind of data, and what stands there without a script."""
    headlines = {id(group) for group in section.headline_groups()}
    columns: list[BoardColumn] = []
    values: dict[str, dict[int, float]] = {}
    errors: dict[str, dict[int, float]] = {}
    drawn: dict[str, dict[int, str]] = {}
    for group in section.groups:
        protocol = group.protocol
        if protocol.unit != "%" or not protocol.higher_is_better:
            continue  # a mean over columns needs one unit and one direction; the benchmark's page has these
        rows = records_by_row(section.entries, group.records)
        for name in group.columns:
            if name in (*group.family.opposite, *group.family.undirected):
                continue
            identifier = f"c{len(columns)}"
            own = {
                row: (score_cell(section.cache, found, name), deviations(section, found, name))
                for row, found in enumerate(rows)
                if found and all(stored.intact for stored in found)
            }
            if not any(cell.value is not None for cell, _ in own.values()):
                continue
            first = id(group) in headlines and name == protocol.primary
            title = headline(group) if first else f"{group.family.title}, {name}"
            columns.append(BoardColumn(identifier, title, group.line, first, _benchmark_page(section.kind, group)))
            values[identifier] = {row: cell.value for row, (cell, _) in own.items() if cell.value is not None}
            errors[identifier] = {row: cell.error for row, (cell, _) in own.items() if cell.error is not None}
            drawn[identifier] = {row: base64_of(found) for row, (_, found) in own.items() if found is not None}
    return {
        "id": section.kind.kind if section.kind.kind != "own" else f"own-{section.kind.fingerprint[:12]}",
        "title": section.kind.title,
        "line": section.kind.line,
        "benchmarks": [
            {"page": _benchmark_page(section.kind, group), "title": group.title, "id": group.example.protocol.id}
            for group in section.groups
        ],
        "columns": [column.__dict__ for column in columns],
        "encoders": [_about(entry, section, styles) for entry in section.entries],
        "values": values,
        "errors": errors,
        "drawn": drawn,
        "step": STEP,
    }


def deviations(section: Section, records: Sequence[StoredRecord], column: str) -> NDArray[np.int16] | None:
    """Resampled scores minus the score, in steps of 0.01 points; None without outcomes.

    Encoders of one data set share the resamples and so stay paired. Those of another data set come in another order,
    because they are independent, though the generator of both had one seed.
    """
    found = section.cache.mean(records, column)
    if found is None:
        return None
    seed = int(records[0].record.dataset.fingerprint[:8], 16)
    order = np.random.default_rng(seed).permutation(len(found.resampled))[:RESAMPLES_SHOWN]
    steps = np.rint(100 * (found.resampled[order] - found.value) / STEP)
    return np.clip(steps, -32768, 32767).astype("<i2")


def base64_of(numbers: NDArray[np.int16]) -> str:
    """Whole numbers of two bytes, low byte first, as base64."""
    return base64.b64encode(numbers.tobytes()).decode()


def _about(entry: Entry, section: Section, styles: EncoderStyles) -> dict[str, Any]:
    card = entry.cards[0]
    own = entry.records(stored for group in section.groups for stored in group.records)
    sizes = {stored.record.parameters for stored in own if stored.record.parameters is not None}
    size = next((name for limit, name in SIZES if max(sizes) < limit), SIZES[-1][1]) if sizes else NOT_RECORDED
    return {
        "label": entry.label,
        "page": _encoder_page(entry),
        "colour": styles.of(entry.label)["color"],
        "architecture": architecture_text(card.architecture),
        "method": "untrained" if entry.random else card.method or "not stated",
        "data": card.pretrain_data or ("none" if entry.random or card.architecture.name == "pixels" else "not stated"),
        "size": size,
    }


# ---- the pages of an encoder and of a benchmark


def _encoder_page(entry: Entry) -> str:
    digest = hashlib.sha256(repr([(card.weights_sha256, card.init) for card in entry.cards]).encode()).hexdigest()
    return f"encoder-{slug(entry.label)[:60]}-{digest[:8]}.html"


def _benchmark_page(kind: DataKind, group: Group) -> str:
    digest = hashlib.sha256(f"{kind} {group.example.protocol.sha256} {group.example.dataset.fingerprint}".encode())
    return f"benchmark-{slug(group.example.protocol.id)[:60]}-{digest.hexdigest()[:8]}.html"


def _of_encoder(entry: Entry, records: Sequence[StoredRecord], figures: Sequence[Figure]) -> str:
    """The model-zoo page of an encoder: measured rows, and below them the published ones of the same model."""
    own = entry.records(records)
    names = {card.published_as for card in entry.cards if card.published_as}
    page = measured_page(own, [figure for figure in figures if figure.model in names])
    maker = TableMaker()
    parts = [
        {"title": part.title, "lines": part.lines, "tables": [maker.plain(table) for table in part.tables]}
        for part in page.parts
    ]
    return _page("board_page.html", title=entry.label, lines=page.lines, parts=parts)


def _of_benchmark(section: Section, group: Group, figures: Sequence[Figure]) -> str:
    """What was measured, and one of what was published under the same protocol."""
    maker = TableMaker()
    titles = [part.name[:1].upper() + part.name[1:] or "Measured" for part in group.parts]
    measured = [
        maker.plain(replace(table, title=title))
        for table, title in zip(section.group_tables(group), titles, strict=True)
    ]
    links = {entry.label: _encoder_page(entry) for entry in section.entries}
    parts = [{"title": "Measured", "lines": (), "tables": measured}]
    published = [figure for figure in figures if figure.comparable(group.protocol.id)]
    if section.kind.kind == "full" and published:
        line = "Figures as their sources print them, of the same protocol. This project did not measure them."
        parts.append({"title": "Published", "lines": (line,), "tables": [maker.plain(_published(published))]})
    return _page(
        "board_page.html", title=f"{group.title} ({section.kind.title})", lines=(SPREAD_LINE, NOISE_LINE), parts=parts,
        links=links,
    )  # fmt: skip


def _published(figures: Sequence[Figure]) -> Table:
    rows = []
    for figure in figures:
        texts = (figure.epochs_text, figure.place.column if figure.place else "")
        cells = (*(Cell(text=text) for text in texts), figure.cell)
        rows.append((figure.model, cells, [figure.source]))
    return sourced_table("Published", ("Model", "Epochs", "Column", "Value"), rows)


def _page(template: str, *, title: str, links: Mapping[str, str] | None = None, **values: Any) -> str:
    scripts = ["sortable.min.js", "wide.js", *(["board.js"] if template == "board.html" else [])]
    return rendered(template, scripts, ["style.css", "board.css"], title=title, links=links or {}, **values)
