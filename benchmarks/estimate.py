"""What runs would do and cost, without measuring anything: `--dry-run`."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from benchmarks.datasets.registry import MissingDataError, missing_data
from benchmarks.evaluate import Attempt, Run, Sweep, cached_record, feature_requests, load, refused
from benchmarks.task import FeatureTask, ImageTask, InputError, RunOptions
from benchmarks.timed_tries import MOST_TRIED, solving_seconds, training_time
from benchmarks.training.probe_task import ProbeTask
from benchmarks.training.task import ViewParams
from results.errors import first_line, sentence_about
from results.schema import Geometry

if TYPE_CHECKING:
    from benchmarks.encoders.encoder import Encoder
    from benchmarks.features.extract import FeatureRequest

PROBE_IMAGES = 16
MOST_HEAD_IMAGES = 64  # of a timed update
UNCOUNTED = 0.5  # seconds of a run whose operations are counted: libraries, checks, a picture, errors and the record


@dataclass
class Counted:
    """What runs of one encoder share, and is counted for the first of them only.

    Attributes:
        folder: of what short tries leave behind.
        requests: features that runs before extract.
        passes: keys of passes over the images that probes share.
        seconds, runs: of all runs so far, and how many have a part of unknown time.
        ranks: that share the passes over images and the training.
    """

    folder: Path
    ranks: int = 1
    requests: list[FeatureRequest] = field(default_factory=list)
    passes: set[str] = field(default_factory=set)
    seconds: float = 0.0
    runs: int = 0
    unknown: int = 0


@contextmanager
def _counted() -> Iterator[Counted]:
    """Under torchrun the first process measures alone; its short tries do not wait for the other ranks."""
    ranks = os.environ.pop("WORLD_SIZE", None)
    try:
        with TemporaryDirectory(prefix="encoder-bench-") as folder:
            yield Counted(Path(folder), int(ranks or 1))
    finally:
        if ranks is not None:
            os.environ["WORLD_SIZE"] = ranks


def describe(run: Run, counted: Counted | None = None) -> list[str]:
    """Lines that say what a run would do and what it needs in time, disk and memory.

    Reading images, the encoder's passes and the heads' updates are measured on a few images; fitting and training in
    short tries (see `benchmarks.timed_tries`).
    """
    if counted is None:
        with _counted() as counted:
            return describe(run, counted)
    encoder, protocol, options = run.encoder, run.protocol, run.options
    if cached_record(run) is not None:
        return [f"done       {encoder.card.name} has a record under {protocol.id}"]
    encoder.to(options.device)
    reading = _seconds_per_image_read(run.test.paths, protocol.geometry)
    read = {output for output, _ in run.task.outputs(protocol).values() if encoder.has(output)}
    precision = protocol.params.get("precision", options.precision)
    forward, width = _seconds_per_image_encoded(encoder, protocol.geometry.crop, read, precision)
    cells = max(1, len(run.task.cells(protocol)))
    unknown = ""
    if isinstance(run.task, FeatureTask):
        missing, images = _newly_extracted(run, counted)
        passes = images * beside(reading, forward, options) / _sharing(counted, options)
        solving = fitting_seconds(run, width, counted.folder)
        unknown = "fitting and scoring" if solving is None else ""
        seconds = passes + (solving or 0.0)
        parts = f"{duration(passes)} of reading and encoder passes"
        parts += "" if solving is None else f", {duration(solving)} of fitting and scoring"
        each = ", ".join(f"{output} {_gib(size)}" for output, size in sorted(missing.items()))
        disk = f"{_gib(sum(missing.values()))} in {options.features}" + (f": {each}" if each else ", all there")
    else:
        seconds, parts = image_seconds(run, reading, forward, counted)
        seconds *= cells
        disk = "the heads only" if cells == 1 else f"a record for each of {cells} cells, and one for the choice"
    counted.seconds += seconds
    counted.runs += 1
    counted.unknown += bool(unknown)
    count = len(run.train) + len(run.test)
    by = f" by {counted.ranks} ranks" if counted.ranks > 1 else ""
    without = f", without {unknown}" if unknown else ""
    return [
        f"would run  {encoder.card.name} under {protocol.id} on {len(run.train):,} + {len(run.test):,} images",
        f"  time     about {duration(seconds)} on {options.device}{by}: {parts}{without}",
        f"  disk     {disk}",
        f"  memory   {count * width * 4 / 2**20:.0f} MiB for the widest output, and the encoder",
    ]


def _sharing(counted: Counted, options: RunOptions) -> int:
    """Ranks that each take their share of the images at the same time; on a CPU at most as many as there are cores."""
    return counted.ranks if options.device.startswith("cuda") else min(counted.ranks, _cores())


def beside(reading: float, computing: float, options: RunOptions) -> float:
    """Seconds per image that loader processes read while this process computes: on a CPU both want its cores."""
    if not options.loaders:
        return reading + computing
    if options.device.startswith("cuda"):
        return max(reading / options.loaders, computing)
    return reading / min(options.loaders, _cores()) + computing


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---- benchmarks on stored features -----------------------------------------------------------------------------------


def _newly_extracted(run: Run, counted: Counted) -> tuple[dict[str, int], int]:
    """Bytes by output that this run adds to what is stored or counted, and the images that are read for them."""
    from benchmarks.features.store import FeatureStore

    store, own = FeatureStore(run.options), feature_requests(run)
    before = store.bytes_to_write(counted.requests)
    after = store.bytes_to_write([*counted.requests, *own])
    missing = {output: size for output in after if (size := after[output] - before.get(output, 0))}
    known = {request.address for request in counted.requests}  # one pass serves all outputs
    images = 0
    for request in own:
        if request.address not in known and store.bytes_to_write([request]):
            images += len(request.images)
            known.add(request.address)
    counted.requests += own
    return missing, images


def fitting_seconds(run: Run, width: int, folder: Path, *, try_counted: bool = True) -> float | None:
    """Seconds of a run on stored features: for many images from a count of operations, else from short tries.

    Args:
        width: of the widest output.
        folder: see `solving_seconds`.
        try_counted: whether to try a benchmark on few images although its operations are counted.

    Returns:
        None where neither is possible.
    """
    assert isinstance(run.task, FeatureTask)
    flops = run.task.flops(run.protocol, run.train, run.test, width)
    many = max(len(run.train), len(run.test)) > 4 * MOST_TRIED
    counted = None if flops is None else flops / _flops_per_second(run.options.device) + UNCOUNTED
    if counted is not None and (many or not try_counted):
        return counted
    tried = solving_seconds(run, folder)
    return counted if tried is None else tried


# ---- benchmarks that train on images ---------------------------------------------------------------------------------


def image_seconds(run: Run, reading: float, forward: float, counted: Counted) -> tuple[float, str]:
    """Seconds of a benchmark on images, and what they consist of, in words."""
    assert isinstance(run.task, ImageTask)
    tried = training_time(run)
    trained, evaluated = run.task.amount(run.protocol, run.train, run.test)
    if tried is not None and not tried.refusal and tried.trained:
        trials = int(run.protocol.params.get("trials") or 1)
        _, view = _seconds_per_view(run)
        step = beside(view or reading, max(0.0, tried.trained - (view or reading)), run.options)
        evaluation = beside(reading, max(0.0, tried.evaluated - reading), run.options)
        ranks = _sharing(counted, run.options)
        training, testing = trained * step / ranks, evaluated * evaluation / ranks
        started = f", {duration(trials * tried.start)} of starting" if tried.start else ""
        seconds = training + testing + trials * tried.start
        return seconds, f"{duration(training)} of training, {duration(testing)} of evaluations{started}"
    shared = run.task.shared_pass(run.protocol)
    first = shared is None or shared not in counted.passes
    if shared is not None:
        counted.passes.add(shared)
    seconds = training_seconds(run, reading, forward, first=first) / _sharing(counted, run.options)
    parts = "reading, encoder passes and updates" if first else "updates in the pass of the run before"
    return seconds, parts + (f"; a short try was refused: {tried.refusal}" if tried and tried.refusal else "")


def training_seconds(run: Run, reading: float, forward: float, *, first: bool = True) -> float:
    """Seconds of a training on images: its steps with the heads' own updates, and its evaluations.

    Args:
        first: whether images are read and encoded for this run, and not in the pass of another.
    """
    assert isinstance(run.task, ImageTask)
    trained, evaluated = run.task.amount(run.protocol, run.train, run.test)
    heads = 0.0
    if isinstance(run.task, ProbeTask):
        update = _seconds_per_image_of_heads(run)
        params = run.task.params(run.protocol)
        evaluations = math.ceil(params.epochs / params.evaluate_every)
        # A pass forwards is a third of an update. Features of evaluated images are kept.
        heads = update * (trained + evaluations * evaluated / 3)
    if not first:
        return heads
    decoding, view = _seconds_per_view(run)
    encoding = run.task.passes_per_step * forward
    # Images that are kept in memory are augmented in this process.
    step = view + encoding if decoding else beside(view or reading, encoding, run.options)
    return decoding + trained * step + heads + evaluated * beside(reading, forward, run.options)


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

    images, seconds = Images(paths, geometry), [0.0]
    for row in range(min(PROBE_IMAGES, len(paths))):
        started = time.monotonic()
        with suppress(InputError):
            images[row]
        seconds.append(time.monotonic() - started)
    # A pause of the machine, or a first look at a disk, is not what each image takes.
    usual = [each for each in seconds[1:] if each <= 5 * sorted(seconds)[len(seconds) // 2]]
    return sum(usual) / max(1, len(usual))


def _seconds_per_image_encoded(encoder: Encoder, crop: int, read: set[str], precision: str | None) -> tuple[float, int]:
    """Seconds of a forward pass per image of noise to the outputs that are read, and the width of one.

    A GPU gets a batch as in a run: a small one would not fill it.
    """
    import torch

    from benchmarks.features.extract import default_batch_size
    from pretrain.distributed import AUTOCAST, full_float32

    kind = encoder.device.type
    count = PROBE_IMAGES if kind == "cpu" else default_batch_size(encoder.device, crop)
    images = torch.randint(0, 256, (count, 3, crop, crop), dtype=torch.uint8)
    names = read or set(list(encoder.names)[:1])
    seconds, width = math.inf, 0
    with full_float32(), torch.autocast(kind, AUTOCAST.get(precision or ""), enabled=precision in AUTOCAST):
        for _ in range(3):  # the first pass warms up
            started = time.monotonic()
            found = encoder.outputs(encoder.normalise(images), names)
            for output in found.values():
                output[:1].cpu()  # waits for a GPU
            seconds = min(seconds, (time.monotonic() - started) / count)
            width = max(output.shape[1] for output in found.values())
    return seconds, width


def _gib(size: float) -> str:
    from benchmarks.features.store import gib

    return gib(size)


def duration(seconds: float) -> str:
    """As 40 s, 5 min or 3.5 h."""
    return (
        f"{seconds:.1f} s"
        if seconds < 9.95
        else f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def dry_run(sweep: Sweep, attempts: list[Attempt] | None = None) -> Iterator[str]:
    """Lines that say what `bench` would do, and at last the time of all runs together.

    Every encoder is loaded once. What several runs of one encoder share is counted for the first of them. Under
    torchrun the first process says this for all.

    Args:
        attempts: gets what would become of each run if all that can start succeed, in the order of the lines.

    Raises:
        InputError: the only encoder cannot be loaded.
    """
    if int(os.environ.get("RANK", "0")):
        return
    attempts = [] if attempts is None else attempts
    seconds, runs, unknown, loading = 0.0, 0, 0, 0.0
    lacking: dict[str, str] = {}  # data sets that are not there, by protocol
    for encoder in sweep.encoders:
        started = time.monotonic()
        loaded = _loaded(encoder, sweep)
        if isinstance(loaded, Attempt):
            attempts.append(loaded)
            yield f"refused    {_one_line(loaded.detail)}"
            continue
        # Of the first one: what this process has done so far, as a run would.
        loading += time.monotonic() - started if loading else time.process_time()
        prepared: list[Run | InputError] = []
        for question in sweep.questions:
            try:
                prepared.append(sweep.prepare(question, loaded))
            except InputError as error:
                prepared.append(error)
        with _counted() as counted:
            for question, found in zip(sweep.questions, prepared, strict=True):
                protocol = question.protocol
                if question.optional and isinstance(found, MissingDataError):
                    attempts.append(refused(loaded.card.name, protocol.id, found, optional=True))
                    lacking[protocol.id] = found.dataset
                    continue
                yield f"protocol   {protocol.id}: {protocol.source.repository} {protocol.source.revision}".rstrip()
                yield f"data       {protocol.dataset} {protocol.train_split} / {protocol.test_split} in {sweep.data}"
                fault, lines = (found, []) if isinstance(found, InputError) else _described(found, counted)
                if fault:
                    attempts.append(refused(loaded.card.name, protocol.id, fault, optional=question.optional))
                    yield f"missing    {sentence_about(loaded.card.name, _one_line(fault))}"
                else:
                    attempts.append(Attempt(loaded.card.name, protocol.id, "done", ""))
                    yield from lines
            seconds, runs, unknown = seconds + counted.seconds, runs + counted.runs, unknown + counted.unknown
    if lacking:
        yield f"missing    {missing_data(lacking.values(), sweep.data)}"
    if runs:
        yield (
            f"in all     about {duration(seconds + loading)} for {runs} {'run' if runs == 1 else 'runs'}, "
            f"{duration(loading)} of it to start and to load encoders"
            + (", without the parts of unknown time" if unknown else "")
        )


def _described(run: Run, counted: Counted) -> tuple[InputError | None, list[str]]:
    """What is wrong with the encoder's outputs, such as maps of another size, or the lines of `describe`."""
    try:
        return None, describe(run, counted)
    except InputError as error:
        return error, []


