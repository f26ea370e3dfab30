"""Files that are put in place whole or not at all, alone or two that belong together."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file so that it has its old content or the new, and nothing between.

    What is no file (/dev/stdout, a named pipe) is written to as it is: it must not become one.

    Raises:
        OSError: it cannot be written; the error names it, and nothing has changed.
    """
    with _naming(path):
        if path.is_dir():
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return
        make_folder(path.parent)
        temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
        try:
            _write_through(temporary, content)
            os.replace(temporary, path)  # noqa: PTH105 - as below
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def replace_pair(path: Path, text: bytes, side_name: str | None, side: bytes | None) -> None:
    """Puts both files in place or changes nothing, then clears what an earlier or a killed writer left of this name.

    Args:
        side_name: of the file beside it; None where there is none.
        side: its content; None where it is there already.

    Raises:
        OSError: see `replace_file`.
    """
    side_path = None if side_name is None else path.with_name(side_name)
    with _naming(path):
        make_folder(path.parent)
        side_was_there = side_path is not None and side_path.exists()
        temporary = [path.with_name(f".{secrets.token_hex(8)}.{path.stem[-8:]}.tmp") for _ in range(2)]
        try:
            if side_path is not None and side is not None:
                _write_through(temporary[0], side)
            _write_through(temporary[1], text)
            if side_path is not None and side is not None:
                os.replace(temporary[0], side_path)  # noqa: PTH105 - the tests make it fail
            os.replace(temporary[1], path)  # noqa: PTH105
        except BaseException:
            _unlink(temporary)
            if side_path is not None and not side_was_there:
                _unlink([side_path])
            raise
    _unlink(p for p in path.parent.glob(f"{path.stem}.*.npz") if p != side_path)
    _unlink(path.parent.glob(f".*.{path.stem[-8:]}.tmp"))
    _sync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """With its parents; a file in its place is a folder that is none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from error


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors name the file that was asked for, and not the one on the way to it, or none as those of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _write_through(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
