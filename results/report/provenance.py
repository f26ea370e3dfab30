"""Where a number comes from, as pairs of a name and a text."""

from __future__ import annotations

from dataclasses import dataclass

from results.schema import Record, Score
from results.store import StoredRecord


@dataclass(frozen=True)
class Column:
    """One score of the record and the rule by which it was chosen."""

    name: str
    value: str
    error: str
    std: str
    items: str
    selection: str


@dataclass(frozen=True)
class Provenance:
    """One record's: `facts` are name and text, `columns` the scores, `faults` why it cannot be believed."""

    title: str
    facts: tuple[tuple[str, str], ...]
    columns: tuple[Column, ...]
    faults: tuple[str, ...]


def provenance(stored: StoredRecord) -> Provenance:
    """Everything that a record knows of how its numbers came about."""
    record = stored.record
    return Provenance(
        f"{record.encoder.name}{f' ({record.encoder.init})' if record.encoder.init else ''}, {record.protocol.id}",
        tuple((name, text) for name, text in _facts(stored) if text),
        tuple(_column(name, score) for name, score in record.scores.items()),
        stored.faults,
    )


def _facts(stored: StoredRecord) -> list[tuple[str, str]]:
    record = stored.record
    protocol, dataset, hardware = record.protocol.resolved, record.dataset, record.hardware
    source = protocol.source
    return [
        ("Protocol", f"{record.protocol.id}, sha256 {record.protocol.sha256[:12]}"),
        ("Source", " ".join(text for text in (source.repository, source.revision, source.note) if text)),
        ("Metric", f"{protocol.metric}, {'higher' if protocol.higher_is_better else 'lower'} is better"),
        ("Selection", protocol.selection),
        ("Data", f"{dataset.id}: {dataset.train_items:,} training and {dataset.test_items:,} test items of "
                 f"{protocol.train_split} and {protocol.test_split}, fingerprint {dataset.fingerprint[:12]}"),
        ("Weights", f"{record.encoder.source}, sha256 {(record.encoder.weights_sha256 or 'not known')[:12]}"),
        ("Seed", ", ".join(map(str, record.seeds))),
        ("Time", _timing(record)),
        ("Peak memory", f"{record.peak_memory_gib:.2f} GiB" if record.peak_memory_gib else ""),
        ("Hardware", ", ".join(text for text in (hardware.gpu, hardware.cpu, f"{hardware.cores} cores",
                                                 f"{hardware.memory_gib:.0f} GiB") if text)),
        ("Commit", record.commit or "not known"),
        ("Versions", ", ".join(f"{name} {version}" for name, version in record.versions.items())),
        ("Written", record.created),
        ("Record", f"{stored.path.name}, sha256 {record.sha256[:12]}"),
    ]  # fmt: skip


def _timing(record: Record) -> str:
    phases = [f"{name} {seconds:.1f} s" for name, seconds in record.timing.items() if name != "total"]
    total = record.timing.get("total")
    whole = "" if total is None else f"{total:.1f} s"
    return f"{whole} ({', '.join(phases)})" if whole and phases else whole or ", ".join(phases)


def _column(name: str, score: Score) -> Column:
    numbers = (score.value, score.standard_error, score.std)
    value, error, std = ("" if number is None else f"{number:.4g}" for number in numbers)
    return Column(name, value, error, std, "" if score.n is None else f"{score.n:,}", score.selection)
