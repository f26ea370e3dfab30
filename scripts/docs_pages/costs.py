"""What the published variant of each benchmark costs: estimated for full data, and measured on the embedded data.

An estimate counts the images that pass through the encoder. A training step of the encoder counts as three passes, and
an image of another size counts by its pixels. Both rates are this project's assumptions for a ResNet-50 at 224 pixels.
A protocol that is made for a ViT-B/16 takes longer by the ratio of the two networks' operations.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median

import numpy as np
from markdown_table import table

from benchmarks.datasets.registry import DATASETS
from benchmarks.registry import AnyTask, load_task, tasks
from benchmarks.task import ImageTask, Labels
from results.schema import Protocol
from results.store import read_records

RECORDS = Path(__file__).parents[2] / "results" / "records"
GPU_RATE, CORE_RATE, CORES, SIDE = 1000, 10, 16, 224
# Giga-operations of a pass at 224 pixels: `_ops` of torchvision's ResNet50_Weights and ViT_B_16_Weights, IMAGENET1K_V1.
RESNET50_OPS, VIT_B_OPS = 4.089, 17.564
FOR_VIT_B = ("vit-det", "vit-seg")
# Numbers of images only for this estimate; what decides whether data is complete is in benchmarks/datasets/registry.py.
# ADE20K: README of CSAILVision/sceneparsing. Oxford: 5,062 images (the data set's page at VGG), of which 55 queries and
# 15 new ones leave the database (arXiv:1803.11285).
SIZES = {"ade20k": {"training": 20_210, "validation": 2_000}, "roxford5k": {"database": 4_992, "queries": 70}}
YOUR_IMAGES = 1000  # a data set of the user's own: time for that many


def rows() -> list[tuple[str, str, str, str, str, str]]:
    """Command, protocol, passes, time on one GPU and on CPUs, and the median of the committed records."""
    measured: dict[str, list[float]] = {}
    for stored in read_records(RECORDS)[0]:
        record = stored.record
        if record.status == "ok" and "total" in record.timing:
            measured.setdefault(record.protocol.resolved.harness, []).append(record.timing["total"])
    found = []
    for kind in tasks():
        task = load_task(kind.name)()
        protocol = task.protocols[0]
        passes = encoder_passes(task, protocol)
        work = (passes or YOUR_IMAGES) * (VIT_B_OPS / RESNET50_OPS if task.name in FOR_VIT_B else 1)
        per = "" if passes else f" per {YOUR_IMAGES:,}"
        seconds = measured.get(task.name)
        found.append(
            (
                f"`{task.name}`",
                f"`{protocol.id}`",
                _count(passes) if passes else "1 per image",
                _time(work / GPU_RATE) + per,
                _time(work / CORE_RATE / CORES) + per,
                _time(median(seconds)) if seconds else "",
            )
        )
    return found


def cost_table() -> str:
    """The rows as markdown."""
    head = ("Command", "Protocol", "Passes", "One GPU", f"{CORES} CPU cores", "Measured")
    return table(head, rows())


def encoder_passes(task: AnyTask, protocol: Protocol) -> float | None:
    """Passes of images of 224 x 224 pixels; None for a folder of the user's own images, each of which passes once.

    Raises:
        ValueError: the number of images of a public data set is not known.
    """
    splits = {**DATASETS[protocol.dataset].splits, **SIZES.get(protocol.dataset, {})}
    sizes = splits.get(protocol.train_split), splits.get(protocol.test_split)
    if None in sizes and not protocol.params.get("iterations"):
        if DATASETS[protocol.dataset].folder or isinstance(task, ImageTask):
            raise ValueError(f"{protocol.id} needs the number of images of {protocol.dataset}: add it to SIZES")
        return None
    pixels = (protocol.geometry.crop / SIDE) ** 2
    if not isinstance(task, ImageTask):
        return pixels * sum(size or 0 for size in set_of_splits(protocol, sizes))
    trained, evaluated = task.amount(protocol, *(_labels(size or 1) for size in sizes))
    return pixels * (trained * task.passes_per_step + (evaluated if sizes[1] else 0))


def set_of_splits(protocol: Protocol, sizes: tuple[int | None, ...]) -> tuple[int | None, ...]:
    """The sizes, without the second where train and test are one split."""
    return sizes[:1] if protocol.train_split == protocol.test_split else sizes


def _labels(size: int) -> Labels:
    """As many items as a split has, of which only the number is read."""
    return Labels(("",) * size, (Path(),) * size, (), np.zeros((0, 0)), ())


def _count(passes: float) -> str:
    return f"{passes / 1e6:.3g} M" if passes >= 1e6 else f"{passes / 1e3:.3g} k"


def _time(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{float(f'{seconds / size:.2g}'):g} {unit}"
    return f"{max(1, round(seconds))} s"
