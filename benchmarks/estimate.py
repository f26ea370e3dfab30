"""What runs would do and cost, without measuring anything: `--dry-run`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.evaluate import Question, Run, cached_record, feature_requests, load, prepare
from benchmarks.task import FeatureTask, ImageTask, InputError, RunOptions
from results.schema import Geometry

if TYPE_CHECKING:
    from benchmarks.encoders.encoder import Encoder

PROBE_IMAGES = 16


def describe(run: Run) -> list[str]:
    """Lines that say what a run would do and what it needs in time, disk and memory.

    The time is that of reading images and of the encoder's passes, both measured on a few images.
    """
    from benchmarks.features.store import FeatureStore, gib

    encoder, protocol, options = run.encoder, run.protocol, run.options
    if cached_record(run) is not None:
        return [f"done       {encoder.card.name} has a record under {protocol.id}"]
    encoder.to(options.device)
    reading = _seconds_per_image_read(run.test.paths, protocol.geometry)
    forward, width = _seconds_per_image_encoded(encoder, protocol.geometry.crop)
    cells = max(1, len(run.task.cells(protocol)))
    if isinstance(run.task, FeatureTask):
        missing = FeatureStore(options).bytes_to_write(feature_requests(run))
        images = len(run.train) + len(run.test) if missing else 0
        seconds = images * (reading + forward)
        each = ", ".join(f"{output} {gib(size)}" for output, size in sorted(missing.items()))
        disk = f"{gib(sum(missing.values()))} in {options.features}" + (f": {each}" if each else ", all there")
    else:
        seconds = cells * training_seconds(run, reading, forward)
        disk = "the heads only" if cells == 1 else f"a record for each of {cells} cells, and one for the choice"
    count = len(run.train) + len(run.test)
    return [
        f"would run  {encoder.card.name} under {protocol.id} on {len(run.train):,} + {len(run.test):,} images",
        f"  time     about {_duration(seconds)} of reading and encoder passes on {options.device}",
        f"  disk     {disk}",
        f"  memory   {count * width * 4 / 2**20:.0f} MiB for embed, and the encoder",
    ]


def training_seconds(run: Run, reading: float, forward: float) -> float:
    """Seconds of a training on images: its steps, and an evaluation after each epoch that asks for one."""
    assert isinstance(run.task, ImageTask)
    params = run.protocol.params
    epochs = int(params.get("epochs") or 1)
    trained, evaluations = len(run.train) * epochs, max(1, epochs // int(params.get("evaluate_every") or 1))
    if params.get("iterations"):
        trained, evaluations = int(params["iterations"]) * int(params["batch_size"]), 1
    step = reading + run.task.passes_per_step * forward
    return int(params.get("trials") or 1) * (trained * step + evaluations * len(run.test) * (reading + forward))


def _seconds_per_image_read(paths: Sequence[Path], geometry: Geometry) -> float:
    """Decoding and resizing one image in this process; an unreadable one costs nothing here."""
    from benchmarks.datasets.images import Images

    images, started, count = Images(paths, geometry), time.monotonic(), min(PROBE_IMAGES, len(paths))
    for row in range(count):
        with suppress(InputError):
            images[row]
    return (time.monotonic() - started) / max(1, count)


def _seconds_per_image_encoded(encoder: Encoder, crop: int) -> tuple[float, int]:
    """Seconds of a forward pass per image of noise, and the width of `embed`."""
    import torch

    images = torch.randint(0, 256, (PROBE_IMAGES, 3, crop, crop), dtype=torch.uint8)
    names = {"embed"} if encoder.has("embed") else set(list(encoder.names)[:1])
    seconds, width = 0.0, 0
    for _ in range(2):  # the first pass warms up
        started = time.monotonic()
        (found,) = encoder.outputs(encoder.normalise(images), names).values()
        width = found.cpu().shape[1]
        seconds = (time.monotonic() - started) / PROBE_IMAGES
    return seconds, width


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


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
