"""Time short tries of a benchmark, from which the time of a whole run is reckoned.

A benchmark on stored features is run on made-up features of a part of the images. A benchmark that trains on images is
run for a few steps and evaluated on a few images. Everything that a try writes is in a temporary folder.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.evaluate import Run, without_log, write_outcome
from benchmarks.task import FeatureTask, ImageTask, Labels, Outcome, RunOptions, Split

log = logging.getLogger("benchmarks")

FEWEST_TRIED, MOST_TRIED = 8, 512  # images of a split on which fitting is tried
MOST_RETRIED = 2048  # the same, where fewer are refused or take no time
MOST_TRIED_VALUES = 2**26  # numbers of made-up features: 256 MB
SHORT_TRY = 1.0  # seconds up to which more images are tried
LONG_TRY = 2.0  # seconds from which nothing is tried twice, and of a training step that is tried
MOST_POWER = 2.5  # of the number of images, with which the time of a solver grows
CLASS_SPREAD = 0.07  # of the classes' means, where the features of a class spread by 1: classes overlap

FIRST_BATCH = 2
FEW, MANY = (1, 2), (4, 8)  # training steps and evaluated images of the shorter and of the longer try
HELD_OUT_ROOM = 16  # training images that leave some for a part to be held out


# ---- benchmarks on stored features -----------------------------------------------------------------------------------


def solving_seconds(run: Run, folder: Path) -> float | None:
    """Seconds that a benchmark takes once its features are stored; None where that cannot be tried.

    It is run on made-up features of a quarter and of an eighth of the images, at most `MOST_TRIED`, or of more where so
    few are refused or take no time, with all that is written. The two times give the power of the number of images by
    which the time of all is reckoned.

    Args:
        folder: of the tries of one encoder, so that what one benchmark leaves for another is left here too.
    """
    assert isinstance(run.task, FeatureTask)
    smallest, largest = sorted((len(run.train), len(run.test)))
    if smallest < FEWEST_TRIED:
        return None
    from benchmarks.features.extract import widths

    outputs = {key: output for key, output in run.task.outputs(run.protocol).items() if run.encoder.has(output[0])}
    dims = widths(run.encoder, run.protocol.geometry, outputs)
    share = max(min(0.25, MOST_TRIED / largest), FEWEST_TRIED / smallest)
    while True:
        share = min(1.0, share, MOST_TRIED_VALUES / (largest * sum(dims.values())))
        whole = _tried(run, dims, share, folder)
        largest_share = share == 1 or 2 * share * largest > MOST_RETRIED
        if largest_share or (whole is not None and whole.seconds > SHORT_TRY):
            break
        share *= 2
    if whole is None or share == 1:
        return whole.seconds if whole else None
    half = _tried(run, dims, share / 2, folder) or Try(whole.growing / 2, whole.fixed)
    return extrapolated(half.growing, whole.growing, 1 / share) + min(half.fixed, whole.fixed)


@dataclass(frozen=True)
class Try:
    """Seconds of a run on a part of the images.

    Attributes:
        growing: of fitting, scoring and the record with its standard errors: they grow with the number of images.
        fixed: of the rest, such as a picture of a few images.
    """

    growing: float
    fixed: float

    @property
    def seconds(self) -> float:
        return self.growing + self.fixed


def extrapolated(half: float, whole: float, factor: float) -> float:
    """Seconds of `factor` times as many images as took `whole` seconds, of which half of the images took `half`."""
    power = math.log2(max(whole, 1e-9) / max(half, 1e-9))
    return whole * factor ** min(max(power, 0.0), MOST_POWER)


def _tried(run: Run, dims: Mapping[str, int], share: float, folder: Path) -> Try | None:
    """The quicker of two tries, unless one is long: the first also does what is done once, such as imports."""
    first = _try(run, dims, share, seed=0, folder=folder)
    if first is None or first.seconds > LONG_TRY:
        return first
    second = _try(run, dims, share, seed=1, folder=folder) or first
    return Try(min(first.growing, second.growing), min(first.fixed, second.fixed))


def _try(run: Run, dims: Mapping[str, int], share: float, *, seed: int, folder: Path) -> Try | None:
    """One run on made-up features of a share of the images; None where that is refused or fails."""
    assert isinstance(run.task, FeatureTask)
    splits = []
    for number, labels in enumerate((run.train, run.test)):
        rows = np.linspace(0, len(labels) - 1, max(2, round(share * len(labels)))).astype(np.int64)
        splits.append(made_up(labels.rows(rows), dims, 2 * seed + number))
    train, test = splits
    with without_log():
        started = time.monotonic()
        try:
            options = _options(run, folder)
            outcome = run.task.run(run.protocol, train, test, options)
            ran = time.monotonic()
            write_outcome(replace(run, train=train.labels, test=test.labels, options=options), outcome, started)
        except Exception as error:  # too few images of a class, and whatever else made-up features may cause
            log.debug("%s cannot be tried: %s", run.protocol.id, error)
            return None
        written = time.monotonic() - ran
    fixed = max(0.0, ran - started - sum(outcome.timing.values())) if outcome.timing else 0.0
    return Try(ran - started - fixed + written, fixed)


def made_up(labels: Labels, dims: Mapping[str, int], seed: int) -> Split:
    """Positive features, as a network's after its last ReLU, that lie around a mean of each class."""
    targets = np.maximum(labels.targets, 0)
    if targets.ndim == 1:
        targets = np.eye(max(1, len(labels.classes)), dtype=np.float32)[targets]
    features = {}
    for key, width in dims.items():
        means = CLASS_SPREAD * np.random.default_rng(len(key)).standard_normal((targets.shape[1], width), np.float32)
        noise = np.random.default_rng(seed).standard_exponential((len(labels), width), np.float32)  # spreads by 1
        features[key] = np.maximum(noise + targets.astype(np.float32) @ means, 0)
    return Split(labels, features)


