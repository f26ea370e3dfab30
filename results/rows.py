"""Select which records appear in a table, and as which rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from results.families import Family, family_of, place_of
from results.schema import Architecture, EncoderCard, Protocol, Record
from results.store import StoredRecord

Identity = tuple[str, str | None, str | None]


@dataclass(frozen=True)
class Entry:
    """A table row: one encoder, or several random initialisations of one architecture.

    Attributes:
        cards: of the encoders in the row; more than one only if `random`.
        random: not trained; the control of pretrained encoders with the same architecture.
    """

    label: str
    cards: tuple[EncoderCard, ...]
    random: bool

    @property
    def architecture(self) -> Architecture:
        return self.cards[0].architecture

    def records(self, among: Iterable[StoredRecord]) -> list[StoredRecord]:
        """The records of this row's encoders."""
        identities = {identity(card) for card in self.cards}
        return [stored for stored in among if identity(stored.record.encoder) in identities]


def identity(card: EncoderCard) -> Identity:
    """What two records of the same encoder have in common."""
    return card.name, card.init, card.weights_sha256


def matching(
    records: Iterable[StoredRecord],
    *,
    encoder: Sequence[str] = ("*",),
    benchmark: Sequence[str] = ("*",),
    source: Sequence[str] = ("*",),
) -> list[StoredRecord]:
    """The records whose encoder's name, benchmark or protocol id, and card's source match one of the patterns each."""
    return [
        stored
        for stored in records
        if _matches(encoder, stored.record.encoder.name)
        and _matches(benchmark, stored.record.protocol.id, stored.record.protocol.resolved.benchmark)
        and _matches(source, stored.record.encoder.source)
    ]


def _matches(patterns: Sequence[str], *names: str) -> bool:
    return any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns for name in names)


def current(records: Sequence[StoredRecord]) -> tuple[list[StoredRecord], list[StoredRecord]]:
    """The newest successful record of each encoder, data set and protocol, and the failures that came after it."""
    newest: dict[tuple[object, ...], StoredRecord] = {}
    finished: dict[tuple[object, ...], str] = {}
    failures: dict[tuple[object, ...], StoredRecord] = {}
    for stored in sorted(records, key=lambda s: (s.record.created, s.path)):
        card, asked = stored.record.encoder, _question(stored.record)
        attempt = (card.name, card.init, *asked)  # a failed record may have been written before the weights were known
        if stored.record.status == "ok":
            newest[*identity(card), *asked] = stored
            finished[attempt] = stored.record.created
        else:
            failures[attempt] = stored
    left = [s for attempt, s in failures.items() if s.record.created > finished.get(attempt, "")]
    return sorted(newest.values(), key=lambda s: s.path), sorted(left, key=lambda s: s.path)


def table_rows(records: Iterable[StoredRecord]) -> list[Entry]:
    """The rows, in the order of every table: raw pixels, random initialisations, then the others by name."""
    cards = {identity(s.record.encoder): s.record.encoder for s in records}
    single: list[EncoderCard] = []
    random: dict[str, list[EncoderCard]] = defaultdict(list)
    for card in cards.values():
        if card.method == "random":
            kind = card.content_sha256(exclude={"name", "init", "weights_sha256", "pretrain_seconds"})
            random[kind].append(card)
        else:
            single.append(card)
    folded = [group for group in random.values() if len(group) > 1]
    single += [card for group in random.values() if len(group) == 1 for card in group]

    entries = [
        Entry(label, (card,), card.method == "random") for label, card in zip(_labels(single), single, strict=True)
    ]
    for group in folded:
        shared = sum(group[0].architecture == other[0].architecture for other in folded) > 1
        label = f"random init ({architecture_text(group[0].architecture)}{', ' + group[0].source if shared else ''})"
        entries.append(Entry(label, tuple(sorted(group, key=lambda c: (c.name, c.init or ""))), random=True))
    return sorted(entries, key=lambda e: (e.architecture.name != "pixels", not e.random, e.label))


def architecture_text(architecture: Architecture) -> str:
    """As `resnet18-w32-k3-nopool`: what differs from the ResNet of the paper follows its name."""
    parts = [architecture.name]
    for letter, field in (("w", "width"), ("k", "stem_kernel"), ("s", "stem_stride")):
        value = getattr(architecture, field)
        if value != Architecture.model_fields[field].default:
            parts.append(f"{letter}{value}")
    return "-".join(parts + (["nopool"] if not architecture.max_pool else []))


