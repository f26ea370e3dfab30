"""From an encoder and two lists of images with boxes to average precision."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from benchmarks.contract import InputError, Labels, Outcome
from benchmarks.datasets.lists import fingerprint
from benchmarks.detection import densepose
from benchmarks.detection.config import configuration, require_library
from benchmarks.detection.evaluators import Scores
from benchmarks.detection.scenes import read_scenes
from benchmarks.detection.settings import settings_of
from benchmarks.encoders.encoder import Encoder
from results.schema import Protocol, Score, canonical_sha256


def required_outputs(protocol: Protocol) -> dict[str, tuple[str, None]]:
    """The last stage: a detector takes the whole backbone."""
    return {"feature5": ("feature5", None)}


def run(
    protocol: Protocol,
    encoder: Encoder,
    train: Labels,
    test: Labels,
    *,
    device: str = "cpu",
    workers: int = 2,
    workdir: Path,
    seed: int = 0,
    progress: bool = True,
) -> Outcome:
    """Fine-tunes a detector on the encoder in every trial of the protocol and measures it on `test`.

    A run that was killed goes on from its last checkpoint in `workdir`. Under torchrun the protocol's batch is split
    over the ranks.

    Raises:
        InputError: detectron2 or its project is not installed, or the splits have different classes.
        NotApplicableError: the encoder is no ResNet.
    """
    require_library()
    settings = settings_of(protocol)
    if settings.task == "densepose":
        densepose.require_project()
    if train.classes != test.classes:
        raise InputError(f"the splits of {protocol.dataset} have different classes; unpack the data set again")
    configuration(settings, encoder.card, len(train.classes))  # refuses what is no ResNet before anything is written
    if settings.task == "densepose":
        densepose.fetch_tables()
    from benchmarks.detection.sheet import Sheet
    from benchmarks.detection.train import Trial

    started = time.monotonic()
    scenes = [read_scenes(labels, settings.task, inclusive=settings.inclusive_boxes) for labels in (train, test)]
    key = canonical_sha256(
        [protocol.content_sha256(), encoder.card.weights_sha256, fingerprint(train), fingerprint(test)]
    )[:16]
    outcome = Outcome(
        scores={},
        seeds=tuple(range(seed, seed + settings.trials)),
        timing={"read": time.monotonic() - started, "train": 0.0, "test": 0.0},
    )
    trials: list[Scores] = []
    for number in outcome.seeds:
        trial = Trial(
            settings, encoder, scenes[0], scenes[1], test, seed=number, device=device, workers=workers,
            folder=workdir / key / f"trial-{number}",
        )  # fmt: skip
        started = time.monotonic()
        model = trial.train(progress=progress)
        outcome.timing["train"] += time.monotonic() - started
        started = time.monotonic()
        sheet = Sheet(test.classes) if number == seed and trial.rank == 0 else None
        found = trial.measure(model, progress=progress, look=sheet.look if sheet else None)
        outcome.timing["test"] += time.monotonic() - started
        if sheet and (png := sheet.png()):
            outcome.pictures["sheet"] = png
        trials.append(found)
        outcome.runs.append({"trial": number, **{c: found.columns[c] for c in protocol.columns}})
    _report(outcome, protocol, trials, len(test))
    return outcome


def _report(outcome: Outcome, protocol: Protocol, trials: list[Scores], images: int) -> None:
    for column in protocol.columns:
        values = [v for trial in trials if (v := trial.columns[column]) is not None]
        outcome.scores[column] = Score(
            value=float(np.mean(values)) if values else None,
            std=float(np.std(values)) if len(values) > 1 else None,
            n=images,
            selection=protocol.selection,
        )
        outcome.per_class[column] = {
            name: float(np.mean([trial.per_class[column][name] for trial in trials]))
            for name in trials[0].per_class[column]
        }
