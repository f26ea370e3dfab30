"""One encoder, one protocol, one data root: a record."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import provenance
from benchmarks.contract import InputError, Items, Labels, Outcome, Split
from benchmarks.harnesses import find_protocol, harness
from benchmarks.jobs import Job, dataset_reference, find_done, marked, prepare, wanted_features
from benchmarks.options import Engine, Precision
from benchmarks.task import RunOptions
from results.atomic import write_file
from results.schema import Protocol, ProtocolRef, Record
from results.store import StoredRecord, read_record, record_path, write_record

if TYPE_CHECKING:
    from torch import nn

    from benchmarks.encoders.encoder import Encoder
    from benchmarks.features.store import FeatureStore

log = logging.getLogger(__name__)


def evaluate(
    encoder: str | Path | nn.Module | Encoder,
    protocol: str | Protocol,
    data: str | Path,
    *,
    dataset: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    name: str | None = None,
    facts: Sequence[str] = (),
    index_files: Path | None = None,
    engine: Engine = "auto",
    out: str | Path = "work/records",
    features: str | Path = "work/features",
    device: str = "cpu",
    workers: int = 2,
    batch_size: int | None = None,
    precision: Precision | None = None,
    strict: bool = False,
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
        overrides: `params` of the protocol by name, as {"epochs": 10}; the record's protocol id says so.
        name: of the encoder, in records and tables.
        facts: what a checkpoint's keys cannot show, as `channels=BGR` (see `benchmarks.encoders.card_facts`).
        index_files: folder of published low-shot sets, for the protocol that uses them.
        engine: what proposes neighbours for kNN.
        out: folder of the records.
        features: folder of the stored features.
        batch_size: images at a time in a pass for features; default by the device and the size of the images.
        precision: of the encoder; default the protocol's own, float32 for stored features.
        strict: stop at the first image that cannot be read, instead of leaving it out and saying so in the record.
        force: measure again what has a record.

    Raises:
        InputError: the encoder, the protocol or the data cannot be used. Nothing is written.
        NotApplicableError: the protocol cannot be asked of this encoder.
        Exception: the harness failed. A record with status `failed` says so.
    """
    asked = find_protocol(protocol) if isinstance(protocol, str) else protocol
    if overrides:
        asked = harness(asked.harness).override(asked, overrides)
    job = prepare(
        encoder, asked, data, dataset=dataset, name=name, seed=seed, precision=precision, facts=facts,
        index_files=index_files, engine=engine,
    )  # fmt: skip
    done = find_done(job, Path(out))
    if done is not None and not force:
        log.info("%s: %s has a record", job.encoder.card.name, job.protocol.id)
        return done
    how: dict[str, Any] = {"device": device, "workers": workers, "batch_size": batch_size, "strict": strict}
    return run(job, Path(out), Path(features), show=show, force=force, **how)


def run(
    job: Job,
    out: Path,
    features: Path,
    *,
    device: str = "cpu",
    workers: int = 2,
    batch_size: int | None = None,
    strict: bool = False,
    show: bool = True,
    force: bool = False,
) -> Record:
    """Measures a prepared job and writes its record, and of a grid a record per cell before. See `evaluate`."""
    how: dict[str, Any] = {"device": device, "workers": workers, "batch_size": batch_size, "strict": strict}
    how |= {"show": show, "force": force}
    cells = job.harness.cells(job.protocol)
    if not cells:
        return run_together([job], out, features, **how)[0]
    started = time.monotonic()
    jobs = [replace(job, protocol=cell) for cell in cells]
    done = [None if force else find_done(one, out) for one in jobs]
    # By turns, so that the cells of a grid that was stopped are there.
    records = [found or run(one, out, features, **how) for one, found in zip(jobs, done, strict=True)]

    def items(cell: int) -> Items:
        stored = read_record(record_path(out, job.encoder.card, cells[cell], job.dataset, (job.seed,)))
        return (stored.outcomes() if isinstance(stored, StoredRecord) else None) or {}

    return _write(job, job.harness.summary(job.protocol, records, items), out, device, started)