def _question(record: Record) -> tuple[str, ...]:
    return record.dataset.id, record.dataset.fingerprint, record.protocol.id, record.protocol.sha256


def _labels(cards: Sequence[EncoderCard]) -> list[str]:
    """Encoder names, with initialisation and weights' hash if several encoders share a name."""
    labels = []
    for card in cards:
        namesakes = [other for other in cards if other.name == card.name]
        twins = [other for other in namesakes if other.init == card.init]
        parts = [card.init] if len(namesakes) > 1 and card.init else []
        parts += [(card.weights_sha256 or "unloaded")[:8]] if len(twins) > 1 else []
        labels.append(f"{card.name} ({', '.join(parts)})" if parts else card.name)
    return labels


@dataclass(frozen=True)
class Group:
    """The records of one table, at least one: they share protocol and version of the data."""

    records: tuple[StoredRecord, ...]
    failures: tuple[StoredRecord, ...]

    @property
    def example(self) -> Record:
        return (self.records or self.failures)[0].record

    @property
    def protocol(self) -> Protocol:
        return self.example.protocol.resolved

    @property
    def family(self) -> Family:
        return family_of(self.protocol.benchmark)

    @property
    def title(self) -> str:
        return f"{self.family.title}: {self.example.dataset.id}"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a page shows; top-5 is only in the CSV."""
        return tuple(column for column in self.protocol.columns if not column.endswith("top-5"))

    @property
    def decimals(self) -> int:
        """One for the embedded data, whose few test items do not justify a second."""
        if self.protocol.unit == "1":
            return 3
        return 1 if self.example.dataset.embedded else self.family.decimals

    @property
    def line(self) -> str:
        """Protocol, data, sizes, metric and selection in one line."""
        protocol, dataset = self.protocol, self.example.dataset
        unit = ", %" if protocol.unit == "%" else ""
        items = f"{dataset.test_items:,} test and {dataset.train_items:,} training items"
        direction = "higher" if protocol.higher_is_better else "lower"
        return (
            f"{self.example.protocol.id} on {dataset.id} ({items}, fingerprint {dataset.fingerprint[:8]}); "
            f"{protocol.metric}{unit}, {direction} is better; selection: {protocol.selection}."
        )


def without_cells(records: Sequence[StoredRecord]) -> list[StoredRecord]:
    """Drop the records of single grid cells if there is a record of the whole grid, which has their scores.

    A cell's protocol is the grid's protocol with one of the listed values for each field that differs.
    """
    grids: dict[tuple[str, ...], list[Protocol]] = {}
    for stored in records:
        protocol = stored.record.protocol.resolved
        if not protocol.overrides and family_of(protocol.benchmark).grid and stored.record.status == "ok":
            grids.setdefault(_grid_key(stored.record), []).append(protocol)
    return [
        stored
        for stored in records
        if not any(_is_cell(stored.record.protocol.resolved, g) for g in grids.get(_grid_key(stored.record), []))
    ]


def _is_cell(protocol: Protocol, grid: Protocol) -> bool:
    changed = {name: value for name, value in protocol.params.items() if value != grid.params.get(name)}
    return bool(changed) and all(
        isinstance(listed := grid.params.get(name), list | tuple)
        and isinstance(value, list | tuple)
        and len(value) == 1
        and value[0] in listed
        for name, value in changed.items()
    )


def _grid_key(record: Record) -> tuple[str, ...]:
    protocol, card = record.protocol.resolved, record.encoder
    about = protocol.benchmark, protocol.variant, str(protocol.revision), record.dataset.fingerprint
    return card.name, card.init or "", card.weights_sha256 or "", *about


def grouped(records: Sequence[StoredRecord], failures: Sequence[StoredRecord]) -> list[Group]:
    """All groups, in the order of a model-zoo page."""
    keys = {_group_key(stored.record) for stored in (*records, *failures)}
    groups = [
        Group(
            tuple(stored for stored in records if _group_key(stored.record) == key),
            tuple(stored for stored in failures if _group_key(stored.record) == key),
        )
        for key in sorted(keys)
    ]
    return sorted(groups, key=lambda group: place_of(group.protocol.benchmark))


def _group_key(record: Record) -> tuple[str, ...]:
    """What one table shares. An edited protocol has another hash and so gets a table of its own."""
    resolved = record.protocol.resolved
    return resolved.benchmark, record.dataset.id, resolved.id, record.dataset.fingerprint, resolved.content_sha256()
