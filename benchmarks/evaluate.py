"""Measure encoders: the one path from an encoder, a protocol and a data root to a record.

    load            read the encoder
    prepare         resolve the protocol, list the data, refuse what cannot work
    cached_record   look for a record of exactly this question
    extract         compute the stored features that are missing, in one pass per encoder and split
    measure         run the task
    write_outcome   write its record

`evaluate` does this for one encoder and one protocol; `bench` for many of both, where one failure does not stop the
others. `benchmarks.estimate` says what they would cost.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from benchmarks.datasets.lists import fingerprint
from benchmarks.datasets.registry import MissingDataError, find_dataset, is_embedded, is_official
from benchmarks.registry import AnyTask, find_protocol, load_task
from benchmarks.task import (
    FeatureTask,
    ImageTask,
    InputError,
    Items,
    Labels,
    NotApplicableError,
    Outcome,
    RunOptions,
    one_bar,
)
from results import store
from results.command_line import log_device
from results.errors import is_out_of_memory
from results.files import DISK_FULL, require_writable_folder
from results.schema import (
    LONGEST_NAME,
    DatasetRef,
    EncoderCard,
    Hardware,
    Protocol,
    ProtocolRef,
    Record,
    canonical_sha256,
    record_key,
)
from results.store import StoredRecord

if TYPE_CHECKING:
    from torch import nn

    from benchmarks.encoders.encoder import Encoder
    from benchmarks.features.extract import FeatureRequest

log = logging.getLogger("benchmarks")


@dataclass(frozen=True)
class Run:
    """One encoder under one protocol on one data set: everything that is known before anything is measured."""

    task: AnyTask
    protocol: Protocol
    encoder: Encoder
    train: Labels
    test: Labels
    dataset: DatasetRef
    options: RunOptions

    @property
    def key(self) -> str:
        """Eight hex digits that identify the question; a record of the same key answers it."""
        return record_key(self.protocol, self.encoder.card, self.dataset.fingerprint, (self.options.seed,))

    @property
    def address(self) -> tuple[Path, EncoderCard, Protocol, DatasetRef, tuple[int, ...]]:
        """What `results.store` finds its record by."""
        return self.options.records, self.encoder.card, self.protocol, self.dataset, (self.options.seed,)

    @property
    def workdir(self) -> Path:
        """Folder of resumable state, removed when the record is written."""
        return self.options.records.parent / "heads" / self.key


def evaluate(
    encoder: str | Path | nn.Module | Encoder,
    protocol: str | Protocol,
    data: str | Path,
    *,
    name: str | None = None,
    dataset: str | None = None,
    changes: Mapping[str, Any] | None = None,
    facts: Sequence[str] = (),
    task: AnyTask | None = None,
    options: RunOptions | None = None,
) -> Record:
    """Measure one encoder under one protocol and write the record, unless there is one already.

    Args:
        encoder: a module that maps normalised images (N, 3, H, W) to (N, D) or to a dict of named outputs, or what
            `--encoder` takes: a checkpoint, `torchvision:ARCH`, `timm:NAME`, … A module is measured in eval mode and
            comes back exactly as it was, also after an exception (see `benchmarks.encoders.encoder.preserved`).
        protocol: a protocol or its id, such as `knn.mmselfsup@1`.
        data: root of the data sets, or an image folder with `train/` and `val/`.
        name: of the encoder in tables.
        dataset: another data set than the protocol's own.
        changes: `params` of the protocol by name, such as {"epochs": 10}; the record's protocol id says so.
        facts: what the checkpoint's keys do not show, such as `channels=BGR`.
        task: the benchmark with flags of its own, such as `Knn(engine="torch")`.
        options: device, loader processes, folders and the like. A module is measured on its own device unless
            `device` names another. With `store=False`, what must be on disk meanwhile is in a temporary folder.

    Raises:
        InputError: the encoder, the protocol or the data cannot be used. Nothing is written.
        NotApplicableError: this encoder cannot be measured under this protocol.
        Exception: the benchmark failed. A record with status `failed` says so.
    """
    resolved = find_protocol(protocol) if isinstance(protocol, str) else protocol
    task = task or load_task(resolved.harness)()
    options = options or RunOptions()
    if changes:
        resolved = resolved.changed(**changes)
        options = options.with_precision(changes.get("precision"))
    loaded = load(encoder, name, facts)
    if options.device == "auto" and not isinstance(encoder, str | Path):
        options = replace(options, device=str(loaded.device))
    options = replace(options, device=resolve_device(options.device))
    with loaded.borrowed():
        run = prepare(task, resolved, loaded, data, dataset=dataset, options=options)
        record = cached_record(run)
        if record is not None:
            log.info("%s: %s has a record", run.encoder.card.name, run.protocol.id)
            return record
        with _folders(options) as options:
            require_writable(options)
            return measure([replace(run, options=options)])[0]


# ---- many encoders and protocols -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attempt:
    """What became of one encoder under one protocol.

    Attributes:
        encoder: its name, or what the user wrote where it could not be loaded.
        protocol: its id; empty where the encoder could not be loaded.
        status: `cached` has a record already; `skipped` cannot be measured, for lack of data or of an output.
        detail: the headline score, or the reason.
        user_error: a failure that is the input's and not the program's.
        missing: the data set that is not there.
        timing: seconds by phase of what was measured now, as its record has them.
    """

    encoder: str
    protocol: str
    status: Literal["done", "cached", "skipped", "failed"]
    detail: str
    user_error: bool = False
    missing: str = ""
    timing: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """A protocol and its task, as asked of every encoder.

    Attributes:
        optional: skip it where its data is not there, instead of failing.
    """

    task: AnyTask
    protocol: Protocol
    optional: bool = False


@dataclass(frozen=True)
class Sweep:
    """Several encoders, each to be measured under several protocols. `name`, `dataset` and `facts` as in `evaluate`.

    Attributes:
        splits: what has been read of the data, by data set and split: all runs share it.
    """

    encoders: Sequence[str]
    questions: Sequence[Question]
    data: Path
    options: RunOptions
    name: str | None = None
    dataset: str | None = None
    facts: Sequence[str] = ()
    splits: dict[tuple[str, str], Labels] = field(default_factory=dict)

    def prepare(self, question: Question, encoder: Encoder) -> Run:
        return prepare(
            question.task, question.protocol, encoder, self.data,
            dataset=self.dataset, options=self.options, splits=self.splits,
        )  # fmt: skip


def bench(sweep: Sweep) -> Iterator[Attempt]:
    """Measure every encoder under every protocol; what fails does not stop the rest.

    An encoder is loaded once, features that several protocols read are extracted in one pass, and probes that can
    share a pass over the images do.
    """
    options = sweep.options
    log.info("precision %s, %d loader processes", options.precision or "of the protocol", options.loaders)
    names = unique_names(sweep.encoders, sweep.name, sweep.facts)
    with _folders(options) as options:
        sweep = replace(sweep, options=options)
        for number, encoder in enumerate(sweep.encoders, start=1):
            try:
                loaded = load(encoder, names.get(encoder), sweep.facts)
            except InputError as error:
                yield refused(encoder, "", error)
                continue
            log.info("%d of %d  %s", number, len(sweep.encoders), loaded.card.name)
            yield from _bench_one(loaded, sweep)


def _bench_one(encoder: Encoder, sweep: Sweep) -> Iterator[Attempt]:
    """Ask one encoder every question: prepare all, extract the features that they share, then measure."""
    runs: list[Run] = []
    name = encoder.card.name
    for question in sweep.questions:
        try:
            run = sweep.prepare(question, encoder)
            record = cached_record(run)
        except InputError as error:
            yield refused(name, question.protocol.id, error, optional=question.optional)
            continue
        except Exception as error:
            log.exception("%s could not be prepared for %s", name, question.protocol.id)
            yield Attempt(name, question.protocol.id, "failed", f"{type(error).__name__}: {error}")
            continue
        if record is None:
            runs.append(run)
        else:
            yield Attempt(name, run.protocol.id, "cached", primary_score(record))
    suite = len(runs) > 1 and all(run.task.suite for run in runs)  # other tasks draw bars for their steps and epochs
    with one_bar(_images(runs), f"measuring {name}", show=sweep.options.progress and suite) as advance:
        try:
            extract(runs)
        except Exception as error:  # runs that read these features fail with the same error; the others can go on
            log.error("features of %s: %s", name, "out of memory" if is_out_of_memory(error) else error)
        for group in _by_pass(runs):
            yield from _measured(group)
            advance(_images(group))


def refused(encoder: str, protocol: str, error: InputError, *, optional: bool = False) -> Attempt:
    """An attempt that was skipped or has failed because the input cannot be used."""
    skipped = optional or isinstance(error, NotApplicableError)
    missing = error.dataset if isinstance(error, MissingDataError) else ""
    status: Literal["skipped", "failed"] = "skipped" if skipped else "failed"
    return Attempt(encoder, protocol, status, str(error), user_error=True, missing=missing)


def _images(runs: Sequence[Run]) -> int:
    """The images of both splits of each run, in which the progress of a suite is counted."""
    return sum(len(run.train) + len(run.test) for run in runs)


def _measured(runs: Sequence[Run]) -> Iterator[Attempt]:
    """Measure runs that share a pass; if it fails, each of them has failed."""
    name, started = runs[0].encoder.card.name, time.monotonic()
    try:
        records = measure(runs)
    except InputError as error:
        yield from [refused(name, run.protocol.id, error) for run in runs]
        return
    except Exception as error:
        log.exception("%s failed under %s", name, ", ".join(run.protocol.id for run in runs))
        yield from [Attempt(name, run.protocol.id, "failed", str(error) or type(error).__name__) for run in runs]
        return
    seconds = f"{time.monotonic() - started:.0f} s" + (f" for {len(runs)} together" if len(runs) > 1 else "")
    for number, record in enumerate(records):
        timing = {} if number else record.timing  # the seconds of a shared pass are in each of its records
        yield Attempt(name, record.protocol.id, "done", f"{primary_score(record)} in {seconds}", timing=timing)


def _by_pass(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that one pass over the images can serve together; the others alone."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for number, run in enumerate(runs):
        task = run.task
        shared = task.shared_pass(run.protocol) if isinstance(task, ImageTask) else None
        groups.setdefault((shared or f"alone {number}", run.dataset.fingerprint), []).append(run)
    return list(groups.values())


# ---- folders ---------------------------------------------------------------------------------------------------------


@contextmanager
def _folders(options: RunOptions) -> Iterator[RunOptions]:
    """The options, with folders that are removed afterwards where nothing is to be stored."""
    if options.store:
        yield options
        return
    with TemporaryDirectory(prefix="encoder-bench-") as folder:
        yield replace(options, records=Path(folder, "records"), features=Path(folder, "features"))


def require_writable(options: RunOptions) -> None:
    """Refuse folders that cannot be written before anything is measured. Under torchrun rank 0 does so for all.

    Raises:
        InputError: a folder cannot be made or written.
    """
    if _is_rank_zero():
        require_writable_folder(options.records, "--out")
        require_writable_folder(options.features, "--features")


# ---- one run, step by step -------------------------------------------------------------------------------------------


def resolve_device(device: str) -> str:
    """`auto` is the GPU where there is one. Under torchrun each rank takes the GPU of its local rank.

    Raises:
        InputError: this machine has no such device; the message says why.
    """
    if device == "cpu":  # without the seconds that torch takes to import
        log_device(device)
        return device
    from pretrain.distributed import own_device

    return str(own_device(device))


def load(encoder: str | Path | nn.Module | Encoder, name: str | None = None, facts: Sequence[str] = ()) -> Encoder:
    """The encoder, on the CPU; a module stays where it is (see `benchmarks.encoders.load`)."""
    from benchmarks.encoders.load import load_encoder

    loaded = load_encoder(encoder, name, facts)
    if len(loaded.card.name) > LONGEST_NAME:
        raise InputError(f"the encoder's name has more than {LONGEST_NAME} characters; give it a shorter one: --name")
    return loaded


def prepare(
    task: AnyTask,
    protocol: Protocol,
    encoder: Encoder,
    data: str | Path,
    *,
    dataset: str | None = None,
    options: RunOptions,
    splits: dict[tuple[str, str], Labels] | None = None,
) -> Run:
    """Resolve the protocol, list the data, and refuse what cannot work before anything is computed.

    Args:
        splits: see `Sweep`; what is read is added to it.

    Raises:
        InputError: the protocol or the data cannot be used.
        NotApplicableError: the encoder has none of the outputs that the protocol reads.
    """
    read = {output for output, _ in task.outputs(protocol).values()}
    if not any(encoder.has(output) for output in read):
        raise NotApplicableError(
            f"{encoder.card.name} has none of {', '.join(sorted(read))}, which {protocol.id} reads"
        )
    protocol = _resolved(task, protocol, encoder, dataset, options)
    found = find_dataset(protocol.dataset, Path(data))
    read_before = {} if splits is None else splits
    for split in (protocol.train_split, protocol.test_split):
        if (found.id, split) not in read_before:
            read_before[found.id, split] = found.read(split)
    train, test = (read_before[found.id, split] for split in (protocol.train_split, protocol.test_split))
    protocol = task.adapted(protocol, train, test)
    task.check(protocol, train, test)
    return Run(task, protocol, encoder, train, test, _dataset_ref(protocol, Path(data), train, test), options)


def _resolved(
    task: AnyTask, protocol: Protocol, encoder: Encoder, dataset: str | None, options: RunOptions
) -> Protocol:
    """The protocol as this encoder and these options make it; where that changes a number, its id says so."""
    protocol = task.for_encoder(task.resolve(protocol), encoder)
    task.check_encoder(protocol, encoder)
    if dataset is not None:
        protocol = protocol.changed(dataset=dataset)
    if task.fits_image_size:
        protocol = _at_size_of(encoder, protocol)
    if options.precision is not None:
        protocol = _at_precision(task, protocol, options)
    elif task.half_on_gpu and options.device.startswith("cuda"):
        protocol = in_half_precision(protocol, options.device)
    if options.stored != "fp32":
        if not isinstance(task, FeatureTask):
            raise InputError(f"{protocol.id} reads no stored features: leave out --stored {options.stored}")
        protocol = protocol.changed(label=f"stored={options.stored}")
    if protocol.geometry.decoder != "pil" and not isinstance(task, FeatureTask):
        raise InputError(f"{protocol.id}: only benchmarks on stored features can choose a decoder")
    return protocol


def _at_size_of(encoder: Encoder, protocol: Protocol) -> Protocol:
    """The protocol at the nearest image size that the encoder takes, and an id that says so where it is another one.

    Images are resized in proportion, so that a crop shows the same part of them.
    """
    from benchmarks.encoders.encoder import fitted_size

    before = protocol.geometry
    crop = fitted_size(encoder.card, before.crop)
    if crop == before.crop:
        return protocol
    resize = max(crop, round(before.resize * crop / before.crop)) if before.resize else 0
    return protocol.changed(geometry={"crop": crop, "resize": resize})


def _at_precision(task: AnyTask, protocol: Protocol, options: RunOptions) -> Protocol:
    """The protocol at this precision of the encoder, and an id that says so where it is not the protocol's own."""
    if "precision" in protocol.params:
        return protocol.changed(precision=options.precision)
    if not isinstance(task, FeatureTask):
        raise InputError(f"{protocol.id} has no --precision to choose")
    return protocol if options.precision == "fp32" else protocol.changed(label=f"precision={options.precision}")


