"""`python -m benchmarks all`: every benchmark that the data is there for, of one encoder or many."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from benchmarks import evaluation
from benchmarks.bench import headline, settle
from benchmarks.contract import InputError, NotApplicableError
from benchmarks.datasets.registry import is_embedded
from benchmarks.encoders.encoder import Encoder
from benchmarks.encoders.load import expand, load_encoder
from benchmarks.harnesses import HARNESSES, harness
from benchmarks.jobs import Job, find_done, prepare
from benchmarks.options import Bench
from results.schema import EncoderCard, Protocol

log = logging.getLogger("benchmarks")

Status = Literal["done", "skipped", "failed"]


@dataclass
class BenchAll(Bench):
    """Runs every benchmark whose data is there, skips what has a record, goes on after a failure, and sums up."""

    only: tuple[str, ...] = ()
    """protocol ids or globs of them, as 'knn.*' 'voc07_*'; default the published variant of every benchmark, or the
    small one on embedded data"""


@dataclass(frozen=True)
class Attempt:
    """What became of one encoder under one protocol.

    Attributes:
        detail: the headline figure, or why it was skipped, or the error.
    """

    encoder: str
    protocol: str
    status: Status
    detail: str


@dataclass
class Summary:
    """All attempts, and how they are told."""

    attempts: list[Attempt] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0, or 1 where something failed, or 2 where nothing could be run."""
        counts = Counter(a.status for a in self.attempts)
        if counts["failed"]:
            return 1
        return 0 if counts["done"] or any("has a record" in a.detail for a in self.attempts) else 2

    def text(self) -> str:
        """A line per attempt, grouped by what became of it."""
        lines = []
        for status in ("done", "skipped", "failed"):
            of_status = [a for a in self.attempts if a.status == status]
            if not of_status:
                continue
            lines.append(f"{status}: {len(of_status)}")
            lines += [f"  {a.encoder}  {a.protocol}  {a.detail}" for a in of_status]
        return "\n".join(lines) + "\n"


def command(options: Annotated[BenchAll, tyro.conf.arg(name="")]) -> int:
    """Every benchmark whose data is there: skips what has a record, goes on after a failure, and sums up."""
    protocols = suite(options.data, options.only or ((options.protocol,) if options.protocol else ()))
    device = settle(options)
    if options.dry_run:
        from benchmarks.plan import plan

        for protocol in protocols:
            sys.stdout.write(plan(protocol, expand(options.encoder), options, device) + "\n")
        return 0
    summary = Summary()
    named = list(distinct(cards(options, summary)))
    for number, (text, name) in enumerate(named, start=1):
        log.info("%d of %d  %s", number, len(named), name)
        for attempt in _attempts(load_encoder(text, name, options.facts), protocols, options, device):
            log.info("%s  %s  %s  %s", attempt.status, attempt.encoder, attempt.protocol, attempt.detail)
            summary.attempts.append(attempt)
    sys.stdout.write(summary.text())
    return summary.exit_code


def suite(data: Path, only: Sequence[str] = ()) -> list[Protocol]:
    """The protocols that `all` runs: those that the patterns name, or of every benchmark the variant that suits.

    Raises:
        InputError: a pattern that names no protocol.
    """
    every = [(family, protocol) for family in HARNESSES for protocol in family.known()]
    if not only:
        embedded = is_embedded(data)
        return [p for family, p in every if p.variant == (family.embedded if embedded else family.parity)]
    for pattern in only:
        if not any(_named(protocol, pattern) for _, protocol in every):
            known = ", ".join(sorted(p.id for _, p in every))
            raise InputError(f"no protocol is called {pattern!r}; known are {known}")
    return [p for _, p in every if any(_named(p, pattern) for pattern in only)]


def distinct(cards: Iterable[tuple[str, EncoderCard]]) -> Iterator[tuple[str, str]]:
    """(what the user wrote, name) of each encoder; checkpoints of one run get the epoch into their names.

    Encoders of one name and the same epoch are repetitions, which tables average, and keep their name.
    """
    loaded = list(cards)
    epochs: dict[str, set[float | None]] = {}
    for _, card in loaded:
        epochs.setdefault(card.name, set()).add(card.epochs)
    for text, card in loaded:
        several = len(epochs[card.name]) > 1 and card.epochs is not None
        yield text, f"{card.name}, epoch {card.epochs:g}" if several else card.name


