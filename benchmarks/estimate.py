"""What runs would do and cost, without measuring anything: `--dry-run`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.evaluate import Question, Run, cached_record, feature_requests, load, prepare
from benchmarks.task import FeatureTask, ImageTask, InputError, RunOptions
from benchmarks.training.params import ViewParams
from benchmarks.training.probe_task import ProbeTask
from results.schema import Geometry

if TYPE_CHECKING:
    from benchmarks.encoders.encoder import Encoder

PROBE_IMAGES = 16
MOST_HEAD_IMAGES = 64  # of a timed update


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
    read = {output for output, _ in run.task.outputs(protocol).values() if encoder.has(output)}
    forward, width = _seconds_per_image_encoded(encoder, protocol.geometry.crop, read)
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
        f"  memory   {count * width * 4 / 2**20:.0f} MiB for the widest output, and the encoder",
    ]


def training_seconds(run: Run, reading: float, forward: float) -> float:
    """Seconds of a training on images: its steps with the heads' own updates, and its evaluations."""
    assert isinstance(run.task, ImageTask)
    trained, evaluated = run.task.amount(run.protocol, run.train, run.test)
    decoding, view = _seconds_per_view(run)
    step = (view or reading) + run.task.passes_per_step * forward
    if isinstance(run.task, ProbeTask):
        step += _seconds_per_image_of_heads(run)
    return decoding + trained * step + evaluated * (reading + forward)


def _seconds_per_view(run: Run) -> tuple[float, float]:
    """Seconds to decode all images once where they are kept, and those of one view; zeros for an engine's own."""
    from benchmarks.datasets.images import decode
    from benchmarks.training.images import CACHE_BYTES, training_view, view_rng

    params = run.task.params(run.protocol)
    if not isinstance(params, ViewParams):
        return 0.0, 0.0
    paths, started = run.train.paths[:PROBE_IMAGES], time.monotonic()
    images = []
    for path in paths:
        with suppress(InputError):
            images.append(decode(path))
    decoding = (time.monotonic() - started) / max(1, len(paths))
    started = time.monotonic()
    for number, image in enumerate(images):
        training_view(image, params, run.protocol.geometry, view_rng(0, 0, number))
    view = (time.monotonic() - started) / max(1, len(images))
    size = sum(3 * image.width * image.height for image in images) / max(1, len(images))
    kept = size * len(run.train) <= CACHE_BYTES
    return (decoding * len(run.train), view) if kept else (0.0, decoding + view)


def _seconds_per_image_of_heads(run: Run) -> float:
    """Seconds of an update of all heads of a probe per image, measured on noise."""
    import torch

    from benchmarks.training.probes import FrozenFeatures, HeadTrainer

    assert isinstance(run.task, ProbeTask)
    params = run.task.params(run.protocol)
    keys = [key for read in params.reads(run.encoder.names).values() for key in read]
    try:
        frozen = FrozenFeatures(run.encoder, keys, run.protocol.geometry.crop, torch.device(run.options.device))
        trainer = HeadTrainer(params, frozen, len(run.train.classes), 0)
    except InputError:
        return 0.0  # the run itself says why
    count = min(params.batch_size, MOST_HEAD_IMAGES)
    features = {key: torch.randn(count, *shape, device=frozen.device) for key, shape in frozen.shapes.items()}
    targets = torch.arange(count, device=frozen.device) % len(run.train.classes)
    seconds = 0.0
    for _ in range(2):  # the first update warms up
        started = time.monotonic()
        losses = trainer.update(features, targets, 0.0, count)
        for loss in losses.values():
            loss.cpu()  # waits for a GPU
        seconds = (time.monotonic() - started) / count
    return seconds


def _seconds_per_image_read(paths: Sequence[Path], geometry: Geometry) -> float:
    """Decoding and resizing one image in this process; an unreadable one costs nothing here."""
    from benchmarks.datasets.images import Images

    images, started, count = Images(paths, geometry), time.monotonic(), min(PROBE_IMAGES, len(paths))
    for row in range(count):
        with suppress(InputError):
            images[row]
    return (time.monotonic() - started) / max(1, count)


