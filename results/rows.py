"""Select which records appear in a table, and as which rows."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from results.errors import InputError
from results.families import SUITES, Family, Suite, TablePart, family_of, place_of, suite_of
from results.schema import Architecture, EncoderCard, Protocol, Record
from results.store import StoredRecord

WIDEST = 8  # columns that a table may have; a wider one is split where its family says how
Identity = tuple[str, str | None, str | None, Architecture]


@dataclass(frozen=True)
class Entry:
    """A table row: one encoder, or several random initialisations of one architecture.

    Attributes:
        cards: of the encoders in the row; more than one only if `random`.
        random: not trained; the control of pretrained encoders with the same architecture.
        training: the label that the seeds of one training share, for figures that average them.
    """

    label: str
    cards: tuple[EncoderCard, ...]
    random: bool
    training: str = ""

    @property
    def architecture(self) -> Architecture:
        return self.cards[0].architecture

    def records(self, among: Iterable[StoredRecord]) -> list[StoredRecord]:
        return records_by_row([self], among)[0]


def identity(card: EncoderCard) -> Identity:
    """What two records of the same encoder have in common."""
    return card.name, card.init, card.weights_sha256, card.architecture


def records_by_row(entries: Sequence[Entry], records: Iterable[StoredRecord]) -> list[list[StoredRecord]]:
    """The records of each row, in one pass over all of them."""
    rows: list[list[StoredRecord]] = [[] for _ in entries]
    of_encoder = {identity(card): row for entry, row in zip(entries, rows, strict=True) for card in entry.cards}
    for stored in records:
        row = of_encoder.get(identity(stored.record.encoder))
        if row is not None:
            row.append(stored)
    return rows


# ---- which data a record belongs to


@dataclass(frozen=True)
class DataKind:
    """Whose data: the embedded data sets, the full data sets as published, or one data set of the user's own.

    Records of different kinds never share a table, a heading or a figure.

    Attributes:
        name, fingerprint: of one's own data set, or of the only split that is measured; empty elsewhere.
    """

    kind: Literal["embedded", "full", "own"]
    name: str = ""
    fingerprint: str = ""

    @property
    def title(self) -> str:
        """Heading of its tables."""
        if self.kind == "own":
            return f"Your data: {self.name} ({self.fingerprint[:8]})"
        return "Embedded data" if self.kind == "embedded" else "Full data sets"

    @property
    def line(self) -> str:
        """Explanation below the heading; empty for the full data sets."""
        if self.kind == "own":
            return (
                "Images of your own, or a changed copy of a published data set. These figures cannot be compared with "
                "published ones."
            )
        return EMBEDDED_LINE if self.kind == "embedded" else ""


EMBEDDED_LINE = (
    "Small images that this project composes from its own drawings. These figures cannot be compared with figures on "
    "full data sets."
)
EMBEDDED, FULL = DataKind("embedded"), DataKind("full")


def data_kind(record: Record) -> DataKind:
    """Whose data a record was measured on."""
    dataset = record.dataset
    if dataset.embedded:
        return EMBEDDED
    if not dataset.own:
        return FULL
    name, protocol = dataset.own_name, record.protocol.resolved
    if protocol.train_split == protocol.test_split:  # their fingerprint is not that of both splits of the same folder
        name += f", {protocol.test_split} alone"
    return DataKind("own", name, dataset.fingerprint)


def data_kinds(records: Iterable[StoredRecord]) -> list[DataKind]:
    """The kinds of data in the records: embedded, full data sets, then each of the user's own, by name."""
    own = {kind for stored in records if (kind := data_kind(stored.record)).kind == "own"}
    return [EMBEDDED, FULL, *sorted(own, key=lambda kind: (kind.name, kind.fingerprint))]


# ---- which records are meant


def matching(
    records: Iterable[StoredRecord],
    *,
    encoder: Sequence[str] = ("*",),
    benchmark: Sequence[str] = ("*",),
    source: Sequence[str] = ("*",),
) -> list[StoredRecord]:
    """The records that match one of the patterns each: of encoder names or row labels, of benchmarks or protocol ids,
    and of sources of the weights.
    """
    among = list(records)
    names = encoder_names(among)
    return [
        stored
        for stored in among
        if _matches(encoder, *names[identity(stored.record.encoder)])
        and _matches(benchmark, stored.record.protocol.id, stored.record.protocol.resolved.benchmark)
        and _matches(source, stored.record.encoder.source)
    ]


def _matches(patterns: Sequence[str], *names: str) -> bool:
    return any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns for name in names)