def _named(protocol: Protocol, pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in (protocol.id, protocol.id.partition("@")[0]))


def cards(options: BenchAll, summary: Summary) -> Iterator[tuple[str, EncoderCard]]:
    """The card of every encoder that can be loaded. The weights are let go: there may be a hundred checkpoints."""
    texts = expand(options.encoder)
    if options.name and len(texts) > 1:
        raise InputError(f"--name names one encoder, and there are {len(texts)}")
    for text in texts:
        try:
            yield text, load_encoder(text, options.name, options.facts).card
        except InputError as error:
            summary.attempts.append(Attempt(text, "", "failed", _one_line(error)))


def _attempts(encoder: Encoder, protocols: Sequence[Protocol], options: BenchAll, device: str) -> Iterator[Attempt]:
    """One encoder under every protocol: features that several read in one pass, probes that can share one in one."""
    jobs: list[Job] = []
    for protocol in protocols:
        prepared = _prepared(encoder, protocol, options)
        if isinstance(prepared, Attempt):
            yield prepared
        else:
            jobs.append(prepared)
    reading: dict[str, Any] = {"workers": options.workers, "batch_size": options.batch_size, "strict": options.strict}
    try:
        evaluation.prefetch(jobs, options.features, device=device, **reading)
    except Exception as error:  # those that read the features will say the same; the others can run
        log.error("features of %s: %s", encoder.card.name, error)
    for together in _by_pass(jobs):
        yield from _run(together, options, device, reading)


def _prepared(encoder: Encoder, protocol: Protocol, options: BenchAll) -> Job | Attempt:
    name = encoder.card.name
    try:
        changes = options.changes if "trials" in protocol.params else options.overrides
        if changes:
            protocol = harness(protocol.harness).override(protocol, changes)
        job = prepare(
            encoder, protocol, options.data, dataset=options.dataset, seed=options.seed, precision=options.precision,
            index_files=options.index_files if protocol.params.get("index_sets") == "files" else None,
            engine=options.engine if protocol.harness == "knn" else "auto",
        )  # fmt: skip
    except InputError as error:  # the data is not there, or the encoder has not what the protocol reads
        return Attempt(name, protocol.id, "skipped", _one_line(error))
    except Exception as error:
        log.exception("%s could not be prepared for %s", name, protocol.id)
        return Attempt(name, protocol.id, "failed", f"{type(error).__name__}: {_one_line(error)}")
    record = None if options.force else find_done(job, options.out)
    return job if record is None else Attempt(name, protocol.id, "skipped", f"has a record: {headline(record)}")


def _by_pass(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs that one pass over the images can serve side by side; the others alone."""
    groups: dict[tuple[str, str, int], list[Job]] = {}
    for number, job in enumerate(jobs):
        shares = job.harness.runner if not job.harness.on_features else ""
        groups.setdefault((shares, job.dataset.fingerprint, 0 if shares else number), []).append(job)
    found: list[list[Job]] = []
    for group in groups.values():
        shared = len(group) > 1 and group[0].harness.together([job.protocol for job in group]) is not None
        found += [group] if shared else [[job] for job in group]
    return found


def _run(jobs: list[Job], options: BenchAll, device: str, reading: Mapping[str, Any]) -> Iterator[Attempt]:
    started = time.monotonic()
    name = jobs[0].encoder.card.name
    how: dict[str, Any] = {"device": device, "force": options.force, **reading}
    status: Status
    try:
        if len(jobs) > 1:
            records = evaluation.run_together(jobs, options.out, options.features, **how)
        else:
            records = [evaluation.run(jobs[0], options.out, options.features, **how)]
    except Exception as error:  # the next protocol may work
        status = "skipped" if isinstance(error, NotApplicableError) else "failed"
        if not isinstance(error, InputError):
            log.exception("%s failed under %s", name, ", ".join(job.protocol.id for job in jobs))
        for job in jobs:
            yield Attempt(name, job.protocol.id, status, _one_line(error) or type(error).__name__)
        return
    seconds = f"{time.monotonic() - started:.0f} s" + (f" for {len(jobs)} together" if len(jobs) > 1 else "")
    for record in records:
        yield Attempt(name, record.protocol.id, "done", f"{headline(record)} in {seconds}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
