"""The frozen suite on one pass over the images, against a pass for each of its benchmarks."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.__main__ import frozen_suite
from benchmarks.evaluate import bench
from benchmarks.task import RunOptions
from results.store import read_records

from .features import compose
from .measurement import Entries, Entry, entry, timed

ENCODER = "random:resnet18"
CLASSES, TRAIN, VAL = 6, 16, 4  # images of each class: as many as few-shot's largest n


def entries() -> Entries:
    return {"frozen": measure_suite}


def measure_suite(encoder: str = ENCODER, classes: int = CLASSES) -> Entry:
    """kNN, logistic regression, class means and few-shot of an image folder, from JPEG files to records."""
    logging.disable(logging.INFO)
    try:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            images = image_folder(root / "images", classes)
            suite = [question for question in frozen_suite(images) if not question.optional]
            measure_all(encoder, suite[:1], images, root / "warm")
            ours = measure_all(encoder, suite, images, root / "suite")
            apart = [measure_all(encoder, [each], images, root / each.protocol.benchmark) for each in suite]
    finally:
        logging.disable(logging.NOTSET)
    total, solving = ours
    extraction = min(seconds - solved for seconds, solved in apart)
    return entry(
        "frozen",
        ours=total,
        baseline=sum(seconds for seconds, _ in apart),
        described="each benchmark by itself, with an extraction of its own",
        limit_s=extraction + min(solving, sum(solved for _, solved in apart)),
        limit="one extraction and the solvers",
        note=f"{encoder}, {classes * (TRAIN + VAL)} JPEGs of 500x375 in {classes} classes, {len(suite)} benchmarks: "
        f"one extraction {extraction:.1f} s, all solvers {solving:.1f} s",
    )


def measure_all(encoder: str, questions: Sequence[Any], images: Path, root: Path) -> tuple[float, float]:
    """Seconds of these benchmarks with features of their own, and those of them that the solvers took."""
    options = RunOptions(device="cpu", progress=False, records=root / "records", features=root / "features")
    seconds, attempts = timed(lambda: list(bench([encoder], questions, images, options)))
    failed = [attempt for attempt in attempts if attempt.status != "done"]
    if failed:
        raise RuntimeError(f"{failed[0].protocol}: {failed[0].detail}")
    records = [stored.record for stored in read_records(options.records)[0]]
    return seconds, sum(record.timing["total"] - record.timing["extract"] for record in records)


def image_folder(root: Path, classes: int) -> Path:
    """An image folder of noise as large as ImageNet's files."""
    paths = iter(compose(root.with_name("files"), classes * (TRAIN + VAL)))
    for split, count in (("train", TRAIN), ("val", VAL)):
        for number in range(classes):
            folder = root / split / f"class{number}"
            folder.mkdir(parents=True)
            for _ in range(count):
                path = next(paths)
                shutil.move(path, folder / path.name)
    return root
