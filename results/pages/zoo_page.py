"""The page that a model zoo shows of an encoder: from its records, or from published figures alone."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from results.errors import InputError
from results.pages.methods import METHODS, Method
from results.pages.page_layout import PAGE
from results.pages.published_rows import published_table
from results.pages.side_by_side import DIFFERENCE_LINE, belongs, compared_table, measured_rows
from results.published.figures import Figure
from results.schema import EncoderCard
from results.store import StoredRecord
from results.tables.cells import Cell, Row, Table
from results.tables.noise import NOISE_LINE
from results.tables.render import escape_latex, escape_markdown, latex, markdown
from results.tables.roster import Entry, architecture_text, current, roster
from results.tables.sections import SPREAD_LINE, Section

EMBEDDED = "Embedded data"
EMBEDDED_LINE = "Small pictures that this project composes. No figure here can be set beside one of a full data set."


@dataclass(frozen=True)
class Part:
    """Tables under a heading."""

    title: str
    lines: tuple[str, ...]
    tables: tuple[Table, ...]


@dataclass(frozen=True)
class Page:
    """A page before it has a format."""

    title: str
    lines: tuple[str, ...]
    parts: tuple[Part, ...]
    methods: tuple[Method, ...]

    @property
    def tables(self) -> list[Table]:
        return [table for part in self.parts for table in part.tables]


def published_page(figures: Sequence[Figure]) -> Page:
    """The page of one source's figures.

    Raises:
        InputError: none of the figures belongs on a page.
    """
    parts = []
    for part in dict.fromkeys(layout.part for layout in PAGE):
        found = [published_table(layout, figures) for layout in PAGE if layout.part == part]
        if tables := tuple(table for table in found if table is not None):
            parts.append(Part(part, (), tables))
    if not parts:
        raise InputError("no published figure that was chosen has a place on a model-zoo page")
    methods = list(dict.fromkeys(figure.model.partition("/")[0] for figure in figures))
    sources = list(dict.fromkeys(figure.source for figure in figures))
    return Page(
        title=methods[0] if len(methods) == 1 else sources[0],
        lines=(
            f"Published figures as they were printed by {'; '.join(sources)}. A table without a figure is left out.",
        ),
        parts=tuple(parts),
        methods=tuple(METHODS[name] for name in methods if name in METHODS),
    )


def measured_page(records: Sequence[StoredRecord], figures: Sequence[Figure], weights: Path | None = None) -> Page:
    """The page of what the records hold: what was measured, with the published figures beside it.

    Args:
        records: of one encoder or of several, whose rows then stand below each other.
        figures: to set beside the measured ones.
        weights: the checkpoint that the page offers, for its size and hash.

    Raises:
        InputError: no record succeeded.
    """
    entries: list[Entry] = roster(current(records)[0])
    if not entries:
        raise InputError("none of the chosen records succeeded, so there is nothing to make a page of")
    parts = [Part("Encoder", (), (_about(entries, weights),))]
    for embedded in (False, True):
        section = Section(records, embedded=embedded)
        own = [stored for group in section.groups for stored in group.records]
        for name in dict.fromkeys(layout.part for layout in PAGE):
            tables = [
                compared_table(
                    layout, measured_rows(layout, section.entries, own), [] if embedded else figures, section.cache
                )
                for layout in PAGE
                if layout.part == name
            ]
            if found := tuple(table for table in tables if table is not None):
                title = f"{name}: {EMBEDDED.lower()}" if embedded else name
                parts.append(Part(title, (EMBEDDED_LINE,) if embedded else (), found))
        rest = [
            section.group_table(group)
            for group in section.groups
            if group.records and not any(belongs(layout, s) for s in group.records for layout in PAGE)
        ]
        if rest:
            title = f"Other protocols: {EMBEDDED.lower()}" if embedded else "Other protocols"
            line = "Overrides (+) and what else was measured; none of it stands in a table above."
            parts.append(Part(title, (line,), tuple(rest)))
        failed = [
            f"{stored.record.encoder.name}: {stored.record.protocol.id} on {stored.record.dataset.id}: "
            f"{stored.record.error or 'no error was recorded'}"
            for group in section.groups
            for stored in group.failures
        ]
        if failed:
            title = f"Failed: {EMBEDDED.lower()}" if embedded else "Failed"
            parts.append(Part(title, (), (Table("", (), ("",), (), notes=tuple(failed)),)))
    if costs := _costs(figures):
        parts.append(Part("Pretraining cost", (), (costs,)))
    cards = [card for entry in entries for card in entry.cards]
    names = [method for card in cards if (method := card.method)]
    rows = {row.label for part in parts for table in part.tables for row in table.rows}
    compared = any(label.endswith("difference") for label in rows)
    return Page(
        title=entries[0].label if len(entries) == 1 else ", ".join(dict.fromkeys(card.name for card in cards)),
        lines=(SPREAD_LINE, *([DIFFERENCE_LINE] if compared else []), *([NOISE_LINE] if len(entries) > 1 else [])),
        parts=tuple(parts),
        methods=tuple(METHODS[name] for name in dict.fromkeys(names) if name in METHODS),
    )


def markdown_page(page: Page) -> str:
    """As a model zoo's README."""
    blocks = [f"# {escape_markdown(page.title)}\n"]
    for method in page.methods:
        blocks.append(f"> [{escape_markdown(method.paper)}]({method.link})\n\n{escape_markdown(method.description)}\n")
    blocks += [escape_markdown(line) + "\n" for line in page.lines]
    for part in page.parts:
        blocks.append(f"## {escape_markdown(part.title)}\n")
        blocks += [escape_markdown(line) + "\n" for line in part.lines]
        blocks += [markdown(table) for table in part.tables]
    if page.methods:
        blocks.append("## Citation\n")
        blocks += [f"```bibtex\n{method.bibtex}\n```\n" for method in page.methods]
    return "\n".join(blocks)


