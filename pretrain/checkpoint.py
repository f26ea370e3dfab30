"""The resume file: everything that a run needs to go on as if it had never stopped; and the numbered ones beside it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Container
from pathlib import Path
from typing import Any

import torch

RESUME = "resume.pt"


def save_resume(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` (tensors, numbers, strings, containers of them) atomically: a kill leaves the old file whole.

    Raises:
        OSError: no space, or whatever else the disk says.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        said = error if isinstance(error, OSError) else error.__context__  # torch's writer stumbles over what it said
        if not isinstance(said, OSError):
            raise
        raise OSError(said.errno, said.strerror, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def load_resume(path: Path) -> dict[str, Any] | None:
    """What `save_resume` wrote, on the CPU, or None where there is no file. Only tensors and plain values are read.

    Raises:
        ValueError: not a resume file.
    """
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, pickle and runtime errors, depending on how the file is damaged
        raise ValueError(f"{path} is not a resume file of this project ({error}); remove it to start anew") from error
    return dict(state)


def numbered(out: Path, epoch: int) -> Path:
    """The checkpoint after `epoch` whole epochs."""
    return out / f"epoch_{epoch:04d}.pt"


def keep(out: Path, epoch: int, last: int, marked: Container[int]) -> None:
    """Keeps the resume file, just written, as that of `epoch`; of those that are not marked the `last` ones stay.

    A hard link costs no space until the resume file moves on; where the file system has none it is a copy.
    """
    path = numbered(out, epoch)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)
    try:
        partial.hardlink_to(out / RESUME)
    except OSError:
        shutil.copyfile(out / RESUME, partial)
    partial.replace(path)
    there = sorted((int(p.stem.removeprefix("epoch_")), p) for p in out.glob("epoch_*.pt"))
    unmarked = [p for number, p in there if number not in marked]
    for old in unmarked[: max(0, len(unmarked) - last)]:
        old.unlink()


def write_text(path: Path, text: str) -> None:
    """Atomically, as everything in a run's folder is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def remove_partials(out: Path) -> None:
    """What processes that were killed while they wrote have left behind."""
    for partial in out.glob(".*.partial"):
        partial.unlink(missing_ok=True)