def in_half_precision(protocol: Protocol, device: str) -> Protocol:
    """A protocol in float32 at the precision that the GPU multiplies fast, as its id says.

    One whose source trains in half precision is left as it is.
    """
    from pretrain.distributed import has_fast_bf16

    if protocol.params["precision"] != "fp32":
        return protocol
    changed = protocol.changed(precision="bf16" if has_fast_bf16(device) else "fp16")
    log.info("%s instead of %s on a GPU; --precision fp32 keeps the published one", changed.id, protocol.id)
    return changed


def _dataset_ref(protocol: Protocol, data: Path, train: Labels, test: Labels) -> DatasetRef:
    """What a record says of the data: which data set, whether it is the published one, and which items."""
    reference = DatasetRef(id=protocol.dataset, embedded=is_embedded(data), **_items_of(train, test))
    splits = (train, protocol.train_split), (test, protocol.test_split)
    if reference.embedded or all(is_official(labels, protocol.dataset, name) is not False for labels, name in splits):
        return reference
    return reference.model_copy(update={"official": False, "folder": data.resolve().name or "data"})


def _items_of(train: Labels, test: Labels) -> dict[str, Any]:
    """What a record says of the items of both splits."""
    lists = canonical_sha256([fingerprint(train), fingerprint(test)])
    return {"fingerprint": lists, "train_items": len(train), "test_items": len(test)}