def encoder_names(records: Iterable[StoredRecord]) -> dict[Identity, tuple[str, ...]]:
    """The names by which a user may call each encoder, last the label of its table row.

    Before it come its name, the label that the seeds of its training share, and its own label.
    """
    cards = {identity(stored.record.encoder): stored.record.encoder for stored in records}
    labels = _labels(list(cards.values()))
    own = dict(zip(cards, labels, strict=True))
    names: dict[Identity, tuple[str, ...]] = {}
    for entry in _rows(cards.values()):
        training = [] if entry.random else [entry.training]
        for card in entry.cards:
            of = [card.name, *training, own[identity(card)], entry.label]
            names[identity(card)] = tuple(dict.fromkeys(of))
    return names


def refuse_ambiguous(records: Sequence[StoredRecord], given: Sequence[str]) -> None:
    """Check that each name means one encoder, or the seeds of one training. Patterns may mean several encoders.

    Raises:
        InputError: encoders of another architecture, or other weights of the same initialisation, share the name.
    """
    names = encoder_names(records)
    for name in given:
        own = [key for key, of in names.items() if name in of and of[-1] != name]  # the row's label means the row
        if len({key[3] for key in own}) > 1 or len({key[1] for key in own}) < len(own):
            choices = "\n".join(sorted({label for key in own for label in names[key][1:]} - {name}))
            raise InputError(f"{name!r} is the name of {len(own)} different encoders; choose one of:\n{choices}")


def current(records: Sequence[StoredRecord]) -> tuple[list[StoredRecord], list[StoredRecord]]:
    """The newest successful record of each encoder, data set and protocol, and the failures that came after it."""
    newest: dict[tuple[object, ...], StoredRecord] = {}
    finished: dict[tuple[object, ...], str] = {}
    failures: dict[tuple[object, ...], StoredRecord] = {}
    for stored in sorted(records, key=lambda s: (s.record.created, s.path)):
        card, asked = stored.record.encoder, _question(stored.record)
        # A failed record may have been written before the weights were known.
        attempt = (card.name, card.init, card.architecture, *asked)
        if stored.record.status == "ok":
            newest[*identity(card), *asked] = stored
            finished[attempt] = stored.record.created
        else:
            failures[attempt] = stored
    left = [s for attempt, s in failures.items() if s.record.created > finished.get(attempt, "")]
    return sorted(newest.values(), key=lambda s: s.path), sorted(left, key=lambda s: s.path)


def newest(records: Sequence[StoredRecord]) -> list[StoredRecord]:
    """The newest successful record of each encoder, data set and protocol, where it is intact."""
    return [stored for stored in current(records)[0] if stored.intact]


def table_rows(records: Iterable[StoredRecord]) -> list[Entry]:
    """The rows, in the order of every table: raw pixels, random initialisations, then the others by name."""
    return _rows({identity(stored.record.encoder): stored.record.encoder for stored in records}.values())


def _rows(cards: Iterable[EncoderCard]) -> list[Entry]:
    single: list[EncoderCard] = []
    random: dict[str, list[EncoderCard]] = defaultdict(list)
    for card in cards:
        if card.method == "random":
            kind = card.content_sha256(exclude={"name", "init", "weights_sha256", "pretrain_seconds"})
            random[kind].append(card)
        else:
            single.append(card)
    folded = {kind: group for kind, group in random.items() if len(group) > 1}
    single += [card for group in random.values() if len(group) == 1 for card in group]

    labels = _labels(single)
    shared = _training_labels(single, labels)
    entries = [
        Entry(label, (card,), card.method == "random", training)
        for label, card, training in zip(labels, single, shared, strict=True)
    ]
    for label, group in zip(_folded_labels(folded), folded.values(), strict=True):
        cards_of_row = tuple(sorted(group, key=lambda c: (c.name, c.init or "")))
        entries.append(Entry(label, cards_of_row, random=True, training=label))
    return sorted(entries, key=lambda e: (e.architecture.name != "pixels", not e.random, e.label))


def _folded_labels(groups: dict[str, list[EncoderCard]]) -> list[str]:
    """Architecture of each group of random initialisations; source and card's hash where it alone is not distinct."""
    parts = {
        kind: (architecture_text(group[0].architecture), group[0].source, kind[:8]) for kind, group in groups.items()
    }
    labels = []
    for own in parts.values():
        needed = next(n for n in (1, 2, 3) if n == 3 or sum(of[:n] == own[:n] for of in parts.values()) == 1)
        labels.append(f"random init ({', '.join(own[:needed])})")
    return labels


