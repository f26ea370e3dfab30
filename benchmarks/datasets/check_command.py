"""`python -m benchmarks check-data`: says of one data set, or of all below a root, whether it is whole."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.contract import InputError
from benchmarks.datasets.check import SplitReport, check_split
from benchmarks.datasets.published import PUBLISHED
from benchmarks.datasets.registry import DATASETS, DatasetSpec, find_dataset, is_embedded
from benchmarks.options import DATA

WHOLE, DAMAGED, UNUSABLE = 0, 1, 2


def command(data: Path = DATA, dataset: str | None = None, all_images: bool = False, quiet: bool = False) -> int:
    """Says what of a data set is there, missing or damaged, and how to get it. Exit code 0: whole, 1: not, 2: unusable.

    Lists are held against the files, counts against what the owner publishes, and a sample of the images is decoded.

    Args:
        data: root of the data sets, or an image folder.
        dataset: one of them, as imagenet; without, a table of all that are below the root.
        all_images: decode every image and look at the size of every file.
        quiet: no progress.
    """
    if dataset is None:
        return _table(data, all_images, quiet)
    spec = find_dataset(dataset, data)
    reports = _check(spec, data, all_images, quiet)
    _say(_details(dataset, spec.folder, reports))
    if verdict(reports) != WHOLE:
        _say(f"it comes from {PUBLISHED[dataset].get}")
    return verdict(reports)


def verdict(reports: Sequence[SplitReport]) -> int:
    """The exit code of one data set."""
    if all(report.images is None for report in reports):
        return UNUSABLE
    return WHOLE if all(report.whole for report in reports) else DAMAGED


def _check(spec: DatasetSpec, root: Path, all_images: bool, quiet: bool) -> list[SplitReport]:
    published = PUBLISHED[spec.id]
    counts = not is_embedded(root)
    return [
        check_split(spec, split, published, counts=counts, all_images=all_images, show=not quiet)
        for split in published.splits
    ]


def _details(name: str, folder: Path, reports: Sequence[SplitReport]) -> str:
    lines = [f"{name} in {folder}"]
    for report in reports:
        if report.images is None:
            lines.append(f"  {report.split:12} {_state(report)}")
        else:
            size = f"{report.gib:.1f} GiB" if report.gib >= 0.1 else f"{report.gib * 1024:.1f} MiB"
            lines.append(
                f"  {report.split:12} {_state(report)}: {report.images:,} images of {report.classes:,} classes, "
                f"{size}, {report.decoded:,} decoded" + (f"; laid out as {report.layout}" if report.layout else "")
            )
        if not report.whole:
            lines += ["    " + fault.replace("\n", "\n    ") for fault in report.faults]
    return "\n".join(lines)


def _table(data: Path, all_images: bool, quiet: bool) -> int:
    """One line per data set. What is not there at all is no fault."""
    if not data.is_dir():
        raise InputError(f"{data} is no folder; set --data to the root of the data sets")
    found: dict[str, list[SplitReport]] = {}
    folders: dict[str, Path] = {}
    for name in DATASETS:
        try:
            spec = find_dataset(name, data)
        except InputError:
            continue
        folders[name], found[name] = spec.folder, _check(spec, data, all_images, quiet)
    usable = {folders[name] for name, reports in found.items() if verdict(reports) != UNUSABLE} | {data}
    absent = {n for n, reports in found.items() if verdict(reports) == UNUSABLE and folders[n] in usable}
    rows = [_row(name, found[name] if name in found and name not in absent else None) for name in DATASETS]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    _say("\n".join(f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}" for row in rows))
    verdicts = [verdict(reports) for name, reports in found.items() if name not in absent]
    if any(verdicts):
        _say(f"more about one of them: python -m benchmarks check-data --data {data} --dataset NAME")
    return max(verdicts, default=UNUSABLE)


def _row(name: str, reports: Sequence[SplitReport] | None) -> tuple[str, str, str]:
    """Name, state, images or where to get it. A folder of another data set says nothing about this one (None)."""
    if reports is None:
        return name, "not there", f"from {PUBLISHED[name].get}"
    if verdict(reports) == UNUSABLE:
        return name, "unusable", reports[0].faults[0]
    faulty = [f"{report.split} {_state(report)}" for report in reports if not report.whole]
    counts = ", ".join(f"{report.split} {report.images:,}" for report in reports if report.images is not None)
    return name, ", ".join(faulty) or "whole", counts


def _state(report: SplitReport) -> str:
    if report.images is None:
        return "not there, and optional" if report.whole else "unusable"
    return "whole" if report.whole else "damaged"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
