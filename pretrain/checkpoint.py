"""The resume file of a pretraining run, and its numbered copies."""

from __future__ import annotations

import shutil
from collections.abc import Container
from pathlib import Path
from typing import Any

import torch

from pretrain.safe_pickle import read_pickled
from results.errors import InputError
from results.files import replacing

RESUME = "resume.pt"


def save_resume(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, containers of them) atomically: a kill leaves the old file whole.

    Raises:
        OSError: the file cannot be written; the error names it.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(state, file)


def load_resume(path: Path) -> dict[str, Any] | None:
    """Read what `save_resume` wrote, on the CPU; None where there is no file. Only tensors and plain values are read.

    The checksum of every part of the archive is verified, which `torch.load` does not do.

    Raises:
        InputError: damaged, or not a resume file.
    """
    if not path.exists():
        return None
    try:
        return dict(read_pickled(path, verify=True))
    except (InputError, TypeError, ValueError) as error:
        raise unusable_resume(path, error.__cause__ or error) from error


def unusable_resume(path: Path, error: BaseException) -> InputError:
    """The refusal of a resume file that cannot be used."""
    reason = " ".join(str(error).replace(str(path), "it").split())[:200] or type(error).__name__
    return InputError(
        f"{path} is damaged or not a resume file of this project ({reason}); remove it to start anew, or replace it by "
        "one of the epoch_*.pt files next to it"
    )


def numbered(out: Path, epoch: int) -> Path:
    """The checkpoint after `epoch` whole epochs."""
    return out / f"epoch_{epoch:04d}.pt"


def keep(out: Path, epoch: int, last: int, marked: Container[int]) -> None:
    """Keep the resume file, just written, as that of `epoch`, and delete all but the `last` of the unmarked ones.

    A hard link costs no space until the resume file moves on; where the file system has none it is a copy.
    """
    path = numbered(out, epoch)
    with replacing(path) as temporary:
        try:
            temporary.hardlink_to(out / RESUME)
        except OSError:
            shutil.copyfile(out / RESUME, temporary)
    there = sorted((int(p.stem.removeprefix("epoch_")), p) for p in out.glob("epoch_*.pt"))
    unmarked = [p for number, p in there if number not in marked]
    for old in unmarked[: max(0, len(unmarked) - last)]:
        old.unlink()
