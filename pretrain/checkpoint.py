"""The resume file: everything that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


def save_resume(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` (tensors, numbers, strings, containers of them) atomically: a kill leaves the old file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
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
