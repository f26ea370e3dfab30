"""What runs would do and cost, without measuring anything: `--dry-run`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.evaluate import Question, Run, cached_record, feature_requests, load, prepare
from benchmarks.task import FeatureTask, InputError, RunOptions

PROBE_IMAGES = 16


def describe(run: Run) -> list[str]:
    """Lines that say what a run would do and what it needs. The time is that of the encoder's passes, on noise."""
    import torch

    from benchmarks.features.store import FeatureStore, gib

    encoder, protocol, options = run.encoder, run.protocol, run.options
    if cached_record(run) is not None:
        return [f"done       {encoder.card.name} has a record under {protocol.id}"]
    encoder.to(options.device)
    crop = protocol.geometry.crop
    images = torch.randint(0, 256, (PROBE_IMAGES, 3, crop, crop), dtype=torch.uint8)
    for _ in range(2):  # the first one warms up
        started = time.monotonic()
        found = encoder.outputs(encoder.normalise(images), {"embed"})["embed"]
        width = len(found.cpu()[0])
        seconds = (time.monotonic() - started) / PROBE_IMAGES
    count = len(run.train) + len(run.test)
    cells = max(1, len(run.task.cells(protocol)))
    params = protocol.params
    trained = len(run.train) * int(params.get("epochs") or 1)
    if params.get("iterations"):
        trained = int(params["iterations"]) * int(params["batch_size"])
    passes = cells * int(params.get("trials") or 1) * (trained + len(run.test))
    if isinstance(run.task, FeatureTask):
        sizes = FeatureStore(options).bytes_to_write(feature_requests(run))
        each = ", ".join(f"{output} {gib(size)}" for output, size in sorted(sizes.items()))
        disk = f"{gib(sum(sizes.values()))} in {options.features}" + (f": {each}" if each else ", all there")
    else:
        disk = "the heads only" if cells == 1 else f"a record for each of {cells} cells, and one for the choice"
    return [
        f"would run  {encoder.card.name} on {len(run.train):,} + {len(run.test):,} images",
        f"  time     about {passes * seconds:.0f} s of encoder passes on {options.device}",
        f"  disk     {disk}",
        f"  memory   {count * width * 4 / 2**20:.0f} MiB for embed, and the encoder",
    ]


def dry_run(
    encoders: Sequence[str],
    questions: Sequence[Question],
    data: Path,
    options: RunOptions,
    *,
    name: str | None = None,
    dataset: str | None = None,
    facts: Sequence[str] = (),
) -> Iterator[str]:
    """Lines that say what `bench` would do with the same arguments. Every encoder is loaded once."""
    for encoder in encoders:
        try:
            loaded = load(encoder, name, facts)
        except InputError as error:
            yield f"missing    {encoder}: {_one_line(error)}"
            continue
        for question in questions:
            protocol = question.protocol
            yield f"protocol   {protocol.id}: {protocol.source.repository} {protocol.source.revision}".rstrip()
            yield f"data       {protocol.dataset} {protocol.train_split} / {protocol.test_split} in {data}"
            try:
                run = prepare(question.task, protocol, loaded, data, dataset=dataset, options=options)
            except InputError as error:
                yield f"missing    {encoder}: {_one_line(error)}"
                continue
            yield from describe(run)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