def cached_record(run: Run) -> Record | None:
    """The intact record of exactly this question, unless `--force` asks to measure again.

    Raises:
        InputError: a newer version of this program has written a record of this question.
    """
    store.refuse_newer(store.record_path(*run.address))
    return None if run.options.force else store.find_record(*run.address)


def feature_requests(run: Run) -> list[FeatureRequest]:
    """What a run reads of the feature store: outputs of its train and of its test split."""
    from benchmarks.features.extract import FeatureRequest

    outputs = {key: value for key, value in run.task.outputs(run.protocol).items() if run.encoder.has(value[0])}
    protocol = run.protocol
    splits = (
        (protocol.train_split, run.train, protocol.geometry),
        (protocol.test_split, run.test, protocol.test_geometry or protocol.geometry),
    )
    precision = run.options.precision or "fp32"
    return [
        FeatureRequest(
            run.encoder, labels, geometry, outputs, precision, f"{run.dataset.id} {name}", stored=run.options.stored
        )
        for name, labels, geometry in splits
    ]


def extract(runs: Sequence[Run]) -> None:
    """Compute the stored features of several runs of one encoder: one pass over each split for all that is missing.

    Raises:
        InputError: see `benchmarks.features.store.FeatureStore.fill`.
    """
    on_features = [run for run in runs if isinstance(run.task, FeatureTask)]
    if on_features:
        from benchmarks.features.store import FeatureStore

        _move_encoder(on_features)
        FeatureStore(on_features[0].options).fill(request for run in on_features for request in feature_requests(run))