# ---- benchmarks that train on images ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingTime:
    """Seconds of a training on images.

    Attributes:
        start: what is done once in each trial.
        trained: of an image in a training step, its reading included.
        evaluated: of an image in an evaluation.
        refusal: why nothing could be tried; empty where it could.
    """

    start: float = 0.0
    trained: float = 0.0
    evaluated: float = 0.0
    refusal: str = ""


def training_time(run: Run) -> TrainingTime | None:
    """The seconds of a training from a shorter and a longer try; None where the benchmark has no training to cut."""
    assert isinstance(run.task, ImageTask)
    cells = run.task.cells(run.protocol)
    task, run = run.task, replace(run, protocol=cells[0]) if cells else run
    if not len(run.train) or not len(run.test) or task.shortened(run.protocol, 1, 1) is None:
        return None
    full = int(run.protocol.params["batch_size"])
    largest = max(1, min(full, len(run.train) // MANY[0]))
    try:
        first = min(FIRST_BATCH, largest)
        train, _ = _seconds_trained(run, FEW, first)  # warms up
        batch = min(largest, max(first, math.floor(LONG_TRY * first / max(train, 1e-6))))
        few = _seconds_trained(run, FEW, batch)
        many = _seconds_trained(run, MANY, batch)
    except Exception as error:  # a library that is not installed, too few images of a class
        log.debug("%s cannot be tried: %s", run.protocol.id, error)
        return TrainingTime(refusal=" ".join(str(error).split()) or type(error).__name__)
    trained = (many[0] - few[0]) / ((MANY[0] - FEW[0]) * batch)
    if trained <= 0:  # a pause of the machine in the shorter try: the longer one bounds it
        trained = many[0] / (MANY[0] * batch)
    evaluated = max(0.0, many[1] - few[1]) / (MANY[1] - FEW[1])
    start = max(0.0, few[0] - FEW[0] * batch * trained) + max(0.0, few[1] - FEW[1] * evaluated)
    return TrainingTime(start, trained, evaluated)


def _seconds_trained(run: Run, length: tuple[int, int], batch: int) -> tuple[float, float]:
    """Seconds of training and of evaluation in a run of so many steps and evaluated images.

    Raises:
        Exception: the benchmark refuses the few images, or cannot run here.
    """
    assert isinstance(run.task, ImageTask)
    steps, tested = length
    protocol = run.task.shortened(run.protocol, steps, batch)
    assert protocol is not None
    images = steps * batch if "iterations" not in protocol.params else max(HELD_OUT_ROOM, batch)
    train, test = _some(run.train, images), _some(run.test, tested)
    with TemporaryDirectory(prefix="encoder-bench-") as folder, without_log():
        options = replace(_options(run, Path(folder)), workers=0)
        outcome = run.task.run(protocol, run.encoder, train, test, Path(folder, "state"), options)
    return _phases(outcome)


def _phases(outcome: Outcome) -> tuple[float, float]:
    """Seconds of training and of evaluation."""
    return outcome.timing.get("train", 0.0), outcome.timing.get("test", outcome.timing.get("evaluate", 0.0))


def _some(labels: Labels, count: int) -> Labels:
    return labels.rows(np.unique(np.linspace(0, len(labels) - 1, min(count, len(labels))).astype(np.int64)))


# ---- both ------------------------------------------------------------------------------------------------------------


def _options(run: Run, folder: Path) -> RunOptions:
    return replace(run.options, records=folder / "records", features=folder / "features", progress=False)
