"""What of a data set is there, what is missing and what is damaged."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
from PIL import Image

from benchmarks.contract import InputError, Labels
from benchmarks.datasets.cifar10 import container
from benchmarks.datasets.images import BadImage, decode
from benchmarks.datasets.paths import strings
from benchmarks.datasets.published import Published
from benchmarks.datasets.registry import DatasetSpec
from benchmarks.progress import progress

SAMPLE = 64  # images of a split that are decoded unless all are
SIZED = 100_000  # files of a split whose size is looked at unless all are
NAMED = 10  # faulty files of a split that are named

_CHUNK = 256


@dataclass
class SplitReport:
    """What was found of one split.

    Attributes:
        split: its name.
        layout: as what it was recognised.
        images: in it; None where it cannot be read at all.
        gib: size of its images, extrapolated where not all were looked at.
        decoded: images that were opened.
        faults: one sentence each.
        optional: an absence is no fault.
    """

    split: str
    layout: str = ""
    images: int | None = None
    classes: int = 0
    gib: float = 0.0
    decoded: int = 0
    faults: list[str] = field(default_factory=list)
    optional: bool = False

    @property
    def whole(self) -> bool:
        return not self.faults or (self.optional and self.images is None)


def check_split(
    spec: DatasetSpec,
    split: str,
    published: Published,
    *,
    counts: bool = True,
    all_images: bool = False,
    show: bool = True,
) -> SplitReport:
    """Reads the lists, holds them against the files and the published counts, looks at sizes, and decodes images.

    Args:
        counts: whether the published counts apply; not to the embedded data.
        all_images: look at and decode all images instead of a sample.
        show: the progress.
    """
    report = SplitReport(split, optional=split in published.optional)
    try:
        report.layout = spec.layout(split)
        labels = spec.read(split)
    except InputError as error:
        report.faults.append(str(error))
        return report
    report.images, report.classes = len(labels), len(labels.classes)
    if counts:
        report.faults += _counts(report, published)
    report.faults += _classes(labels)
    report.gib = _sizes(labels, report.faults, all_images)
    rows = _spread(len(labels), None if all_images else SAMPLE)
    report.decoded = len(rows)
    report.faults += _summary(list(_damaged(labels, rows, f"{spec.id} {split}", show)), "damaged")
    return report


def _counts(report: SplitReport, published: Published) -> list[str]:
    faults = []
    expected = published.splits.get(report.split)
    if expected is not None and report.images != expected:
        faults.append(f"{report.images:,} images where {expected:,} are published")
    if published.classes is not None and report.classes != published.classes:
        faults.append(f"{report.classes:,} classes where {published.classes:,} are published")
    return faults


def _classes(labels: Labels) -> list[str]:
    """Classes that no image of a single-label split has."""
    if labels.targets.ndim != 1:
        return []
    seen = np.bincount(labels.targets, minlength=len(labels.classes))
    return _summary([labels.classes[i] for i in np.flatnonzero(seen == 0)], "without an image", "classes")


def _sizes(labels: Labels, faults: list[str], all_images: bool) -> float:
    rows = _spread(len(labels), None if all_images else SIZED)
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[rows] = True
    total = 0
    empty: list[str] = []
    absent: list[str] = []
    seen: dict[str, int] = {}
    for path in compress(strings(labels.paths), chosen):
        batch = container(path) if "#" in path else None
        if batch is not None:
            seen[batch] = Path(batch).stat().st_size
            continue
        try:
            size = os.stat(path).st_size  # noqa: PTH116 - a million Paths are slow
        except FileNotFoundError:
            absent.append(path)
            continue
        total += size
        if not size:
            empty.append(path)
    faults += _summary(absent, "missing")
    faults += _summary(empty, "empty")
    return (total * len(labels) / max(1, len(rows)) + sum(seen.values())) / 2**30


def _damaged(labels: Labels, rows: Sequence[int], name: str, show: bool) -> Iterator[str]:
    """One sentence per image or annotation that cannot be read, Pillow's decoders running in threads."""
    per_image = len(labels.annotations) == len(labels) and len(labels) > 1

    def look(row: int) -> str | None:
        try:
            image = decode(labels.paths[row])
            if per_image:
                _look_at_annotation(labels.annotations[row], image.size)
        except InputError as error:
            return str(error)
        return None

    def looked() -> Iterator[str | None]:
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for start in range(0, len(rows), _CHUNK):  # a future for each of a million images would fill the memory
                yield from threads.map(look, rows[start : start + _CHUNK])

    for fault in progress(looked(), f"decoding {name}", total=len(rows), show=show):
        if fault:
            yield fault


def _look_at_annotation(file: Path, size: tuple[int, int]) -> None:
    if file.suffix == ".xml":
        try:
            ET.parse(file)  # noqa: S314 - expat stops at entity bombs
        except (ET.ParseError, OSError) as error:
            raise BadImage(f"{file} is no xml ({error}); unpack it again") from error
        return
    try:
        with Image.open(file) as mask:
            mask.load()
    except (OSError, ValueError, SyntaxError) as error:
        raise BadImage(f"{file} cannot be decoded as a mask ({error}); unpack it again") from error
    if mask.size != size:
        raise BadImage(
            f"{file} is {mask.size[0]} by {mask.size[1]}, its image {size[0]} by {size[1]}; unpack both again"
        )


def _summary(names: Sequence[str], what: str, of: str = "files") -> list[str]:
    if not names:
        return []
    more = f"\n  … and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return [f"{len(names):,} {of} {what}:" + "".join(f"\n  {name}" for name in names[:NAMED]) + more]


def _spread(count: int, wanted: int | None) -> Sequence[int]:
    """Rows from the first to the last at even distances."""
    if wanted is None or count <= wanted:
        return range(count)
    return [round(row) for row in np.linspace(0, count - 1, wanted)]
