"""A job: one encoder, one protocol, one data root, loaded and found to fit together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.contract import InputError, Labels, NotApplicableError
from benchmarks.datasets.lists import fingerprint
from benchmarks.datasets.registry import find_dataset, is_embedded
from benchmarks.harnesses import Harness, find_protocol, harness
from benchmarks.options import Engine, Precision
from results.schema import DatasetRef, Protocol, Record, canonical_sha256, record_key
from results.store import find_record

if TYPE_CHECKING:
    from torch import nn

    from benchmarks.encoders.encoder import Encoder
    from benchmarks.features.store import FeatureRequest


@dataclass(frozen=True)
class Job:
    """Everything about a run that is known before it starts."""

    encoder: Encoder
    protocol: Protocol
    harness: Harness
    train: Labels
    test: Labels
    dataset: DatasetRef
    seed: int
    precision: Precision = "fp32"  # of stored features
    index_files: Path | None = None  # of low-shot sets that somebody published
    engine: Engine = "auto"  # of kNN; no part of the key, as it changes no neighbour
    key: str = field(init=False)

    def __post_init__(self) -> None:
        key = record_key(self.protocol, self.encoder.card, self.dataset.fingerprint, (self.seed,))
        object.__setattr__(self, "key", key)


def prepare(
    encoder: str | Path | nn.Module | Encoder,
    protocol: str | Protocol,
    data: str | Path,
    *,
    dataset: str | None = None,
    name: str | None = None,
    seed: int = 0,
    precision: Precision | None = None,
    facts: Sequence[str] = (),
    index_files: Path | None = None,
    engine: Engine = "auto",
) -> Job:
    """Loads the encoder and the lists of the data, and refuses what cannot work.

    The arguments are those of `benchmarks.evaluation.evaluate`.

    Raises:
        InputError: the encoder, the protocol or the data cannot be used.
        NotApplicableError: the encoder has nothing that the protocol reads.
    """
    from benchmarks.encoders.load import load_encoder

    resolved = find_protocol(protocol) if isinstance(protocol, str) else protocol
    loaded = load_encoder(encoder, name, facts)
    family = harness(resolved.harness)
    read = {output for output, _ in family.required_outputs(resolved).values()}
    if not any(loaded.has(output) for output in read):
        raise NotApplicableError(f"{loaded.card.name} has none of {', '.join(sorted(read))}, which {resolved.id} reads")
    if index_files is not None:
        resolved = _with_index_files(resolved, index_files)
    if engine != "auto" and resolved.harness != "knn":
        raise InputError(f"{resolved.id} searches no neighbours, and --engine is for that")
    if dataset not in (None, resolved.dataset):
        resolved = marked(resolved, f"dataset={dataset}").model_copy(update={"dataset": dataset})
    if precision is not None:
        resolved = _at_precision(resolved, family, precision)
    spec = find_dataset(resolved.dataset, Path(data))
    train, test = spec.read(resolved.train_split), spec.read(resolved.test_split)
    reference = dataset_reference(resolved.dataset, train, test, embedded=is_embedded(Path(data)))
    return Job(loaded, resolved, family, train, test, reference, seed, precision or "fp32", index_files, engine)


def _with_index_files(protocol: Protocol, folder: Path) -> Protocol:
    """The protocol with the hash of the published low-shot sets, so that other files make another record."""
    if protocol.params.get("index_sets") != "files":
        raise InputError(
            f"{protocol.id} reads no low-shot sets from files; name a protocol that does, or leave them out"
        )
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.npy")):
        digest.update(file.name.encode() + file.read_bytes())
    return protocol.model_copy(update={"params": {**protocol.params, "index_sha256": digest.hexdigest()}})


def _at_precision(protocol: Protocol, family: Harness, precision: Precision) -> Protocol:
    """The protocol with this precision of the encoder, and an id that says so where it is not the protocol's own."""
    if "precision" in protocol.params:
        return family.override(protocol, {"precision": precision})
    if not family.on_features:
        raise InputError(f"{protocol.id} has no --precision to choose")
    return protocol if precision == "fp32" else marked(protocol, f"precision={precision}")


def marked(protocol: Protocol, label: str) -> Protocol:
    """The protocol with one more thing that its id says is not as published."""
    return protocol.model_copy(update={"overrides": tuple(sorted({*protocol.overrides, label}))})


def find_done(job: Job, out: Path) -> Record | None:
    """The record that makes this job needless."""
    return find_record(out, job.encoder.card, job.protocol, job.dataset, (job.seed,))


def wanted_features(job: Job) -> list[FeatureRequest]:
    """What a job reads of the feature store: of its train and of its test split."""
    from benchmarks.features.store import FeatureRequest

    outputs = {k: v for k, v in job.harness.required_outputs(job.protocol).items() if job.encoder.has(v[0])}
    splits = ((job.protocol.train_split, job.train), (job.protocol.test_split, job.test))
    return [
        FeatureRequest(job.encoder, labels, job.protocol.geometry, outputs, job.precision, f"{job.dataset.id} {name}")
        for name, labels in splits
    ]


def dataset_reference(name: str, train: Labels, test: Labels, *, embedded: bool) -> DatasetRef:
    """What a record says of its data."""
    return DatasetRef(
        id=name,
        fingerprint=canonical_sha256([fingerprint(train), fingerprint(test)]),
        embedded=embedded,
        train_items=len(train),
        test_items=len(test),
    )