def latex_page(page: Page) -> str:
    """Every table for LaTeX with booktabs, below comments with the headings."""
    blocks = [f"% {escape_latex(page.title)}\n"]
    for part in page.parts:
        blocks += [f"% {escape_latex(part.title)}\n", *(latex(table) for table in part.tables)]
    return "\n".join(blocks)


def file_name(source: str) -> str:
    """As `MoCo_v2_page_A` for `MoCo v2 page A (mmselfsup v0.5 README)`."""
    return re.sub(r"[^\w.-]+", "_", source.partition(" (")[0], flags=re.ASCII).strip("._") or "page"


def _about(entries: Sequence[Entry], weights: Path | None) -> Table:
    """What a reader must know to use the encoder, one column per encoder."""
    facts = [_facts(entry) for entry in entries]
    if weights is not None:
        with weights.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        for fact in facts:
            fact["Weights file"] = f"{weights.name}, {weights.stat().st_size / 2**20:.1f} MiB, sha256 {digest}"
    names = [name for name in facts[0] if any(fact.get(name) for fact in facts)]
    rows = [Row(name, tuple(Cell(text=fact.get(name, "")) for fact in facts)) for name in names]
    return Table("", (), ("", *(entry.label for entry in entries)), tuple(rows))


def _facts(entry: Entry) -> dict[str, str]:
    cards = entry.cards

    def common(texts: Sequence[str]) -> str:
        """What several initialisations have in common, or all of it."""
        return ", ".join(dict.fromkeys(text for text in texts if text))

    return {
        "Method": common([card.method or "" for card in cards]),
        "Recipe": common([card.source for card in cards]),
        "Architecture": common([architecture_text(card.architecture) for card in cards]),
        "Pretraining data": common([card.pretrain_data or "" for card in cards]),
        "Pretraining epochs": common([f"{card.epochs:g}" if card.epochs else "" for card in cards]),
        "Pretraining time": common(
            [f"{card.pretrain_seconds / 3600:.2f} h" if card.pretrain_seconds else "" for card in cards]
        ),
        "Initialisation": common([card.init or "" for card in cards]),
        "Embedding": common([card.embed for card in cards]),
        "Input": common([_input(card) for card in cards]),
        "Assumed, not confirmed": common([", ".join(card.assumed) for card in cards]),
        "Licence": common([card.licence or "" for card in cards]),
        "Published as": common([card.published_as or "" for card in cards]),
        "Backbone tensors (sha256)": common([card.weights_sha256 or "" for card in cards]),
        "Weights file": "",
    }


def _input(card: EncoderCard) -> str:
    mean, std = (", ".join(f"{number:g}" for number in triple) for triple in (card.mean, card.std))
    return f"{card.channels}, white {card.value_range:g}, mean ({mean}), std ({std})"


def _costs(figures: Sequence[Figure]) -> Table | None:
    """Published costs of pretraining, of the models that stand on this page."""
    found = [figure for figure in figures if figure.benchmark.startswith("pretrain_cost")]
    if not found:
        return None
    sources = list(dict.fromkeys(figure.source for figure in found))
    rows = [
        Row(
            figure.model,
            (
                Cell(text=figure.benchmark.removeprefix("pretrain_cost_")),
                Cell(text=figure.metric.replace("_", " ")),
                Cell(figure.number, text=figure.text),
            ),
            (sources.index(figure.source) + 1,),
        )
        for figure in found
    ]
    columns = ("Model", "Hardware", "Cost", "Value")
    return Table("Published pretraining cost", (), columns, tuple(rows), sources=tuple(sources))
