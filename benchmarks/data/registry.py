"""Which data sets there are, where they lie below a data root and how they are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contract import InputError, Labels
from benchmarks.data.imagefolder import read_image_folder
from benchmarks.data.voc import read_voc_classification

# Written into the root of data that was composed from the project's own drawings.
EMBEDDED_STAMP = "embedded.json"


@dataclass(frozen=True)
class DatasetSpec:
    """A data set on disk.

    Attributes:
        id: its name in records.
        folder: where it lies.
        read: split name -> items. Raises InputError when the split is missing, empty or malformed.
    """

    id: str
    folder: Path
    read: Callable[[str], Labels]


@dataclass(frozen=True)
class _Layout:
    below_root: str
    reader: Callable[[Path, str], Labels]


def _voc(year: str) -> _Layout:
    return _Layout(f"VOCdevkit/VOC{year}", lambda folder, split: read_voc_classification(folder.parent, year, split))


# To add a data set: its folder below the root, and a reader of (folder, split).
_LAYOUTS = {
    "drawings": _Layout("drawings", read_image_folder),
    "imagefolder": _Layout("", read_image_folder),
    "imagenet": _Layout("imagenet", read_image_folder),
    "voc2007": _voc("2007"),
}


def find_dataset(name: str, root: Path) -> DatasetSpec:
    """The data set `name` below `root`. `imagefolder` is the root itself.

    Raises:
        InputError: an unknown name, or no such folder.
    """
    layout = _LAYOUTS.get(name)
    if layout is None:
        raise InputError(f"no data set is called {name!r}; there are {', '.join(sorted(_LAYOUTS))}")
    folder = root / layout.below_root
    if not folder.is_dir():
        raise InputError(
            f"data set {name} was looked for in {folder}, which is no folder; put it there or change --data"
        )
    return DatasetSpec(name, folder, lambda split: layout.reader(folder, split))


def is_embedded(root: Path) -> bool:
    """Whether the data below `root` (or the data root that `root` is a folder of) was composed by this project."""
    return any((folder / EMBEDDED_STAMP).is_file() for folder in (root, root.resolve().parent))