def architecture_text(architecture: Architecture) -> str:
    """As `resnet18-w32-k3-nopool`: what differs from the defaults follows the name of the network."""
    parts = [architecture.name]
    for letter, field in (
        ("w", "width"),
        ("k", "stem_kernel"),
        ("s", "stem_stride"),
        ("p", "stem_padding"),
        ("eps", "bn_eps"),
        ("heads", "num_heads"),
        ("positions=", "positions"),
        ("", "activation"),
        ("eps", "norm_eps"),
        ("embed=", "pooling"),
    ):
        value = getattr(architecture, field)
        if value != Architecture.model_fields[field].default:
            parts.append(f"{letter}{value}")
    parts += ["stride1x1"] if architecture.stride_in_1x1 else []
    return "-".join(parts + (["nopool"] if not architecture.max_pool else []))


def _question(record: Record) -> tuple[str, ...]:
    return record.dataset.id, record.dataset.fingerprint, record.protocol.id, record.protocol.sha256


def _labels(cards: Sequence[EncoderCard]) -> list[str]:
    """Encoder names; where several encoders share one, with what tells them apart.

    First the initialisation, then the architecture, then the epochs of checkpoints of one training, or the first digits
    of the weights' hash.
    """
    namesakes = Counter(card.name for card in cards)
    architectures: dict[str, set[Architecture]] = defaultdict(set)
    for card in cards:
        architectures[card.name].add(card.architecture)
    parts = []
    for card in cards:
        own = []
        if namesakes[card.name] > 1 and card.init and not _says(card.name, card.init):
            own.append(card.init)
        if len(architectures[card.name]) > 1:
            own.append(architecture_text(card.architecture))
        parts.append(own)
    labels = [name_with(card.name, own) for card, own in zip(cards, parts, strict=True)]
    twins = Counter(labels)
    epochs = Counter((label, card.epochs) for label, card in zip(labels, cards, strict=True))
    # Where one seed was trained for several lengths, all seeds of the name state theirs.
    lengths = {
        (card.name, card.architecture)
        for card, label in zip(cards, labels, strict=True)
        if card.epochs is not None and twins[label] > 1 and epochs[label, card.epochs] == 1
    }
    for own, card, label in zip(parts, cards, labels, strict=True):
        if card.epochs is not None and (card.name, card.architecture) in lengths and epochs[label, card.epochs] == 1:
            own.append(f"{card.epochs:g} epochs")
    labels = [name_with(card.name, own) for card, own in zip(cards, parts, strict=True)]
    twins = Counter(labels)
    return [
        name_with(card.name, [*own, (card.weights_sha256 or "unloaded")[:8]]) if twins[label] > 1 else label
        for card, own, label in zip(cards, parts, labels, strict=True)
    ]


def name_with(name: str, parts: Sequence[str]) -> str:
    """As `net (seed 1, 0a1b2c3d)`."""
    return f"{name} ({', '.join(parts)})" if parts else name


def name_with_init(card: EncoderCard) -> str:
    """The name with the initialisation, unless the name says it already."""
    return name_with(card.name, [card.init] if card.init and not _says(card.name, card.init) else [])


def _says(name: str, part: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(part)}(?!\w)", name) is not None


