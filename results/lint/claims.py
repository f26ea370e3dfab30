"""What published.csv and the records say of a cell of a page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from results.published.figures import Figure
from results.published.models import ModelKey, bare_config, letters, model_key
from results.tables.groups import Group
from results.tables.roster import Entry
from results.tables.sections import Section, headline

DECIMALS_OF_A_RECORD = 4  # more than any page prints


@dataclass(frozen=True)
class Place:
    """What a page's column holds: a benchmark's column, where the page says of which data and protocol."""

    benchmark: str
    column: str
    dataset: str = ""
    protocol: str = ""
    layer: bool = False


@dataclass(frozen=True)
class Claim:
    """One source's value of a cell.

    Attributes:
        protocols: under which it was measured: an id, and those that differ from it in their name alone.
        decimals: to which it is known.
    """

    source: str
    text: str
    protocols: frozenset[str]
    decimals: int

    def agrees(self, printed: str) -> bool:
        """Whether a printed text says the same, as far as the coarser of the two goes."""
        ours, theirs = number(self.text), number(printed)
        if ours is None or theirs is None:
            return letters(self.text).removeprefix("feature") == letters(printed).removeprefix("feature")
        coarser = min(self.decimals, decimals(printed))
        return abs(ours - theirs) <= 0.5 * 10.0**-coarser * (1 + 1e-9)


def number(text: str) -> float | None:
    """The first number of a cell as `**44.1 ± 3.3** (std 1.2)`; None of a text that is not one."""
    found = re.match(r"[≈\s]*([-+]?\d+(?:\.\d+)?)(?=$|[\s±(%])", text.strip("* "))
    return float(found[1]) if found else None


def decimals(text: str) -> int:
    """Of the first number of a cell."""
    found = re.search(r"\d\.(\d+)", text)
    return len(found[1]) if found else 0


class PublishedClaims:
    """Figures by the model that they are of."""

    def __init__(self, figures: Iterable[Figure]) -> None:
        self._by_model: dict[ModelKey, list[Figure]] = {}
        for figure in figures:
            self._by_model.setdefault(model_key(figure.model), []).append(figure)
        # Of `(a) MLP` and the like a page says nothing; and the longest name that fits is meant.
        self._methods = sorted({key.method for key in self._by_model}, key=len, reverse=True)

    def models(self, labels: Sequence[str], headings: Sequence[str]) -> list[ModelKey]:
        """The published models that a row's labels may mean, under these headings.

        A configuration without its method is that of the method in the row, or else in the nearest heading that names
        one.
        """
        named = [key for label in labels if (key := model_key(label)) in self._by_model]
        if named:
            return named
        texts = [letters(text) for text in (*labels, *reversed(headings))]
        for text in texts:
            for method in self._methods:
                if not (text.startswith(method) or (text == method)):
                    continue
                keys = [ModelKey(method, bare_config(label, method)) for label in labels]
                if found := [key for key in keys if key.config and key in self._by_model]:
                    return found
        return []

    def of(self, model: ModelKey, place: Place) -> list[Claim]:
        """What the sources print of a model in a column."""
        return [_published(figure) for figure in self._by_model[model] if _is_of(figure, place)]

    def elsewhere(self, model: ModelKey, place: Place, printed: str) -> list[Claim]:
        """Sources that print the very text, with two decimals or more, in another column of a like benchmark."""
        family = place.benchmark.partition("_")[0]
        return [
            _published(figure, f", {figure.place.column}")
            for figure in self._by_model[model]
            if figure.place is not None
            and figure.text == printed
            and figure.decimals > 1
            and figure.place.benchmark.startswith(family)
            and not _is_of(figure, place)
        ]


def _is_of(figure: Figure, place: Place) -> bool:
    at = figure.place
    if at is None or (at.benchmark, at.column) != (place.benchmark, place.column):
        return False
    if place.protocol and place.protocol not in (at.protocol, *at.same_as):
        return False
    return at.statistic == "layer" if place.layer else at.statistic in ("value", "mean")


def _published(figure: Figure, about: str = "") -> Claim:
    place = figure.place
    protocols = frozenset((place.protocol, *place.same_as)) if place else frozenset()
    return Claim(f"{figure.source}{about}", figure.text, protocols, figure.decimals)


class RecordClaims:
    """Scores of the records, by the labels of their rows in this project's tables."""

    def __init__(self, sections: Sequence[Section]) -> None:
        self.groups = [group for section in sections for group in section.groups if group.records]
        self._entries = [entry for section in sections for entry in section.entries]

    def entries(self, labels: Sequence[str], models: Sequence[ModelKey]) -> list[Entry]:
        """The encoders that a row names, or that say of themselves to be one of the published models."""
        bare = {re.sub(r"(, measured| †|, mean of \d+ initialisations)+$", "", label) for label in labels}
        return [
            entry
            for entry in self._entries
            if entry.label in bare
            or any(card.published_as and model_key(card.published_as) in models for card in entry.cards)
        ]

    def of(self, entry: Entry, place: Place) -> list[Claim]:
        """The encoder's scores in a column, under each protocol that the place leaves open."""
        found: list[Claim] = []
        for group in self.groups if not place.layer else ():
            example = group.example
            if example.protocol.resolved.benchmark != place.benchmark:
                continue
            if place.dataset not in ("", example.dataset.id) or place.protocol not in ("", example.protocol.id):
                continue
            own = [stored for stored in entry.records(group.records) if stored.intact]
            scores = [stored.record.scores.get(place.column) for stored in own]
            values = [score.value for score in scores if score is not None and score.value is not None]
            if not values or len(values) < len(own):
                continue
            files = own[0].path.name if len(own) == 1 else f"{len(own)} records"
            source = f"{files}: {example.protocol.id} on {example.dataset.id}"
            text = f"{float(np.mean(values)):.{DECIMALS_OF_A_RECORD}f}"
            found.append(Claim(source, text, frozenset((example.protocol.id,)), DECIMALS_OF_A_RECORD))
        return found


def headline_places(groups: Iterable[Group]) -> dict[str, list[Place]]:
    """Column titles of the summary, `kNN (k=20)`, and what they hold."""
    found: dict[str, list[Place]] = {}
    for group in groups:
        protocol = group.protocol
        if protocol.benchmark in ("knn", "linear_avgpool", "voc07_svm"):
            place = Place(protocol.benchmark, protocol.primary, group.example.dataset.id, group.example.protocol.id)
            found.setdefault(headline(group), []).append(place)
    return found
