"""Which records speak, and which of them share a row: what every table of one section agrees on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from results.schema import Architecture, EncoderCard, Record
from results.store import StoredRecord

Identity = tuple[str, str | None, str | None]


@dataclass(frozen=True)
class Entry:
    """A row in each table of a section: one encoder, or several random initialisations of one architecture.

    Attributes:
        cards: of the encoders in the row; more than one only where `random`.
        random: no training at all, the control of pretrained encoders with the same architecture.
    """

    label: str
    cards: tuple[EncoderCard, ...]
    random: bool

    @property
    def architecture(self) -> Architecture:
        return self.cards[0].architecture

    def records(self, among: Iterable[StoredRecord]) -> list[StoredRecord]:
        """Those of this row's encoders."""
        identities = {identity(card) for card in self.cards}
        return [stored for stored in among if identity(stored.record.encoder) in identities]


def identity(card: EncoderCard) -> Identity:
    """What makes two records speak of the same encoder."""
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
        card, asked = stored.record.encoder, _asked(stored.record)
        attempt = (card.name, card.init, *asked)  # a failed record may have been written before the weights were known
        if stored.record.status == "ok":
            newest[*identity(card), *asked] = stored
            finished[attempt] = stored.record.created
        else:
            failures[attempt] = stored
    left = [s for attempt, s in failures.items() if s.record.created > finished.get(attempt, "")]
    return sorted(newest.values(), key=lambda s: s.path), sorted(left, key=lambda s: s.path)


def roster(records: Iterable[StoredRecord]) -> list[Entry]:
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


def _asked(record: Record) -> tuple[str, ...]:
    return record.dataset.id, record.dataset.fingerprint, record.protocol.id, record.protocol.sha256


def _labels(cards: Sequence[EncoderCard]) -> list[str]:
    """The name alone where it is enough, with the initialisation and the weights' hash where several share it."""
    labels = []
    for card in cards:
        namesakes = [other for other in cards if other.name == card.name]
        twins = [other for other in namesakes if other.init == card.init]
        parts = [card.init] if len(namesakes) > 1 and card.init else []
        parts += [(card.weights_sha256 or "unloaded")[:8]] if len(twins) > 1 else []
        labels.append(f"{card.name} ({', '.join(parts)})" if parts else card.name)
    return labels
