"""Check a data set for missing and damaged files: `encoder-bench check-data`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path

import numpy as np

from benchmarks.datasets.coco import coco_box_faults
from benchmarks.datasets.lists import batch_file, escape_non_utf8, path_strings
from benchmarks.datasets.registry import DATASETS, Dataset, find_dataset, is_official
from benchmarks.datasets.voc import read_voc_objects
from benchmarks.task import InputError, Labels, progress
from results.files import open_image

DECODED = 64  # images of a split that are decoded unless all are
SIZED = 100_000  # files of a split whose size is read unless all are
NAMED = 10  # faulty files of a split that are named
COMPLETE, DAMAGED, UNUSABLE = 0, 1, 2  # exit codes

_CHUNK = 256


@dataclass
class SplitReport:
    """The result of checking one split.

    Attributes:
        layout: the layout in which it was found; empty for a data set with only one.
        images: their number; None if the split cannot be read at all.
        gib: size of its images, extrapolated if not all files were looked at.
        decoded: number of images that were decoded.
        faults: one sentence each.
        unpublished: how it differs from what its owner publishes; empty where it does not.
        optional: a complete data set may lack this split.
    """

    split: str
    layout: str = ""
    images: int | None = None
    classes: int = 0
    gib: float = 0.0
    decoded: int = 0
    faults: list[str] = field(default_factory=list)
    unpublished: str = ""
    optional: bool = False

    @property
    def complete(self) -> bool:
        return not self.faults or (self.optional and self.images is None)


def check_split(dataset: Dataset, split: str, *, all_images: bool = False, show: bool = True) -> SplitReport:
    """Read the lists, compare them with the files and the published counts, look at file sizes, and decode images.

    Args:
        all_images: look at and decode all images instead of a sample.
        show: show the progress.
    """
    report = SplitReport(split, optional=split in dataset.info.optional)
    try:
        report.layout = dataset.layout(split)
        labels = dataset.read(split)
    except InputError as error:
        report.faults.append(str(error))
        return report
    report.images, report.classes = len(labels), len(labels.classes)
    if not dataset.embedded:
        report.unpublished = _difference(labels, dataset, split)
    report.faults += _empty_classes(labels)
    report.gib = _sizes(labels, report.faults, all_images)
    rows = _evenly_spaced(len(labels), None if all_images else DECODED)
    report.decoded = len(rows)
    report.faults += _summary(list(_damaged(labels, rows, f"{dataset.id} {split}", show)), "damaged")
    wrong = [fault for file in labels.annotations if file.suffix == ".json" for fault in coco_box_faults(file)]
    report.faults += _summary(wrong, "that cannot be right", "boxes")
    return report


def _difference(labels: Labels, dataset: Dataset, split: str) -> str:
    """How a split differs from what its owner publishes; empty where it does not, or where there is no owner."""
    if not dataset.info.folder or is_official(labels, dataset.id, split) is not False:
        return ""
    images, classes = dataset.info.splits[split], dataset.info.classes
    found = []
    if images is not None and len(labels) != images:
        found.append(f"{len(labels):,} images where its owner publishes {images:,}")
    if classes is not None and len(labels.classes) != classes:
        found.append(f"{len(labels.classes):,} classes where its owner publishes {classes:,}")
    return ", ".join(found) or "its image ids are not the owner's"


def _empty_classes(labels: Labels) -> list[str]:
    """Classes without an image, in a split with one label per image."""
    if labels.targets.ndim != 1:
        return []
    seen = np.bincount(labels.targets, minlength=len(labels.classes))
    return _summary([labels.classes[i] for i in np.flatnonzero(seen == 0)], "without an image", "classes")


def _sizes(labels: Labels, faults: list[str], all_images: bool) -> float:
    """Size of the images in GiB. Appends missing and empty files to `faults`."""
    rows = _evenly_spaced(len(labels), None if all_images else SIZED)
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[rows] = True
    total = 0
    empty: list[str] = []
    absent: list[str] = []
    seen: dict[str, int] = {}
    for path in compress(path_strings(labels.paths), chosen):
        batch = batch_file(path) if "#" in path else None
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
    """One sentence per image or annotation that cannot be read. Images are decoded in threads."""
    from benchmarks.datasets.images import decode  # imports torch, which a missing data set does not need

    per_image = len(labels.annotations) == len(labels) and len(labels) > 1

    def check(row: int) -> str | None:
        try:
            image = decode(labels.paths[row])
            if per_image:
                _check_annotation(labels.annotations[row], image.size)
        except InputError as error:
            return str(error)
        return None

    def checked() -> Iterator[str | None]:
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for start in range(0, len(rows), _CHUNK):  # a future for each of a million images would fill the memory
                yield from threads.map(check, rows[start : start + _CHUNK])

    for fault in progress(checked(), f"decoding {name}", total=len(rows), show=show):
        if fault:
            yield fault


def _check_annotation(file: Path, size: tuple[int, int]) -> None:
    if file.suffix == ".xml":
        read_voc_objects(file)
        return
    try:
        with open_image(file) as mask:
            mask.load()
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{file} cannot be decoded as a mask ({error}); unpack it again") from error
    if mask.size != size:
        raise InputError(
            f"{file} is {mask.size[0]} by {mask.size[1]}, but its image {size[0]} by {size[1]}; unpack both again"
        )


def _summary(names: Sequence[str], what: str, of: str = "files") -> list[str]:
    if not names:
        return []
    more = f"\n  … and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return [f"{len(names):,} {of} {what}:" + "".join(f"\n  {name}" for name in names[:NAMED]) + more]


def _evenly_spaced(count: int, most: int | None) -> Sequence[int]:
    """At most this many rows, from the first to the last; None for all."""
    if most is None or count <= most:
        return range(count)
    return [round(row) for row in np.linspace(0, count - 1, most)]


# ---- the command -----------------------------------------------------------------------------------------------------


def command(
    data: Path = Path("work/data"), dataset: str | None = None, all_images: bool = False, quiet: bool = False
) -> int:
    """Check that a data set is complete and readable. Exit code 0: complete, 1: damaged, 2: unusable.

    Compares the lists with the files and the numbers with what the owner publishes, and decodes a sample of the images.

    Args:
        data: root of the data sets, or an image folder.
        dataset: the data set to check, such as imagenet; by default a table of all below the root.
        all_images: decode every image and look at the size of every file.
        quiet: show no progress.
    """
    if dataset is None:
        return _check_all(data, all_images, quiet)
    found = find_dataset(dataset, data)
    reports = _check(found, all_images, quiet)
    _say(_details(found, reports))
    if check_code(reports) != COMPLETE or any(report.unpublished for report in reports):
        _say(f"available from {found.info.how_to_get}")
    return check_code(reports)


def check_code(reports: Sequence[SplitReport]) -> int:
    """The exit code for one data set."""
    if all(report.images is None for report in reports):
        return UNUSABLE
    return COMPLETE if all(report.complete for report in reports) else DAMAGED


def _check(dataset: Dataset, all_images: bool, quiet: bool) -> list[SplitReport]:
    return [check_split(dataset, split, all_images=all_images, show=not quiet) for split in dataset.info.splits]


def _details(dataset: Dataset, reports: Sequence[SplitReport]) -> str:
    lines = [f"{dataset.id} in {dataset.folder}"]
    for report in reports:
        if report.images is None:
            lines.append(f"  {report.split:12} {_state(report)}")
        else:
            size = f"{report.gib:.1f} GiB" if report.gib >= 0.1 else f"{report.gib * 1024:.1f} MiB"
            lines.append(
                f"  {report.split:12} {_state(report)}: {report.images:,} images of {report.classes:,} classes, "
                f"{size}, {report.decoded:,} decoded" + (f"; layout {report.layout}" if report.layout else "")
            )
        if not report.complete:
            lines += ["    " + fault.replace("\n", "\n    ") for fault in report.faults]
    return "\n".join(lines)


def _check_all(data: Path, all_images: bool, quiet: bool) -> int:
    """Print one line per data set, at last those that are there. One that is not there at all is not a fault."""
    if not data.is_dir():
        raise InputError(f"{data} is not a folder; set --data to the root of the data sets")
    found: dict[str, list[SplitReport]] = {}
    folders: dict[str, Path] = {}
    for name in DATASETS:
        try:
            dataset = find_dataset(name, data)
        except InputError:
            continue
        folders[name], found[name] = dataset.folder, _check(dataset, all_images, quiet)
    # Several data sets share a folder, which may hold only one of them.
    usable = {folders[name] for name, reports in found.items() if check_code(reports) != UNUSABLE} | {data}
    absent = {n for n, reports in found.items() if check_code(reports) == UNUSABLE and folders[n] in usable}
    there = [name for name in DATASETS if name in found and name not in absent]
    tables = [
        [(name, "not there", f"from {DATASETS[name].how_to_get}") for name in DATASETS if name not in there],
        [_row(name, found[name]) for name in there],
    ]
    for rows in filter(None, tables):
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        _say("\n".join(f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}" for row in rows) + "\n")
    if not there:
        _say(f"none of these data sets is in {data}")
    verdicts = [check_code(reports) for name, reports in found.items() if name not in absent]
    if any(verdicts):
        _say(f"details of one data set: encoder-bench check-data --data {data} --dataset NAME")
    return max(verdicts, default=UNUSABLE)


def _row(name: str, reports: Sequence[SplitReport]) -> tuple[str, str, str]:
    """Name, state, and images or what is wrong."""
    if check_code(reports) == UNUSABLE:
        return name, "unusable", reports[0].faults[0]
    faulty = [f"{report.split} {_state(report)}" for report in reports if not report.complete or report.unpublished]
    counts = ", ".join(f"{report.split} {report.images:,}" for report in reports if report.images is not None)
    return name, ", ".join(faulty) or "complete", counts


def _state(report: SplitReport) -> str:
    if report.images is None:
        return "not there (optional)" if report.complete else "unusable"
    if not report.complete:
        return "damaged"
    return f"complete, not the published data ({report.unpublished})" if report.unpublished else "complete"


def _say(text: str) -> None:
    sys.stdout.write(escape_non_utf8(text) + "\n")
