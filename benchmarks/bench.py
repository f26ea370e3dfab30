"""A harness's command: several encoders one after the other, each to its record."""

from __future__ import annotations

import logging
import os
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks import evaluation
from benchmarks.contract import InputError, NotApplicableError
from benchmarks.datasets.registry import is_embedded
from benchmarks.encoders.encoder import Encoder
from benchmarks.encoders.load import expand
from benchmarks.harnesses import find_protocol, harness
from benchmarks.jobs import Job, find_done, prepare
from benchmarks.options import Bench
from results.schema import Protocol, Record

log = logging.getLogger("benchmarks")


def bench(command: str, options: Bench) -> int:
    """Runs a harness on every encoder of the options.

    One that fails does not stop the others. Returns 0, or 1 where a run failed, or 2 where nothing could be run.
    """
    protocols = _protocols(command, options)
    encoders = expand(options.encoder)
    if options.name and len(encoders) > 1:
        raise InputError(f"--name names one encoder, and there are {len(encoders)}")
    device = settle(options)
    if options.dry_run:
        from benchmarks.plan import plan

        sys.stdout.write("\n".join(plan(protocol, encoders, options, device) for protocol in protocols))
        return 0
    tally = _Tally()
    for number, encoder in enumerate(encoders, start=1):
        _measure(f"{number} of {len(encoders)}", encoder, protocols, options, device, tally)
    for kind, of_kind in (("skipped: ", tally.skipped), ("", tally.failures)):
        for encoder, fault in of_kind:
            sys.stderr.write(f"benchmarks: {encoder}: {kind}{' '.join(str(fault).split())}\n")
    return tally.exit_code


@dataclass
class _Tally:
    """What became of the encoders: each fault stands with what the user wrote."""

    done: int = 0
    skipped: list[tuple[str, Exception]] = field(default_factory=list)
    failures: list[tuple[str, Exception]] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        if self.failures:
            return 2 if all(isinstance(fault, InputError) for _, fault in self.failures) else 1
        return 0 if self.done or not self.skipped else 2


def _measure(
    position: str, encoder: str, protocols: list[Protocol], options: Bench, device: str, tally: _Tally
) -> None:
    """One encoder under every protocol; what goes wrong is put down, as the next encoder may be sound."""
    jobs: list[Job] = []
    loaded: str | Encoder = encoder
    try:
        for protocol in protocols:
            try:
                job = prepare(
                    loaded, protocol, options.data, dataset=options.dataset, name=options.name, seed=options.seed,
                    precision=options.precision, facts=options.facts,
                    index_files=options.index_files, engine=options.engine,
                )  # fmt: skip
            except NotApplicableError as reason:
                tally.skipped.append((encoder, reason))
                continue
            loaded = job.encoder
            record = None if options.force else find_done(job, options.out)
            if record is None:
                jobs.append(job)
                continue
            tally.done += 1
            log.info("%s  %s  %s  %s (has a record)", position, record.encoder.name, protocol.id, headline(record))
        if not jobs:
            return
        started = time.monotonic()
        how: dict[str, Any] = {"device": device, "workers": options.workers, "force": options.force}
        how |= {"batch_size": options.batch_size, "strict": options.strict}
        if len(jobs) > 1:
            records = evaluation.run_together(jobs, options.out, options.features, **how)
        else:
            records = [evaluation.run(jobs[0], options.out, options.features, **how)]
        seconds = time.monotonic() - started
        for record in records:
            tally.done += 1
            log.info("%s  %s  %s  %s (%.1f s)", position, record.encoder.name, record.protocol.id, headline(record),
                     seconds)  # fmt: skip
    except NotApplicableError as reason:
        tally.skipped.append((encoder, reason))
    except Exception as error:
        tally.failures.append((encoder, error))
        if not isinstance(error, InputError):
            log.exception("%s failed under %s", encoder, ", ".join(protocol.id for protocol in protocols))


def _protocols(command: str, options: Bench) -> list[Protocol]:
    """What a command runs: one protocol, or one for each of its parts."""
    family = harness(command)
    if family.parts:
        if options.protocol:
            raise InputError(
                f"--protocol: {command} runs those of {', '.join(family.parts)}; name one of these instead"
            )
        return [_protocol(part, options) for part in family.parts]
    return [_protocol(command, options)]


def _protocol(command: str, options: Bench) -> Protocol:
    family = harness(command)
    if options.protocol is None:
        protocol = family.default(is_embedded(options.data) and options.dataset is None, options.dataset)
    else:
        protocol = find_protocol(options.protocol)
    if protocol.harness != command:
        raise InputError(f"{protocol.id} is run by `python -m benchmarks {protocol.harness}`, not {command}")
    return family.override(protocol, options.changes) if options.changes else protocol


def settle(options: Bench) -> str:
    """Applies what concerns the whole process, and names the device.

    Raises:
        InputError: no such number of threads, or records that could not be written once they are measured.
    """
    for folder in (options.out, options.features):
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file and should be a folder; name another with --out or --features")
    if options.threads is not None:
        if options.threads < 1:
            raise InputError(f"--threads is {options.threads}, and should be 1 or more")
        torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    if device == "cuda" and "LOCAL_RANK" in os.environ:  # else every rank has its first tensors on the first GPU
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return device


def resolve_device(device: str) -> str:
    """`auto` is the GPU where there is one."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def headline(record: Record) -> str:
    """The primary column's figure, for a log line."""
    column = record.protocol.resolved.primary
    score = record.scores.get(column)
    if score is None or score.value is None:
        return f"{column} –"  # noqa: RUF001 - a dash for an empty cell
    return f"{column} {score.value:.2f}{score.unit}"
