"""A file that is there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from benchmarks.contract import InputError


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """An open file that takes the place of `path` once the block has ended well.

    Raises:
        InputError: `path` is a folder, its folder cannot be written to, or the disk is full.
    """
    with writable(path):
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            with partial.open("wb") as file:
                yield file
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Makes the folder of `path` and tells what stands against writing there in one sentence.

    Raises:
        InputError: as said.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())[:160]
        raise InputError(f"cannot write {path} ({reason}); make room there, or give another place") from error