def _with_features(run: Run) -> tuple[Run, Any, Any]:
    """The run with the features of its splits.

    Where images could not be read, it becomes another run: of fewer items, with their own fingerprint, and with a
    protocol id that says how many are missing, so that its number stands in no published column.
    """
    from benchmarks.features.store import FeatureStore

    train, test = FeatureStore(run.options).get(feature_requests(run))
    missing = len(run.train) - len(train.labels) + len(run.test) - len(test.labels)
    if missing:
        run = replace(
            run,
            protocol=run.protocol.changed(label=f"unreadable={missing}"),
            dataset=run.dataset.model_copy(update=_items_of(train.labels, test.labels)),
            train=train.labels,
            test=test.labels,
        )
    return run, train, test


def _move_encoder(runs: Sequence[Run]) -> None:
    """Move the encoder of these runs to their device."""
    options = runs[0].options
    for run in runs:
        _warn_if_slow(run.protocol.params.get("precision", options.precision), options.device, run.protocol.id)
    runs[0].encoder.to(options.device)


@cache
def _warn_if_slow(precision: str, device: str, protocol: str) -> None:
    """Say that half precision is slow here. The run keeps it: a protocol at another precision is another protocol."""
    from pretrain.distributed import has_fast_bf16, has_fast_fp16

    for name, full, is_fast, times in (("bf16", "bfloat16", has_fast_bf16, 25), ("fp16", "float16", has_fast_fp16, 10)):
        if precision == name and not is_fast(device):
            log.warning("%s runs the encoder in %s, and %s has no %s arithmetic: this may take %d times as long as "
                        "--precision fp32", protocol, name, device, full, times)  # fmt: skip


