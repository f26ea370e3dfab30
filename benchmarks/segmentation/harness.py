"""From an encoder and two lists of images with masks to mIoU."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contract import InputError, Labels, Outcome
from benchmarks.datasets.lists import fingerprint
from benchmarks.encoders.encoder import Encoder
from benchmarks.segmentation.config import model_config
from benchmarks.segmentation.mmsegmentation import require_library
from benchmarks.segmentation.score import SegmentationScore, score
from benchmarks.segmentation.settings import settings_of
from results.schema import Protocol, Score, canonical_sha256


def required_outputs(protocol: Protocol) -> dict[str, tuple[str, None]]:
    """The last stage, which the head sits on."""
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
    """Fine-tunes an FCN on the encoder in every trial of the protocol and measures it on `test`.

    A run that was killed goes on from its last checkpoint in `workdir`. Under torchrun the protocol's batch is split
    over the ranks.

    Raises:
        InputError: mmsegmentation is not installed, or images lack their masks.
        NotApplicableError: the encoder is no ResNet.
    """
    require_library()
    settings = settings_of(protocol)
    classes = train.classes
    if len(classes) != settings.classes:
        raise InputError(
            f"{protocol.dataset} has {len(classes)} classes with the background and {protocol.id} is for "
            f"{settings.classes}; choose the protocol of this data set, or --set classes={len(classes)}"
        )
    model_config(settings, encoder.card, synchronised=False)  # refuses what is no ResNet before anything is written
    from benchmarks.segmentation.sheet import Sheet
    from benchmarks.segmentation.train import Trial

    key = canonical_sha256(
        [protocol.content_sha256(), encoder.card.weights_sha256, fingerprint(train), fingerprint(test)]
    )[:16]
    outcome = Outcome(scores={}, seeds=tuple(range(seed, seed + settings.trials)), timing={"train": 0.0, "test": 0.0})
    trials: list[SegmentationScore] = []
    pooled = np.zeros((len(test), 3, settings.classes), dtype=np.int64)
    for number in outcome.seeds:
        trial = Trial(
            settings, encoder, train, test, seed=number, device=device, workers=workers,
            folder=workdir / key / f"trial-{number}",
        )  # fmt: skip
        started = time.monotonic()
        model = trial.train(progress=progress)
        outcome.timing["train"] += time.monotonic() - started
        started = time.monotonic()
        sheet = Sheet(test, classes) if number == seed and trial.rank == 0 else None
        per_image = trial.measure(model, progress=progress, look=sheet.look if sheet else None)
        if sheet and (png := sheet.png()):
            outcome.pictures["sheet"] = png
        outcome.timing["test"] += time.monotonic() - started
        trials.append(score(per_image))
        pooled += per_image
        outcome.runs.append(_run(number, trials[-1]))
    outcome.items["iou/mIoU"] = pooled
    _report(outcome, protocol, trials, classes, len(test))
    return outcome


def _run(seed: int, found: SegmentationScore) -> dict[str, Any]:
    return {"trial": seed, "mIoU": found.mean_iou, "mAcc": found.mean_accuracy, "aAcc": found.pixel_accuracy}


def _report(
    outcome: Outcome, protocol: Protocol, trials: list[SegmentationScore], classes: tuple[str, ...], images: int
) -> None:
    for column in protocol.columns:
        values = [run[column] for run in outcome.runs]
        outcome.scores[column] = Score(
            value=float(np.mean(values)),
            std=float(np.std(values)) if len(values) > 1 else None,
            n=images,
            selection=protocol.selection,
        )
    for column, of_trials in (("mIoU", [t.iou for t in trials]), ("mAcc", [t.accuracy for t in trials])):
        measured = np.stack(of_trials)
        outcome.per_class[column] = {
            name: float(value)
            for name, value in zip(classes, measured.mean(axis=0), strict=True)
            if np.isfinite(value)  # it was to be seen in every trial
        }