def _loaded(encoder: str, sweep: Sweep) -> Encoder | Attempt:
    """One of the encoders, or why it is refused, where there are others.

    Raises:
        InputError: the only encoder cannot be loaded; the message begins with what the user wrote.
    """
    try:
        return load(encoder, sweep.name, sweep.facts)
    except InputError as error:
        said = InputError(sentence_about(encoder, str(error)))
        if len(sweep.encoders) == 1:
            raise said from error
        return refused(encoder, "", said)


# ---- the frozen suite ------------------------------------------------------------------------------------------------


def plan(sweep: Sweep, attempts: list[Attempt] | None = None) -> Iterator[str]:
    """Lines that say what several benchmarks on stored features need of each encoder: images, bytes, and time by part.

    Runs of one data set and geometry share one pass over each split. Their features are counted once.

    Args:
        attempts: as in `dry_run`.

    Raises:
        InputError: the only encoder cannot be loaded.
    """
    attempts = [] if attempts is None else attempts
    for encoder in sweep.encoders:
        loaded = _loaded(encoder, sweep)
        if isinstance(loaded, Attempt):
            attempts.append(loaded)
            yield f"refused {_one_line(loaded.detail)}"
            continue
        name = loaded.card.name
        runs: list[Run] = []
        rest: list[str] = []
        for question in sweep.questions:
            try:
                run = sweep.prepare(question, loaded)
                record = cached_record(run)
            except InputError as error:
                attempt = refused(name, question.protocol.id, error, optional=question.optional)
                attempts.append(attempt)
                rest.append(f"  {attempt.status:<7}  {question.protocol.id}: {first_line(str(error))}")
                continue
            if record is None:
                runs.append(run)
            else:
                attempts.append(Attempt(name, run.protocol.id, "cached", ""))
                rest.append(f"  done     {run.protocol.id} has a record")
        yield f"plan for {name} on {sweep.options.device}"
        loaded.to(sweep.options.device)
        with _counted() as counted:
            for group in _by_extraction(runs):
                yield from _planned_or_refused(group, counted, attempts)
        yield from rest
        yield f"  total    about {duration(counted.seconds)}" + (
            ", without the parts of unknown time" if counted.unknown else ""
        )