@contextmanager
def _measuring() -> Iterator[None]:
    """No TF32 in anything that is measured, and a full disk is an InputError that names the remedy."""
    from pretrain.distributed import full_float32

    try:
        with full_float32():
            yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise InputError(
            f"cannot write {error.filename or 'a file'} ({error.strerror}); free disk space or choose another --out, "
            "and run the same command again"
        ) from error


@_measuring()
def measure(runs: Sequence[Run]) -> list[Record]:
    """Measure runs of one encoder and write their records.

    Several runs share one pass over the images; their tasks must allow that (`ImageTask.shared_pass`).

    Raises:
        InputError: the splits cannot be measured under this protocol, or the disk or the memory is full.
    """
    started = time.monotonic()
    run, options = runs[0], runs[0].options
    task = run.task
    if cells := task.cells(run.protocol):
        return [_measure_grid(run, cells)]
    _move_encoder(runs)
    try:
        if isinstance(task, FeatureTask):
            run, train, test = _with_features(run)
            if run is not runs[0] and (record := cached_record(run)) is not None:
                return [record]
            runs, extracted = [run], time.monotonic() - started
            outcomes = [task.run(run.protocol, train, test, options)]
            outcomes[0].timing["extract"] = extracted
        else:
            assert isinstance(task, ImageTask)
            protocols, workdirs = [each.protocol for each in runs], [each.workdir for each in runs]
            outcomes = task.run_together(protocols, run.encoder, run.train, run.test, workdirs, options)
    except InputError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise  # a record would not fit either
        if is_out_of_memory(error):  # of this machine today, which says nothing about the encoder
            raise _out_of_memory(run) from error
        for each in runs:
            store.write_record(options.records, _record(each, Outcome(), started, f"{type(error).__name__}: {error}"))
        raise
    records = [write_outcome(each, outcome, started) for each, outcome in zip(runs, outcomes, strict=True)]
    if _is_rank_zero():
        for each in runs:
            shutil.rmtree(each.workdir, ignore_errors=True)
    return records