def _training_labels(cards: Sequence[EncoderCard], labels: Sequence[str]) -> list[str]:
    """The label that the seeds of one training share: those of one name, architecture and length, each seed once."""
    by_name: dict[str, list[EncoderCard]] = defaultdict(list)
    for card in cards:
        by_name[card.name].append(card)
    found = []
    for card, label in zip(cards, labels, strict=True):
        namesakes = by_name[card.name]
        alike = [other for other in namesakes if other.architecture == card.architecture]
        same = [other for other in alike if other.epochs == card.epochs]
        lengths = len(same) < len(alike)
        alone = lengths and len(same) == 1
        if card.method == "random" or alone or len({other.init for other in same}) < len(same):
            found.append(label)
        else:
            parts = [architecture_text(card.architecture)] if len(alike) < len(namesakes) else []
            parts += [f"{card.epochs:g} epochs"] if lengths and card.epochs is not None else []
            found.append(name_with(card.name, parts))
    return found


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
        return f"{self.family.title}: {self.example.dataset.shown_name}"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a page shows; top-5 is only in the CSV."""
        return tuple(column for column in self.protocol.columns if not column.endswith("top-5"))

    @property
    def parts(self) -> dict[TablePart, tuple[str, ...]]:
        """The columns of each table that shows the group: one, or those of the family where it would be too wide."""
        parts = self.family.parts
        if not parts or len(self.columns) <= WIDEST:
            return {TablePart("*"): self.columns}
        found: dict[TablePart, tuple[str, ...]] = {}
        for column in self.columns:
            part = next((part for part in parts if fnmatchcase(column, part.columns)), parts[0])
            found[part] = (*found.get(part, ()), column)
        return found

    def title_of(self, part: TablePart) -> str:
        return f"{self.title}, {part.name}" if part.name else self.title

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
        if protocol.train_split == protocol.test_split:  # nothing is trained
            items = f"{dataset.test_items:,} items"
        direction = self.family.direction(protocol.columns, higher_is_better=protocol.higher_is_better)
        return (
            f"{self.example.protocol.id} on {dataset.own_name if dataset.own else dataset.id} "
            f"({items}, fingerprint {dataset.fingerprint[:8]}); "
            f"{protocol.metric}{unit}, {direction}; selection: {protocol.selection}."
        )


def variant_text(protocol: Protocol) -> str:
    """The variant of a protocol for a heading, with its revision after the first and what its user changed."""
    revision = f", revision {protocol.revision}" if protocol.revision > 1 else ""
    return ", ".join([f"variant {protocol.variant}{revision}", *protocol.overrides])


def without_cells(records: Sequence[StoredRecord]) -> list[StoredRecord]:
    """Drop the records of single grid cells if there is a record of the whole grid, which has their scores.

    A cell's protocol is the grid's protocol with one of the listed values for each field that differs.
    """
    grids: dict[tuple[object, ...], list[Protocol]] = {}
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


def _grid_key(record: Record) -> tuple[object, ...]:
    protocol, card = record.protocol.resolved, record.encoder
    about = protocol.benchmark, protocol.variant, str(protocol.revision), record.dataset.fingerprint
    return *identity(card), *about


def grouped(records: Sequence[StoredRecord], failures: Sequence[StoredRecord]) -> list[Group]:
    """All groups, in the order of a model-zoo page."""
    found: dict[tuple[str, ...], tuple[list[StoredRecord], list[StoredRecord]]] = {}
    for i, stored_records in enumerate((records, failures)):
        for stored in stored_records:
            found.setdefault(_group_key(stored.record), ([], []))[i].append(stored)
    groups = [Group(tuple(own), tuple(failed)) for _, (own, failed) in sorted(found.items())]
    return sorted(groups, key=lambda group: place_of(group.protocol.benchmark))


def _group_key(record: Record) -> tuple[str, ...]:
    """What the records of one table share. An edited protocol has another hash, and so its own table."""
    resolved, dataset = record.protocol.resolved, record.dataset
    return resolved.benchmark, dataset.shown_name, resolved.id, dataset.fingerprint, resolved.content_sha256()


# ---- suites: groups that share a table with a column per data set


@dataclass(frozen=True)
class SuiteGroups:
    """The tables of one suite under one variant, revision and set of overrides, by data set in the order of columns."""

    suite: Suite
    name: str
    groups: Mapping[str, Group]

    @property
    def title(self) -> str:
        """The suite and the variant, with a mark where there is another version of the same data."""
        marks = "'" * (len(self.name) - len(self.name.rstrip("'")))
        return f"{self.suite.title}, {variant_text(next(iter(self.groups.values())).protocol)}{marks}"

    def title_of(self, data_set: str) -> str:
        return self.suite.sets.get(data_set, data_set)

    def columns(self) -> tuple[str, ...]:
        """The columns of the protocols, each of which gets a table; top-5 is only in the records."""
        return tuple(dict.fromkeys(column for group in self.groups.values() for column in group.columns))


def suite_groups(groups: Sequence[Group]) -> list[SuiteGroups]:
    """The groups of each suite, one entry per variant."""
    found: dict[str, dict[str, Group]] = {}
    for group in groups:
        place = suite_of(group.protocol.benchmark)
        if place is None or not group.records:
            continue
        kind, data_set = place
        name = f"{kind}.{group.protocol.id.partition('.')[2]}"
        while data_set in found.setdefault(name, {}):  # another version of the same data
            name += "'"
        found[name][data_set] = group
    entries = []
    for name, of in found.items():
        suite = SUITES[name.partition(".")[0]]
        order = [*(each for each in suite.sets if each in of), *sorted(of.keys() - suite.sets.keys())]
        entries.append(SuiteGroups(suite, name, {each: of[each] for each in order}))
    return entries
