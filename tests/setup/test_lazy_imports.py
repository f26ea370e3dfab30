"""Importing a package costs little and works where the heavy or optional libraries are missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

TORCH = {"torch", "torchvision", "timm"}
OPTIONAL = {"detectron2", "mmengine", "mmcv", "mmseg"}
HEAVY = TORCH | OPTIONAL | {"faiss", "sklearn", "scipy", "pandas", "matplotlib"}


def imported_by(statement: str) -> set[str]:
    code = f"{statement}; import sys; sys.stdout.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize("statement", ["import benchmarks", "import pretrain", "import results.schema"])
def test_import_loads_nothing_heavy(statement: str) -> None:
    assert imported_by(statement) & HEAVY == set()


def test_the_check_sees_what_is_imported() -> None:
    assert "scipy" in imported_by("import scipy")


@pytest.mark.slow
@pytest.mark.parametrize("command", [["benchmarks", "knn"], ["pretrain"]])
def test_a_command_can_be_profiled(command: list[str], tmp_path: Path) -> None:
    profiled = [sys.executable, "-m", "cProfile", "-o", str(tmp_path / "profile"), "-m", *command, "--help"]
    done = subprocess.run(profiled, capture_output=True, text=True)
    assert done.stderr == ""
    assert "--device" in done.stdout


# What a child process sees when a command is about to import torch, whose OpenMP reads its variables once.
AT_TORCH = """
import runpy, subprocess, sys

class AtTorch:
    def find_spec(self, name, *_):
        if name == "torch":
            child = "import os; print(os.environ.get('OMP_WAIT_POLICY'))"
            sys.exit(subprocess.run([sys.executable, "-c", child]).returncode)

sys.meta_path.insert(0, AtTorch())
"""
WAYS_IN = {
    "encoder-bench": "from results.command_line import encoder_bench; encoder_bench()",
    "benchmarks": "runpy.run_module('benchmarks', run_name='__main__', alter_sys=True)",
    "pretrain": "runpy.run_module('pretrain', run_name='__main__', alter_sys=True)",
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS_IN)
@pytest.mark.parametrize(("given", "policy"), [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")])
def test_waiting_threads_sleep_unless_the_user_says_otherwise(
    tmp_path: Path, way: str, given: dict[str, str], policy: str
) -> None:
    arguments = ["random-encoder", "--architecture", "resnet18", "--images", "none", "--out", "none"]
    if way == "pretrain":
        for number in range(2):
            Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
        arguments = ["--data", str(tmp_path), "--batch-size", "2", "--queue-size", "2", "--split-bn", "1", "--dry-run"]
    own = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", AT_TORCH + WAYS_IN[way], *arguments], env=own | given, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"{policy}\n"), done.stderr