def _out_of_memory(run: Run) -> InputError:
    """One sentence in place of the allocator's text."""
    subject, device = f"out of memory under {run.protocol.id}", run.options.device
    if device.startswith("cuda"):
        split = ", split the batch over several GPUs with torchrun" if isinstance(run.task, ImageTask) else ""
        return InputError(f"{subject} on {device}: run it with --device cpu{split}, or take a GPU with more memory")
    return InputError(
        f"{subject}, with at most {store.peak_memory_gib():.1f} GiB in this process: end other programs, give "
        f"--workers 0 or take a machine with more than {hardware(device).memory_gib:.0f} GiB"
    )


# ---- the record ------------------------------------------------------------------------------------------------------


def _is_rank_zero() -> bool:
    """Under torchrun every rank has the same outcome, and rank 0 writes it."""
    return int(os.environ.get("RANK", "0")) == 0


def write_outcome(run: Run, outcome: Outcome, started: float) -> Record:
    """Write the record with its heads and pictures."""
    record = _record(run, outcome, started)
    if not _is_rank_zero():
        return record.sealed()
    options = run.options
    companions = {f".{name}.png": png for name, png in outcome.pictures.items()}
    if outcome.tensors:
        from safetensors.torch import save

        companions[".heads.safetensors"] = save(outcome.tensors)
    items = None
    if outcome.items:  # with what paired comparisons need to know of the test items
        groups = run.test.groups
        items = {
            **outcome.items,
            "targets": run.test.targets,
            "ids": np.array(run.test.ids),
            "group_offsets": np.array([0, *accumulate(map(len, groups))], dtype=np.int64),
            "group_members": np.array([source for sources in groups for source in sources]),
        }
    path = store.write_record(options.records, record, items, companions)
    log.info("wrote %s", path)
    stored = store.read_record(path)
    assert isinstance(stored, StoredRecord)  # it was written a moment ago
    return stored.record  # with standard errors and the name of the outcomes file


