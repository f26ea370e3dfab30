"""Image paths of a large data set: kept as names, each made into a Path when it is asked for."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

from benchmarks.contract import InputError


class Below(Sequence[Path]):
    """`folder / name` of every name. 1.28 million Paths take 0.6 GB; the names are there anyway, as ids."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.names = folder, names

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> Below: ...
    def __getitem__(self, index: int | slice) -> Path | Below:
        if isinstance(index, slice):
            return Below(self.folder, self.names[index])
        return self.folder / self.names[index]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Below) and self.folder == other.folder and self.names == other.names:
            return True
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(mine == its for mine, its in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # it equals a tuple, whose hash would need all Paths

    def strings(self) -> Iterator[str]:
        """The paths as text, several times quicker than through Path."""
        start = os.path.join(self.folder, "")  # noqa: PTH118 - Path drops the separator at the end
        return (start + name for name in self.names)


def strings(paths: Sequence[Path]) -> Iterator[str]:
    """The paths as text."""
    return paths.strings() if isinstance(paths, Below) else map(str, paths)


def require(folder: Path, names: Sequence[str], source: Path | str, remedy: str) -> None:
    """Checks that every file below `folder` is there, at one listing per folder.

    Args:
        source: what names the files, for the message.

    Raises:
        InputError: some are not.
    """
    by_folder: dict[str, list[str]] = defaultdict(list)
    for name in names:
        where, _, file = name.rpartition("/")
        by_folder[where].append(file)
    missing: list[str] = []
    for where, files in by_folder.items():
        try:
            present = set(os.listdir(folder / where))  # noqa: PTH208 - a million Paths are slow
        except (FileNotFoundError, NotADirectoryError):
            present = set()
        if not present.issuperset(files):
            missing += [f"{where}/{file}" if where else file for file in files if file not in present]
    if missing:
        raise InputError(
            f"{folder} lacks {len(missing)} of the {len(names)} images of {source}, first {missing[0]}; {remedy}"
        )