def _planned_or_refused(runs: Sequence[Run], counted: Counted, attempts: list[Attempt]) -> Iterator[str]:
    """The lines of runs that share their extraction; what this encoder cannot give is refused and stops no other."""
    name = runs[0].encoder.card.name
    try:
        lines = list(_planned(runs, counted))
    except InputError as error:
        if len(runs) > 1:
            for run in runs:
                yield from _planned_or_refused([run], counted, attempts)
            return
        attempts.append(refused(name, runs[0].protocol.id, error))
        lines = [f"  {attempts[-1].status:<7}  {runs[0].protocol.id}: {first_line(str(error))}"]
    else:
        attempts += [Attempt(name, run.protocol.id, "done", "") for run in runs]
    yield from lines


def _by_extraction(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that read features of the same images in the same geometry."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        key = (run.dataset.fingerprint, repr((run.protocol.geometry, run.protocol.test_geometry)))
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def _planned(runs: Sequence[Run], counted: Counted) -> Iterator[str]:
    """The lines of runs that share their extraction; adds to what is counted."""
    from benchmarks.features.store import FeatureStore

    first = runs[0]
    shape, options = first.protocol.geometry, first.options
    missing = FeatureStore(options).bytes_to_write(request for run in runs for request in feature_requests(run))
    images = len(first.train) + len(first.test)
    read = {output for run in runs for output, _ in run.task.outputs(run.protocol).values() if run.encoder.has(output)}
    forward, width = _seconds_per_image_encoded(first.encoder, shape.crop, read, options.precision)
    about = f"{images:,} images of {first.dataset.id} (resize {shape.resize}, crop {shape.crop}, {shape.interpolation})"
    if missing:
        each_image = beside(_seconds_per_image_read(first.test.paths, shape), forward, options)
        seconds = images * each_image / _sharing(counted, options)
        counted.seconds += seconds
        each = ", ".join(f"{output} {_gib(size)}" for output, size in sorted(missing.items()))
        yield f"  extract  {about}: {each} in {options.features}, about {duration(seconds)}"
    else:
        yield f"  extract  nothing: features of {about} are there"
    for run in runs:
        # The plan also stands before real runs, so that it tries only what nobody has counted.
        needed = fitting_seconds(run, width, counted.folder, try_counted=False)
        counted.seconds += needed or 0.0
        counted.unknown += needed is None
        yield f"  measure  {run.protocol.id}: " + ("unknown time" if needed is None else f"about {duration(needed)}")


@cache
def _flops_per_second(device: str) -> float:
    """Of a float32 product as solvers do it, measured."""
    import torch

    from pretrain.distributed import row_products

    side = 1024 if torch.device(device).type == "cpu" else 8192
    matrix = torch.ones(side, side, device=device)
    seconds = []
    for _ in range(6):
        started = time.monotonic()
        float(row_products(matrix, matrix)[0, 0])
        seconds.append(time.monotonic() - started)
    return 2.0 * side**3 / max(median(seconds[1:]), 1e-6)  # the first product warms up


def _one_line(said: object) -> str:
    return " ".join(str(said).split())
