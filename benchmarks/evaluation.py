"""One encoder, one protocol, one data root: a record."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import provenance
from benchmarks.contract import InputError, Labels, Outcome, Split
from benchmarks.data.fingerprint import fingerprint
from benchmarks.data.registry import find_dataset, is_embedded
from benchmarks.harnesses import Harness, find_protocol, harness
from results.schema import DatasetRef, Protocol, ProtocolRef, Record, canonical_sha256, record_key
from results.store import StoredRecord, find_record, read_record, write_record

if TYPE_CHECKING:
    from torch import nn

    from benchmarks.encoders.encoder import Encoder

log = logging.getLogger(__name__)


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
    key: str = field(init=False)

    def __post_init__(self) -> None:
        key = record_key(self.protocol, self.encoder.card, self.dataset.fingerprint, (self.seed,))
        object.__setattr__(self, "key", key)


def evaluate(
    encoder: str | Path | nn.Module | Encoder,
    protocol: str | Protocol,
    data: str | Path,
    *,
    dataset: str | None = None,
    name: str | None = None,
    out: str | Path = "work/records",
    features: str | Path = "work/features",
    device: str = "cpu",
    workers: int = 2,
    seed: int = 0,
    force: bool = False,
    show: bool = True,
) -> Record:
    """Measures one encoder under one protocol and writes the record, unless the same was measured before.

    Args:
        encoder: a module, or what `--encoder` takes (see `benchmarks.encoders.load`).
        protocol: a protocol or its id, as `knn.mmselfsup@1`.
        data: the root of the data sets, or an image folder.
        dataset: another data set than the protocol's own.
        name: of the encoder, in records and tables.
        out: folder of the records.
        features: folder of the stored features.
        force: measure again what has a record.

    Raises:
        InputError: the encoder, the protocol or the data cannot be used. Nothing is written.
        Exception: the harness failed. A record with status `failed` says so.
    """
    job = prepare(encoder, protocol, data, dataset=dataset, name=name, seed=seed)
    done = find_done(job, Path(out))
    if done is not None and not force:
        log.info("%s: %s has a record", job.encoder.card.name, job.protocol.id)
        return done
    return run(job, Path(out), Path(features), device=device, workers=workers, show=show)


def prepare(
    encoder: str | Path | nn.Module | Encoder,
    protocol: str | Protocol,
    data: str | Path,
    *,
    dataset: str | None = None,
    name: str | None = None,
    seed: int = 0,
) -> Job:
    """Loads the encoder and the lists of the data, and refuses what cannot work. See `evaluate`."""
    from benchmarks.encoders.load import load_encoder

    resolved = find_protocol(protocol) if isinstance(protocol, str) else protocol
    loaded = load_encoder(encoder, name)
    if dataset is not None:
        resolved = resolved.model_copy(update={"dataset": dataset})
    spec = find_dataset(resolved.dataset, Path(data))
    train, test = spec.read(resolved.train_split), spec.read(resolved.test_split)
    reference = DatasetRef(
        id=resolved.dataset,
        fingerprint=canonical_sha256([fingerprint(train), fingerprint(test)]),
        embedded=is_embedded(Path(data)),
        train_items=len(train),
        test_items=len(test),
    )
    return Job(loaded, resolved, harness(resolved.harness), train, test, reference, seed)


def find_done(job: Job, out: Path) -> Record | None:
    """The record that makes this job needless."""
    return find_record(out, job.encoder.card, job.protocol, job.dataset, (job.seed,))


def run(job: Job, out: Path, features: Path, *, device: str = "cpu", workers: int = 2, show: bool = True) -> Record:
    """Measures a prepared job and writes its record. See `evaluate`."""
    started = time.monotonic()
    job.encoder.to(device)
    try:
        outcome = _measure(job, out, features, device, workers, show)
    except InputError:
        raise
    except Exception as error:
        write_record(out, _record(job, None, f"{type(error).__name__}: {error}", device, started), None)
        raise
    record = _record(job, outcome, None, device, started)
    if int(os.environ.get("RANK", "0")) > 0:  # under torchrun every rank has the same outcome, and rank 0 writes it
        return record.sealed()
    items = {**outcome.items, **_items(job.test)} if outcome.items else None
    path = write_record(out, record, items)
    if outcome.tensors:
        from safetensors.torch import save_file

        partial = path.with_suffix(".heads.partial")
        save_file(outcome.tensors, partial)
        partial.replace(path.with_suffix(".heads.safetensors"))
    log.info("wrote %s", path)
    stored = read_record(path)
    assert isinstance(stored, StoredRecord)  # it was written a moment ago
    return stored.record  # with standard errors and the side file's name


def _measure(job: Job, out: Path, features: Path, device: str, workers: int, show: bool) -> Outcome:
    runner: Callable[..., Outcome] = job.harness.run()
    if not job.harness.on_features:
        workdir = out.parent / "heads" / job.key
        return runner(
            job.protocol, job.encoder, job.train, job.test,
            device=device, workers=workers, workdir=workdir, seed=job.seed, progress=show,
        )  # fmt: skip
    started = time.monotonic()
    train, test = (_split(job, labels, features, workers, show) for labels in (job.train, job.test))
    extraction = time.monotonic() - started
    outcome = runner(job.protocol, train, test, device=device, progress=show)
    outcome.timing["extract"] = extraction
    return outcome


def _split(job: Job, labels: Labels, features: Path, workers: int, show: bool) -> Split:
    from benchmarks.features.store import FeatureStore

    outputs = {k: v for k, v in job.harness.required_outputs(job.protocol).items() if job.encoder.has(v[0])}
    if not outputs:
        raise InputError(f"{job.encoder.card.name} has none of the outputs that {job.protocol.id} reads")
    arrays = FeatureStore(features).get(job.encoder, labels, job.protocol.geometry, outputs, workers=workers, show=show)
    return Split(labels, arrays)


def _items(test: Labels) -> dict[str, NDArray[Any]]:
    """What paired comparisons need to know of the test items, beside what happened to them."""
    offsets = [0, *accumulate(len(sources) for sources in test.groups)]
    return {
        "targets": test.targets,
        "ids": np.array(test.ids),
        "group_offsets": np.array(offsets, dtype=np.int64),
        "group_members": np.array([source for sources in test.groups for source in sources]),
    }


def _record(job: Job, outcome: Outcome | None, error: str | None, device: str, started: float) -> Record:
    outcome = outcome or Outcome(scores={})
    timing = {**outcome.timing, "total": time.monotonic() - started}
    return Record(
        status="failed" if error else "ok",
        error=error,
        encoder=job.encoder.card,
        protocol=ProtocolRef(id=job.protocol.id, sha256=job.protocol.content_sha256(), resolved=job.protocol),
        dataset=job.dataset,
        scores=outcome.scores,
        per_class=outcome.per_class,
        runs=tuple(outcome.runs),
        seeds=(job.seed,),
        timing={phase: round(seconds, 3) for phase, seconds in timing.items()},
        peak_memory_gib=provenance.peak_memory_gib(),
        versions=provenance.versions(),
        commit=provenance.commit(),
        hardware=provenance.hardware(device),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