def _seconds_per_image_encoded(encoder: Encoder, crop: int, read: set[str]) -> tuple[float, int]:
    """Seconds of a forward pass per image of noise to the outputs that are read, and the width of one."""
    import torch

    images = torch.randint(0, 256, (PROBE_IMAGES, 3, crop, crop), dtype=torch.uint8)
    names = read or set(list(encoder.names)[:1])
    seconds, width = 0.0, 0
    for _ in range(2):  # the first pass warms up
        started = time.monotonic()
        found = encoder.outputs(encoder.normalise(images), names)
        width = max(output.cpu().shape[1] for output in found.values())
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


# ---- the frozen suite ------------------------------------------------------------------------------------------------


def plan(
    encoders: Sequence[str],
    questions: Sequence[Question],
    data: Path,
    options: RunOptions,
    *,
    name: str | None = None,
    dataset: str | None = None,
    facts: Sequence[str] = (),
) -> Iterator[str]:
    """Lines that say what several benchmarks on stored features need of each encoder: images, bytes, and time by part.

    Runs of one data set and geometry share one pass over each split. Their features are counted once.
    """
    rate = _flops_per_second(options.device)
    for encoder in encoders:
        loaded = load(encoder, name, facts)
        runs: list[Run] = []
        skipped: list[str] = []
        for question in questions:
            try:
                run = prepare(question.task, question.protocol, loaded, data, dataset=dataset, options=options)
            except InputError as error:
                skipped.append(f"  skipped  {question.protocol.id}: {_one_line(error)}")
                continue
            if cached_record(run) is None:
                runs.append(run)
            else:
                skipped.append(f"  done     {run.protocol.id} has a record")
        yield f"plan for {loaded.card.name} on {options.device}"
        loaded.to(options.device)
        total = 0.0
        for group in _by_extraction(runs):
            lines, seconds = _planned(group, rate)
            total += seconds
            yield from lines
        yield from skipped
        yield f"  total    about {_duration(total)}" + (
            ", without the parts of unknown time" if _uncounted(runs) else ""
        )


def _by_extraction(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that read features of the same images in the same geometry."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        key = (run.dataset.fingerprint, repr((run.protocol.geometry, run.protocol.test_geometry)))
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def _planned(runs: Sequence[Run], rate: float) -> tuple[list[str], float]:
    """The lines of runs that share their extraction, and their seconds."""
    from benchmarks.features.store import FeatureStore, gib

    first = runs[0]
    shape, options = first.protocol.geometry, first.options
    missing = FeatureStore(options).bytes_to_write(request for run in runs for request in feature_requests(run))
    images = len(first.train) + len(first.test)
    read = {output for run in runs for output, _ in run.task.outputs(run.protocol).values() if run.encoder.has(output)}
    forward, width = _seconds_per_image_encoded(first.encoder, shape.crop, read)
    seconds = 0.0
    about = f"{images:,} images of {first.dataset.id} (resize {shape.resize}, crop {shape.crop}, {shape.interpolation})"
    if missing:
        reading = _seconds_per_image_read(first.test.paths, shape) / max(1, options.loaders)
        seconds = images * (reading + forward)
        each = ", ".join(f"{output} {gib(size)}" for output, size in sorted(missing.items()))
        lines = [f"  extract  {about}: {each} in {options.features}, about {_duration(seconds)}"]
    else:
        lines = [f"  extract  nothing: features of {about} are there"]
    for run in runs:
        assert isinstance(run.task, FeatureTask)
        flops = run.task.flops(run.protocol, run.train, run.test, width)
        took = "unknown time" if flops is None else f"about {_duration(flops / rate)}"
        seconds += (flops or 0) / rate
        lines.append(f"  measure  {run.protocol.id}: {took}")
    return lines, seconds


def _uncounted(runs: Sequence[Run]) -> bool:
    return any(
        isinstance(run.task, FeatureTask) and run.task.flops(run.protocol, run.train, run.test, 1) is None
        for run in runs
    )


def _flops_per_second(device: str) -> float:
    """Of a float32 product, measured."""
    import torch

    side = 1024 if torch.device(device).type == "cpu" else 8192
    matrix = torch.ones(side, side, device=device)
    seconds = 1.0
    for _ in range(2):  # the first product warms up
        started = time.monotonic()
        float((matrix @ matrix)[0, 0])
        seconds = time.monotonic() - started
    return 2.0 * side**3 / max(seconds, 1e-6)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