def _record(run: Run, outcome: Outcome, started: float, error: str | None = None) -> Record:
    timing = {**outcome.timing, "total": time.monotonic() - started}
    return Record(
        status="failed" if error else "ok",
        error=error,
        encoder=run.encoder.card,
        protocol=ProtocolRef(id=run.protocol.id, sha256=run.protocol.content_sha256(), resolved=run.protocol),
        dataset=run.dataset,
        scores=outcome.scores,
        per_class=outcome.per_class,
        runs=tuple(outcome.runs),
        seeds=(run.options.seed,),
        timing={phase: round(seconds, 3) for phase, seconds in timing.items()},
        peak_memory_gib=store.peak_memory_gib(),
        versions=store.versions(),
        commit=store.commit(),
        parameters=run.encoder.parameters,
        hardware=hardware(run.options.device),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def hardware(device: str) -> Hardware:
    """This machine's processor, memory, and GPU where the run used one."""
    if not device.startswith("cuda"):
        return store.machine()
    import torch

    from pretrain.distributed import float32_kind

    return store.machine(torch.cuda.get_device_name(device), float32_kind())


def primary_score(record: Record) -> str:
    """The primary column's score, for a log line."""
    column = record.protocol.resolved.primary
    value = record.value(column)
    if value is None:
        return f"{column} –"  # noqa: RUF001 - a dash for an empty cell
    return f"{column} {value:.2f}{'%' if record.scores[column].unit == '%' else ''}"


# ---- a grid whose cells have records of their own --------------------------------------------------------------------


def _measure_grid(run: Run, cells: Sequence[Protocol]) -> Record:
    """A record per cell of a grid, then the record that chooses among them. A stopped grid keeps its finished cells."""
    started = time.monotonic()
    runs = [replace(run, protocol=cell) for cell in cells]
    records = [cached_record(each) or measure([each])[0] for each in runs]

    def items(cell: int) -> Items:
        path = store.record_path(*runs[cell].address)
        stored = store.read_record(path)
        found = (stored.outcomes() if isinstance(stored, StoredRecord) else None) or {}
        fault = _fault_of_cell(records[cell], found, len(run.test))
        if fault:
            raise InputError(f"{path}: {fault}; measure the grid again with --force")
        return found

    return write_outcome(run, run.task.summarise(run.protocol, records, items), started)


def _fault_of_cell(record: Record, found: Items, count: int) -> str:
    """Why the outcomes of a cell cannot be those of the grid; empty where they can. Its record is intact."""
    if record.outcomes_file is None:  # a benchmark that keeps none
        return ""
    if not found:
        return "its outcomes cannot be read"
    for column, score in record.scores.items():
        hits = found.get(f"correct/{column}")
        if hits is None or score.value is None:
            continue
        if hits.dtype != bool or hits.shape != (count,):
            return (
                f"its outcomes of {column} are {hits.dtype} of shape {hits.shape}, not right or wrong of {count} items"
            )
        if abs(100 * float(hits.mean()) - score.value) > 1e-3:
            return f"its outcomes of {column} give {100 * float(hits.mean()):.3f}, and it says {score.value:.3f}"
    return ""


# ---- names of encoders in tables -------------------------------------------------------------------------------------


def unique_names(encoders: Sequence[str], name: str | None, facts: Sequence[str]) -> dict[str, str | None]:
    """The name of each encoder in tables: its own (None), or with the epoch where one run has several checkpoints.

    Encoders of one name and the same epoch are repetitions, which tables average, and keep their name. Of several
    encoders, one that cannot be loaded is left out.
    """
    if len(encoders) == 1:
        return {encoders[0]: name}
    cards: dict[str, EncoderCard] = {}
    for encoder in encoders:
        with suppress(InputError), without_log():  # its measurement says why, and what was read
            cards[encoder] = load(encoder, None, facts).card  # the weights go: there may be a hundred checkpoints
    return dict(distinct_names(cards))


@contextmanager
def without_log() -> Iterator[None]:
    """Without log lines of what is read or tried beforehand: the measurement itself writes them."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def distinct_names(cards: Mapping[str, EncoderCard]) -> Iterator[tuple[str, str | None]]:
    """(what the user wrote, a name with the epoch or None) of each encoder."""
    epochs: dict[str, set[float | None]] = {}
    for card in cards.values():
        epochs.setdefault(card.name, set()).add(card.epochs)
    for encoder, card in cards.items():
        several = len(epochs[card.name]) > 1 and card.epochs is not None
        yield encoder, f"{card.name}, epoch {card.epochs:g}" if several else None
