"""From files of an address to a split: rows are joined to labels by image id, never by order."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.contract import InputError, Labels, Split
from benchmarks.features.shards import read_json


def join(folder: Path, labels: Labels, files: Mapping[str, str]) -> tuple[Split, dict[str, str]]:
    """The split of those images of `labels` that every one of the outputs has a row for, and the others: id -> why.

    The features stay memory-mapped unless their rows are not those of the labels in order, which takes a copy: where
    an image could be read in one pass and not in another, or the labels are listed in another order.

    Args:
        files: feature key -> name of its file, without suffix.

    Raises:
        InputError: the files do not hold what their lists say, or no image is left.
    """
    try:
        ids: list[str] = read_json(folder / "ids.json")
        absent: dict[str, dict[str, str]] = {key: read_json(folder / f"{file}.json") for key, file in files.items()}
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from error
    here = set(labels.ids)
    unreadable = {id: why for whys in absent.values() for id, why in whys.items() if id in here}
    kept = _without(labels, unreadable) if unreadable else labels
    if not len(kept):
        raise InputError(f"none of the {len(labels)} images can be read: {next(iter(unreadable.values()))}")
    features = {}
    for key, file in files.items():
        try:
            features[key] = np.load(folder / f"{file}.npy", mmap_mode="r")
        except (OSError, ValueError) as error:
            raise _damaged(folder, error) from error
        stored = tuple(id for id in ids if id not in absent[key])
        if len(features[key]) != len(stored) or not here.issubset({*stored, *unreadable}):
            raise InputError(f"{folder / file}.npy does not hold the images that it should; remove {folder}")
        if stored != kept.ids:
            row = {id: number for number, id in enumerate(stored)}
            features[key] = features[key][[row[id] for id in kept.ids]]
    return Split(kept, features), unreadable


def _damaged(folder: Path, error: Exception) -> InputError:
    return InputError(f"the features in {folder} are damaged ({error}); remove that folder")


def _without(labels: Labels, ids: Collection[str]) -> Labels:
    rows = [row for row, id in enumerate(labels.ids) if id not in ids]
    return replace(
        labels,
        ids=tuple(labels.ids[row] for row in rows),
        paths=tuple(labels.paths[row] for row in rows),
        targets=labels.targets[rows],
        groups=tuple(labels.groups[row] for row in rows),
        annotations=tuple(labels.annotations[row] for row in rows)
        if len(labels.annotations) == len(labels)
        else labels.annotations,
    )
