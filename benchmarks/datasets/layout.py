"""One data set lies on disks in several layouts: which of them is there, or one sentence on what was found instead."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contract import InputError, Labels

log = logging.getLogger(__name__)

_SHOWN = 6


@dataclass(frozen=True)
class Layout:
    """One way a split may lie below the data set's folder.

    Attributes:
        about: what it consists of, for people; `{split}` stands for the split.
        fits: whether the folder has it for a split, at a glance.
        read: the items. Raises InputError where something is missing or malformed after all.
    """

    about: str
    fits: Callable[[Path, str], bool]
    read: Callable[[Path, str], Labels]


def recognise(folder: Path, split: str, layouts: Sequence[Layout], owner: str) -> Layout:
    """The first of the layouts that fits.

    Raises:
        InputError: none does.
    """
    for layout in layouts:
        if layout.fits(folder, split):
            log.info("%s: %s is laid out as %s", folder, split, layout.about.replace("{split}", split))
            return layout
    expected = ", or ".join(layout.about.replace("{split}", split) for layout in layouts)
    raise InputError(
        f"{folder} has no split {split}: expected {expected}; found {contents(folder)}; "
        f"unpack what {owner} publishes there"
    )


def contents(folder: Path) -> str:
    """The first entries of a folder, for a message."""
    if not folder.is_dir():
        return "no such folder"
    names = sorted(entry.name + "/" * entry.is_dir() for entry in os.scandir(folder))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) + more) or "nothing"


def first_file(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of the files that exists."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def first_folder(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of the folders that exists."""
    return next((folder / name for name in names if (folder / name).is_dir()), None)