def run_together(
    jobs: Sequence[Job],
    out: Path,
    features: Path,
    *,
    device: str = "cpu",
    workers: int = 2,
    batch_size: int | None = None,
    strict: bool = False,
    show: bool = True,
    force: bool = False,
) -> list[Record]:
    """Measures jobs of one encoder and one data set, in one pass over the images where their harness can do that."""
    together = jobs[0].harness.together([job.protocol for job in jobs])
    if together is None and len(jobs) > 1:
        settings: dict[str, Any] = {"workers": workers, "batch_size": batch_size, "strict": strict, "show": show}
        return [run(job, out, features, device=device, force=force, **settings) for job in jobs]
    started = time.monotonic()
    job = jobs[0]
    job.encoder.to(device)
    workdirs = [out.parent / "heads" / each.key for each in jobs]
    how = {"device": device, "workers": workers, "seed": job.seed, "progress": show}
    try:
        if together is not None:
            protocols = [each.protocol for each in jobs]
            outcomes = together(protocols, job.encoder, job.train, job.test, workdirs=workdirs, **how)
        elif job.harness.on_features:
            reading = {"workers": workers, "batch_size": batch_size, "strict": strict, "show": show}
            job, train, test = _with_features(job, features, **reading)
            done = find_done(job, out) if job is not jobs[0] and not force else None
            if done is not None:
                return [done]
            jobs, extraction = [job], time.monotonic() - started
            own: dict[str, Any] = {} if job.index_files is None else {"index_files": job.index_files}
            own |= {"engine": job.engine} if job.engine != "auto" else {}
            outcomes = [job.harness.run()(job.protocol, train, test, device=device, progress=show, **own)]
            outcomes[0].timing["extract"] = extraction
        else:
            runner: Callable[..., Outcome] = job.harness.run()
            outcomes = [runner(job.protocol, job.encoder, job.train, job.test, workdir=workdirs[0], **how)]
    except InputError:
        raise
    except Exception as error:
        for each in jobs:
            write_record(out, _record(each, None, f"{type(error).__name__}: {error}", device, started), None)
        raise
    records = [_write(each, outcome, out, device, started) for each, outcome in zip(jobs, outcomes, strict=True)]
    if _writes():
        for folder in workdirs:  # what a killed run would have gone on from
            shutil.rmtree(folder, ignore_errors=True)
    return records


def _writes() -> bool:
    """Under torchrun every rank has the same outcome, and rank 0 writes it."""
    return int(os.environ.get("RANK", "0")) == 0


def _write(job: Job, outcome: Outcome, out: Path, device: str, started: float) -> Record:
    record = _record(job, outcome, None, device, started)
    if not _writes():
        return record.sealed()
    items = {**outcome.items, **_items(job.test)} if outcome.items else None
    path = write_record(out, record, items)
    if outcome.tensors:
        from safetensors.torch import save_file

        partial = path.with_suffix(".heads.partial")
        save_file(outcome.tensors, partial)
        partial.replace(path.with_suffix(".heads.safetensors"))
    for name, png in outcome.pictures.items():
        write_file(path.with_suffix(f".{name}.png"), png)
    log.info("wrote %s", path)
    stored = read_record(path)
    assert isinstance(stored, StoredRecord)  # it was written a moment ago
    return stored.record  # with standard errors and the side file's name


def prefetch(jobs: Iterable[Job], features: Path, *, device: str = "cpu", **reading: Any) -> None:
    """Computes the stored features of several jobs: one pass per encoder and split for all that they read of it.

    Args:
        reading: workers, batch_size and strict, as in `benchmarks.task.RunOptions`.

    Raises:
        InputError: see `benchmarks.features.store.FeatureStore.fill`.
    """
    on_features = [job for job in jobs if job.harness.on_features]
    for job in on_features:
        job.encoder.to(device)
    _store(features, **reading).fill(want for job in on_features for want in wanted_features(job))


def _store(features: Path, *, show: bool = True, **reading: Any) -> FeatureStore:
    from benchmarks.features.store import FeatureStore

    return FeatureStore(RunOptions(features=features, progress=show, **reading))


def _with_features(job: Job, features: Path, **reading: Any) -> tuple[Job, Split, Split]:
    """The job's splits with their features.

    Where images could not be read, the job is another one: of fewer items, under their own fingerprint, and with a
    protocol id that says how many are missing, so that its number stands in no published column.
    """
    train, test = _store(features, **reading).get(wanted_features(job))
    missing = len(job.train) - len(train.labels) + len(job.test) - len(test.labels)
    if missing:
        protocol = marked(job.protocol, f"unreadable={missing}")
        reference = dataset_reference(job.dataset.id, train.labels, test.labels, embedded=job.dataset.embedded)
        job = replace(job, protocol=protocol, dataset=reference, train=train.labels, test=test.labels)
    return job, train, test


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
