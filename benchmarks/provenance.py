"""Where a number comes from: library versions, commit, hardware. No host name, no path."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

from results.schema import Hardware

LIBRARIES = ("torch", "torchvision", "numpy", "scikit-learn", "faiss-cpu", "timm", "pillow")


@cache
def versions() -> dict[str, str]:
    """Python's and the installed libraries'."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def commit() -> str | None:
    """The checkout's commit, with `+changes` where tracked files differ from it; None outside a git checkout."""
    root = Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603

    try:
        revision = git("rev-parse", "HEAD")
        return revision + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def hardware(device: str) -> Hardware:
    """This machine's processor, memory, and GPU where the run used one."""
    gpu = None
    if device.startswith("cuda"):
        import torch

        gpu = torch.cuda.get_device_name(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Hardware(cpu=_cpu(), cores=cores, memory_gib=round(memory, 1), gpu=gpu)


@cache
def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_memory_gib() -> float:
    """The largest resident set that this process has had.

    Linux hands what getrusage says on to the programs that a process starts; the high-water mark in /proc begins anew.
    """
    status = Path("/proc/self/status")
    for line in status.read_text(encoding="ascii").splitlines() if status.is_file() else ():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 2**20, 3)
    unit = 1 if platform.system() == "Darwin" else 1024  # bytes there, KiB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 3)
