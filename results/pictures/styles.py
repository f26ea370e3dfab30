"""How an encoder's lines and marks look: the same in every picture of a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from results.store import StoredRecord
from results.tables.roster import current, roster

# Okabe and Ito's palette, which the colour-blind can tell apart; markers and dashes say it again.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
DASHES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Style:
    colour: str
    marker: str
    dashes: str


def numbered(number: int, member: int = 0) -> Style:
    """The look of a family's member: families differ in colour, mark and dashes, members of one in mark and dashes."""
    return Style(
        COLOURS[number % len(COLOURS)],
        MARKERS[(number + member) % len(MARKERS)],
        DASHES[(number // len(COLOURS) + member) % len(DASHES)],
    )


class Styles:
    """The looks of all encoders of some records. A family is one name under several initialisations."""

    def __init__(self, records: Sequence[StoredRecord]) -> None:
        self._styles: dict[str, Style] = {}
        families: dict[str, int] = {}
        members: dict[str, int] = {}
        for entry in roster(stored for stored in current(records)[0] if stored.intact):
            family = entry.label if entry.random else entry.cards[0].name
            number, member = families.setdefault(family, len(families)), members.get(family, 0)
            members[family] = member + 1
            for name in (entry.label, family, *(card.name for card in entry.cards)):
                self._styles.setdefault(name, numbered(number, member))
        self._count = len(families)

    def of(self, label: str) -> Style:
        """By a row's label or an encoder's name; another name gets the next look that is free."""
        if label not in self._styles:
            self._styles[label] = numbered(self._count)
            self._count += 1
        return self._styles[label]
