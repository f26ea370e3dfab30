"""Importing a package costs little and works where the heavy or optional libraries are missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
