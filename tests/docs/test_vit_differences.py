"""Committed differences of vision transformers to other code, and measurements of those whose code is installed."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.encoders.vit_families import FAMILY_NAMES

SCRIPT = Path(__file__).parents[2] / "scripts" / "vit_differences.py"
BOUND = 2e-5  # of float32, as in the tests against a plain forward pass


def script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DIFFERENCES = script(SCRIPT)


def test_every_family_has_a_difference_and_every_comparison_a_row() -> None:
    rows = DIFFERENCES.rows()
    assert {row["family"] for row in rows} == set(FAMILY_NAMES)
    assert all(0 <= row["difference"] <= BOUND for row in rows)
    measured = {DIFFERENCES.place(row) for row in rows if "measured_by" in row}
    assert measured == {(c.family, c.code, c.note) for c in DIFFERENCES.COMPARISONS}
    by_hand = [row for row in rows if "measured_by" not in row]
    assert not {row["code"].partition(" ")[0] for row in by_hand} & set(DIFFERENCES.PACKAGES.values())


@pytest.mark.parametrize(
    "number",
    [pytest.param(n, id=f"{c.family} {c.code} {c.note}".strip()) for n, c in enumerate(DIFFERENCES.COMPARISONS)],
)
def test_the_forward_pass_is_that_of_the_other_code(number: int) -> None:
    comparison = DIFFERENCES.COMPARISONS[number]
    pytest.importorskip(comparison.code)
    assert comparison.difference() <= BOUND


def test_a_measurement_replaces_its_row_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.json").write_text(DIFFERENCES.FILE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(DIFFERENCES, "FILE", tmp_path / "rows.json")
    before = DIFFERENCES.rows()
    assert DIFFERENCES.main(["deit"]) == 0
    after = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert len(after) == len(before)
    changed = [row["family"] for old, row in zip(before, after, strict=True) if old != row]
    assert set(changed) <= {"deit"}
