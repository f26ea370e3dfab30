"""A harness's command: several encoders one after the other, each to its record."""

from __future__ import annotations

import logging
import sys
import time

import torch

from benchmarks import evaluation
from benchmarks.contract import InputError
from benchmarks.data.registry import is_embedded
from benchmarks.encoders.load import expand
from benchmarks.harnesses import find_protocol, harness
from benchmarks.options import Bench
from results.schema import Protocol, Record

log = logging.getLogger("benchmarks")


def bench(command: str, options: Bench) -> int:
    """Runs a harness on every encoder of the options.

    One that fails does not stop the others. Returns 0, or 1 where a run failed, or 2 where nothing could be run.
    """
    protocol = _protocol(command, options)
    encoders = expand(options.encoder)
    if options.name and len(encoders) > 1:
        raise InputError(f"--name names one encoder, and there are {len(encoders)}")
    if options.threads:
        torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    if options.dry_run:
        from benchmarks.plan import plan

        sys.stdout.write(plan(protocol, encoders, options, device))
        return 0
    failures: list[tuple[str, Exception]] = []
    for number, encoder in enumerate(encoders, start=1):
        try:
            job = evaluation.prepare(
                encoder, protocol, options.data, dataset=options.dataset, name=options.name, seed=options.seed
            )
            record = None if options.force else evaluation.find_done(job, options.out)
            started = time.monotonic()
            fresh = record is None
            if record is None:
                record = evaluation.run(job, options.out, options.features, device=device, workers=options.workers)
            how = f"{time.monotonic() - started:.1f} s" if fresh else "has a record"
            log.info("%d of %d  %s  %s  %s (%s)", number, len(encoders), record.encoder.name, protocol.id,
                     headline(record), how)  # fmt: skip
        except Exception as error:  # the next encoder may be sound
            failures.append((encoder, error))
            if not isinstance(error, InputError):
                log.exception("%s failed under %s", encoder, protocol.id)
    for encoder, fault in failures:
        sys.stderr.write(f"benchmarks: {encoder}: {' '.join(str(fault).split())}\n")
    unusable = failures and all(isinstance(fault, InputError) for _, fault in failures)
    return 2 if unusable else 1 if failures else 0


def _protocol(command: str, options: Bench) -> Protocol:
    family = harness(command)
    if options.protocol is None:
        return family.default(is_embedded(options.data) and options.dataset is None)
    protocol = find_protocol(options.protocol)
    if protocol.harness != command:
        raise InputError(f"{protocol.id} is run by `python -m benchmarks {protocol.harness}`, not {command}")
    return protocol


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
